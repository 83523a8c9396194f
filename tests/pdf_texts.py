"""PDFs of every writing system and layout, each page beside the text that it was made from."""

import math
import random
import re
import textwrap
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fpdf
import matplotlib

from tests.pdfs import FONT, ROOT, assemble, flate, font_with_map, page, tree

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
WORDS = {
    "latin": "the river über café carries naïve stones from mountain villages down towards an old harbour where "
    "fishermen repair their nets before dawn and children wait for bread while señor Ångström counts ships",
    "cyrillic": "река несёт камни из горных деревень вниз к старой гавани где рыбаки чинят свои сети перед рассветом "
    "и дети ждут хлеба пока старик считает корабли на горизонте объявляя их имена",
    "greek": "ο ποταμός μεταφέρει πέτρες από τα χωριά του βουνού προς το παλιό λιμάνι όπου οι ψαράδες επισκευάζουν "
    "τα δίχτυα τους πριν από την αυγή",
    "hebrew": "הנהר נושא אבנים מכפרים בהרים אל הנמל הישן שבו הדייגים מתקנים את הרשתות שלהם לפני עלות השחר "
    "והילדים ממתינים ללחם חם מן התנור בזמן שהזקן סופר ספינות באופק",
    "arabic": "النهر يحمل الحجارة من القرى الجبلية إلى الميناء القديم حيث يصلح الصيادون الشباك قبل الفجر "
    "والأطفال ينتظرون الخبز الساخن في المدينة بينما يعد العجوز السفن القادمة",
}
RIGHT_TO_LEFT = {  # what ordinary words lack
    "arabic, vowel signs": "كَانَ النَّهْرُ يَحْمِلُ الحِجَارَةَ مِنَ القُرَى الجَبَلِيَّةِ شكرًا جدًّا إنّ المدرّس يعلّم الطلّاب",
    "hebrew, points": "בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ",
    "yiddish": "דער אַלטער מאַן ציילט די שיפֿן און די קינדער וואַרטן אויף ברויט",
    "hebrew, numbers": 'ביום 12/05/2024 בשעה 14:30 נמכרו 1,250 ספרים במחיר 19.90 ש"ח, טלפון 03-6123456, 50% מהם ל-3 ימים.',
    "arabic, numbered list": "1. اشترى الولد خبزا طازجا. 2. ذهب الولد (أحمد) إلى السوق، 250 كتابا. 3. عاد إلى البيت القديم.",
    "hebrew, Latin words": "הפונקציה print(x) מדפיסה את x=5 ואז לשפת Python יש ספר של John Smith משנת 2024 בעברית.",
    "persian": "صبح در بازار ماهی تازه و نان خوب است. پیرمرد در شهر قدیم زندگی کرد و کشتی را دید که از دور آمد.",
}
BACKWARDS = {
    "persian": RIGHT_TO_LEFT["persian"],
    "urdu": "صبح بازار میں تازہ مچھلی اور روٹی بکتی ہے۔ بوڑھا آدمی جہاز گنتا ہے۔ بچے دکان کے سامنے کھڑے ہیں۔",
    "arabic, vowel signs": RIGHT_TO_LEFT["arabic, vowel signs"],
    "arabic without articles": "في 12 مايو 2024 بيع 250 كتابا بسعر 19 دينارا و 30 قرشا من متجر في مدينة. كان ذلك في يوم جميل.",
    "hebrew": "התקשרו למספר של דנה או של יוסי עד שעה 17:00, היא או הוא על הקו. זה כי הנה הבית של סבתא.",
}
SIMPLIFIED = "河流把石头从山村带到古老的港口，渔民在黎明前修补渔网，孩子们等待面包。"
JAPANESE = "川は山の村から古い港まで石を運び、漁師たちは夜明け前に網を直し、子供はパンを待つ。"
CJK = {  # predefined CMap -> (Python's name of the encoding, Adobe's collection, text)
    "GBK-EUC-H": ("gbk", "GB1", SIMPLIFIED),
    "GB-EUC-H": ("gb2312", "GB1", SIMPLIFIED),
    "UniGB-UCS2-H": ("utf-16-be", "GB1", SIMPLIFIED),
    "90ms-RKSJ-H": ("cp932", "Japan1", JAPANESE),
    "EUC-H": ("euc_jp", "Japan1", JAPANESE),
    "ETen-B5-H": ("big5", "CNS1", "河流把石頭從山村帶到古老的港口，漁民在黎明前修補漁網，孩子們等待麵包。"),
    "KSCms-UHC-H": (
        "cp949",
        "Korea1",
        "강은 산골 마을에서 오래된 항구까지 돌을 나르고 어부들은 새벽에 그물을 고친다.",
    ),
}


def prose(script: str, seed: int, num_words: int = 220) -> str:
    """Sentences of random words."""
    rng, words = random.Random(f"{script} {seed}"), WORDS[script].split()
    text = ""
    while num_words > 0:
        sentence = " ".join(rng.choices(words, k=rng.randint(5, 14)))
        text += f"{sentence[0].upper()}{sentence[1:]}. "
        num_words -= sentence.count(" ") + 1
    return text.strip()


def writer(font: str = "DejaVuSans.ttf", *, size: int = 11, shaping: bool = False) -> fpdf.FPDF:
    pdf = fpdf.FPDF(format="letter")
    pdf.add_font("text", "", FONTS / font)
    pdf.set_font("text", size=size)
    pdf.set_text_shaping(shaping)
    pdf.add_page()
    return pdf


def one_column(text: str, **keys) -> bytes:
    pdf = writer(**keys)
    pdf.multi_cell(0, text=text, align="J" if not keys.get("shaping") else "R")
    return bytes(pdf.output())


def two_columns(text: str, **keys) -> bytes:
    pdf = writer(**keys)
    with pdf.text_columns(ncols=2, gutter=10, text_align="J") as columns:
        columns.write(text)
    return bytes(pdf.output())


def shuffled(text: str, order: Callable[[list[int]], list[int]], *, num_columns: int = 1) -> bytes:
    """Columns of lines that are drawn in the order that is made of theirs."""
    pdf = writer(size=9)
    lines = textwrap.wrap(text, 80 // num_columns)
    height = -(-len(lines) // num_columns)
    for index in order(list(range(len(lines)))):
        column, row = divmod(index, height)
        pdf.text(15 + 100 * column, 20 + 5 * row, lines[index])
    return bytes(pdf.output())


def glyph_by_glyph(text: str, *, step: int = 1, **keys) -> bytes:
    """Each letter is placed by itself, without spaces; with `step` -1 from right to left."""
    pdf = writer(**keys)
    for row, line in enumerate(textwrap.wrap(text, 70)):
        x = 20.0 if step > 0 else pdf.w - 20
        for letter in line:
            width = pdf.get_string_width(letter)
            if letter != " ":
                pdf.text(x if step > 0 else x - width, 20 + 6 * row, letter)
            x += step * width
    return bytes(pdf.output())


def letter_by_letter(text: str) -> bytes:
    """Each letter is a text object that ends with a line end, as some printer drivers write."""
    measure = fpdf.FPDF(unit="pt")
    measure.set_font("helvetica", size=12)
    shown = []
    for row, line in enumerate(textwrap.wrap(text, 70)):
        x = 72.0
        for letter in line:
            if letter != " ":
                shown.append(b"BT /F1 12 Tf %.2f %d Td <%02x> Tj T* ET" % (x, 720 - 14 * row, ord(letter)))
            x += measure.get_string_width(letter)
    font = FONT.replace(b">>", b"/Encoding/WinAnsiEncoding>>")
    return assemble([ROOT, tree(5), font, flate(b"14 TL " + b"\n".join(shown)), page(b"4 0 R")])


def mathematics(seed: int) -> tuple[bytes, str]:
    """Prose with formulas: superscripts, subscripts, operators."""
    rng, pdf, truth = random.Random(seed), writer("STIXGeneral.ttf"), ""

    def write(text: str, place: str = "LINE") -> None:
        nonlocal truth
        pdf.char_vpos = place
        pdf.write(7, text)
        truth += text

    for sentence in re.findall(r"[^.]+\. ?", prose("latin", seed, 150)):
        write(sentence)
        a, b, c = rng.choices("abcnxyzαβγ", k=3)
        write(f"Hence {a}")
        write(str(rng.randint(2, 9)), "SUP")
        write(f" − {b}")
        write(f"{c}", "SUB")
        write(f" ≤ ∫ {c} d{a}, and ∑ {a}")
        write("i+1", "SUB")
        write(" = ∞. ")
    return bytes(pdf.output()), truth


def rotated(text: str, *, by: int = 0, turned: int = 0) -> bytes:
    """A page with /Rotate `by` whose text is turned counterclockwise, so that it is upright if both are equal."""
    pdf = writer(size=9)
    width, height = pdf.w_pt, pdf.h_pt
    shift_x, shift_y = {0: (0, 0), 90: (width, 0), 180: (width, height), 270: (0, height)}[turned]
    cos, sin = round(math.cos(math.radians(turned))), round(math.sin(math.radians(turned)))
    pdf._out(f"q {cos} {sin} {-sin} {cos} {shift_x} {shift_y} cm")
    top = pdf.h - (pdf.h if turned % 180 == 0 else pdf.w)
    for row, line in enumerate(textwrap.wrap(text, 70)):
        pdf.text(15, top + 20 + 6 * row, line)
    pdf._out("Q")
    return bytes(pdf.output()).replace(b"/Type /Page\n", b"/Type /Page\n/Rotate %d\n" % by)


def cjk(cmap: str) -> tuple[bytes, str]:
    """Text in a font that is not embedded, in one of the encodings that PDF viewers must know."""
    codec, collection, sentence = CJK[cmap]
    lines = [sentence[shift:] + sentence[:shift] for shift in range(0, 20, 2)]
    shown = b" ".join(b"<%s> Tj T*" % line.encode(codec).hex().encode() for line in lines)
    descendant = (
        b"<</Type/Font/Subtype/CIDFontType0/BaseFont/Song/CIDSystemInfo<</Registry(Adobe)/Ordering(%s)/Supplement 0>>"
        b"/FontDescriptor<</Type/FontDescriptor/FontName/Song/Flags 4/Ascent 880/Descent -120/CapHeight 700>>>>"
    ) % collection.encode()
    font = b"<</Type/Font/Subtype/Type0/BaseFont/Song/Encoding/%s/DescendantFonts[%s]>>" % (cmap.encode(), descendant)
    contents = flate(b"BT /F1 12 Tf 18 TL 60 700 Td %s ET" % shown)
    return assemble([ROOT, tree(5), font, contents, page(b"4 0 R")]), "\n".join(lines)


def presentation_forms(text: str) -> str:
    """The letters of Arabic as they are printed, each form a character of its own."""
    forms: dict[str, dict[str, str]] = {}
    for code in range(0xFE80, 0xFEF5):
        kind, *base = unicodedata.decomposition(chr(code)).split()
        if len(base) == 1:
            forms.setdefault(chr(int(base[0], 16)), {})[kind] = chr(code)
    shaped = ""
    for before, letter, after in zip(" " + text, text, text[1:] + " ", strict=False):
        own = forms.get(letter, {})
        joins_before = "<initial>" in forms.get(before, {}) and "<final>" in own
        joins_after = "<initial>" in own and "<final>" in forms.get(after, {})
        kind = {(0, 0): "<isolated>", (0, 1): "<initial>", (1, 0): "<final>", (1, 1): "<medial>"}
        shaped += own.get(kind[joins_before, joins_after], letter)
    return shaped


def visual(text: str, shape=lambda text: text) -> bytes:
    """Right-to-left text whose glyphs were put into the file from left to right."""
    pdf = writer()
    for row, line in enumerate(textwrap.wrap(text, 70)):
        shown = shape(line)[::-1]
        pdf.text(pdf.w - 20 - pdf.get_string_width(shown), 20 + 6 * row, shown)
    return bytes(pdf.output())


def with_nuls(text: str) -> bytes:
    """In each line one glyph of a font whose table says that it means U+0000, as LaTeX's minus often does."""
    lines = [
        b"/F1 12 Tf (%s ) Tj /F2 12 Tf <0001> Tj /F1 12 Tf ( 1) Tj T*" % line.encode() for line in text.split("\n")
    ]
    contents = flate(b"BT 14 TL 72 720 Td %s ET" % b"\n".join(lines))
    nothing = b"null"
    resources = b"/Font<</F1 3 0 R/F2 8 0 R>>"
    font, table = font_with_map(b"1 beginbfchar <0001> <0000> endbfchar")
    return assemble([ROOT, tree(5), FONT, contents, page(b"4 0 R", resources), nothing, nothing, font, table])


def mojibake(text: str) -> bytes:
    """Cyrillic in a font that calls its letters by the names of Latin ones, as old Russian PDFs do."""
    lines = [b"<%s> Tj T*" % line.encode("cp1251").hex().encode() for line in textwrap.wrap(text, 70)]
    font = FONT.replace(b">>", b"/Encoding/WinAnsiEncoding>>")
    contents = flate(b"BT /F1 12 Tf 14 TL 72 720 Td %s ET" % b"\n".join(lines))
    return assemble([ROOT, tree(5), font, contents, page(b"4 0 R")])


def documents() -> dict[str, Callable[[], tuple[bytes, str]]]:
    """Name -> what makes the PDF, and the text that it is made from."""

    def of(make: Callable[..., bytes], text: str, *how, **named) -> Callable[[], tuple[bytes, str]]:
        return lambda: (make(text, *how, **named), text)

    made: dict[str, Callable[[], tuple[bytes, str]]] = {}
    for script in ("latin", "cyrillic", "greek"):
        made[f"{script}, one column"] = of(one_column, prose(script, 1))
        made[f"{script}, two columns"] = of(two_columns, prose(script, 2))
        made[f"{script}, glyph by glyph"] = of(glyph_by_glyph, prose(script, 3))
    for num_columns in (1, 2):
        made[f"latin, bottom up, columns: {num_columns}"] = of(
            shuffled, prose("latin", 8), lambda lines: lines[::-1], num_columns=num_columns
        )
        made[f"latin, at random, columns: {num_columns}"] = of(
            shuffled,
            prose("latin", 9),
            lambda lines: random.Random(1).sample(lines, len(lines)),
            num_columns=num_columns,
        )
    made["latin, columns row by row"] = of(
        shuffled,
        prose("latin", 10),
        lambda lines: sorted(lines, key=lambda line: line % -(-len(lines) // 2)),
        num_columns=2,
    )
    made["latin, letter by letter"] = of(letter_by_letter, prose("latin", 6))
    made["mathematics"] = partial(mathematics, 4)
    for angle in (90, 180, 270):
        text = prose("latin", angle)
        made[f"page and text turned by {angle}"] = of(rotated, text, by=angle, turned=angle)
        made[f"page turned by {angle}"] = of(rotated, text, by=angle)
        made[f"text turned by {angle}"] = of(rotated, text, turned=angle)
    for cmap in CJK:
        made[f"CJK, {cmap}"] = partial(cjk, cmap)
    for script in ("hebrew", "arabic"):
        text = prose(script, 5, 120)
        made[f"{script}, shaped"] = of(one_column, text, shaping=True)
        made[f"{script}, from left to right"] = of(visual, text)
        made[f"{script}, glyph by glyph"] = of(glyph_by_glyph, text, step=-1)
        made[f"{script}, numbers in brackets"] = of(one_column, text.replace(". ", " (2024). "), shaping=True)
    made["arabic, presentation forms"] = of(visual, text, presentation_forms)
    for name, text in RIGHT_TO_LEFT.items():
        made[f"{name}, shaped"] = of(one_column, "\n".join([unicodedata.normalize("NFC", text)] * 3), shaping=True)
    return made


def tex_symbols() -> bytes:
    """U' =/= V |-> W: TeX's font of symbols, without a table of what its codes mean."""
    contents = flate(
        b"BT /F1 12 Tf 72 700 Td (U) Tj /F2 12 Tf (0) Tj /F1 12 Tf ( ) Tj /F2 12 Tf (6) Tj /F1 12 Tf (= V 607 ) Tj "
        b"/F2 12 Tf (7) Tj /F1 12 Tf ( W, says this page) Tj ET"
    )
    symbols = b"<</Type/Font/Subtype/Type1/BaseFont/ABCDEF+CMSY10>>"
    resources = b"/Font<</F1 3 0 R/F2 6 0 R>>"
    return assemble([ROOT, tree(5), FONT, contents, page(b"4 0 R", resources), symbols])

"""The text of a PDF is that from which it was made, in its order; what is no text is never trained on."""

import difflib
import textwrap

import pytest

from data.sources.pdf_page import looks_wrong, tidy
from tests.data.sources.test_pdf import BAD_PAGE, read
from tests.pdf_texts import (
    BACKWARDS,
    RIGHT_TO_LEFT,
    WORDS,
    documents,
    glyph_by_glyph,
    mojibake,
    one_column,
    prose,
    tex_symbols,
    with_nuls,
    writer,
)
from tests.pdfs import BODY

DOCUMENTS = documents()


def similarity(text: str, truth: str) -> float:
    """Of words in their order; of letters where a script has no spaces. 1 is the same."""
    pieces = [page.split() if " " in truth else list("".join(page.split())) for page in (text, truth)]
    return difflib.SequenceMatcher(None, *pieces, autojunk=False).ratio()


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.slow
def test_the_text_is_the_one_that_the_pdf_was_made_from(name, tmp_path):
    content, truth = DOCUMENTS[name]()
    text, skipped = read(tmp_path, content)
    assert skipped == {}
    assert similarity(text, truth) >= (0.98 if name == "mathematics" else 0.99)


def test_a_nul_costs_a_page_only_itself(tmp_path):
    assert read(tmp_path, with_nuls(f"{BODY}\n{BODY}")) == ("\n".join([f"{BODY}  1"] * 2), {})


def test_letters_under_false_names_are_not_trained_on(tmp_path):
    assert read(tmp_path, mojibake(prose("cyrillic", 1))) == ("", {BAD_PAGE: 1})


@pytest.mark.parametrize("name", BACKWARDS)
def test_words_that_are_drawn_backwards_are_not_trained_on(name, tmp_path):
    assert read(tmp_path, one_column(BACKWARDS[name])) == ("", {BAD_PAGE: 1})


def test_letters_that_are_drawn_from_left_to_right_are_not_trained_on(tmp_path):
    assert read(tmp_path, glyph_by_glyph(prose("arabic", 7, 60))) == ("", {BAD_PAGE: 1})


def test_control_characters_end_no_lines():
    assert tidy("one\x0b line\x85 of\x1c text\r\nand another") == "one line of text\nand another"


def test_code_keeps_its_indentation(tmp_path):
    code = "def f(x):\n    if x:\n        return 1  # the sum\n    return [x,   2]\n12     pass"
    content = one_column(code, font="DejaVuSansMono.ttf")
    assert read(tmp_path, content) == (code, {})


def test_lines_in_an_order_that_can_be_read_keep_it(tmp_path):
    lines = textwrap.wrap(prose("latin", 9, 100), 26)[:18]  # two rows of three blocks of three lines
    pdf = writer(size=9)
    for index, line in enumerate(lines):
        block, row = divmod(index, 3)
        pdf.text(15 + 65 * (block % 3), 20 + 30 * (block // 3) + 5 * row, line)
    assert read(tmp_path, bytes(pdf.output())) == ("\n".join(lines), {})


def test_tables_are_read_row_by_row(tmp_path):
    words = prose("latin", 9).lower().replace(".", "").split()
    rows = [" ".join(words[start : start + 2 + start % 3]) for start in range(0, 90, 3)]
    pdf = writer(size=9)
    for row in range(0, len(rows), 2):
        pdf.text(15, 20 + 5 * row, rows[row])
        pdf.text(100, 20 + 5 * row, rows[row + 1])
    assert read(tmp_path, bytes(pdf.output()))[0].split() == " ".join(rows).split()


def test_superscripts_are_no_lines(tmp_path):
    content, truth = DOCUMENTS["mathematics"]()
    text, _ = read(tmp_path, content)
    assert abs(text.count("\n") - len(truth) / 95) < 5


def test_the_symbols_of_tex_are_no_digits(tmp_path):
    assert read(tmp_path, tex_symbols()) == ("U′ ≠ V 607 ↦ W, says this page", {})


ONE_LETTER_A_LINE = "\n".join(prose("latin", 1).replace(" ", ""))
SHIFTED = "".join(chr(ord(letter) - 29) for letter in prose("latin", 2) if letter.isascii())


@pytest.mark.parametrize(
    "garbage",
    [
        ONE_LETTER_A_LINE,
        " ".join(ONE_LETTER_A_LINE),
        "".join(letter * 2 for letter in prose("latin", 1)),
        prose("latin", 1).replace(" ", ""),
        SHIFTED,
        "\ufffd\ufffd\ufffd" + BODY[:20],
        "\uf041\uf042\uf043 " * 30,
        "".join(f"/g{number % 97}" for number in range(200)),
        " ".join(f"(cid:{number})" for number in range(100)),
        "".join(f"/G{number:02X}" for number in range(200)),
        prose("cyrillic", 1).encode("cp1251").decode("latin-1"),
        "河流把石头从山村带到古老的港口，渔民在黎明前修补渔网".encode("gbk").decode("latin-1") * 3,
        "ΰԔϸЇ ́Ψߙ ϣÎg ķϢʆ ဍഀඥǊ һӍΉʽী ܅ȥ͟ರ һӍΉʽী ࠨźȥ ˮʷ್͟ ǬȈȥౖ " * 3,
        prose("hebrew", 1)[::-1],
        prose("arabic", 1)[::-1],
        *(text[::-1] for text in BACKWARDS.values()),
    ],
)
def test_what_nobody_wrote_looks_wrong(garbage):
    assert looks_wrong(garbage)


@pytest.mark.parametrize(
    "text",
    [
        "",
        BODY,
        *(prose(script, 9) for script in WORDS),
        *(RIGHT_TO_LEFT | BACKWARDS).values(),
        "Où êtes-vous allés, là-bas, à l’été ? Ça dépend : à Orléans, naïveté, œuvre, cœur.",
        "Đường phố Hà Nội những ngày này rất đông người, ai cũng vội vã về nhà sau giờ làm việc.",
        "使用Python语言和numpy库，计算α粒子的能量。" * 5,
        "a b c d e f g\nx = 3 · y − 2z ≤ αβ + ∂u/∂x · 2πr\nLet P, Q, R ∈ X be points with d(P, R) = d(P, Q) + d(Q, R).",
        "Contents\n1 Introduction . . . . . . . . . . . . . . . 1\n2 Methods . . . . . . . . . . . . . . . . 17",
        "1 2 3 4 5 6 7 8 9\n0.5 0.25 0.125\n-1 -2 -3\n" * 20,
        "ls /usr/bin/ab12 /etc/x11 and then 'cat /proc/cpuinfo', see (cid:3) there.",
        "The balloon committee will see all well-off bookkeepers add 100,000 bees too, Mississippi agreed.",
        "שלום, world: the word אמת has three letters.",
        "ご注文は、kg単位でお願いします。Ｔシャツは１０枚です。" * 4,
    ],
)
def test_what_somebody_wrote_does_not_look_wrong(text):
    assert not looks_wrong(text)


def test_letters_are_letters_and_not_the_shapes_that_were_printed():
    assert (
        tidy("ﻓﻲ ﺍﻟﻤﺪﻳﻨﺔ ⼈⽂ eﬃcient x² Ｔ\ufffd\x00\x07 \u200fשלום\ue000") == "في المدينة 人文 efficient x² Ｔ שלום"
    )

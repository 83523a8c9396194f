"""How often the encoding of a text is found, missed or mistaken, on translations of programs.

    python -m benchmarks.encodings FOLDER            # right, wrong and skipped, by length; the same for charset-normalizer
    python -m benchmarks.encodings letters FOLDER    # the table of data/sources/letter_frequencies.py

FOLDER holds unpacked packages with .po files in LC_MESSAGES folders. The table is from django, wagtail and django-oscar
(`pip download --no-deps`, then unzip); measure on others, such as sphinx, django-cms, mezzanine and django-allauth.
"""

import math
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from data.sources.encoding import UTF_8, Evidence

LENGTHS, TEXTS_EACH = (40, 100, 300, 1000, 4000), 4
LATIN_1 = "cp1252 iso8859_15 mac_roman cp850"
LATIN_2 = "cp1250 iso8859_2 mac_latin2 cp852"
ENCODINGS = {
    **dict.fromkeys(["de", "fr", "es", "it", "pt", "sv", "nl", "fi", "ca"], LATIN_1),
    **dict.fromkeys(["da", "nb"], "cp1252 mac_roman cp865"),
    **dict.fromkeys(["pl", "cs", "hu"], LATIN_2),
    **dict.fromkeys(["sk", "hr", "sl", "ro"], "cp1250 iso8859_2"),
    **dict.fromkeys(["et", "lv", "lt"], "cp1257 iso8859_13"),
    **dict.fromkeys(["sr", "mk", "be"], "cp1251"),
    "is": "cp1252",
    "tr": "cp1254 mac_turkish iso8859_9",
    "ru": "cp1251 koi8_r iso8859_5 mac_cyrillic cp866",
    "uk": "cp1251 koi8_u mac_cyrillic iso8859_5",
    "bg": "cp1251 mac_cyrillic iso8859_5",
    "el": "cp1253 mac_greek iso8859_7",
    "he": "cp1255 iso8859_8",
    "ar": "cp1256 iso8859_6",
    "fa": "cp1256",
    "th": "cp874 tis_620",
    "ja": "shift_jis cp932 euc_jp iso2022_jp",
    "zh_Hans": "gb18030 gbk gb2312",
    "zh_Hant": "big5 cp950",
    "ko": "euc_kr cp949 johab",  # johab and cp1258 are not tried: never right, and never to be wrong
    "vi": "cp1258",
}
WIDE = "utf-16-le utf-16-be utf-32-le utf-32-be"
OTHER_NAMES = {
    "zh_Hans": ("zh_CN",),
    "zh_Hant": ("zh_TW",),
    "pt": ("pt_PT", "pt_BR"),
    "he": ("he_IL",),
    "nb": ("no", "nb_NO"),
}
# What older encodings lack is written with what they have, as people did.
OLD_STYLE = str.maketrans(dict(zip("—–“”„«»’‘\u00a0№", '--"""""\'\' N', strict=True)) | {"…": "..."}) | str.maketrans(
    "țșȚȘ", "ţşŢŞ"
)


def messages(folder: Path, language: str) -> list[str]:
    """The translated sentences of a language, without placeholders and tags."""
    found: dict[str, None] = {}
    for name in (language, *OTHER_NAMES.get(language, ())):
        for path in sorted(folder.glob(f"**/{name}/LC_MESSAGES/*.po")):
            entries = re.findall(r'^msgstr(?:\[\d\])? ((?:".*"\n?)+)', path.read_text("utf-8", "replace"), re.M)
            for entry in entries[1:]:
                text = "".join(re.findall(r'"(.*)"', entry))
                text = " ".join(re.sub(r"%\([^)]*\)s|%[sd]|\{[^}]*\}|<[^>]*>|\\.", " ", text).split())
                if len(text) > 25:
                    found[text] = None
    return list(found)


def cases(folder: Path) -> Iterator[tuple[int, str, bytes]]:
    """(length, text, its bytes)"""
    rng = random.Random(1)
    for language, encodings in ENCODINGS.items():
        sentences = messages(folder, language)
        for length in LENGTHS:
            for _ in range(TEXTS_EACH if sum(map(len, sentences)) >= length else 0):
                start = rng.randrange(len(sentences))
                text = "\n".join(sentences[start:] + sentences[:start])[:length]
                for encoding in f"{encodings} {WIDE}".split():
                    try:
                        content = text.encode(encoding)
                    except UnicodeEncodeError:
                        content = text.translate(OLD_STYLE).encode(encoding, "ignore")
                    if not content.isascii() or "jp" in encoding:
                        yield length, content.decode(encoding), content


def found_here(content: bytes) -> str | None:
    evidence = Evidence()
    evidence.add(content)
    encoding = evidence.encoding()
    return content.decode(encoding, "surrogateescape" if encoding == UTF_8 else "replace") if encoding else None


def found_there(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(content).best()
    return str(best) if best else None


def measure(folder: Path) -> None:
    for name, find in (("here", found_here), ("charset-normalizer", found_there)):
        counts: dict[int, Counter] = defaultdict(Counter)
        began = time.monotonic()
        for length, text, content in cases(folder):
            found = find(content)
            counts[length]["skipped" if found is None else "right" if found == text else "wrong"] += 1
        total = sum(count.total() for count in counts.values())
        print(f"{name}: {total:,} texts, {1000 * (time.monotonic() - began) / total:.1f} ms each")
        for length, count in sorted(counts.items()):
            print(
                f"{length:>6,} characters: "
                + ", ".join(f"{count[kind]:>4} {kind}" for kind in ("right", "wrong", "skipped"))
            )


def print_letters(folder: Path) -> None:
    for language in ENCODINGS:
        count = Counter("".join(messages(folder, language)))
        parts: dict[int, str] = defaultdict(str)
        for letter, number in count.most_common():
            if letter.isalpha() and number > 2:
                parts[max(0, round(2 * (math.log2(count.total() / number) - 3)))] += letter
        print(f'    "{language}": "{"|".join(parts[part] for part in range(max(parts, default=-1) + 1))}",')


if __name__ == "__main__":
    print_letters(Path(sys.argv[2])) if sys.argv[1] == "letters" else measure(Path(sys.argv[1]))

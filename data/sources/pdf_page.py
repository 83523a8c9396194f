"""The text of one PDF page: is it text at all, and what of it is trained on.

Works on strings alone and never opens a file. A PDF stores glyphs, not letters: with a font that
does not say which letters they are, what comes out looks like text and is none.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

# Letters that exist only as printed shapes: ligatures, Arabic presentation forms, Kangxi radicals.
_SHAPES = re.compile("[\ufb00-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc\u2f00-\u2fdf\u0132\u0133\u01c7-\u01cc\u01f1-\u01f3]+")
_INVISIBLE = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\u00ad](?!\n)")  # a hyphen at a line end stays
_GLYPH_NAMES = re.compile(r"\(cid:\d+\)|(?<![a-z])/[A-Za-z]{1,3}[0-9A-F]{1,5}(?=[/\s]|$)")
_LATIN_1 = re.compile("[\u00a1-\u00b6\u00b8-\u00ff]")
_WORD = re.compile(r"[^\W\d_]+")
_DOUBLED = re.compile(r"(?:([^\W\d_])\1){3,}")
_NO_SPACES = re.compile("[A-Za-z\u00c0-\u06ff]{40,}")  # scripts with spaces between words: Latin to Arabic
_CJK = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH", "HANGUL"}
# Scripts that share a word in formulas, and in languages without spaces.
_TOGETHER = [{"LATIN", "GREEK", "MICRO"}, {"LATIN", "GREEK", *_CJK}]
_NO_SCRIPT = {"COMBINING", "MODIFIER", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER"}

# What tells whether words of Hebrew and of languages in Arabic letters are spelt and separated as they
# are: letters that only end a word, the Arabic article, marks at the end of a sentence, and frequent
# words whose reverse is none.
_FREQUENT = "של|על|הוא|היא|זה|כי|אשר|في|من|هذا|كان|به|از|که|است|را|می|های|اور|کو"
_RIGHT_WAY = re.compile(rf"\B[ךםןףץةىےں]\b|\b[وفبك]?ال\w\w|[\u05d0-\u06d3][.,:;!?؟،؛۔](?!\S)|\b(?:{_FREQUENT})\b")
_REVERSED = re.compile(
    r"\b[ךםןףץةىےں]\B|\B[ךםןףץةےں]\B|\w\wلا[وفبك]?\b|(?:(?<!\S)|(?<=\w\w))[.,:;!?؟،؛۔](?=[\u05d0-\u06d3])"
    rf"|\b(?:{_FREQUENT[::-1]})\b"
)
_MARKS = re.compile("[\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670]+")  # vowel signs of both scripts


def tidy(text: str) -> str:
    """Return a page without what nobody reads: control and private characters, space at line ends.

    Letters come as themselves, not as the shapes that were printed.
    """
    text = _SHAPES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = text.translate({ord(letter): None for letter in set(text) if not is_readable(letter)})
    text = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return _INVISIBLE.sub("", text)


@lru_cache(1 << 16)
def is_readable(letter: str) -> bool:
    """Return whether it is a character of a text: no control, private or unassigned one."""
    return letter in "\r\n\t" or (letter != "\ufffd" and unicodedata.category(letter) not in ("Cc", "Co", "Cn", "Cs"))


def looks_wrong(text: str) -> bool:
    """Return whether a page is no text that anybody wrote, by the share of what gives it away.

    Such a page comes from a font without a table of letters (control characters, names of glyphs,
    mojibake, words in several scripts), or from glyphs placed one by one (letters alone, twice,
    from right to left, or without spaces).
    """
    visible = "".join(text.split())
    words = _WORD.findall(text)
    letters = sum(map(len, words))
    separate = [word for word in text.split() if script(word[0]) not in (None, *_CJK)]
    return (
        10 * sum(times for letter, times in Counter(visible).items() if not is_readable(letter)) > len(visible)
        or 5 * matched(_GLYPH_NAMES, text) > len(visible)
        or 5 * len(_LATIN_1.findall(text)) > 2 * len(visible) > 40
        or 5 * sum(map(mixes_scripts, words)) > len(words) > 10
        or 10 * sum(len(word) == 1 for word in separate) > 7 * len(separate) > 200
        or 2 * matched(_DOUBLED, text) > letters > 20
        or 2 * matched(_NO_SPACES, text) > letters > 80
        or reads_backwards(text)
    )


def reads_backwards(text: str) -> bool:
    """Return whether the words of Hebrew or of a language in Arabic letters are spelt from the end."""
    letters = _MARKS.sub("", text)
    return len(_REVERSED.findall(letters)) > max(2, len(_RIGHT_WAY.findall(letters)))


def matched(pattern: re.Pattern, text: str) -> int:
    """Return how many characters of the text the pattern covers."""
    return sum(match.end() - match.start() for match in pattern.finditer(text))


def mixes_scripts(word: str) -> bool:
    """Return whether a word has letters of scripts that never share one."""
    if word.isascii():
        return False
    scripts = {name for letter in word if (name := script(letter))}
    return len(scripts) > 1 and not any(scripts <= together for together in _TOGETHER)


@lru_cache(1 << 16)
def script(letter: str) -> str | None:
    """Return the script of a letter as Unicode's names begin: LATIN, CYRILLIC, CJK ..."""
    name = unicodedata.name(letter, "").split(" ")[0] if letter.isalpha() else ""
    return None if not name or name in _NO_SCRIPT else name

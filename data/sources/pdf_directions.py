"""The order of letters in lines of Hebrew, Arabic and what shares a line with them.

PDFium reverses words in the order in which they were drawn, takes a vowel sign for the beginning of
a word or of a line, and mixes up lines of both directions. The places of the glyphs are certain: here
a line is read as it is printed, each mark goes to the letter on which it is printed, and Unicode's
bidirectional algorithm (UAX #9) is undone.
"""

import math
import re
from bisect import bisect
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple
from unicodedata import combining, normalize

from pypdfium2 import PdfTextPage

HYPHEN = "\ufffe"  # PDFium's sign for a hyphen at the end of a line and the line end
_R = "\u0590-\u065f\u066e-\u06ef\u06fa-\u08ff"  # written from right to left: Hebrew to Arabic, without digits
RIGHT = re.compile(f"[{_R}]+")
_LEFT = re.compile("[^\\W\\d_\u0590-\u08ff][^\\s\u0590-\u08ff]*")
_STRONG = re.compile(f"[{_R}]|[^\\W\\d_]")
_ARABIC = re.compile("[\u0600-\u08ff]")
_PART = re.compile(f"[^\r\n{HYPHEN}]+{HYPHEN}?")

# What is read from left to right among words of the other direction. A number after a Latin letter
# is read with it. In Arabic, a hyphen or % is no part of a number.
_PHRASE = "\\d*[^\\W\\d_\u0590-\u08ff](?:[^\u0590-\u08ff]*[^\\W_\u0590-\u08ff])?[%°]?"
_IN_HEBREW = re.compile(f"{_PHRASE}|[#$€£₪]*\\d+(?:[-.,:/+]\\d+)*[%°$€£₪]*")
_IN_ARABIC = re.compile(f"{_PHRASE}|\\d+(?:[.,:/\u066b\u066c]\\d+)*")
_RIGHT_PHRASE = re.compile(f"[{_R}](?:(?:\\W|[\\d_{_R}])*[{_R}])?")
_SPACES = {" ", "\u00a0"}
_BRACKETS = "()[]{}<>«»"
_MIRRORED = str.maketrans(_BRACKETS, ")(][}{><»«")


class Glyph(NamedTuple):
    """What is printed at one place: a letter, or those of a ligature. In points, on the page turned upright."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    ink: tuple[float, float]  # of a mark this is not from left to right, as a font may give it any width

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2

    @property
    def is_mark(self) -> bool:
        return all(map(combining, self.text))


def right_to_left(text: str, glyphs: PdfTextPage, angle: int) -> Iterator[tuple[int, int, str]]:
    """Yield where in the text lines with words from right to left begin and end, and how they are read.

    `text`: PDFium's, a character for each of its glyphs. `angle`: by how much it is turned, clockwise.
    """
    parts = [
        (start, end, [in_reading_order(printed(line)) for line in lines(row)])
        for start, end, row in rows(text, glyphs, angle)
    ]
    turned = "".join(letter for _, _, read in parts for line in read for letter, is_turned in line if is_turned)
    mirrored = unpaired(turned.translate(_MIRRORED)) < unpaired(turned)
    for start, end, read in parts:
        shown = (
            "".join(letter.translate(_MIRRORED) if mirrored and is_turned else letter for letter, is_turned in line)
            for line in read
        )
        yield start, end, "\n".join(shown).replace(HYPHEN, "-") + "\n" * (text[end - 1] == HYPHEN)


def rows(text: str, glyphs: PdfTextPage, angle: int) -> Iterator[tuple[int, int, list[Glyph]]]:
    """Yield the beginning, the end and the glyphs of each part of the text with words from right to left.

    Parts that are beside each other are one: PDFium takes a mark or another direction for a line end.
    """
    row: list[Glyph] = []
    start = end = 0
    for part in _PART.finditer(text):
        more = list(placed(part, glyphs, angle))
        if not more:
            continue
        if not (row and any(beside(row, line) for line in lines(more))):
            if RIGHT.search(text, start, end):
                yield start, end, row
            start, row = part.start(), []
        end = part.end()
        row += more
    if RIGHT.search(text, start, end):
        yield start, end, row


def lines(row: list[Glyph]) -> list[list[Glyph]]:
    """Return the lines of a part of the text, from the top: PDFium may take a page for one line."""
    levels = [[row[0]]]
    for glyph in row[1:]:
        if glyph.is_mark or overlap(levels[-1][0], glyph) > 1 / 4:
            levels[-1].append(glyph)
        else:
            levels.append([glyph])
    levels.sort(key=lambda level: -level[0].top)
    found = levels[:1]
    for level in levels[1:]:
        if beside(found[-1], level):
            found[-1] += level
        else:
            found.append(level)
    return found


def placed(part: re.Match, glyphs: PdfTextPage, angle: int) -> Iterator[Glyph]:
    """Yield the glyphs of a part of the text, without spaces that PDFium inserted: those have no width."""
    for ink, indices in groupby(range(*part.span()), key=glyphs.get_charbox):
        first, *more = indices
        letters = part.string[first : first + 1 + len(more)]
        if letters == " " and ink[0] == ink[2] and ink[1] == ink[3]:
            continue
        if more and RIGHT.match(letters[-1]) and not combining(letters[-1]):
            letters = letters[::-1]  # of a ligature, which PDFium reverses with its word
        left, bottom, right, top = upright(glyphs.get_charbox(first, loose=True), angle)
        ink_left, _, ink_right, _ = upright(ink, angle)
        yield Glyph(letters, left, bottom, right, top, (ink_left, ink_right))


def upright(box: tuple[float, ...], angle: int) -> tuple[float, ...]:
    """Return left, bottom, right and top on the page that is turned back by the angle."""
    left, bottom, right, top = box
    turned = {90: (-top, left, -bottom, right), 180: (-right, -top, -left, -bottom), 270: (bottom, -right, top, -left)}
    return turned.get(angle, box)


def beside(row: list[Glyph], more: list[Glyph]) -> bool:
    """Return whether glyphs are at the height of a row, and no further from it than two words of a line."""
    left, right = min(glyph.left for glyph in row), max(glyph.right for glyph in row)
    next_left, next_right = min(glyph.left for glyph in more), max(glyph.right for glyph in more)
    gap = max(left - next_right, next_left - right)
    return overlap(row[0], more[0]) > 1 / 2 and gap < 2 * (row[0].top - row[0].bottom)


def overlap(one: Glyph, other: Glyph) -> float:
    """Return how much of the height of two glyphs is the same, as a share of the smaller one."""
    height = min(one.top - one.bottom, other.top - other.bottom)
    return (min(one.top, other.top) - max(one.bottom, other.bottom)) / height if height else 0


def printed(row: list[Glyph]) -> list[str]:
    """Return the letters of a line from left to right, each with its marks, and spaces where it has gaps."""
    bases = sorted((glyph for glyph in row if not glyph.is_mark), key=lambda glyph: glyph.middle)
    middles = [glyph.middle for glyph in bases]
    marks = [""] * len(bases)
    for mark in row:
        if mark.is_mark and bases:
            near = bisect(middles, sum(mark.ink) / 2)
            choice = range(max(0, near - 2), min(len(bases), near + 2))
            marks[max(choice, key=lambda index: fit(bases[index], mark))] += mark.text
    line: list[str] = []
    reached = math.inf
    for glyph, own in zip(bases, marks, strict=True):
        if glyph.left - reached > (glyph.top - glyph.bottom) / 8 and not {glyph.text, line[-1]} & _SPACES:
            line.append(" ")
        line.append(normalize("NFC", glyph.text + own))
        reached = glyph.right if len(line) == 1 else max(reached, glyph.right)
    return line


def fit(base: Glyph, mark: Glyph) -> tuple[bool, bool, float]:
    """Return how well a mark fits a letter: where programs do not place it, it begins where the letter does."""
    left, right = mark.ink
    width = min(base.right, right) - max(base.left, left)
    return base.text[0].isalpha(), abs(base.left - mark.left) < 0.1, width


def in_reading_order(line: list[str]) -> list[tuple[str, bool]]:
    """Return the letters in the order in which they are read, and whether that is from right to left."""
    shape = "".join(letter[0] for letter in line)
    if reads_from_right(shape):
        return turned(line, shape)
    read, end = [], 0
    for phrase in _RIGHT_PHRASE.finditer(shape):
        read += [(letter, False) for letter in line[end : phrase.start()]]
        read += turned(line[phrase.start() : phrase.end()], phrase[0])
        end = phrase.end()
    return read + [(letter, False) for letter in line[end:]]


def reads_from_right(shape: str) -> bool:
    """Return the direction of a line by its words, where they end and where the full stop is."""
    right, left = RIGHT.findall(shape), _LEFT.findall(shape)
    if not left or not right:
        return bool(right)
    strong = _STRONG.findall(shape)
    ends = sum(1 if RIGHT.match(letter) else -1 for letter in (strong[0], strong[-1]))
    stops = (shape.strip()[0] in ".,:;!?") - (shape.strip()[-1] in ".,:;!?")
    return len(right) - len(left) + ends + 2 * stops >= 0


def turned(line: list[str], shape: str) -> list[tuple[str, bool]]:
    """Return the letters of a phrase from right to left, with numbers and words of the other direction as they are."""
    pieces, end = [], 0
    for phrase in (_IN_ARABIC if _ARABIC.search(shape) else _IN_HEBREW).finditer(shape):
        pieces += [[(letter, True)] for letter in line[end : phrase.start()]]
        end = phrase.end()
        pieces.append([(letter, False) for letter in line[phrase.start() : end]])
        # A bracket belongs to the phrase with the one that it closes. PDFium may have mirrored it.
        for closing in ")]}":
            if shape[end : end + 1] in (closing, closing.translate(_MIRRORED)) and opens(phrase[0], closing):
                pieces[-1].append((closing, False))
                end += 1
    pieces += [[(letter, True)] for letter in line[end:]]
    return [letter for piece in reversed(pieces) for letter in piece]


def unpaired(text: str) -> int:
    """Return how many brackets of a text have none that belongs to them."""
    open_ones, wrong = [], 0
    for letter in text:
        if letter in "([{<«":
            open_ones.append(letter.translate(_MIRRORED))
        elif letter in ")]}>»":
            if open_ones and open_ones[-1] == letter:
                open_ones.pop()
            else:
                wrong += 1
    return wrong + len(open_ones)


def opens(text: str, closing: str) -> bool:
    return text.count(closing.translate(_MIRRORED)) > text.count(closing)

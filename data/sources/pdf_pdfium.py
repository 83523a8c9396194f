"""Reads the text of a page with PDFium, the PDF library of Chrome: C++, called through ctypes.

PDFium finds lines and spaces by the places of the glyphs. What it gets wrong is put right here:
pages whose text does not stand upright, superscripts that become lines, and spaces in code;
what is written from right to left in data/sources/pdf_directions.py, and lines that are drawn out
of order in data/sources/pdf_lines.py.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from ctypes import create_string_buffer
from math import degrees

from pypdfium2 import PdfDocument, PdfPage, PdfTextPage, raw

from data.sources.pdf_directions import HYPHEN, RIGHT, right_to_left
from data.sources.pdf_lines import Line, by_column, in_columns

__all__ = ["PdfDocument", "page_text"]

SAMPLES = 64  # characters of a page whose angle is measured
MOST_SPACES = 100  # side by side
_TEX_SYMBOLS = {"0": "\u2032", "6": "\u0338", "7": "\u21a6"}  # prime, negation of the next symbol, maps to
_TEX_DIGIT = re.compile("[067]")
_NEGATION = re.compile("\u0338 ?(\\S)")
_LINE = re.compile(f"[^ \r\n{HYPHEN}](?:[^\r\n{HYPHEN}]*[^ \r\n{HYPHEN}])?{HYPHEN}?")
_GAP = re.compile("(?<=\\S)(?: ?\r\n ?| )(?=\\S)")


def page_text(page: PdfPage) -> str:
    """Return the text of a page. Turns the page upright."""
    glyphs = page.get_textpage()
    angle = main_angle(glyphs)
    if page.get_rotation() != -angle % 360:
        page.set_rotation(-angle % 360)
        glyphs = page.get_textpage()
    text = glyphs.get_text_range(errors="ignore")
    if len(text) != (count := glyphs.count_chars()):  # without glyphs that stand for no letter
        text = "".join(chr(raw.FPDFText_GetUnicode(glyphs, index)) for index in range(count))
        text = text.replace("\x02", HYPHEN)
    # A place in the text is the number of a glyph, until line ends are joined.
    text = _TEX_DIGIT.sub(lambda match: tex_symbol(match, glyphs), text)
    if angle == 0 and not RIGHT.search(text):
        lines = list(lines_of(text, glyphs))
        rows = [cells(line, text, glyphs) for line in lines]
        parts = [cell for row in rows for cell in row]
        if (order := in_columns(parts)) == parts:
            order = by_column(rows, text)
        if order != lines:
            return "\n".join(left_to_right(text, line.start, line.end, glyphs, angle).rstrip() for line in order)
    read, end = "", 0
    for start, stop, line in right_to_left(text, glyphs, angle) if RIGHT.search(text) else ():
        read += left_to_right(text, end, start, glyphs, angle) + line
        end = stop
    return read + left_to_right(text, end, len(text), glyphs, angle)


def left_to_right(text: str, start: int, end: int, glyphs: PdfTextPage, angle: int) -> str:
    """Return a part of the text as it is read, without lines that are none."""
    text = text[start:end]
    if angle == 0:
        text = _GAP.sub(lambda match: between(match, start, glyphs), text)
    text = text.replace(HYPHEN, "-\n").replace("\r\n", "\n").replace("\u21a6→", "\u21a6")
    return _NEGATION.sub(lambda match: unicodedata.normalize("NFC", match[1] + "\u0338"), text)


def main_angle(glyphs: PdfTextPage) -> int:
    """Return by how many degrees, clockwise, most letters of the page are turned: 0, 90, 180 or 270."""
    count = glyphs.count_chars()
    angles: Counter[int] = Counter()
    for index in range(0, count, count // SAMPLES + 1):
        if not raw.FPDFText_IsGenerated(glyphs, index) and raw.FPDFText_GetUnicode(glyphs, index) > 32:
            angles[round(degrees(raw.FPDFText_GetCharAngle(glyphs, index)) / 90) % 4 * 90] += 1
    return max(angles, key=angles.__getitem__, default=0)


def tex_symbol(digit: re.Match, glyphs: PdfTextPage) -> str:
    """Return the symbol whose name PDFium does not know, if the digit is in TeX's font of symbols."""
    name = create_string_buffer(64)
    raw.FPDFText_GetFontInfo(glyphs, digit.start(), name, len(name), None)
    return _TEX_SYMBOLS[digit[0]] if b"CMSY" in name.value else digit[0]


def lines_of(text: str, glyphs: PdfTextPage) -> Iterator[Line]:
    """Yield the lines of a page, each with what `between` joins to it."""
    start = None
    for part in _LINE.finditer(text):
        start = part.start() if start is None else start
        gap = _GAP.match(text, part.end())
        if gap and not between(gap, 0, glyphs).startswith("\n"):
            continue
        left, bottom, _, top = glyphs.get_charbox(start, loose=True)
        right = glyphs.get_charbox(part.end() - 1, loose=True)[2]
        yield Line(start, part.end(), left, bottom, right, top)
        start = None


def cells(line: Line, text: str, glyphs: PdfTextPage) -> list[Line]:
    """Return a line, cut where it has a gap that is as wide as the line is high."""
    found, height = [line], line.top - line.bottom
    for space in re.finditer("(?<=\\S) (?=\\S)", text[line.start : line.end]):
        before, after = line.start + space.start() - 1, line.start + space.end()
        right, left = glyphs.get_charbox(before, loose=True)[2], glyphs.get_charbox(after, loose=True)[0]
        if left - right > height:
            found[-1] = found[-1]._replace(end=before + 1, right=right)
            found.append(line._replace(start=after, left=left))
    return found


def between(gap: re.Match, offset: int, glyphs: PdfTextPage) -> str:
    """Return what stands for a space, or for a line end: nothing or a space if its glyphs are side by side."""
    start, end = offset + gap.start(), offset + gap.end()
    if gap[0] == " ":
        return " " * max(1, num_spaces(start, (start - 1, end, end + 1), glyphs))
    _, bottom, right, top = glyphs.get_charbox(start - 1, loose=True)
    left, next_bottom, _, next_top = glyphs.get_charbox(end, loose=True)
    smaller = min(top - bottom, next_top - next_bottom)
    overlap, distance = min(top, next_top) - max(bottom, next_bottom), left - right
    if overlap < smaller / 3 or not -smaller / 4 < distance < smaller:
        return "\n" + " " * (num_spaces(end - 1, (), glyphs) if gap[0][-1] == " " else 0)
    return " " if distance > smaller / 6 or " " in gap[0] else ""


def num_spaces(space: int, around: tuple[int, ...], glyphs: PdfTextPage) -> int:
    """Return how many spaces PDFium made one of, in code: 0 unless the glyphs around it are as wide as the space."""
    left, _, right, _ = glyphs.get_charbox(space, loose=True)
    width = right - left
    spaces = round((glyphs.get_charbox(space + 1, loose=True)[0] - left) / width) if width > 0 else 0
    if not 1 < spaces <= MOST_SPACES:
        return 0
    boxes = [glyphs.get_charbox(min(index, glyphs.count_chars() - 1), loose=True) for index in around]
    return spaces if all(round((box[2] - box[0]) / width, 1) in (0, 1) for box in boxes) else 0

"""Reads the text of a page with PDFium, the PDF library of Chrome: C++, called through ctypes.

PDFium finds lines and spaces by the places of the glyphs. What it gets wrong is put right here:
pages whose text does not stand upright, superscripts that become lines, Arabic ligatures and, in
lines of both directions, the order of words.
"""

import re
import unicodedata
from collections import Counter
from ctypes import create_string_buffer
from math import degrees

from pypdfium2 import PdfDocument, PdfPage, PdfTextPage, raw

__all__ = ["PdfDocument", "page_text"]

SAMPLES = 64  # characters of a page whose angle is measured
HYPHEN = "\ufffe"  # PDFium's sign for a hyphen at the end of a line and the line end
_ARABIC = re.compile("[\u0621-\u064a]{2,}")
_TEX_SYMBOLS = {"0": "\u2032", "6": "\u0338", "7": "\u21a6"}  # prime, negation of the next symbol, maps to
_TEX_DIGIT = re.compile("[067]")
_NEGATION = re.compile("\u0338 ?(\\S)")
_LINE_END = re.compile("(?<=\\S) ?\r\n ?(?=\\S)")
_RIGHT = re.compile("[\u0590-\u08ff]+")  # words from right to left: Hebrew to Arabic
_LEFT = re.compile("[^\\W\u0590-\u08ff]+")
_RIGHT_PHRASE = re.compile("(?<![\u0590-\u08ff])[\u0590-\u08ff]+(?:[^\\w\u0590-\u08ff]+[\u0590-\u08ff]+)+")
_LEFT_PHRASE = re.compile("(?<![^\\W\\d_])[^\\W\\d_\u0590-\u08ff]+(?:[^\u0590-\u08ff]*[^\\W\\d_\u0590-\u08ff]+)+")
_SEGMENT = re.compile("[\u0590-\u08ff]+|[^\\W\u0590-\u08ff]+|[^\\w\u0590-\u08ff]+")
_MIRRORED = str.maketrans("()[]{}<>", ")(][}{><")


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
    text = _ARABIC.sub(lambda match: without_reversed_ligatures(match, glyphs), text)
    if angle == 0:
        text = _LINE_END.sub(lambda match: between(match, glyphs), text)
    text = text.replace(HYPHEN, "-\n").replace("\r\n", "\n").replace("\u21a6→", "\u21a6")
    text = _NEGATION.sub(lambda match: unicodedata.normalize("NFC", match[1] + "\u0338"), text)
    return "\n".join(map(in_reading_order, text.split("\n"))) if _RIGHT.search(text) else text


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


def between(line_end: re.Match, glyphs: PdfTextPage) -> str:
    """Return what stands for a line end: nothing or a space if the glyphs around it are side by side."""
    _, bottom, right, top = glyphs.get_charbox(line_end.start() - 1, loose=True)
    left, next_bottom, _, next_top = glyphs.get_charbox(line_end.end(), loose=True)
    smaller = min(top - bottom, next_top - next_bottom)
    overlap, gap = min(top, next_top) - max(bottom, next_bottom), left - right
    if overlap < smaller / 3 or not -smaller / 4 < gap < smaller:
        return "\n"
    return " " if gap > smaller / 6 or " " in line_end[0] else ""


def without_reversed_ligatures(word: re.Match, glyphs: PdfTextPage) -> str:
    """Return an Arabic word with the letters of a ligature, which are one glyph, in their order.

    PDFium reverses the letters of a word, those of a ligature too.
    """
    letters: dict[tuple, str] = {}
    for index, letter in enumerate(word[0], start=word.start()):
        place = glyphs.get_charbox(index)
        letters[place] = letter + letters.get(place, "")
    return "".join(letters.values())


def in_reading_order(line: str) -> str:
    """Return a line with its phrases of the other direction in their order.

    PDFium gives each word in its order, and the words in the order of the direction that most
    words of the line have.
    """
    right = len(_RIGHT.findall(line))
    if not right:
        return line
    if right < len(_LEFT.findall(line)):
        return _RIGHT_PHRASE.sub(backwards, line)
    opening, closing = line.find("("), line.find(")")
    if 0 <= closing < opening or opening < 0 <= closing:
        line = line.translate(_MIRRORED)
    return _LEFT_PHRASE.sub(backwards, line)


def backwards(phrase: re.Match) -> str:
    return "".join(reversed(_SEGMENT.findall(phrase[0])))

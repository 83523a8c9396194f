"""Finds the encoding of a text file: by what it declares, by what is valid, or by probability.

A byte order mark decides, then UTF-8 if the bytes are valid. Otherwise older encodings, and UTF-16
and UTF-32 without a mark, are tried: the text that each of them gives has a probability in every
language, by how frequent its letters are there (letter_frequencies.py) and by rules that hold in all. The most
probable text is taken only if it is certain: more probable than any other by MARGIN, and as
probable as text of its language usually is. If not, the answer is None, since a wrong guess would
teach a model garbage without a word. benchmarks/encodings.py measures this.

Never reads files. Costs are in bits: -log2 of a probability.
"""

import codecs
import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data.sources.letter_frequencies import FREQUENT, LETTERS

# In each group, texts that are equal count once. Those of the second are rarer by UNUSUAL bits.
MULTIBYTE = ("cp932", "euc_jp", "gb18030", "big5hkscs", "cp949")
OLDER = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874", "koi8_u"),
    *MULTIBYTE,
)
UNUSUAL_OLDER = (
    *("iso8859_2", "iso8859_5", "iso8859_6", "iso8859_7", "iso8859_13", "iso8859_15", "iso8859_16"),
    *("mac_roman", "mac_latin2", "mac_cyrillic", "mac_greek", "mac_turkish", "mac_iceland"),
    *("cp437", "cp720", "cp737", "cp775", "cp850", "cp852", "cp855", "cp857", "cp861", "cp862", "cp865", "cp866"),
    *("utf-16-le", "utf-16-be"),  # without a NUL
)
UTF_8 = "utf-8-sig"
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
ESCAPED = ("iso2022_jp", "hz")  # written in ASCII alone
_ESCAPE = re.compile(rb"\x1b|~\{[!-}]{2}")
UNUSUAL = 7.0
MARGIN = 12.0  # bits: the next best text must be four thousand times less probable
LARGEST_EXCESS = 1.0  # bits a letter more than text of the language has on average
SAMPLE_BYTES = 4096

RARE = 21.0  # a character that the language does not have
FOREIGN_CJK = 28.0  # such a one in place of two letters
BETWEEN_SCRIPTS, BETWEEN_CASES, WITHIN_WORD = 10.0, 5.0, 8.0  # rules that hold in all languages: see `_cost_of_rules`
CJK = ("ja", "zh-Hans", "zh-Hant", "ko")
SCRIPTS = ((0x41, 0x250), (0x370, 0x400), (0x400, 0x530), (0x590, 0x600), (0x600, 0x700), (0xE00, 0xE80))
PUNCTUATION = {  # costs in all languages that do not say otherwise
    **dict.fromkeys(" \n", 3.0),
    **dict.fromkeys("0123456789.,:;!?()'\"-/\r\t", 8.0),
    **dict.fromkeys("#$%&*+<=>@[\\]^_`{|}~–—’‘“”„«»…\u00a0•©", 11.0),
    **dict.fromkeys("€§£°·", 13.0),
    **dict.fromkeys("®½²³±", 15.0),
}
CJK_PUNCTUATION = dict.fromkeys("、。「」・，！？：；（）《》\u3000『』【】", 7.0)
OWN_PUNCTUATION = {
    "ar": dict.fromkeys("،؟؛", 9.0),
    "fa": dict.fromkeys("،؟؛\u200c", 9.0),
    "es": dict.fromkeys("¿¡ºª", 12.0),
    "ca": dict.fromkeys("¿¡ºª·", 12.0),
    "zh-Hans": {"·": 10.0},
}

PLAIN_BYTES = 16  # of ASCII that a sample keeps before and after other text; adjacent bytes may belong to it
_PLAIN_RUN = re.compile(rb"[\0-\x7f]{%d,}" % (2 * PLAIN_BYTES + 1))
_STRAY = re.compile("[\udc80-\udcff]")
CONTROL_BYTES = bytes([*range(9), *range(0x0E, 0x1B), *range(0x1C, 0x20), 0x7F])


class Evidence:
    """Collects, while a file is read once, what decides on its encoding. Holds 8 KB."""

    def __init__(self) -> None:
        self._head = b""
        self._sample = bytearray()  # the first lines that are not ASCII
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._has_nul = False
        self._within_line = False  # the last chunk ended there, perhaps within a character
        self.num_valid = self.num_stray = 0  # UTF-8 sequences; bytes that are none

    def add(self, chunk: bytes) -> None:
        """Take the next part of the file, of 64 KB and more unless it is the last."""
        if len(self._head) < SAMPLE_BYTES:
            self._head += chunk[: SAMPLE_BYTES - len(self._head)]
        self._has_nul = self._has_nul or b"\0" in chunk
        text, within_line = self._decoder.decode(chunk), self._within_line
        self._within_line = not chunk.endswith(b"\n")
        if text.isascii() and not has_escapes(chunk):
            return
        num_stray = 0 if encodable(text) else len(_STRAY.findall(text))
        self.num_stray += num_stray
        self.num_valid += len(text) - len(text.encode("ascii", "ignore")) - num_stray
        if len(self._sample) < SAMPLE_BYTES:
            # Characters end before a space or a line's end, which are part of none.
            if within_line:
                chunk = b"".join(re.split(rb"([ \n])", chunk, maxsplit=1)[1:])
            if len(chunk) > 2**15:
                chunk = chunk[: max(chunk.rfind(b" "), chunk.rfind(b"\n")) + 1]
            self._collect(chunk)

    def _collect(self, chunk: bytes) -> None:
        for line in chunk.split(b"\n"):
            if not line.isascii():
                line = _PLAIN_RUN.sub(lambda run: run[0][:PLAIN_BYTES] + b"\n" + run[0][-PLAIN_BYTES:], line)
            elif found := _ESCAPE.search(line):
                line = line[found.start() :]
            else:
                continue
            self._sample += (line + b"\n")[: SAMPLE_BYTES - len(self._sample)]
            if len(self._sample) == SAMPLE_BYTES:
                return

    @property
    def is_binary(self) -> bool:
        """Whether `encoding` will be "", whatever follows; False as long as that is open."""
        is_known = len(self._head) == SAMPLE_BYTES
        return is_known and self._is_wide_or_binary and most_probable(self._head, WIDE) is None

    @property
    def _has_mark(self) -> bool:
        return self._head.startswith(
            (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        )

    @property
    def _is_wide_or_binary(self) -> bool:
        num_control = len(self._head) - len(self._head.translate(None, CONTROL_BYTES))
        return not self._has_mark and (self._has_nul or 100 * num_control > len(self._head))

    def encoding(self) -> str | None:
        """Return the name of a codec, "" for a file that is no text, or None if it is uncertain.

        UTF_8 allows a minority of bytes that are no UTF-8.
        """
        self.num_stray += len(self._decoder.decode(b"", final=True))
        if self._head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
            return "utf-32"
        if self._head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if self._is_wide_or_binary:
            return most_probable(self._head, WIDE) or ""
        sample = bytes(self._sample)
        if self.num_stray == 0:
            if not sample.isascii():
                return UTF_8
            if b"\x1b$" in sample and decoded(sample, "iso2022_jp") is not None:
                return "iso2022_jp"
            return "hz" if b"~{" in sample and most_probable(sample, ("hz", "ascii")) == "hz" else UTF_8
        if 2 * self.num_stray <= self.num_valid:
            return UTF_8
        return most_probable(sample, OLDER, UNUSUAL_OLDER)


def has_escapes(chunk: bytes) -> bool:
    """Return whether bytes that are ASCII may stand for other characters, as in ESCAPED."""
    return bool(_ESCAPE.search(chunk))


class Reading(NamedTuple):
    """The most probable language of a text: the cost of all of it, and whether it may be that."""

    cost: float
    plausible: bool
    is_cjk: bool


@lru_cache(maxsize=1)  # `is_binary` is asked after each chunk of a file, and `encoding` at its end
def most_probable(sample: bytes, usual: tuple[str, ...], unusual: tuple[str, ...] = ()) -> str | None:
    """Return the encoding whose text is certainly the right one, or None."""
    found: dict[str, tuple[float, bool, str]] = {}  # text -> cost, plausible, encoding
    for encoding in usual + unusual:
        text = decoded(sample, encoding)
        if text and text not in found and (reading := read(text)):
            odd = encoding in unusual or (encoding in MULTIBYTE and not reading.is_cjk)
            found[text] = (reading.cost + UNUSUAL * odd, reading.plausible, encoding)
    if not found:
        return None
    (cost, plausible, encoding), *others = sorted(found.values())
    return encoding if plausible and all(other[0] - cost >= MARGIN for other in others) else None


def decoded(sample: bytes, encoding: str) -> str | None:
    """Return the text, without a character that the sample's end cut; None if it is not valid."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return None


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Model(NamedTuple):
    """Tables over the code points below 65,536, N of whose kinds are told apart, and L languages.

    kind (65536,): index of each character's costs, or NEVER; cost (N, L); usual_cost (L,): of a
    letter, on average; in Latin letters (L,).
    """

    kind: np.ndarray
    cost: np.ndarray
    usual_cost: np.ndarray
    latin: np.ndarray
    letter: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    script: np.ndarray
    inside: np.ndarray  # symbols that may be inside a word
    word: np.ndarray  # letters that may be a word


UNKNOWN, UNKNOWN_CJK, NEVER = 0, 1, 2


@lru_cache(maxsize=1)
def _model() -> _Model:
    languages = [*LETTERS, *CJK]
    costs = [_costs(language) for language in languages]
    known = sorted(set().union(*costs))
    characters = [chr(code) for code in range(0x10000)]
    categories = [unicodedata.category(character) for character in characters]
    kind = np.zeros(0x10000, np.uint16)
    for first, last in ((0x2E80, 0xA000), (0xAC00, 0xD7B0), (0xF900, 0xFB00), (0xFF00, 0xFFF0)):
        kind[first:last] = UNKNOWN_CJK
    kind[[category in ("Cn", "Co", "Cs") for category in categories]] = NEVER
    kind[0x7F:0xA0] = NEVER
    script = np.zeros(0x10000, np.uint8)
    letter = np.array([category[0] in "LM" for category in categories])
    for number, (first, last) in enumerate(SCRIPTS, start=1):
        script[first:last] = number * letter[first:last]
    is_cjk = np.array([language in CJK for language in languages])
    cost = np.full((len(known) + 3, len(languages)), RARE)
    cost[UNKNOWN_CJK, ~is_cjk] = FOREIGN_CJK
    for number, character in enumerate(known, start=3):
        cost[number] = cost[kind[ord(character)]]
        kind[ord(character)] = number
    latin = np.array(["e" in LETTERS.get(language, "") for language in languages])
    usual_cost = np.zeros(len(languages))
    for column, costs_of in enumerate(costs):
        for character, bits in costs_of.items():
            cost[kind[ord(character)], column] = bits
        judged = np.array([b for c, b in costs_of.items() if c.isalpha() and (latin[column] or not c.isascii())])
        usual_cost[column] = np.average(judged, weights=2.0**-judged)
    return _Model(
        kind,
        cost,
        usual_cost,
        latin,
        letter,
        np.array([character.islower() for character in characters]),
        np.array([character.isupper() for character in characters]),
        script,
        np.isin(characters, list("’ʼ·\u200c\u00ad")),
        np.isin(characters, list("àáâåèéíòóôöøùúýÀÁÅÈÉÍÒÓÔÖØÙÚÝ")),
    )


def _costs(language: str) -> dict[str, float]:
    """Return the cost of every character that the language has."""
    if language in CJK:
        own = _cjk_costs(language) | (CJK_PUNCTUATION if language != "ko" else {})
        own |= dict.fromkeys(" \n", 7.0) if language != "ko" else {}
    else:
        parts = enumerate(LETTERS[language].split("|"))
        own = {letter: 3 + part / 2 for part, letters in parts for letter in letters}
    english = enumerate(LETTERS["en"].split("|"))  # in any language, names and code
    loans = {letter: 5 + part / 2 for part, letters in english for letter in letters if letter.isascii()}
    return loans | PUNCTUATION | OWN_PUNCTUATION.get(language, {}) | own


def _cjk_costs(language: str) -> dict[str, float]:
    """Return costs by the sets of common characters that the national encodings begin with."""
    kana = {chr(code): 7.0 for code in range(0x3041, 0x3094)} | {chr(code): 9.0 for code in range(0x30A1, 0x30FD)}
    codec, first_lead, last_lead, bits = {
        "ja": ("euc_jp", 0xB0, 0xCF, 13.0),
        "zh-Hans": ("gb2312", 0xB0, 0xD7, 12.5),
        "zh-Hant": ("big5", 0xA4, 0xC6, 13.0),
        "ko": ("euc_kr", 0xB0, 0xC8, 12.0),
    }[language]
    pairs = [bytes((lead, trail)) for lead in range(first_lead, last_lead + 1) for trail in range(0x40, 0xFF)]
    common = "".join(pair.decode(codec, "ignore") for pair in pairs)
    costs = dict.fromkeys((character for character in common if not character.isascii()), bits)
    frequent = dict.fromkeys(FREQUENT.get(language, ""), 7.0 if language == "ko" else 8.0)
    return costs | frequent | (kana if language == "ja" else {})


def read(text: str) -> Reading | None:
    """Return how probable the text is in its most probable language; None if it cannot be text."""
    model = _model()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    codes = np.where(codes < 0x10000, codes, 0x3400)  # the others: emoji, rare Chinese characters
    kinds, counts = np.unique(model.kind[codes], return_counts=True)
    if NEVER in kinds:
        return None
    costs = counts @ model.cost[kinds]
    language = int(costs.argmin())
    foreign, letters = codes > 0x7F, model.letter[codes]
    own = model.cost[model.kind[codes], language]
    judged = letters if model.latin[language] else letters & foreign
    excess = own[judged].mean() - model.usual_cost[language] if judged.any() else 0.0
    num_foreign, num_unknown = int(foreign.sum()), int((foreign & (own >= RARE)).sum())
    plausible = excess <= LARGEST_EXCESS and 20 * num_unknown <= num_foreign
    if language == 0:  # English, with some words of other languages
        plausible = plausible and 30 * int((letters & foreign).sum()) <= max(90, int(letters.sum()))
    cost = float(costs[language]) + _cost_of_rules(codes, foreign, letters, model)
    return Reading(cost, plausible, language >= len(LETTERS))


def _cost_of_rules(codes: np.ndarray, foreign: np.ndarray, letters: np.ndarray, model: _Model) -> float:
    """Return the cost of what no language does.

    Two scripts in a word, a capital after a small letter, a symbol inside a word, a digit beside a
    letter, or a Latin letter alone that is no word; of these, only those that are not ASCII.
    """
    script, digits = model.script[codes], (codes >= 0x30) & (codes < 0x3A)
    between_scripts = (script[1:] != script[:-1]) & (script[1:] > 0) & (script[:-1] > 0)
    between_cases = model.lower[codes[:-1]] & model.upper[codes[1:]] & (foreign[1:] | foreign[:-1])
    symbols = letters[:-2] & letters[2:] & ~letters[1:-1] & foreign[1:-1] & ~model.inside[codes[1:-1]]
    special = letters & foreign & (script > 0)
    alone = special[1:-1] & ~letters[:-2] & ~letters[2:] & (codes[1:-1] < 0x250) & ~model.word[codes[1:-1]]
    beside_digit = (special[1:] & digits[:-1]) | (special[:-1] & digits[1:])
    return float(
        BETWEEN_SCRIPTS * between_scripts.sum()
        + BETWEEN_CASES * between_cases.sum()
        + WITHIN_WORD * (symbols.sum() + beside_digit.sum() + alone.sum())
    )

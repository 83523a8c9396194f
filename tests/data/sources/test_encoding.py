"""Text in other encodings: read as it was written, or skipped and said; never anything else."""

import json
import random

import pytest

from configs.errors import SourceError
from configs.sources import HFSource, TextSource
from data.sources import as_utf8
from data.sources.encoding import OLDER, SAMPLE_BYTES, UNUSUAL_OLDER
from data.sources.opening import open_source
from data.sources.text import CHUNK
from tests.data.sources.reading import texts

pytestmark = pytest.mark.core

TEXTS = {
    "en": "“It’s only a small café,” she said – but the crowd outside would not leave before it opened.",
    "de": "Über Nacht fiel Schnee, und die Straße zum Bahnhof war früh am Morgen kaum befahrbar. Größere Züge hörte man nicht.",
    "fr": "L'été dernier, nous avons passé quelques semaines à la campagne, près d'une forêt où l'on ne rencontrait personne.",
    "es": "Mañana por la mañana el niño irá con su abuela al médico, porque desde el año pasado no oye bien la televisión.",
    "pt": "Não há ninguém na estação, e a próxima condução só sai amanhã de manhã; os irmãos já não têm paciência.",
    "sv": "På hösten går barnen till sjön, där fåglarna samlas innan de flyger söderut över de höga träden.",
    "pl": "Wczoraj wieczorem sąsiad przyniósł świeże gruszki i długo opowiadał, że jesień będzie w tym roku łagodna.",
    "cs": "Včera večer přišel soused a dlouho vyprávěl o tom, že letošní podzim bude teplý a že švestky už dozrály.",
    "hu": "Tegnap este átjött a szomszéd, és sokáig mesélt arról, hogy az idei ősz meleg lesz, és a körték is megértek.",
    "tr": "Dün akşam komşumuz uğradı ve bu yıl sonbaharın ılık geçeceğini, üzümlerin de çoktan olgunlaştığını anlattı.",
    "ru": "Вчера вечером зашёл сосед и долго рассказывал, что осень в этом году будет тёплая, а груши уже поспели.",
    "uk": "Учора ввечері зайшов сусід і довго розповідав, що осінь цього року буде тепла, а груші вже достигли.",
    "el": "Χθες το βράδυ ήρθε ο γείτονας και μας έλεγε ώρα πολλή ότι το φθινόπωρο θα είναι φέτος ζεστό.",
    "he": "אתמול בערב בא השכן וסיפר לנו במשך זמן רב שהסתיו יהיה השנה חם ושהאגסים כבר הבשילו.",
    "ar": "جاء الجار مساء أمس وتحدث طويلا عن أن الخريف سيكون دافئا هذا العام وأن الإجاص قد نضج.",
    "th": "เมื่อวานตอนเย็นเพื่อนบ้านแวะมาเล่าให้ฟังว่าปีนี้ฤดูใบไม้ร่วงจะอบอุ่นและลูกแพร์สุกแล้ว",
    "ja": "昨日の夕方、隣の人が来て、今年の秋は暖かくなりそうだと長い間話していた。梨ももう熟しているらしい。",
    "zh-Hans": "昨天晚上邻居来了，说了很久，他觉得今年的秋天会很暖和，梨也已经熟了，可以开始摘了。",
    "zh-Hant": "昨天晚上鄰居來了，說了很久，他覺得今年的秋天會很暖和，梨也已經熟了，可以開始摘了。",
    "ko": "어제 저녁에 이웃 사람이 와서 올해 가을은 따뜻할 것이고 배도 벌써 다 익었다고 오랫동안 이야기했다.",
}
WRITTEN = {
    "en": ["cp1252", "mac_roman"],
    **{language: ["cp1252", "iso8859_15", "mac_roman", "cp850"] for language in ("de", "fr", "es", "pt", "sv")},
    **{language: ["cp1250", "iso8859_2", "cp852"] for language in ("pl", "cs")},
    "hu": ["cp1250", "iso8859_2", "iso8859_16", "cp852"],
    "tr": ["cp1254", "iso8859_9"],
    "ru": ["cp1251", "koi8_r", "iso8859_5", "mac_cyrillic", "cp866"],
    "uk": ["cp1251", "koi8_u", "mac_cyrillic"],
    "el": ["cp1253", "iso8859_7", "mac_greek"],
    "he": ["cp1255", "iso8859_8", "cp862"],
    "ar": ["cp1256", "iso8859_6"],
    "th": ["cp874", "tis_620"],
    "ja": ["shift_jis", "cp932", "euc_jp", "iso2022_jp"],
    "zh-Hans": ["gb2312", "gbk", "gb18030", "hz"],
    "zh-Hant": ["big5", "cp950"],
    "ko": ["euc_kr", "cp949"],
}
UNICODE = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
CASES = [(language, encoding) for language in TEXTS for encoding in WRITTEN[language] + UNICODE]


def open_files(folder, **contents: bytes):
    for name, content in contents.items():
        (folder / f"{name}.txt").write_bytes(content)
    spec = TextSource(type="text", path=str(folder), label="notes")
    return open_source(spec, cache_dir=None, seed=1)


@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_text_is_read_in_the_encoding_it_was_written_in(tmp_path, language, encoding):
    text = (TEXTS[language] + "\r\n" + TEXTS[language][20:]).encode(encoding, "ignore")
    assert texts(open_files(tmp_path, a=text)) == [text.decode(encoding).replace("\r\n", "\n")]


def test_parts_of_any_length_are_read_rightly_or_skipped(tmp_path):
    parts, rng = {}, random.Random(1)
    for number, (language, encoding) in enumerate(CASES):
        for length in (8, 15, 30, 60):
            start = rng.randrange(max(1, len(TEXTS[language]) - length))
            content = TEXTS[language][start : start + length].encode(encoding, "ignore")
            parts[f"{number}-{length}"] = (content, content.decode(encoding))
    source = open_files(tmp_path, **{name: content for name, (content, _) in parts.items()})
    read = texts(source)
    assert {text.strip() for text in read} <= {text.strip() for _, text in parts.values()}
    assert len(read) > len(parts) / 2
    assert source.skipped["of uncertain encoding"] > 0


def test_what_is_uncertain_is_said_once_with_its_name_and_counted(tmp_path):
    noise = random.Random(1).randbytes(5000).translate(None, bytes(range(32)))
    # In encodings that are so rare that they are not tried.
    rare = {
        "johab": TEXTS["ko"].encode("johab"),
        "ebcdic": TEXTS["en"].encode("cp037", "ignore"),
        "greek": TEXTS["el"].encode("cp869"),  # in the encoding cp855 these are letters of Russian, if odd ones
    }
    source = open_files(tmp_path, good=b"Good text.", noise=noise, **rare)
    assert texts(source) == texts(source, epoch=1) == ["Good text."]
    assert source.skipped == {"of uncertain encoding": 4}
    assert "skipped: 4 of uncertain encoding" in source.size()
    [notice] = source.notices
    assert "skipped 4 files whose encoding is not certain" in notice
    assert all(f"{name}.txt" in notice for name in ("noise", "johab", "ebcdic", "greek"))
    for path in tmp_path.glob("*.txt"):
        path.write_bytes(noise + path.name.encode())
    with pytest.raises(
        SourceError, match=r"none of its files can be read \(5 of uncertain encoding\).*save them as UTF-8"
    ):
        open_files(tmp_path)


def test_bytes_far_into_a_file_decide_too(tmp_path):
    ascii_text = "Nothing but plain words is on this line, and on the many lines that follow it.\n" * 30_000
    text = ascii_text + (TEXTS["ru"] + "\n") * 3 + ascii_text
    in_one_line = text.replace("\n", " ") + "!"
    source = open_files(tmp_path, lines=text.encode("cp1251"), line=in_one_line.encode("cp1251"))
    assert "".join(texts(source)) in (text + in_one_line, in_one_line + text)


def test_a_character_cut_by_the_end_of_the_sample_does_no_harm(tmp_path):
    for shift in range(3):
        text = "x" * shift + TEXTS["ja"] * (SAMPLE_BYTES // len(TEXTS["ja"]))
        assert "".join(texts(open_files(tmp_path, a=text.encode("shift_jis")))) == text


def test_a_character_cut_by_the_end_of_a_chunk_does_no_harm(tmp_path):
    for cut in range(4):
        plain = b"Plain words. " * (CHUNK // 13 + 1)
        japanese = (TEXTS["ja"] + " ").encode("shift_jis")
        content = plain[: CHUNK - cut] + japanese + plain + japanese
        assert "".join(texts(open_files(tmp_path, a=content))) == content.decode("shift_jis")


@pytest.mark.parametrize("text", ["a ~{b} and ~{cd~} in a program\n", "\x1b[31mred\x1b[0m\n"])
def test_ascii_that_looks_like_an_escape_is_ascii(tmp_path, text):
    assert texts(open_files(tmp_path, a=text.encode() * 3)) == [text * 3]


def test_every_encoding_is_one_of_python_and_is_tried_once():
    assert all(TEXTS["ru"].encode(encoding, "ignore") for encoding in OLDER + UNUSUAL_OLDER)
    assert len(set(OLDER + UNUSUAL_OLDER)) == len(OLDER + UNUSUAL_OLDER)


# ---- rows of a dataset ---------------------------------------------------------------------------

KINDS = {"json": "a.jsonl", "csv": "a.csv", "text": "a.txt"}


def as_rows(kind: str, rows: list[str]) -> str:
    lines = {
        "json": [json.dumps({"text": row}, ensure_ascii=False) for row in rows],
        "csv": ["text", *map(quoted, rows)],
    }
    return "".join(line + "\n" for line in lines.get(kind, rows))


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def open_rows(dataset: str, **keys):
    return open_source(HFSource(type="hf", dataset=dataset, label="rows", **keys), cache_dir=None, seed=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("language", "encoding"),
    [("ru", "cp1251"), ("de", "cp1252"), ("ja", "shift_jis"), ("ja", "iso2022_jp"), ("zh-Hans", "hz")]
    + [("en", encoding) for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")],
)
def test_rows_are_read_in_the_encoding_they_were_written_in(hub, tmp_path, kind, language, encoding):
    rows = [f"{TEXTS[language]} {number}" for number in range(30)]
    content = as_rows(kind, rows).encode(encoding)
    (tmp_path / KINDS[kind]).write_bytes(content)
    hub.add(name := f"{kind}/{language}-{encoding}", {KINDS[kind]: content})
    for source in (open_rows(kind, data_files=str(tmp_path / KINDS[kind])), open_rows(name)):
        whole = list(source.documents(0))
        assert [document.text for document, _ in whole] == rows
        assert list(source.documents(0, whole[9][1])) == whole[10:]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_uncertain_encoding_are_skipped_named_and_counted(tmp_path, kind):
    for name, content in {"good": b"Good text.", "rare": TEXTS["ko"].encode("johab")}.items():
        (tmp_path / f"{name}-{KINDS[kind]}").write_bytes(as_rows(kind, ["ROW"]).encode().replace(b"ROW", content))
    source = open_rows(kind, data_files=f"{tmp_path}/*")
    assert texts(source) == ["Good text."]
    assert source.skipped == {"unreadable file": 1}
    [notice] = source.notices
    assert f"rare-{KINDS[kind]}, which cannot be read: its encoding is not certain (save it as UTF-8)" in notice


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_utf8_keep_it_where_some_bytes_are_damaged(tmp_path, kind):
    rows = [TEXTS["de"]] * 20 + ["Damaged: X"] * 3
    content = as_rows(kind, rows).encode().replace(b"X", b"\xe4\xff")
    (tmp_path / KINDS[kind]).write_bytes(content)
    source = open_rows(kind, data_files=f"{tmp_path}/*")
    assert texts(source) == [TEXTS["de"]] * 20 + ["Damaged: \ufffd\ufffd"] * 3


def test_rows_far_into_a_file_decide_and_no_character_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(as_utf8, "CHUNK", 1 << 16)
    for shift in range(2):
        rows = ["x" * 999] * 100 + ["y" * shift + TEXTS["ja"]] * 3000
        (tmp_path / "a.jsonl").write_bytes(as_rows("json", rows).encode("shift_jis"))
        assert texts(open_rows("json", data_files=f"{tmp_path}/*")) == rows


def test_an_encoding_that_a_readme_names_is_taken_for_the_right_one(tmp_path):
    """So short a text that nothing is certain."""
    head = "---\nconfigs:\n- config_name: default\n  data_files: data.csv\n  encoding: cp1251\n---\n"
    (tmp_path / "README.md").write_text(head)
    (tmp_path / "data.csv").write_bytes(as_rows("csv", ["Груши"]).encode("cp1251"))
    assert texts(open_rows(str(tmp_path))) == ["Груши"]

"""PDFs: the text comes out, and no file can stop, starve or hang the run."""

import io
import os
import subprocess
import time
import zlib
from pathlib import Path

import pypdf
import pytest

from configs.source_specs import PDFSource
from data import pdf
from data.sources import SourceError, open_source


def make_pdf(pages: list[str | bytes]) -> bytes:
    """A PDF of lines of Helvetica; a page given as bytes is taken as its (compressed) content stream."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for page in pages:
        if isinstance(page, str):
            lines = " ".join(f"({line}) Tj T*" for line in page.split("\n"))
            page = zlib.compress(f"BT /F1 12 Tf 14 TL 72 720 Td {lines} ET".encode("latin-1"))
        objects.append(b"<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(page), page))
        resources = b"/Resources<</Font<</F1 3 0 R>>>>/MediaBox[0 0 612 792]"
        objects.append(b"<</Type/Page/Parent 2 0 R%s/Contents %d 0 R>>" % (resources, len(objects)))
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (b" ".join(kids), len(kids))
    file, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(file))
        file += b"%d 0 obj%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    end = b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (size, len(file))
    return file + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table) + end


def encrypted(content: bytes, password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(content))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="AES-256")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def open_pdf(path: Path, cache_dir: Path | None = None):
    return open_source(PDFSource(type="pdf", path=str(path), label="papers"), cache_dir=cache_dir, seed=1)


def texts(source, position=None) -> list[str]:
    return [document.text for document, _ in source.documents(0, position)]


BODY = "This page says something of substance."


def test_pages_are_cleaned_and_joined(tmp_path):
    words = ["Alpha", "Beta", "Gamma", "Delta", "Epsilon"]
    pages = [
        f"A Journal of Things\n{word} begins and its sen-\ntence goes on.\nIt ends, says {word}.\n{number}"
        for number, word in enumerate(words, start=1)
    ]
    (tmp_path / "PAPER.PDF").write_bytes(make_pdf(pages))
    (text,) = texts(open_pdf(tmp_path))
    assert text == "\n".join(f"{word} begins and its sentence goes on.\nIt ends, says {word}." for word in words)


def test_ligatures_are_spelled_out_and_nothing_else_is_changed():
    assert pdf.clean(["The e\ufb03cient \ufb02ow of x² ½"]) == ["The efficient flow of x² ½"]


def test_no_file_stops_the_run_and_each_is_counted(tmp_path):
    (tmp_path / "good.pdf").write_bytes(make_pdf([BODY, "", b"not compressed at all", BODY.upper()]))
    (tmp_path / "text.pdf").write_text("I am no PDF.")
    (tmp_path / "damaged.pdf").write_bytes(b"%PDF-1.4\n" + os.urandom(500))
    (tmp_path / "locked.pdf").write_bytes(encrypted(make_pdf(["Behind a lock, never to be read."]), "secret"))
    (tmp_path / "open.pdf").write_bytes(encrypted(make_pdf(["Encrypted with the empty password."]), ""))
    (tmp_path / "empty.pdf").touch()
    (tmp_path / "folder.pdf").mkdir()
    os.mkfifo(tmp_path / "pipe.pdf")
    source = open_pdf(tmp_path)
    found = "\n".join(texts(source))
    assert BODY in found
    assert BODY.upper() in found
    assert "Encrypted with the empty password." in found
    assert "Behind a lock" not in found
    counted = dict(source.skipped)
    assert counted.pop("scan, needs OCR") + counted.pop("page failed", 0) == 2
    assert counted == {"not a PDF": 1, "damaged PDF": 1, "encrypted": 1, "empty": 1, "not a regular file": 1}


def test_a_page_that_wants_all_the_memory_is_lost_alone(tmp_path):
    bomb = zlib.compress(b"BT /F1 12 Tf " + b"(x) Tj " * 60_000_000 + b"ET", 1)
    (tmp_path / "bomb.pdf").write_bytes(make_pdf([BODY, bomb, BODY.upper()]))
    source = open_pdf(tmp_path)
    assert texts(source) == [f"{BODY}\n{BODY.upper()}"]
    assert source.skipped == {"page failed": 1}


@pytest.fixture
def endless_child(monkeypatch) -> None:
    """A child that writes one page and then hangs, whatever file it is given."""
    start = subprocess.Popen
    script = f"echo '\"{BODY}\"'; printf '\"cut o'; exec sleep 60"
    monkeypatch.setattr(subprocess, "Popen", lambda command, **keys: start(["sh", "-c", script], **keys))
    monkeypatch.setattr(pdf, "FILE_SECONDS", 0.5)


def test_what_was_read_before_the_time_was_over_is_kept(tmp_path, endless_child):
    (tmp_path / "a.pdf").write_bytes(make_pdf([BODY]))
    source = open_pdf(tmp_path)
    began = time.monotonic()
    assert texts(source) == [BODY]
    assert time.monotonic() - began < 5
    assert source.skipped == {"file took too long": 1}


def test_extracted_text_is_cached_and_used_again(tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"{number}.pdf").write_bytes(make_pdf([f"{BODY} Number {number}."]))
    whole = texts(open_pdf(tmp_path, tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "Popen", None)  # from here on nothing may be extracted
    assert len(whole) == 4
    assert texts(open_pdf(tmp_path, tmp_path / "cache")) == whole


def test_children_do_not_outlive_the_reader(tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"{number}.pdf").write_bytes(make_pdf([f"{BODY} Number {number}."]))
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **keys: started.append(start(*given, **keys)) or started[-1]
    )
    documents = open_pdf(tmp_path).documents(0)
    next(documents)
    documents.close()
    assert len(started) > 1
    assert all(child.poll() is not None for child in started)


def test_resuming_continues_inside_a_file(tmp_path):
    for number in range(2):
        pages = [f"Page {page} of book {number}.\n" + "\n".join([BODY] * 60) for page in range(20)]
        (tmp_path / f"{number}.pdf").write_bytes(make_pdf(pages))
    cache = tmp_path / "cache"
    whole = list(open_pdf(tmp_path, cache).documents(0))
    assert len(whole) >= 6
    for done, (_, position) in enumerate(whole, start=1):
        assert list(open_pdf(tmp_path, cache).documents(0, position)) == whole[done:]


def test_a_folder_without_pdfs_says_so(tmp_path):
    with pytest.raises(SourceError, match="holds no file that matches"):
        open_pdf(tmp_path)

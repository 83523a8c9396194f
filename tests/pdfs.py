"""PDFs for the tests: ordinary ones, and one of every kind that is made to stop, starve or hang whoever reads it."""

import io
import random
import zlib

import pypdf

BODY = "This page says something of substance."
FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
ROOT = b"<</Type/Catalog/Pages 2 0 R>>"


def stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<</Length %d%s>>stream\n%s\nendstream" % (len(content), entries, content)


def flate(content: bytes) -> bytes:
    return stream(zlib.compress(content), b"/Filter/FlateDecode")


def show(*lines: str) -> bytes:
    """A content stream that writes lines of text."""
    return b"BT /F1 12 Tf 14 TL 72 720 Td %s ET" % b" ".join(b"(%s) Tj T*" % line.encode("latin-1") for line in lines)


def page(contents: bytes, resources: bytes = b"/Font<</F1 3 0 R>>") -> bytes:
    return b"<</Type/Page/Parent 2 0 R/Resources<<%s>>/MediaBox[0 0 612 792]/Contents %s>>" % (resources, contents)


def tree(*kids: int) -> bytes:
    return b"<</Type/Pages/Kids[%s]/Count %d>>" % (b" ".join(b"%d 0 R" % kid for kid in kids), len(kids))


def assemble(objects: list[bytes], trailer: bytes = b"", start: int | None = None) -> bytes:
    """The file: objects numbered from 1, the first is the root; `start`: another place of the cross-reference table."""
    file, offsets = io.BytesIO(), []
    file.write(b"%PDF-1.7\n")
    for number, body in enumerate(objects, start=1):
        offsets.append(file.tell())
        file.write(b"%d 0 obj%s\nendobj\n" % (number, body))
    place = file.tell()
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    file.write(b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table))
    end = trailer.replace(b"HERE", b"%d" % place)
    start = place if start is None else start
    file.write(b"trailer<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, end, start))
    return file.getvalue()


def make_pdf(pages: list[str | bytes], trailer: bytes = b"") -> bytes:
    """Pages of lines of Helvetica; one given as bytes is taken as the object that holds its contents."""
    objects, kids = [ROOT, b"", FONT], []
    for contents in pages:
        objects.append(flate(show(*contents.split("\n"))) if isinstance(contents, str) else contents)
        objects.append(page(b"%d 0 R" % len(objects)))
        kids.append(len(objects))
    objects[1] = tree(*kids)
    return assemble(objects, trailer)


def one_page(contents: bytes, *more: bytes, resources: bytes = b"/Font<</F1 3 0 R>>") -> bytes:
    """A good page, one with these contents (object 6), a good page; `more` are objects 8, 9 ..."""
    good = flate(show(BODY))
    pages = [page(b"4 0 R"), contents, page(b"6 0 R", resources)]
    return assemble([ROOT, tree(5, 7, 5), FONT, good, *pages, *more])


def encrypted(content: bytes, password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(content))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="AES-256")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def form(calls: bytes, forms: bytes) -> bytes:
    return stream(calls, b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<<%s>>>>" % forms)


def font_with_map(table: bytes) -> list[bytes]:
    """Objects 8 and 9: a font, and the map from its codes to Unicode."""
    return [b"<</Type/Font/Subtype/Type0/Encoding/Identity-H/BaseFont/A/ToUnicode 9 0 R>>", flate(table)]


def hostile() -> dict[str, bytes]:
    """Name of the kind -> file. Those that end in "_page" have good pages before and after the bad one."""
    good = make_pdf(
        [f"{BODY}\nIt tells of {name}\nand nothing else but {name}." for name in ("ash", "elm", "fir", "oak")]
    )
    own_font = b"/Font<</F1 8 0 R>>"
    x_form = b"/Font<</F1 3 0 R>>/XObject<</X 8 0 R>>"
    nested = zlib.compress(zlib.compress(bytes(10**8)))
    levels = [tree(*[number + 1] * 10) for number in range(4, 14)]
    forms = [form(b"/X Do " * 10, b"/X %d 0 R" % number) for number in range(9, 18)]
    kinds = {
        "zero_bytes": b"",
        "not_a_pdf": b"I am no PDF." * 100,
        "zeros": bytes(100_000),
        "header_only": b"%PDF-1.7\n",
        "noise": b"%PDF-1.7\n" + random.Random(2).randbytes(20_000),
        "password": encrypted(good, "secret"),
        "empty_password": encrypted(good, ""),
        "unknown_encryption": make_pdf([BODY], b"/Encrypt<</Filter/Standard/V 99/R 99/O()/U()/P 0>>"),
        "scan": make_pdf(["", "7"]),
        "no_pages": make_pdf([]),
        "no_root": assemble([b"null"]),
        "no_page_tree": assemble([ROOT, b"null"]),
        "cyclic_pages": assemble([ROOT, tree(2, 2)]),
        "pages_in_a_ring": assemble([ROOT, tree(3), tree(4), tree(3)]),
        "pages_without_number": assemble([ROOT, tree(4), FONT, *levels, page(b"4 0 R")]),
        "deep_page_tree": assemble([ROOT, *(tree(number + 1) for number in range(2, 5000)), page(b"1 0 R")]),
        "count_is_a_lie": make_pdf([BODY]).replace(b"/Count 1", b"/Count -9"),
        "object_is_itself": assemble([ROOT, b" 2 0 R"]),
        "objects_in_a_ring": assemble([ROOT, b" 3 0 R", b" 2 0 R"]),
        "xref_loop": make_pdf([BODY], b"/Prev HERE"),
        "xref_stream_loop": make_pdf([BODY], b"/XRefStm HERE"),
        "xref_claims_a_billion": good.replace(b"xref\n0 12", b"xref\n0 999999999"),
        "xref_beyond_the_end": assemble([ROOT, tree(4), FONT, page(b"5 0 R"), flate(show(BODY))], start=10**15),
        "xref_before_the_beginning": assemble([ROOT, tree(4), FONT, page(b"5 0 R"), flate(show(BODY))], start=-5),
        "fifty_thousand_pages": assemble([ROOT, tree(*[5] * 50_000), FONT, flate(show(BODY)), page(b"4 0 R")]),
        "nested_objects": assemble([b"[" * 50_000, tree()]),
        "nested_dictionaries": assemble([b"<</A" * 50_000, tree()]),
        "long_number": make_pdf([BODY], b"/ID " + b"9" * 10**6),
        "invalid_utf16_names": make_pdf([BODY], b"/Info<</Title<FEFFD800DC>/#FE#FF#D8<FFFED8>/Author(\xfe\xff\xd8)>>"),
        "flate_bomb_page": one_page(flate(b"BT /F1 12 Tf " + b"(x) Tj " * 12_000_000 + b"ET")),
        "flate_bomb_in_a_bomb_page": one_page(stream(nested, b"/Filter[/FlateDecode/FlateDecode]")),
        "a_hundred_filters_page": one_page(stream(b"41>", b"/Filter[%s]" % (b"/ASCIIHexDecode" * 100))),
        "damaged_lzw_page": one_page(stream(random.Random(1).randbytes(5000), b"/Filter/LZWDecode")),
        "damaged_ascii85_page": one_page(stream(b"zzz" * 5000 + b"\xff", b"/Filter/ASCII85Decode")),
        "wide_predictor_page": one_page(
            stream(zlib.compress(b"x" * 99), b"/Filter/FlateDecode/DecodeParms<</Predictor 15/Columns 999999999>>")
        ),
        "length_is_a_lie_page": one_page(b"<</Length 999999999999>>stream\n(x) Tj\nendstream"),
        "length_is_itself_page": one_page(b"<</Length 6 0 R>>stream\n(x) Tj\nendstream"),
        "huge_content_page": one_page(stream(b"BT /F1 12 Tf " + b"(words ) Tj " * 2_000_000 + b"ET")),
        "contents_a_thousand_times_page": one_page(b"[%s]" % (b"8 0 R " * 1000), flate(b"(word ) Tj " * 100_000)),
        "nested_arrays_page": one_page(flate(b"[" * 1_000_000)),
        "open_string_page": one_page(flate(b"BT (" + b"(" * 1_000_000)),
        "endless_inline_image_page": one_page(flate(b"BI /W 9 /H 9 ID " + b"E" * 3_000_000)),
        "form_loop_page": one_page(flate(b"/X Do"), form(b"/X Do", b"/X 8 0 R"), resources=x_form),
        "two_forms_in_a_loop_page": one_page(
            flate(b"/X Do"), form(b"/X Do", b"/X 9 0 R"), form(b"/X Do", b"/X 8 0 R"), resources=x_form
        ),
        "forms_without_number_page": one_page(flate(b"/X Do"), *forms, form(b"", b""), resources=x_form),
        "font_maps_to_surrogates_page": one_page(
            flate(b"BT /F1 9 Tf <0001000100010001> Tj ET"),
            *font_with_map(b"1 beginbfchar <0001> <D800> endbfchar"),
            resources=own_font,
        ),
        "font_maps_four_billion_page": one_page(
            flate(b"BT /F1 9 Tf <0001> Tj ET"),
            *font_with_map(b"1 beginbfrange <00000000> <FFFFFFFF> <0000> endbfrange"),
            resources=own_font,
        ),
        "control_characters_page": one_page(
            flate(b"BT /F1 9 Tf <" + b"0001" * 50 + b"> Tj ET"),
            *font_with_map(b"1 beginbfchar <0001> <0000> endbfchar"),
            resources=own_font,
        ),
        "spaces_page": one_page(flate(show(" " * 600_000 + "x"))),
        "hyphens_page": one_page(flate(show(*["-"] * 10_000))),
        "letters_page": one_page(flate(show("x" * 900_000))),
        "endless_line_page": one_page(flate(show("word " * 250_000))),
    }
    for tenth in range(1, 11):  # the last one lacks only the end of the trailer
        kinds[f"truncated_{tenth}"] = good[: len(good) * tenth // 10 - 1 - tenth]
    return kinds

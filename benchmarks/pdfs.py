"""What PDFium and pypdf make of PDFs whose text is known: python -m benchmarks.pdfs

Prints the similarity of words, in their order, to the text that the PDF was made from (1 is the
same): for pypdf, for PDFium, and for what data/sources/pdf_worker.py makes of both ("-": the page
is refused); then the pages a second of CPU time.
"""

import io
import time

import pypdf
from pypdfium2 import PdfDocument

from data.sources.pdf_page import looks_wrong, tidy
from data.sources.pdf_pdfium import page_text
from tests.data.sources.test_pdf_texts import similarity
from tests.pdf_texts import documents


def by_pypdf(content: bytes) -> str:
    return "\n".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(content)).pages)


def by_pdfium(content: bytes) -> str:
    return "\n".join(page.get_textpage().get_text_range() for page in PdfDocument(content))


def by_both(content: bytes) -> str:
    text = "\n".join(map(page_text, PdfDocument(content)))
    text = by_pypdf(content) if not text or looks_wrong(text) else text
    return "" if looks_wrong(text) else tidy(text)


def main() -> None:
    readers = {"pypdf": by_pypdf, "PDFium": by_pdfium, "both": by_both}
    seconds = dict.fromkeys(readers, 0.0)
    print(f"{'':36}" + "".join(f"{name:>8}" for name in readers))
    made = documents()
    for name, make in made.items():
        content, truth = make()
        row = f"{name:36}"
        for reader, read in readers.items():
            began = time.process_time()
            text = read(content)
            seconds[reader] += time.process_time() - began
            row += f"{similarity(text, truth) if text else '-':>8.3}"
        print(row)
    print(f"{'pages/s':36}" + "".join(f"{len(made) / seconds[reader]:>8.0f}" for reader in readers))


if __name__ == "__main__":
    main()

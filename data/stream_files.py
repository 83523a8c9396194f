"""The files that a stream is made with: where they are, and what is done about other things in their places.

<checkpoints>/tokenizer.json, chat_template.jinja, stream/heldout.npz, stream/stream.json (written last)
"""

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from data.chat_template import TEMPLATE_FILE, ChatTemplate
from data.files import room_on_disk, set_aside, set_aside_unless_file, write_atomically
from data.heldout import HeldOut
from data.journal import HEADER, ROWS, STATES, write_header

log = logging.getLogger(__name__)

HELD_OUT, PDF_TEXT = "heldout.npz", "pdf_text"


def tokenizer_path(stream_dir: Path) -> Path:
    return stream_dir.parent / "tokenizer.json"


def template_path(stream_dir: Path) -> Path:
    return stream_dir.parent / TEMPLATE_FILE


def set_obstacles_aside(stream_dir: Path) -> None:
    """Set aside what has the name of a part of the stream but is none, such as a folder or a pipe
    in the place of a file, or a link in that of one that is written in place. That part is then made
    again, as if it were lost."""
    with room_on_disk(stream_dir):
        for path in (stream_dir, stream_dir / PDF_TEXT):
            if os.path.lexists(path) and not path.is_dir():
                log.warning("%s is no folder: it is now %s", path, set_aside(path).name)
        files = (stream_dir / name for name in (HELD_OUT, HEADER, ROWS, STATES))
        for path in (tokenizer_path(stream_dir), template_path(stream_dir), *files):
            if new_name := set_aside_unless_file(path, or_link=path.name in (ROWS, STATES)):
                log.warning("%s is no file: it is now %s", path, new_name.name)


class Prepared(NamedTuple):
    """All that rows are made with. `header`: of the journal."""

    header: dict[str, Any]
    tokenizer: Tokenizer
    held_out: HeldOut
    template: ChatTemplate | None = None  # of conversations

    def save(self, stream_dir: Path) -> None:
        """Write them all, the header last. Raises DiskFull."""
        with room_on_disk(stream_dir):
            stream_dir.mkdir(parents=True, exist_ok=True)
            if not self.template:
                template_path(stream_dir).unlink(missing_ok=True)  # another run's
        if self.template:
            write_atomically(template_path(stream_dir), self.template.source.encode())
        self.held_out.save(stream_dir / HELD_OUT)
        write_atomically(tokenizer_path(stream_dir), self.tokenizer.to_str(pretty=True).encode())
        write_header(stream_dir, self.header)

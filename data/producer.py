"""The process that fills the journal: python -m data.producer, run by data/producer_client.py.

JSON lines, UTF-8, both ways. The first line on stdin is the request {"preset": JSON text,
"stream_dir", "token_budget", "header": of a resumed run's journal or null, "weight_changes":
[[from_row, weights], ...], "fresh": whether what `stream_dir` has is another run's, "begun": the end
of the last window begun, "consumed": row, "wanted": row, "go": false}; every later line is an object
with those of `weight_changes` and the last three that have changed (a `header` in it is for a producer
that is started again). Events on stdout: source, opened, ready, status, notice, exhausted, error.

1. Opens every source in parallel and writes nothing.                        -> source ..., opened
2. On "go": prepares a new stream (data/prepare.py), or checks an existing one against the preset,
   makes again what is lost or damaged of it, and cuts it to its last intact append.     -> ready
3. Appends rows until the token budget is covered, at most RUN_AHEAD of it beyond the rows that
   were consumed or are wanted.

It may be killed at any instant: restarted, it appends exactly the rows that it would have. It ends
when stdin closes, with exit code 2 after an error event, with OUT_OF_MEMORY, or with 1 and a
traceback on stderr for a defect. It never imports torch or main.
"""

import errno
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.schema import Preset, parse_preset
from data import encoder
from data import tokenizer as bpe
from data.duplicates import Duplicates
from data.feed import Feed, Progress
from data.files import FAILING, FULL, room_on_disk
from data.heldout_choice import kept_length, reason_to_skip
from data.journal import JournalWriter, read_header, run_ahead_rows
from data.memory import give_back_memory
from data.mixing import Mixer, base_weights, weights_at
from data.open_sources import OpenSource, open_sources
from data.order import finish_row
from data.packing import Packer, row_dtype
from data.prepare import prepare
from data.producer_channel import OUT_OF_MEMORY, Events, Orders
from data.stream_files import Prepared

log = logging.getLogger("data.producer")  # of what is run as __main__

FIRST_APPEND, LARGEST_APPEND = 2**14, 2**17  # tokens in one append; small after each start, so that training can begin
LARGEST_BLOCKS = 2**26  # bytes of text that all sources together read ahead to shuffle it (feed.py)
APPEND_SECONDS = 2.0  # rows of a slow source wait no longer than this


class Producer:
    """Phase 3: the loop that chooses documents, packs them and appends rows. `begun`: the end of the last
    window that training has begun, which is read to its end with any budget."""

    def __init__(
        self,
        preset: Preset,
        stream_dir: Path,
        prepared: Prepared,
        sources: list[OpenSource],
        token_budget: int,
        begun: int,
        orders: Orders,
        events: Events,
    ):
        seq_length, specs = preset.model.seq_length, preset.data.all_sources
        _, tokenizer, held_out, template = prepared
        self.sources, self.orders, self.events = sources, orders, events
        self.num_rows = max(-(-token_budget // seq_length), begun)  # to produce
        self.finish = finish_row(preset.data.finish_share, seq_length, token_budget)
        dtype = row_dtype(seq_length, bpe.vocab_size(tokenizer), loss_mask=preset.data.has_conversations)
        self.duplicates, self.finishing = Duplicates(), False
        self.base_weights = base_weights(preset.data.mix_strategy, preset.data.weights)
        with room_on_disk(stream_dir):
            self.journal = JournalWriter(stream_dir, dtype, self._saw, partial(self._is_wanted, begun))
        self.first_row = self.journal.num_rows
        self.packer = Packer(dtype, bpe.end_of_text(tokenizer))
        self.last_choice = 0, self.weights_after(0)  # rows before it, and weights
        self.strategy = preset.data.mix_strategy
        self.mixer = Mixer(self.strategy, self.weights())
        self.last_append = time.monotonic()
        state = self.journal.state
        if state:
            self.mixer.load_state(state["mixer"])
            self.packer.load_state(state["packer"])
        skip = partial(
            reason_to_skip, min_text_length=preset.data.min_text_length, held_out=held_out.hashes, template=template
        )
        encode = partial(encoder.encode, tokenizer, template)
        progress_of_each = [Progress(**entry) for entry in state["sources"]] if state else [None] * len(specs)
        self.feeds = [
            Feed(
                spec,
                source,
                encode,
                skip,
                seed=preset.train.seed,
                largest_block=LARGEST_BLOCKS // len(specs),
                progress=progress,
                before_waiting=self._append,
                admit=partial(self.duplicates.admit, index) if preset.data.drops_duplicates(spec) else None,
                kept_length=partial(kept_length, cuts=held_out.cuts, held_out=held_out.hashes),
            )
            for index, (spec, source, progress) in enumerate(zip(specs, sources, progress_of_each, strict=True))
        ]
        self._enter_part()

    def _is_wanted(self, begun: int, first: int, end: int, state: dict[str, Any]) -> bool:
        """Return whether rows are those that this run would make. They are not if they were chosen by weights that a
        crash undid and that were decided otherwise since, or for an earlier budget, whose finish began elsewhere.
        Those of a window that training has begun stay."""
        if first < begun:
            return True
        if "last_choice" in state:  # not in what older versions have written
            row, weights = state["last_choice"]
            if weights != self.weights_after(row):
                return False
        if self.finish is None:
            return True
        return first >= self.finish if state["finishing"] else end <= self.finish

    def _saw(self, state: dict[str, Any]) -> None:
        """Take over the documents of a state of the journal; of the states before in their order."""
        self._begin_part(state.get("finishing", False))
        self.duplicates.add(state["documents"])

    def _begin_part(self, finishing: bool) -> None:
        """Forget the documents of the part before: copies are dropped within a part, and a finish may give again
        what the run has read before."""
        if finishing != self.finishing:
            self.finishing = finishing
            self.duplicates.forget()

    def weights(self) -> list[float]:
        """Return the weights of the sources for a document chosen now."""
        return self.weights_after(self.packer.num_rows)

    def weights_after(self, row: int) -> list[float]:
        return weights_at(self.base_weights, self.orders.weight_changes, self.finish, row)

    def _enter_part(self) -> None:
        """Begin the finish once there are the rows before it, with a mixture of its own.

        The document that reaches beyond them is cut there, and so is the append (`_is_wanted`). In a
        run resumed with a larger budget, the finish may also end again.
        """
        if self.finish is None or (self.packer.num_rows >= self.finish) == self.finishing:
            return
        if not self.finishing:
            for source, dropped in enumerate(np.bincount(self.packer.cut(self.finish))):
                self.feeds[source].progress.tokens -= int(dropped)
            self._append()
        self._begin_part(not self.finishing)
        self.mixer = Mixer(self.strategy, self.weights())
        for index, feed in enumerate(self.feeds):
            self.mixer.active[index] &= not feed.finished

    def run(self) -> None:
        """Append rows until there are `num_rows` or the sources are used up."""
        while self.packer.num_rows < self.num_rows:
            if self.mixer.exhausted:
                self._append()
                self.events.emit("exhausted")
                return
            if self.packer.num_rows >= self.orders.limit:
                self._append()
                # As much as an append may hold: else each step of the trainer's would make a small one.
                room = min(LARGEST_APPEND // self.packer.seq_length, self.orders.run_ahead // 8)
                left = self.num_rows - self.packer.num_rows
                self.orders.wait_for_room(self.packer.num_rows, max(1, min(room, left)))
            self._add_document()
            pending = self.packer.waiting * self.packer.seq_length
            appended = (self.journal.num_rows - self.first_row) * self.packer.seq_length
            wanted = min(max(FIRST_APPEND, appended), LARGEST_APPEND)
            if pending >= wanted or (pending and time.monotonic() - self.last_append > APPEND_SECONDS):
                self._append()
        self._append()

    def _add_document(self) -> None:
        self.mixer.weights = self.weights()
        self.last_choice = self.packer.num_rows, self.mixer.weights
        index = self.mixer.choose()
        feed = self.feeds[index]
        document = feed.next_document()
        if document is not None:
            self.packer.add(document.tokens, index, document.loss_mask)
            self.mixer.charge(index, len(document) + 1)  # plus the end-of-text token that opens it
            self._enter_part()
        elif feed.finished:
            self.mixer.drop(index)
        else:
            self.mixer.epoch_ended(index)

    def _append(self) -> None:
        self.last_append = time.monotonic()
        readers: list[OpenSource | Feed] = [*self.sources, *self.feeds]
        for notice in (notice for reader in readers for notice in reader.new_notices()):
            log.warning("%s", notice)
        rows = self.packer.take()
        if len(rows):
            state = {
                "tokens": sum(feed.progress.tokens for feed in self.feeds),
                "sources": [asdict(feed.progress) for feed in self.feeds],
                "mixer": self.mixer.state(),
                "packer": self.packer.state(),
                "finishing": self.finishing,
                "last_choice": self.last_choice,
                "documents": self.duplicates.new_records(),
            }
            self.journal.append(rows, state)


def give_way() -> None:
    """Lower the priority of this process below the training step's.

    Linux shares the cores among sessions before it considers the niceness of their processes, and
    this process is a session of its own.
    """
    os.nice(10)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer: it saves and ends us
    give_way()
    events = Events(os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1))
    events.send_log()
    os.dup2(2, 1)  # output of libraries goes to stderr, not into the protocol
    try:
        request = json.loads(sys.stdin.readline())
        preset, stream_dir = parse_preset(request["preset"], "preset of the run"), Path(request["stream_dir"])
        orders = Orders(request, run_ahead_rows(preset.model.seq_length, request["token_budget"]))
        header, budget = request["header"], request["token_budget"]
        known = header or (None if request["fresh"] else read_header(stream_dir))  # not that of the run to be archived
        sources = open_sources(preset, known, events)
        events.emit("opened")
        orders.wait_for_go()
        prepared, lost = prepare(preset, stream_dir, header, sources, budget)
        give_back_memory()  # preparing leaves 100 MB behind
        producer = Producer(preset, stream_dir, prepared, sources, budget, request["begun"], orders, events)
        rows = producer.journal.num_rows
        if producer.journal.damaged or rows < request["consumed"]:
            lost.append(f"rows from {rows:,} on")
        vocab_size = bpe.vocab_size(prepared.tokenizer)
        events.emit("ready", vocab_size=vocab_size, header=prepared.header, rows=rows, lost=lost)
        producer.run()
        threading.Event().wait()  # all rows are produced; the trainer ends this process
    except UserError as error:
        events.emit("error", message=str(error))
        return 2
    except BrokenPipeError:
        pass  # the trainer is gone
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return OUT_OF_MEMORY
        if error.errno not in FULL | FAILING:
            traceback.print_exc()
            return 1
        # A new process would meet the same.
        events.emit(
            "error", message=f"the data process cannot go on: {error}; see to that disk or file and start again"
        )
        return 2
    except MemoryError:  # a new process takes less, unless a limit is too low
        print("the data process has not enough memory", file=sys.stderr)
        return OUT_OF_MEMORY
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main())  # does not wait for threads that a silent network may block

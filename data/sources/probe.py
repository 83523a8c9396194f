"""Checks for the menu which sources of a preset answer now: in parallel, within a fixed time.

A dataset on the Hub is asked for as its reader will do it, with the same client and environment
(hub_client.py). Never imports `datasets`, so that the menu appears at once. Downloads no data.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from configs import schema
from configs.errors import SourceError
from data.sources.find import PDFS, CannotBeSearched, matching_files
from data.sources.hub_client import NoAnswer, connect, find, first_line, retries
from data.sources.hub_messages import local_problem
from data.sources.hub_refusal import refusal

Answer = TypeVar("Answer")
SECONDS = 2.0  # as long as the menu waits


class Probe(NamedTuple):
    """Whether a source answers, and a short reason if it does not ("" if it does)."""

    label: str
    ok: bool
    detail: str = ""


def probe(specs: Iterable, seconds: float = SECONDS) -> list[Probe]:
    """Return one Probe a source, in order, `seconds` after the library is imported at the latest,
    even if packets are lost."""
    specs = list(specs)
    if any(spec.type == "hf" and not spec.is_local for spec in specs):
        with suppress(Exception):  # of any kind: said for each source below
            connect()  # imports the library, beside which the machine may be measured: not the Hub's time
    silence = [Probe(spec.label, False, f"no answer within {seconds:g} s") for spec in specs]
    return answers_within(seconds, [partial(probe_one, spec) for spec in specs], silence)


def answers_within(seconds: float, asked: Sequence[Callable[[], Answer]], silence: Sequence[Answer]) -> list[Answer]:
    """Call all of `asked` in parallel and return their answers: for one that takes longer than
    `seconds`, that of `silence`."""
    answers = list(silence)
    deadline = time.monotonic() + seconds

    def ask(index: int) -> None:
        answers[index] = asked[index]()

    # Daemon threads, since one that hangs in the system's name look-up cannot be interrupted.
    threads = [threading.Thread(target=ask, args=(index,), daemon=True) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(answers)


def probe_one(spec: schema.Source) -> Probe:
    try:
        match spec.type:
            case "python":
                problem = ""
            case "hf":
                problem = dataset_problem(spec)
            case "pdf":
                problem = path_problem(spec, PDFS)
            case "text":
                problem = path_problem(spec, spec.glob)
    except Exception as error:  # its message is not shown, as it may contain the token
        problem = getattr(error, "strerror", None) or f"cannot be checked ({type(error).__name__})"
    return Probe(spec.label, not problem, problem)


def path_problem(spec: schema.TextSource | schema.PDFSource, pattern: str) -> str:
    root = Path(os.path.expanduser(spec.path))
    if not os.path.exists(root):
        return f"{spec.path} does not exist"
    try:
        found = not root.is_dir() or any(matching_files(root, pattern, follow_links=spec.follow_links, any_case=True))
    except CannotBeSearched as error:
        return str(error)
    return "" if found else f"no file in {spec.path} matches {pattern}"


def dataset_problem(spec: schema.HFSource) -> str:
    if (problem := local_problem(spec)) or spec.is_local:
        return problem
    retries.set(False)  # of this thread
    try:
        find("dataset", spec.dataset, spec.revision)
    except SourceError as error:
        return str(error)
    except NoAnswer as error:
        return f"the Hub cannot be reached ({first_line(error)})"
    except Exception as error:
        if refused := refusal(error, spec.dataset):
            return refused
        raise
    return ""

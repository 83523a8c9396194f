"""Checks for the menu which sources of a preset answer now: in parallel, within a fixed time.

Imports neither `datasets` nor `huggingface_hub`, so that the menu appears at once. Downloads no
data.
"""

import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from configs import schema
from data.sources.hub_client import BAD_TOKEN


class Probe(NamedTuple):
    """Whether a source answers, and a short reason if it does not ("" if it does)."""

    label: str
    ok: bool
    detail: str = ""


def probe(specs: Iterable, seconds: float = 2.0) -> list[Probe]:
    """Return one Probe a source, in order, after at most `seconds`, even if packets are lost."""
    specs = list(specs)
    answers = [Probe(spec.label, False, f"no answer within {seconds:g} s") for spec in specs]
    deadline = time.monotonic() + seconds

    def ask(index: int) -> None:
        answers[index] = probe_one(specs[index], seconds)

    # Daemon threads, since one that hangs in the system's name look-up cannot be interrupted.
    threads = [threading.Thread(target=ask, args=(index,), daemon=True) for index in range(len(specs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(answers)


def probe_one(spec: schema.Source, seconds: float) -> Probe:
    try:
        match spec.type:
            case "python":
                problem = ""
            case "hf":
                problem = dataset_problem(spec, seconds)
            case "pdf":
                problem = path_problem(spec.path, "**/*.[pP][dD][fF]")
            case "text":
                problem = path_problem(spec.path, spec.glob)
    except Exception as error:  # its message is not shown, as it may contain the token
        problem = getattr(error, "strerror", None) or f"cannot be checked ({type(error).__name__})"
    return Probe(spec.label, not problem, problem)


def path_problem(path: str | Path, pattern: str) -> str:
    root = Path(os.path.expanduser(path))
    if not os.path.exists(root):
        return f"{path} does not exist"
    if root.is_dir() and not list(islice((file for file in root.glob(pattern) if not file.is_dir()), 1)):
        return f"no file in {path} matches {pattern}"
    return ""


def dataset_problem(spec: schema.HFSource, seconds: float) -> str:
    if spec.is_local:
        return path_problem(spec.folder, "**/*") if spec.folder else ""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/api/datasets/{spec.dataset}")
    if token := os.environ.get("HF_TOKEN", "").strip():
        if not (token.isascii() and token.isprintable()):
            return BAD_TOKEN
        # Not sent to the target of a redirect.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return ""
    except urllib.error.HTTPError as error:
        return {
            401: "no such dataset, or it is private: check the name or set HF_TOKEN",
            403: "access must be granted first: accept its terms on the Hub and set HF_TOKEN",
            404: "no such dataset on the Hub",
        }.get(error.code, f"the Hub answers {error.code}")
    except urllib.error.URLError as error:
        return f"the Hub cannot be reached ({error.reason})"

"""Benchmarks of a run's model: which there are, how long they take, their results in metrics.jsonl.

Tasks, prompts and metrics are those of lm_eval, an optional extra that is imported only here and in
harness.py. Every answer is on the disk at once, and every benchmark's results when it is done, so that
a start that was stopped is resumed.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import logging
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from configs.errors import UserError
from configs.text import clip, counted, human_time
from data.sources.hub_client import NoAnswer, causes, configure_library, is_request_error
from lm.evaluation.answers import Answers
from lm.evaluation.progress import Progress, Say
from lm.evaluation.results import latest
from lm.evaluation.scorer import Scorer
from lm.inference.load import load_model
from lm.model import Transformer
from lm.report.metrics import MetricsLog, read_metrics
from lm.runtime.devices import device_choice
from lm.runtime.machine import thread_choice
from lm.runtime.terminal import is_terminal

if TYPE_CHECKING:
    from lm.train.trainer import Trainer

log = logging.getLogger(__name__)

STANDARD = ("blimp", "lambada_openai", "hellaswag", "arc_easy", "piqa", "winogrande", "sciq")
SAMPLE = 20  # documents of each task that are read to estimate its time
FEWSHOT_SEED = 1234  # lm_eval's own default
INSTALL = 'python -m pip install -e ".[benchmarks]"'
# Why benchmarks cannot be loaded, and what to do; between the two, their names with the errors.
NO_PACKAGE = (
    "These benchmarks need a Python package that is missing or of another version:",
    "Install it with python -m pip install, or leave them out.",
)
NO_DATA = (
    "The data of these benchmarks are not here and cannot be fetched:",
    "Run them once with a network, after which they need none, or leave them out.",
)
BROKEN = (
    "These benchmarks cannot be loaded, with or without a network:",
    "They or their data have a mistake, or are for other versions of lm_eval and datasets. Leave them out.",
)

Measures = dict[str, tuple[float, float | None]]  # by metric: value, standard error
Loaded = dict[str, dict[str, Any]]  # by name of the benchmark: what TaskManager.load returns


def load_benchmarks(names: Sequence[str]) -> Loaded:
    """Load the tasks of `names` with their data, from the network where they are not on this disk.

    Raises UserError if lm_eval is not installed, for names that it does not know, and for data that
    cannot be had.
    """
    if not find_spec("lm_eval"):
        raise UserError(f"Benchmarks need lm_eval, which is not installed. In the folder of main.py: {INSTALL}")
    configure_library()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        from lm_eval.tasks import TaskManager

        manager = TaskManager()
    except Exception as error:  # anything, from other versions of its many libraries
        raise UserError(f"lm_eval cannot be used: {_in_a_line(error)}\n{NO_PACKAGE[1]}") from error
    if unknown := [name for name in dict.fromkeys(names) if name not in manager.task_index]:
        raise UserError("\n".join(_unknown(name, manager.all_tasks) for name in unknown))
    loaded, failed = {}, dict[tuple[str, str], list[str]]()
    for name in dict.fromkeys(names):
        try:
            loaded[name] = manager.load([name])
        except Exception as error:  # anything, from many libraries and from other people's tasks
            failed.setdefault(_why(error), []).append(f"  {name}: {_in_a_line(error)}")
    if failed:
        raise UserError("\n".join("\n".join((what, *lines, advice)) for (what, advice), lines in failed.items()))
    return loaded


def _in_a_line(error: Exception) -> str:
    return clip(" ".join(f"{type(error).__name__}: {error}".split()), 200)


def _unknown(name: str, known: Sequence[str]) -> str:
    by_lower_case = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.5)
    nearest = ", ".join(by_lower_case[other] for other in near)
    hint = f"the nearest are {nearest}" if near else f"the standard ones are {', '.join(STANDARD)}"
    return f"lm_eval has no benchmark {clip(name, 80)!r}; {hint}."


def _why(error: Exception) -> tuple[str, str]:
    """Return which of NO_PACKAGE, NO_DATA and BROKEN an error of loading is."""
    if isinstance(error, ImportError):
        return NO_PACKAGE
    missing = any(isinstance(link, OSError | NoAnswer) or is_request_error(link) for link in causes(error))
    # `datasets` says so, without a cause, of a data set of which it has another part.
    return NO_DATA if missing or "Couldn't find cache" in str(error) else BROKEN


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply matrices in fp32: training sets TF32 for its process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@full_precision()
def run_benchmarks(state: dict[str, Any], folder: Path, loaded: Loaded, say: Say) -> dict[str, Any]:
    """Run benchmarks on the model of a checkpoint's `state`, of the run in `folder`, record the results in its
    metrics.jsonl, each when it is done, and return them: {name: {measures, items, chance, ...}}.

    A benchmark that the model cannot do, or that fails, is reported by `say`, and is not in the results.
    """
    from lm.evaluation.harness import DoesNotFit, HarnessModel

    model, tokenizer, end_of_text = load_model(state, folder)
    device = torch.device("cuda" if device_choice().value == "cuda" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(thread_choice()[0])
    scorer, weights, results = Scorer(model.to(device)), digest(model), dict[str, Any]()

    def answers_to(name: str) -> Path:
        in_a_path = re.sub(r"[^\w.-]", "_", name)
        return folder / "benchmarks" / f"{weights}-{in_a_path}.jsonl"

    times = _times(loaded, lambda: HarnessModel(scorer, tokenizer, end_of_text, Answers(), lambda done, total: None))
    if times:
        say(times)
    for name, tasks in loaded.items():
        with Progress(name, say) as progress:
            harness = HarnessModel(scorer, tokenizer, end_of_text, Answers(answers_to(name)), progress.update)
            try:
                results[name] = evaluate_benchmark(harness, name, tasks)
            except DoesNotFit as error:
                say(f"{name} is skipped: {error}.")
                continue
            except UserError:
                raise
            except Exception as error:  # of other people's tasks, on the first document that they cannot read
                say(f"{name} is skipped, it fails: {_in_a_line(error)}")
                continue
        if harness.num_cut:
            texts = counted(harness.num_cut, "text")
            say(f"{name}: {texts} longer than the model's context lost the beginning, as in lm_eval's own class.")
        metrics = MetricsLog(folder / "metrics.jsonl")
        metrics.write({"tokens": state["tokens_seen"], "benchmarks": {name: results[name]}})
        metrics.close()
    for name in _recorded(folder, state):  # of one that fails the answers stay: it may have been this machine's fault
        answers_to(name).unlink(missing_ok=True)
    return results


def _recorded(folder: Path, state: dict[str, Any]) -> set[str]:
    """Return the benchmarks of which the results for a checkpoint's `state` are in metrics.jsonl."""
    found = latest(read_metrics(folder / "metrics.jsonl"))
    return {name for name, (tokens, _) in found.items() if tokens == state["tokens_seen"]}


def run_listed(trainer: Trainer, state: dict[str, Any]) -> None:
    """Run the benchmarks of the preset at the end of a run, on a checkpoint's `state`; a problem is logged and never costs the
    report. On the first rank only."""
    done = _recorded(trainer.folder, state)
    names = [name for name in trainer.preset.train.benchmarks if name not in done]
    try:
        if names:
            run_benchmarks(state, trainer.folder, load_benchmarks(names), log.info)
    except Exception as error:  # also what other people's tasks and data raise
        log.error("%s\nThe run is complete without them: choose b in the menu later.", error)


def _times(loaded: Loaded, make_harness: Callable[[], Any]) -> str:
    """Return how long each benchmark takes, in words, by the first documents of its tasks; "" if the model
    can do none. They share fewer beginnings than all do, so this is an upper estimate."""
    parts, sum_seconds = [], 0.0
    for name, tasks in loaded.items():
        instances, num_documents, num_sampled = [], 0, 0
        try:
            for task in tasks["tasks"].values():
                _zero_shot(task)
                with quiet():
                    task.build_all_requests(limit=SAMPLE)
                instances += task.instances
                num_documents += len(task.eval_docs)
                num_sampled += min(SAMPLE, len(task.eval_docs))
            harness, began = make_harness(), time.perf_counter()
            harness.answer_all(instances)
        except Exception:
            continue  # reported when its turn comes
        seconds = (time.perf_counter() - began) * num_documents / max(1, num_sampled)
        sum_seconds += seconds
        parts.append(f"{name} {human_time(seconds)}")
    each = ", ".join(parts)
    return f"benchmarks: at most about {human_time(sum_seconds)} ({each}); what was stopped is resumed" if each else ""


def quiet() -> AbstractContextManager:
    """Hide lm_eval's own progress bars, which tell that prompts are made, where there is no terminal."""
    return nullcontext() if is_terminal(sys.stderr) else redirect_stderr(io.StringIO())


def _zero_shot(task: Any) -> None:
    """Set what lm_eval's command sets where a task says nothing."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def evaluate_benchmark(harness: Any, name: str, loaded: dict[str, Any]) -> dict[str, Any]:
    """Return the results of one benchmark: {"measures": {metric: [value, standard error]}, "items",
    "chance" (a share, or None), "version", "parts" (the first measure of each task of a group)}."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        _zero_shot(task)
    with quiet():
        found = evaluate(harness, loaded, log_samples=False, bootstrap_iters=1_000)
    assert found, "the only process"
    tasks = loaded["tasks"]
    parts = {part: _measures(found["results"][part]) for part in tasks}
    measures = _measures(found["results"].get(name, {})) or _means(list(parts.values()))
    chances = [chance for task in tasks.values() if (chance := _chance(task)) is not None]
    result = {
        "measures": measures,
        "items": sum(len(task.eval_docs) for task in tasks.values()),
        "chance": statistics.mean(chances) if len(chances) == len(tasks) else None,
        "version": found["versions"].get(name, found["versions"].get(next(iter(tasks)))),
    }
    if len(parts) > 1:
        result["parts"] = {part: next(iter(measured.values()))[0] for part, measured in parts.items()}
    return result


def _measures(found: Mapping[str, Any]) -> Measures:
    """Return the measures in lm_eval's {"metric,filter": value}."""
    numbers = {key: float(value) for key, value in found.items() if "," in key and isinstance(value, int | float)}
    return {
        metric: (value, numbers.get(f"{metric}_stderr,{rule}"))
        for key, value in numbers.items()
        for metric, rule in [key.split(",", 1)]
        if not metric.endswith("_stderr")
    }


def _means(parts: list[Measures]) -> Measures:
    """Return the mean of each measure over tasks that lm_eval itself does not sum up."""
    shared = [metric for metric in parts[0] if all(metric in part for part in parts)]
    return {metric: (statistics.mean(part[metric][0] for part in parts), None) for metric in shared}


def _chance(task: Any) -> float | None:
    """Return the share of documents that chance gets right: None where texts are not chosen from."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = Counter(instance.doc_id for instance in task.instances)
    return statistics.mean(1 / number for number in choices.values())


def digest(model: Transformer) -> str:
    """Return 16 hex digits of all weights."""
    sha256 = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha256.update(name.encode() + tensor.cpu().numpy().tobytes())
    return sha256.hexdigest()[:16]

"""Benchmarks of a run's model: which there are, how long they take, their results in metrics.jsonl.

Tasks, prompts and metrics are those of lm_eval, an optional extra that is imported only here and in
harness.py. Every answer is on the disk at once, so that a start that was stopped is resumed.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import logging
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
from tqdm import tqdm

from configs.errors import UserError
from configs.text import clip, counted, human_time
from data.sources.hub_client import configure_library
from lm.evaluation.answers import Answers
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
LOG_SECONDS = 30  # between two lines of progress if there is no terminal
FEWSHOT_SEED = 1234  # lm_eval's own default
INSTALL = 'python -m pip install -e ".[benchmarks]"'

Say = Callable[[str], Any]
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
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if unknown := [name for name in names if name not in manager.task_index]:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"the standard ones are {', '.join(STANDARD)}"
        raise UserError(f"lm_eval has no benchmark {clip(unknown[0], 80)!r}; {hint}.")
    loaded, missing = {}, {}
    for name in dict.fromkeys(names):
        try:
            loaded[name] = manager.load([name])
        except Exception as error:  # anything, from many libraries: no network, no such file, a damaged one
            missing[name] = clip(" ".join(str(error).split()), 200)
    if missing:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in missing.items())
        raise UserError(
            f"The data of these benchmarks are not here and cannot be fetched:\n{reasons}\n"
            "Run them once with a network, after which they need none, or leave them out."
        )
    return loaded


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
    metrics.jsonl and return them: {name: {measures, items, chance, ...}}.

    A benchmark that the model cannot do is reported by `say`, and is not in the results.
    """
    from lm.evaluation.harness import DoesNotFit, HarnessModel

    model, tokenizer, end_of_text = load_model(state, folder)
    device = torch.device("cuda" if device_choice().value == "cuda" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(thread_choice()[0])
    scorer, path = Scorer(model.to(device)), folder / "benchmarks" / f"{digest(model)}.jsonl"
    answers, results = Answers(path), dict[str, Any]()
    say(_times(loaded, lambda: HarnessModel(scorer, tokenizer, end_of_text, Answers(), lambda done, total: None)))
    for name, tasks in loaded.items():
        with Progress(name, say) as progress:
            harness = HarnessModel(scorer, tokenizer, end_of_text, answers, progress.update)
            try:
                results[name] = evaluate_benchmark(harness, name, tasks)
            except DoesNotFit as error:
                say(f"{name} is skipped: {error}.")
                continue
        if harness.num_cut:
            texts = counted(harness.num_cut, "text")
            say(f"{name}: {texts} longer than the model's context lost the beginning, as in lm_eval's own class.")
    if results:
        metrics = MetricsLog(folder / "metrics.jsonl")
        metrics.write({"tokens": state["tokens_seen"], "benchmarks": results})
        metrics.close()
    path.unlink(missing_ok=True)
    return results


def run_listed(trainer: Trainer, state: dict[str, Any]) -> None:
    """Run the benchmarks of the preset at the end of a run, on a checkpoint's `state`; a problem is logged and never costs the
    report. On the first rank only."""
    recorded = latest(read_metrics(trainer.folder / "metrics.jsonl"))
    done = {name for name, (tokens, _) in recorded.items() if tokens == state["tokens_seen"]}
    names = [name for name in trainer.preset.train.benchmarks if name not in done]
    try:
        if names:
            run_benchmarks(state, trainer.folder, load_benchmarks(names), log.info)
    except Exception as error:  # also what other people's tasks and data raise
        log.error("%s\nThe run is complete without them: choose b in the menu later.", error)


def _times(loaded: Loaded, make_harness: Callable[[], Any]) -> str:
    """Say how long each benchmark takes, by the first documents of its tasks. They share fewer
    beginnings than all do, so this is an upper estimate."""
    from lm.evaluation.harness import DoesNotFit

    parts, sum_seconds = [], 0.0
    for name, tasks in loaded.items():
        instances, num_documents, num_sampled = [], 0, 0
        for task in tasks["tasks"].values():
            _zero_shot(task)
            with quiet():
                task.build_all_requests(limit=SAMPLE)
            instances += task.instances
            num_documents += len(task.eval_docs)
            num_sampled += min(SAMPLE, len(task.eval_docs))
        harness, began = make_harness(), time.perf_counter()
        try:
            harness.answer_all(instances)
        except DoesNotFit:
            continue  # reported when its turn comes
        seconds = (time.perf_counter() - began) * num_documents / max(1, num_sampled)
        sum_seconds += seconds
        parts.append(f"{name} {human_time(seconds)}")
    return f"benchmarks: at most about {human_time(sum_seconds)} ({', '.join(parts)}); what was stopped is resumed"


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


class Progress:
    """The progress of one benchmark: a bar in a terminal, or a line now and then."""

    def __init__(self, name: str, say: Say):
        self._name, self._say = name, say
        self._bar: tqdm | None = None
        self._last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens have been read."""
        if is_terminal(sys.stderr):
            if self._bar is None:
                self._bar = tqdm(total=total, desc=self._name, unit="tok", unit_scale=True, dynamic_ncols=True)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last >= LOG_SECONDS:
            self._last = time.monotonic()
            self._say(f"{self._name}: {done / total:.0%} read")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

"""The speed of our model class for lm_eval beside lm_eval's own class for Hugging Face models, and whether both give
the same scores.

    python -m benchmarks.harness RUN_FOLDER NUM_DOCUMENTS BENCHMARK [FOLDER_OF_TASKS]

The run has an export in hf/. Of each task of BENCHMARK the first NUM_DOCUMENTS are asked. Their class pads a batch to
its longest text and reads what texts share again in each; 1 is its default batch size. Times are CPU seconds of the
inference alone, by one thread: making prompts is lm_eval's work for both. Needs
the extra `test` and `lm_eval[hf]`.
"""

import sys
import time
from pathlib import Path

import torch

from lm.checkpoint import store
from lm.evaluation.answers import Answers
from lm.evaluation.harness import HarnessModel
from lm.evaluation.scorer import Scorer
from lm.inference.load import load_model

BATCH_SIZES = (1, 64)


def main(run: Path, num_documents: int, benchmark: str, tasks: str | None = None) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(1)
    instances = []
    for task in TaskManager(include_path=tasks, include_defaults=not tasks).load([benchmark])["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=num_documents)
        instances += task.instances
    model, tokenizer, end_of_text = load_model(store.load(run)[0], run)
    ours = HarnessModel(Scorer(model), tokenizer, end_of_text, Answers(), lambda done, total: None)
    found, seconds = timed(ours, instances)
    print(f"{'ours':>20}: {len(instances):,} texts, {seconds:.1f} CPU s, {len(instances) / seconds:,.0f} texts/s")
    for batch_size in BATCH_SIZES:
        theirs = HFLM(pretrained=str(run / "hf"), device="cpu", batch_size=batch_size, dtype="float32")
        theirs.logits_cache = False  # wrong where one text is cut in two places
        expected, their_seconds = timed(theirs, instances)
        furthest = max(abs(a - b) for (a, _), (b, _) in zip(found, expected, strict=True))
        print(
            f"{f'hf, batches of {batch_size}':>20}: {len(instances) / their_seconds:,.0f} texts/s; ours is "
            f"{their_seconds / seconds:.1f} times as fast; {differing(instances, found, expected)} items differ, "
            f"log-probabilities by {furthest:.1e} at most"
        )


def timed(model, instances) -> tuple[list[tuple[float, bool]], float]:
    began = time.process_time()
    found = model.loglikelihood(instances, disable_tqdm=True)
    return found, time.process_time() - began


def differing(instances, found, expected) -> int:
    """The number of documents for which another text is the most probable one, or greedy."""
    documents: dict[tuple, list[int]] = {}
    for number, instance in enumerate(instances):
        documents.setdefault((instance.task_name, instance.doc_id), []).append(number)

    def chosen(answers, numbers):
        return max(numbers, key=lambda number: answers[number][0]), [answers[number][1] for number in numbers]

    return sum(chosen(found, numbers) != chosen(expected, numbers) for numbers in documents.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])

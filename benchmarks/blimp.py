"""BLiMP for any model that gives logits: the tasks and the measure are those of lm_eval, as in the program (`b`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.contenders import EVALUATED_ROWS, Logits, negative_log_likelihood
from configs.errors import UserError
from lm.evaluation.answers import Answers
from lm.evaluation.benchmarks import Loaded, evaluate_benchmark, load_benchmarks
from lm.evaluation.scorer import Answer
from lm.evaluation.token_tree import Question

ROWS = 16 * EVALUATED_ROWS  # read at once
WIDTH = 32  # tokens: rows are as long as a multiple of it


class Sentence(NamedTuple):
    number: int  # of its question
    num_nodes: int  # tokens that are read


class LogitsScorer:
    """What lm/evaluation/scorer.py is for our models: a question in each row. Whether its tokens are the most probable
    ones is not known, and BLiMP does not ask."""

    def __init__(self, logits: Logits, max_length: int):
        self.logits, self.max_length = logits, max_length

    def rows(self, questions: Sequence[Question]) -> list[Sentence]:
        return sorted(
            (Sentence(number, len(question.read)) for number, question in enumerate(questions)),
            key=lambda row: row.num_nodes,
        )

    def batches(self, rows: Sequence[Sentence]):
        yield from (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))

    def answer(self, questions: Sequence[Question], rows: Sequence[Sentence]) -> list[tuple[int, Answer]]:
        width = min(self.max_length, -(-rows[-1].num_nodes // WIDTH) * WIDTH)
        tokens = np.zeros((-(-len(rows) // EVALUATED_ROWS) * EVALUATED_ROWS, width + 1), dtype=np.int64)
        for at, row in enumerate(rows):
            tokens[at, : row.num_nodes + 1] = questions[row.number].tokens
        nats = negative_log_likelihood(self.logits, tokens)
        return [
            (number, Answer(-float(nats[at, end - questions[number].num_scored : end].sum(dtype=np.float64)), False))
            for at, (number, end) in enumerate(rows)
        ]


def load_blimp() -> Loaded | None:
    """Load BLiMP; if that cannot be done, print what is missing and return None."""
    try:
        return load_benchmarks(["blimp"])
    except UserError as error:
        print(f"Without BLiMP: {error}")
        return None


def blimp(loaded: Loaded, logits: Logits, tokenizer_path: Path, max_length: int) -> float:
    """Return the share of BLiMP's pairs whose better sentence is the more probable one."""
    from data import tokenizer as bpe
    from lm.evaluation.harness import HarnessModel

    tokenizer = bpe.load(tokenizer_path)
    scorer = LogitsScorer(logits, max_length)
    harness = HarnessModel(scorer, tokenizer, bpe.end_of_text(tokenizer), Answers(), lambda done, total: None)
    ((name, tasks),) = loaded.items()
    return evaluate_benchmark(harness, name, tasks)["measures"]["acc"][0]

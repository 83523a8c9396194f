"""A model of this program as lm_eval's tasks see it. Imports lm_eval, an optional extra.

It answers as lm_eval's own class for Hugging Face models does for the exported model: a text begins
with the end-of-text token, and one that is longer than the context loses its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from lm.evaluation.answers import Answers
from lm.evaluation.scorer import Scorer
from lm.evaluation.token_tree import Question

Pair = tuple[Any, list[int], list[int]]  # (texts, unused here; tokens of a context; of its continuation)


class DoesNotFit(Exception):
    """A task that the model cannot do; the message says why."""


class HarnessModel(TemplateLM):
    """`on_progress(nodes, all_nodes)` is called before the first batch and after each: the tokens read
    and to be read. `num_cut`: texts so far that were longer than the context."""

    def __init__(
        self,
        scorer: Scorer,
        tokenizer: Tokenizer,
        end_of_text: int,
        answers: Answers,
        on_progress: Callable[[int, int], None],
    ):
        super().__init__()
        self._scorer, self._tokenizer, self._end_of_text = scorer, tokenizer, end_of_text
        self._answers, self._on_progress = answers, on_progress
        self.num_cut = 0

    @property
    def eot_token_id(self) -> int:
        return self._end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self._tokenizer.encode(string, add_special_tokens=False).ids
        return ids if add_special_tokens is False else [self._end_of_text, *ids]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        questions = [self._question(context, continuation) for _, context, continuation in requests]
        new = [question for question in dict.fromkeys(questions) if self._answers.get(question) is None]
        if new:
            rows = self._scorer.rows(new)
            done, total = 0, sum(row.num_nodes for row in rows)
            self._on_progress(done, total)
            for batch in self._scorer.batches(rows):
                self._answers.add((new[number], answer) for number, answer in self._scorer.answer(new, batch))
                done += sum(row.num_nodes for row in batch)
                self._on_progress(done, total)
        found = [self._answers.get(question) for question in questions]
        return [(answer.log_probability, answer.is_greedy) for answer in found if answer]

    def _question(self, context: list[int], continuation: list[int]) -> Question:
        longest = self._scorer.max_length
        if not 0 < len(continuation) <= longest:
            raise DoesNotFit(
                f"a text of {len(continuation):,} tokens is to be scored, and the model's context has {longest:,}"
            )
        tokens = context + continuation
        self.num_cut += len(tokens) > longest + 1
        return Question(tuple(tokens[-longest - 1 :]), len(continuation))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        # With the end-of-text token twice at the beginning, as in lm_eval's own class.
        encoded = [self.tok_encode(request.args[0]) for request in requests]
        parts = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(tokens, self._end_of_text, self._scorer.max_length, 1)
            ]
            for tokens in encoded
        ]
        found = iter(self._loglikelihood_tokens([pair for pairs in parts for pair in pairs]))
        return [sum(next(found)[0] for _ in pairs) for pairs in parts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        raise DoesNotFit("it needs answers in the model's own words; only tasks that compare given texts are supported")

    def answer_all(self, instances: Sequence[Any]) -> None:
        """Answer the requests of tasks, of whatever kind."""
        for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            if requests := [instance for instance in instances if instance.request_type == kind]:
                getattr(self, kind)(requests)

"""The answers of a model so far: benchmarks that were stopped go on where they were."""

import hashlib
import json
from array import array
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lm.evaluation.scorer import Answer
from lm.evaluation.token_tree import Question
from lm.runtime.files import whole_lines


class Answers:
    """Answers by question, kept in a JSON-lines file; in memory alone without a `path`."""

    def __init__(self, path: Path | None = None):
        self._path, self._known = path, dict[str, Answer]()
        for line in whole_lines(path) if path else []:
            with suppress(ValueError):  # torn when the program was killed, then appended to
                key, log_probability, is_greedy = json.loads(line)
                self._known[key] = Answer(log_probability, is_greedy)

    def get(self, question: Question) -> Answer | None:
        return self._known.get(_key(question))

    def add(self, found: Iterable[tuple[Question, Answer]]) -> None:
        new = {_key(question): answer for question, answer in found}
        self._known |= new
        if self._path:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps([key, *answer]) + "\n" for key, answer in new.items())


def _key(question: Question) -> str:
    data = array("q", [question.num_scored, *question.tokens]).tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()

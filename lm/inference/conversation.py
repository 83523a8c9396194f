"""What a model is shown of what its user types: a text to continue, or a conversation with
the turns so far."""

from collections.abc import Callable

from configs.text import counted
from data.chat_template import ChatTemplate, Turn, TurnsRefused
from lm.inference.generate import slid


class Continuation:
    """Texts that the model continues; each stands alone."""

    notice = ""

    def __init__(self, encode: Callable[[str], list[int]]):
        """`encode` returns a text's tokens, including the one that begins a document."""
        self._encode = encode

    def prompt(self, text: str, *, again: bool = False) -> list[int]:
        return self._encode(text)

    def add_answer(self, text: str) -> None:
        """Do nothing: a continuation has no history."""


class Conversation:
    """A conversation between user and model, with a system prompt if the user has set one.

    It is cut to what the model can see: the oldest questions are dropped, each with its answer,
    until three quarters of the window hold the rest, so that there is room for the next answer.
    The system prompt stays. `notice` is what the user should know about the last prompt, as the
    end of a sentence.
    """

    def __init__(self, template: ChatTemplate, end_of_text: int, window: int):
        self.template, self.end_of_text, self.window = template, end_of_text, window
        self.system = self.notice = ""
        self.begin()

    def begin(self) -> None:
        """Begin a new conversation, with the same system prompt."""
        self.turns: list[Turn] = []
        self._num_dropped = 0  # questions

    def prompt(self, text: str, *, again: bool = False) -> list[int]:
        """Add the user's turn, `again` in place of the last one and its answer, and return the tokens
        that an answer follows: more than the window holds only if this turn and the system prompt are.
        Raises TurnsRefused, and then changes nothing, as when Ctrl-C ends it.
        """
        before = self.turns, self._num_dropped
        self.turns = [*(self._without_last() if again else self.turns), Turn("user", text)]
        self.notice = ""
        try:
            tokens = self._tokens()
            while len(tokens) > slid(self.window) and len(self.turns) > 1:
                del self.turns[:2]
                self._num_dropped += 1
                first = "message" if self._num_dropped == 1 else counted(self._num_dropped, "message")
                self.notice = f"; it no longer sees your first {first}"
                tokens = self._tokens()
        except (TurnsRefused, KeyboardInterrupt):
            self.turns, self._num_dropped = before
            raise
        if len(tokens) > self.window:
            self.notice = f"; it sees only the end of this: {slid(self.window):,} tokens"
        return tokens

    def _tokens(self) -> list[int]:
        system = [Turn("system", self.system)] if self.system else []
        tokens, _ = self.template.encode([*system, *self.turns], generation_prompt=True)
        return [self.end_of_text, *tokens.tolist()]

    def add_answer(self, text: str) -> None:
        self.turns.append(Turn("assistant", text))

    def _without_last(self) -> list[Turn]:
        """Return the turns before the last question."""
        last = max((number for number, turn in enumerate(self.turns) if turn.role == "user"), default=0)
        return self.turns[:last]

"""What a model is shown of what its user types: a text to continue, or a conversation with
the turns so far."""

from collections.abc import Callable, Sequence

from configs.text import counted
from data.chat_template import ChatTemplate, Turn
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

    A prompt has what the model can see of it: the oldest questions are left out, each with its answer,
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
        self._num_hidden = 0  # questions, the oldest, that the last prompt had no room for

    def prompt(self, text: str, *, again: bool = False) -> list[int]:
        """Add the user's turn, `again` in place of the last one and its answer, and return the tokens
        that an answer follows: more than the window holds only if this turn and the system prompt are.
        Raises TurnsRefused, and then changes nothing, as when Ctrl-C ends it.
        """
        turns = [*(self._without_last() if again else self.turns), Turn("user", text)]
        most = (len(turns) - 1) // 2
        hidden = min(self._num_hidden, most)
        tokens = self._tokens(turns[2 * hidden :])
        while hidden and len(more := self._tokens(turns[2 * hidden - 2 :])) <= slid(self.window):  # room again
            hidden, tokens = hidden - 1, more
        while hidden < most and len(tokens) > slid(self.window):
            hidden += 1
            tokens = self._tokens(turns[2 * hidden :])
        self.notice = ""
        if hidden > self._num_hidden:
            first = "message" if hidden == 1 else counted(hidden, "message")
            self.notice = f"; it no longer sees your first {first}"
        if len(tokens) > self.window:
            self.notice += f"; it sees only the end of this: {slid(self.window):,} tokens"
        self.turns, self._num_hidden = turns, hidden
        return tokens

    def _tokens(self, turns: Sequence[Turn]) -> list[int]:
        system = [Turn("system", self.system)] if self.system else []
        tokens, _ = self.template.encode([*system, *turns], generation_prompt=True)
        return [self.end_of_text, *tokens.tolist()]

    def add_answer(self, text: str) -> None:
        self.turns.append(Turn("assistant", text))

    def _without_last(self) -> list[Turn]:
        """Return the turns before the last question."""
        last = max((number for number, turn in enumerate(self.turns) if turn.role == "user"), default=0)
        return self.turns[:last]

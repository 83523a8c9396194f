"""Renders a Jinja chat template as transformers does; one that is not ours in a process with limits.

    python -m data.template_renderer CPU_SECONDS        reads a request on stdin, prints the answer (JSON)

A template is a program, which can loop for ever or take any memory. So each time that one from
elsewhere is rendered, a process of its own does it; and there are few times, since what is rendered
are the roles of a conversation and not its texts (data/chat_template.py).
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.limited_process import Crashed, TakesTooLong, run_limited, set_limits

CPU_SECONDS = 5
MEMORY_BYTES = 1 << 30  # of address space
LONGEST, LONGEST_TURN = 20_000, 1_000  # characters that a template may render, and so many more for each message


class Unusable(ValueError):
    """A template that renders nothing, for whatever messages. The text is a part of a sentence."""


class Refused(ValueError):
    """A template that says it cannot render these messages, such as two questions in a row."""


class _Generation(Extension):
    """{% generation %}: marks the assistant's text for transformers, and changes nothing that is rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(source: str, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
    """Return what a template makes of `messages`. Raises Unusable and Refused."""

    def raise_exception(message: str) -> NoReturn:
        raise Refused(str(message)[:200])

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = raise_exception
    # Not there: strftime_now, which would make the tokens of a run depend on the day. Templates then name a fixed one.
    variables: dict[str, Any] = {"tools": None, "documents": None, "enable_thinking": False}
    try:
        rendered = environment.from_string(source).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **variables
        )
    except (Refused, MemoryError):
        raise
    except TemplateError as error:
        raise Unusable(f"{type(error).__name__}: {error.message}"[:200]) from None
    except Exception as error:  # its expressions can raise anything
        raise Unusable(f"{type(error).__name__}: {error}"[:200]) from None
    if len(rendered) > LONGEST + LONGEST_TURN * len(messages):
        raise Unusable(f"it renders {len(rendered):,} characters of {len(messages):,} short messages")
    return rendered


def render_with_limits(source: str, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
    """Return what `render` does, in a process with limits of time and memory. Raises as it does."""
    request = json.dumps([source, messages, add_generation_prompt]).encode()
    try:
        answer = run_limited(__name__, str(CPU_SECONDS), given=request)
    except TakesTooLong:
        raise Unusable("it takes too long") from None
    except Crashed:
        raise Unusable("it crashes, or needs too much memory") from None
    kind, text = json.loads(answer)
    if kind == "rendered":
        return text
    raise (Refused if kind == "refused" else Unusable)(text)


def main(cpu_seconds: int) -> None:
    set_limits(cpu_seconds, MEMORY_BYTES)
    try:
        answer = ("rendered", render(*json.load(sys.stdin)))
    except Refused as error:
        answer = ("refused", str(error))
    except Unusable as error:
        answer = ("unusable", str(error))
    print(json.dumps(answer))


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""Chat templates that are programs of somebody else's: tried in a process with limits."""

import math

import pytest

from configs.errors import UserError
from data import template_renderer
from data import tokenizer as bpe
from data.chat_template import OWN, ChatTemplate, Turn, TurnsRefused
from tests.cpu_clock import slowness

pytestmark = pytest.mark.slow

TALK = [Turn("user", "What is two and two?"), Turn("assistant", "Four.")] * 2


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["What is two and two? Four."] * 50, 400, bpe.MARKERS)


UNUSABLE = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "takes too long",
    "{% set big = ('x' * 10 ** 9) * 10 %}": "too much memory|takes too long",
    "{% for m in messages %}{{ m.content * 2 }}{% endfor %}": r"text of turn 1 \(user\) more than once",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}": r"text of turn 2 \(assistant\) nowhere",
    "{% for m in messages %}{{ m.content | upper | urlencode }}{% endfor %}": "turn 1 .* nowhere",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "SecurityError",
    "{{ messages.append(1) }}": "SecurityError",
    "{% include '/etc/passwd' %}": "TypeError|no loader",
    "{% for m in messages %}": "TemplateSyntaxError",
    "{% for m in messages %}{{ m.content + 1 }}{% endfor %}": "TypeError",
    "{{ raise_exception('no chat') }}": "no chat",
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}": "does not end an answer",
    "{% for m in messages %}{{ '<|user|>' + m.content }}{% endfor %}": "does not end an answer",
    OWN + "{{ '\ue0009\ue001' }}": "placeholders of its own",
    "{{ 'x' * 30000 }}": "renders 30,0.. characters",
    "x" * 300_000: "it has 300,000 characters",
}


@pytest.fixture
def limited(monkeypatch):
    """A child's limit is near its own start, on any machine."""
    monkeypatch.setattr(template_renderer, "CPU_SECONDS", math.ceil(slowness()))


def test_templates_that_cannot_be_used_are_refused_in_time_and_memory(tokenizer, limited):
    for source, problem in UNUSABLE.items():
        with pytest.raises(UserError, match=rf"the chat template cannot be used: .*({problem})"):
            ChatTemplate(source, tokenizer)


def test_a_template_that_loops_only_for_some_turns_costs_those_turns(tokenizer, limited, monkeypatch):
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    loop = "{% if messages | length == 3 %}" + forever + "{% endif %}"
    template = ChatTemplate(OWN + loop, tokenizer)
    with pytest.raises(TurnsRefused, match="takes too long"):
        template.encode(TALK[:3])
    with monkeypatch.context() as patch:
        patch.setattr(template_renderer, "run_limited", None)  # a second time they cost nothing
        with pytest.raises(TurnsRefused, match="takes too long"):
            template.encode(TALK[:3])
    assert len(template.encode(TALK)[0])

"""Many questions at once are answered as each alone would be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.blimp import LogitsScorer
from configs.schema import ModelConfig
from lm.evaluation.scorer import Scorer
from lm.evaluation.token_tree import Question, pack
from tests.lm.random_model import random_model

LENGTH, VOCAB = 24, 12
questions = st.lists(
    st.builds(
        lambda tokens, scored: Question(tuple(tokens), 1 + scored % (len(tokens) - 1)),
        st.lists(st.integers(0, 2), min_size=2, max_size=LENGTH + 1),  # of few tokens, so that beginnings are shared
        st.integers(0, LENGTH),
    ),
    min_size=1,
    max_size=30,
    unique=True,
)


@pytest.fixture(scope="module", params=[{}, {"num_kv_heads": 1, "qk_norm": False}], ids=["Qwen3", "Llama, grouped"])
def model(request):
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": LENGTH, "mlp_size": 64}
    return random_model(ModelConfig(**shape | request.param), VOCAB)


@torch.no_grad()
def alone(model, question: Question) -> tuple[float, bool]:
    log_probabilities_TV = model.output(model(torch.tensor([question.read]))[0]).log_softmax(-1)[-question.num_scored :]
    targets = torch.tensor(question.tokens[-question.num_scored :])
    found = log_probabilities_TV.gather(1, targets[:, None]).sum()
    return float(found), bool((log_probabilities_TV.argmax(-1) == targets).all())


@settings(max_examples=30)
@given(asked=questions)
def test_answers_are_those_of_each_question_alone(model, asked):
    scorer = Scorer(model)
    rows = pack(asked, LENGTH + 6)  # narrow: several rows, the last in part empty
    found = dict(answer for row in rows for answer in scorer.answer(asked, [row]))
    together = dict(scorer.answer(asked, rows))
    assert found.keys() == together.keys() == set(range(len(asked)))
    for number, question in enumerate(asked):
        log_probability, is_greedy = alone(model, question)
        assert together[number].log_probability == pytest.approx(log_probability, abs=1e-4)
        assert found[number].log_probability == pytest.approx(log_probability, abs=1e-4)
        assert found[number].is_greedy == together[number].is_greedy == is_greedy


@settings(max_examples=5)
@given(asked=questions)
def test_the_benchmarks_scorer_of_any_model_gives_the_same_probabilities(model, asked):
    scorer = LogitsScorer(lambda tokens: model.output(model(tokens)), LENGTH)
    rows = scorer.rows(asked)
    found = dict(answer for batch in scorer.batches(rows) for answer in scorer.answer(asked, batch))
    assert len(found) == len(asked)
    for number, question in enumerate(asked):
        assert found[number].log_probability == pytest.approx(alone(model, question)[0], abs=1e-4)


def test_what_several_begin_with_is_read_once(model):
    context = tuple(range(10))
    asked = [Question((*context, last, 1, 2), 3) for last in (3, 4, 5, 6)]
    [row] = Scorer(model).rows(asked)
    assert row.num_nodes == 10 + 4 * 2  # the last token of each is only predicted
    assert row.depths[: row.num_nodes].max() == 11

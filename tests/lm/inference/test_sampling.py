"""Nucleus, ban and n-gram blocker do exactly what they promise."""

from fractions import Fraction

import pytest
import torch

from lm.inference.sampling import NgramBlocker, Sampler, process_logits, sample

pytestmark = pytest.mark.core


def reference_nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """The definition, in exact sums: take tokens by falling probability until their mass reaches top_p."""
    kept: list[int] = []
    mass = Fraction(0)
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        kept.append(token)
        mass += Fraction(probabilities[token])
        if mass >= top_p:
            break
    return set(kept)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("size", "scale"), [(50, 3), (3000, 3), (300, 100)])  # of the last, most probabilities are 0
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, size, scale):
    for seed in range(5):
        logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale
        full = process_logits(logits, (), 0.7, 1.0)
        torch.testing.assert_close(full, torch.softmax(logits / 0.7, -1))
        nucleus = process_logits(logits, (), 0.7, top_p)
        kept = reference_nucleus(full.tolist(), top_p)
        assert set(nucleus.nonzero().flatten().tolist()) == kept
        expected = torch.where(nucleus > 0, full, 0)
        torch.testing.assert_close(nucleus, expected / expected.sum())


def test_nucleus_edges():
    halves = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert len(process_logits(halves, (), 1.0, 0.75).nonzero()) == 2  # reached, not exceeded
    assert len(process_logits(halves, (), 1.0, 0.8).nonzero()) == 4  # of equals, all
    assert process_logits(halves, (), 1.0, 0.0).tolist() == [1, 0, 0, 0]
    assert process_logits(halves, (), 0.0, 0.5).tolist() == [1, 0, 0, 0]


def test_banned_tokens_have_no_mass_unless_all_are_banned():
    logits = torch.tensor([3.0, 2.0, 1.0])
    assert process_logits(logits, [0, 0], 0, 1.0).tolist() == [0, 1, 0]
    torch.testing.assert_close(
        process_logits(logits, [1], 1.0, 1.0), torch.softmax(torch.tensor([3, -torch.inf, 1]), -1)
    )
    torch.testing.assert_close(process_logits(logits, [0, 1, 2], 1.0, 1.0), torch.softmax(logits, -1))
    impossible = torch.tensor([3.0, -torch.inf, 1.0])  # such as a token that no text has here
    torch.testing.assert_close(process_logits(impossible, [0, 2], 1.0, 1.0), torch.softmax(impossible, -1))
    assert logits.tolist() == [3.0, 2.0, 1.0]  # the model's logits stay as they were


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-30, 1e-3, 10])
@pytest.mark.parametrize("top_p", [0, 1e-300, 1e-50, 0.5, 1])
def test_every_setting_gives_tokens(temperature, top_p):
    logits, generator = torch.tensor([30.0, -1e4, 29.0, -torch.inf]), torch.Generator().manual_seed(0)
    sampler = Sampler(NgramBlocker(), temperature, top_p, generator)
    draft = sampler.draft(logits[:3], torch.arange(3))
    tokens = {draft.token, sampler.accept_or_resample(logits, draft), sampler.accept_or_resample(logits, None)}
    assert tokens <= {0, 2}
    assert temperature > 1 or tokens == {0}


def test_blocker_rollback_undoes_append():
    tokens = [1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2]
    blocker = NgramBlocker(tokens[:6])
    for token in tokens[6:]:
        blocker.append(token)
    assert sorted(set(blocker.banned())) == [3, 4]
    for length in range(len(tokens), -1, -1):
        blocker.rollback(length)
        assert sorted(blocker.banned()) == sorted(NgramBlocker(tokens[:length]).banned())


def test_what_ends_a_text_may_always_come():
    blocker = NgramBlocker([1, 2, 9, 1, 2, 3, 1, 2], allowed=(9,))
    assert blocker.banned() == [3]


def test_with_n_1_no_token_comes_twice():
    blocker = NgramBlocker([5, 7], 1)
    blocker.append(9)
    assert sorted(blocker.banned()) == [5, 7, 9]
    blocker.rollback(1)
    assert blocker.banned() == [5]


def test_what_is_sampled_has_weight_and_what_has_weight_is_sampled():
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    sampled = [sample(weights, generator) for _ in range(2000)]
    assert set(sampled) == {1, 3}
    assert 0.71 < sampled.count(1) / 2000 < 0.79

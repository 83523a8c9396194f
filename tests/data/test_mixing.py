import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixing import (
    LARGEST_MOVE,
    Mixer,
    base_weights,
    in_force,
    loss_slope,
    over_the_run,
    relative_loss,
    shares_asked,
    weights_at,
)

pytestmark = pytest.mark.core


def mix(mixer, sizes, num_documents):
    """Tokens taken from each source when a document of source i costs sizes[i]()."""
    taken = [0] * len(sizes)
    for _ in range(num_documents):
        index = mixer.choose()
        cost = sizes[index]()
        mixer.charge(index, cost)
        taken[index] += cost
    return taken


def document_sizes(seed, means):
    rng = random.Random(seed)
    return [lambda mean=mean: max(1, int(rng.expovariate(1 / mean))) for mean in means]


def test_weighted_shares_are_exact_in_tokens_whatever_the_document_sizes():
    taken = mix(Mixer("weighted", [5, 3, 2]), document_sizes(0, [3000, 40, 500]), 20_000)
    for share, wanted in zip((count / sum(taken) for count in taken), [0.5, 0.3, 0.2], strict=True):
        assert share == pytest.approx(wanted, abs=0.002)


weights_of = st.lists(st.floats(0.01, 100), min_size=12, max_size=12)


def furthest_off(mixer, weights, lengths):
    """The most that any source was ever away from what was asked of it, in documents, the longest so far; `weights` for
    each of `lengths`, a document's tokens."""
    off, longest, furthest = [0.0] * len(mixer.weights), 0, 0.0
    for mixer.weights, length in zip(weights, lengths, strict=True):
        index = mixer.choose()
        mixer.charge(index, length)
        total, longest = sum(mixer.weights), max(longest, length)
        off = [so_far + length * weight / total for so_far, weight in zip(off, mixer.weights, strict=True)]
        off[index] -= length
        furthest = max(furthest, *(abs(tokens) / longest for tokens in off))
    return furthest


@settings(max_examples=100)
@given(
    st.integers(2, 12),
    weights_of,
    st.integers(0, 10**6),
    st.sampled_from(["equal", "exponential", "long and short", "growing"]),
)
def test_weighted_is_never_further_off_than_one_document(num_sources, weights, seed, kind):
    rng = random.Random(seed)
    length = {
        "equal": lambda _: 1000,
        "exponential": lambda _: 1 + int(rng.expovariate(1 / 1000)),
        "long and short": lambda _: rng.choice([1000, 3]),
        "growing": lambda number: number + 1,
    }[kind]
    weights = weights[:num_sources]
    lengths = [length(number) for number in range(200)]
    assert furthest_off(Mixer("weighted", weights), [weights] * 200, lengths) < 1 + 1e-9


@settings(max_examples=100)
@given(
    st.integers(2, 12),
    st.lists(weights_of, min_size=6, max_size=6),
    st.sampled_from([1, 3, 50]),
    st.integers(0, 10**6),
)
def test_weights_that_change_on_the_way_cost_less_than_half_a_document(num_sources, weights, every, seed):
    rng = random.Random(seed)
    weights = [weights[number // every % 6][:num_sources] for number in range(200)]
    lengths = [rng.choice([1000, 1000, 30]) for _ in range(200)]
    assert furthest_off(Mixer("weighted", weights[0]), weights, lengths) < 1.5


def test_turns_are_shared_out_when_a_source_ends():
    mixer, order = Mixer("round_robin", [1.0] * 5), []
    for turn in range(400):
        if turn == 103:
            mixer.drop(3)
        order.append(mixer.choose())
        mixer.charge(order[-1], 1)
    assert order[103:] == ([4] + [0, 1, 2, 4] * 75)[:297]


def test_new_weights_count_from_the_change_and_repay_nothing():
    mixer, sizes = Mixer("weighted", [9, 1]), document_sizes(2, [100, 100])
    mix(mixer, sizes, 10_000)  # a million tokens of history at 9:1
    mixer.weights = [1, 1]
    taken = mix(mixer, sizes, 1000)
    assert taken[0] / sum(taken) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("num_sources", [2, 3, 7])
def test_round_robin_is_one_document_a_turn_for_ever(num_sources):
    mixer = Mixer("round_robin", [1.0] * num_sources)
    for turn in range(5000):
        assert mixer.choose() == turn % num_sources
        mixer.charge(turn % num_sources, 1 + turn % 13)


def test_round_robin_with_factors_gives_smooth_turns():
    mixer, order = Mixer("round_robin", [2.0, 1.0, 1.0]), []
    for _ in range(400):
        order.append(mixer.choose())
        mixer.charge(order[-1], 50)
    assert [order.count(i) for i in range(3)] == [200, 100, 100]
    assert all(order[i : i + 3] != [0, 0, 0] for i in range(400))


def test_sequential_goes_on_at_the_end_of_an_epoch_and_wraps():
    mixer, order = Mixer("sequential", [1, 1, 1]), []
    for _ in range(4):
        order.append(mixer.choose())
        mixer.charge(order[-1], 10)
        assert mixer.choose() == order[-1]
        mixer.epoch_ended(order[-1])
    assert order == [0, 1, 2, 0]
    mixer.drop(1)
    mixer.epoch_ended(1)
    assert mixer.choose() == 2


@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "sequential"])
def test_a_dropped_source_is_never_chosen_again(strategy):
    mixer, sizes = Mixer(strategy, [5, 3, 2]), document_sizes(3, [100, 100, 100])
    mix(mixer, sizes, 50)
    mixer.drop(0)
    taken = mix(mixer, sizes, 5000)
    assert taken[0] == 0
    if strategy == "weighted":
        assert taken[1] / sum(taken) == pytest.approx(0.6, abs=0.01)
    mixer.drop(2)
    assert not mixer.exhausted
    assert mixer.choose() == 1
    mixer.drop(1)
    assert mixer.exhausted


@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "sequential"])
def test_saved_state_continues_with_the_same_choices(strategy):
    rng, weights = random.Random(4), [0.3, 0.1, 0.7]
    mixer = Mixer(strategy, weights)
    for step in range(600):
        if step % 50 == 49:
            restored = Mixer(strategy, weights)
            restored.load_state(json.loads(json.dumps(mixer.state())))
            assert restored.choose() == mixer.choose()
            mixer = restored
        index = mixer.choose()
        mixer.charge(index, rng.randrange(1, 3000))
        if rng.random() < 0.05:
            mixer.epoch_ended(index)
        if step == 300:
            mixer.drop(1)


def test_only_weighted_listens_to_source_weights():
    assert base_weights("weighted", [3, 1]) == [3, 1]
    assert base_weights("round_robin", [3, 1, 0]) == [1, 1, 0]


def test_weights_change_at_their_rows_and_where_the_finish_begins():
    base, changes = [3, 1, 0, 0, 0, 1], [(10, [3, 2, 0, 0, 0, 1]), (30, [9, 9, 0, 0, 1, 1])]
    expected = [(0, [3, 1, 0]), (10, [3, 2, 0]), (20, [0, 0, 1]), (30, [0, 1, 1])]
    assert in_force(base, changes, 20) == expected
    assert [weights_at(base, changes, 20, row) for row in (9, 19, 29, 99)] == [weights for _, weights in expected]
    assert in_force([3, 1], [], None) == [(0, [3, 1])]
    assert over_the_run(base, 3, 0.1) == pytest.approx([0.9 * 0.75, 0.9 * 0.25, 0.1])
    assert over_the_run([3, 1], 2, None) == [3, 1]


def test_a_source_without_weight_is_never_chosen():
    mixer = Mixer("weighted", [0, 2, 0, 1])
    for _ in range(30):
        index = mixer.choose()
        assert index in (1, 3)
        mixer.charge(index, 7)
    mixer.drop(1)
    assert mixer.choose() == 3
    mixer.drop(3)
    assert mixer.exhausted


def test_the_share_asked_is_the_mean_over_rows_of_what_was_in_force():
    assert shares_asked([(0, [3, 1])], 0) == [0, 0]
    assert shares_asked([(0, [3, 1])], 10) == pytest.approx([0.75, 0.25])
    parts = [(0, [3, 1]), (10, [1, 1]), (15, [0.5, 4.5])]
    assert shares_asked(parts, 10) == pytest.approx([0.75, 0.25])
    assert shares_asked(parts, 20) == pytest.approx([(7.5 + 2.5 + 0.5) / 20, (2.5 + 2.5 + 4.5) / 20])


def test_relative_loss_follows_the_formula_and_its_limits():
    factors = relative_loss([1.0, 1.0, 2.0], [3.0, 1.0, None], smoothing=0.9, low=0.6, high=3.0)
    assert factors == pytest.approx([0.9 + 0.1 * 1.5, 0.9 + 0.1 * 0.6, 2.0])
    for _ in range(200):
        factors = relative_loss(factors, [9.0, 0.1, 0.1], smoothing=0.9, low=0.5, high=2.0)
    assert factors == pytest.approx([2.0, 0.5, 0.5])


def slope(factors, falls, errors, *, smoothing=0.0, low=0.5, high=3.0):
    return loss_slope(factors, falls, errors, smoothing=smoothing, low=low, high=high)


def test_slope_moves_only_on_real_falls_and_by_bounded_steps():
    assert slope([1.0, 1.0], [0.01, -0.3], [0.02, 0.02]) == [1.0, 1.0]
    moved = slope([1.0, 1.0], [0.3, 0.01], [0.02, 0.02])
    assert moved == pytest.approx([LARGEST_MOVE, 1 / LARGEST_MOVE])
    for _ in range(50):
        moved = slope(moved, [0.3, 0.0], [0.02, 0.02], high=1.5)
    assert moved == pytest.approx([1.5, 0.5])
    assert slope([1.0, 1.0], [0.2, 0.2], [0.0, 0.0]) == pytest.approx([1.0, 1.0])
    assert slope([1.0, 2.0, 1.0], [0.3, None, 0.3], [0.0, 0.0, 0.0]) == pytest.approx([1.0, 2.0, 1.0])  # not known
    assert slope([1.0, 1.0], [0.3, 0.0], [0.02, 0.02], smoothing=0.9) == pytest.approx([1.1, 0.95])

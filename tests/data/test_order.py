"""The order of rows: every row once, windows as wide as stated, a function of seed and window alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.journal import run_ahead_rows
from data.order import RowOrder, window_edges

pytestmark = pytest.mark.core


@given(st.integers(1, 3000), st.integers(0, 900), st.integers(0, 2**32 - 1), st.integers(1, 700))
def test_every_row_is_read_once_from_its_own_window(num_rows, run_ahead, seed, step):
    edges = window_edges(num_rows, run_ahead)
    assert (edges[0], edges[-1]) == (0, num_rows)
    assert max(np.diff(edges)) <= max(1, run_ahead // 2), "two windows fit into the run-ahead"
    order = RowOrder(edges, seed)
    steps = [order.journal_rows(first, min(step, num_rows - first), num_rows) for first in range(0, num_rows, step)]
    rows = np.concatenate(steps)
    for start, end in itertools.pairwise(edges):
        assert sorted(rows[start:end]) == list(range(start, end))
        assert order.window(start) == order.window(end - 1) == (start, end)


def test_windows_of_a_whole_run_grow_from_half_a_million_tokens_to_an_eighth_of_the_run():
    edges = np.array(window_edges(100_000_000 // 512, run_ahead_rows(512, 100_000_000))) * 512
    assert np.diff(edges)[:5] == pytest.approx([5e5, 1e6, 2e6, 4e6, 8e6], rel=0.01)
    assert np.diff(edges)[5:-1] == pytest.approx(12.5e6, rel=0.01)


def test_the_order_is_thorough_and_of_its_seed_and_window_alone():
    one, other = (RowOrder([0, 1000, 2000], seed).journal_rows(0, 2000, 2000) for seed in (1, 2))
    assert (np.corrcoef(one[:1000], np.arange(1000))[0, 1] ** 2) < 0.02
    assert (one != other).mean() > 0.99
    assert (one[:1000] != one[1000:] - 1000).mean() > 0.99
    longer = RowOrder([0, 1000, 2000, 3000], 1).journal_rows(0, 3000, 3000)
    np.testing.assert_array_equal(longer[:2000], one)
    assert RowOrder([0, 8], 1337).journal_rows(0, 8, 8).tolist() == ORDER_OF_8, "runs that have begun read on in it"


ORDER_OF_8 = [5, 1, 6, 7, 4, 0, 2, 3]


def test_a_window_ends_where_the_sources_did():
    rows = RowOrder([0, 10, 30, 70], 1).journal_rows(10, 13, 23)
    assert sorted(rows) == list(range(10, 23))


@given(row=st.integers(0, 1000), budget=st.integers(1000, 2000))
def test_a_run_that_is_given_another_budget_reads_its_windows_to_their_end(row, budget):
    before = RowOrder(window_edges(1000, 300), 1)
    begun = before.edges_begun(row)
    after = RowOrder(window_edges(budget, 2 * 300, begun), 1)
    assert after.edges[: len(begun)] == begun
    read = [*before.journal_rows(0, row, 1000)] if row else []
    read += [*after.journal_rows(row, budget - row, budget)] if budget > row else []
    assert sorted(read) == list(range(budget))
    if budget == 1000:
        assert RowOrder(window_edges(1000, 300, begun), 1).edges == before.edges

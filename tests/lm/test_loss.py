"""The chunked loss is torch's cross-entropy: sums, single losses, gradients, masks, low precision."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lm import loss
from lm.loss import IGNORE, linear_cross_entropy, mtp_targets
from lm.sizes import CHUNK_ROWS, chunk_rows

HIDDEN, VOCAB = 16, 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 8 rows, so that tiny inputs have several of them."""
    monkeypatch.setitem(CHUNK_ROWS, "cpu", 8)


def make_inputs(num_rows: int, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    hidden_ND = torch.randn(num_rows, HIDDEN, generator=generator, requires_grad=True)
    weight_VD = torch.randn(VOCAB, HIDDEN, generator=generator, requires_grad=True)
    targets_N = torch.randint(VOCAB, (num_rows,), generator=generator)
    targets_N[torch.rand(num_rows, generator=generator) < ignored] = IGNORE
    return hidden_ND, weight_VD, targets_N


def reference(hidden_ND, weight_VD, targets_N) -> torch.Tensor:
    return F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, ignore_index=IGNORE, reduction="none")


def test_a_chunk_of_a_large_vocabulary_has_fewer_rows():
    assert chunk_rows("cpu", VOCAB) == chunk_rows("cpu", 32_768) == 8
    assert chunk_rows("cuda", 151_936) * 151_936 <= 2**30 < (chunk_rows("cuda", 151_936) + 1) * 151_936
    assert chunk_rows("cpu", 10**9) == 1


def test_chunks_are_small_where_no_gradient_is_wanted(monkeypatch):
    """A GPU's large ones would take gigabytes for an evaluation, beside what the training step holds."""
    monkeypatch.setitem(CHUNK_ROWS, "cpu", 32_768)
    hidden_ND, weight_VD, targets_N = make_inputs(2_500)
    sizes = []

    def counted(hidden, *inputs):
        sizes.append(len(hidden))
        return loss.chunk_loss(hidden, *inputs)

    linear_cross_entropy(hidden_ND, weight_VD, targets_N, chunk=counted)
    assert sizes == [2_500]
    sizes.clear()
    with torch.no_grad():
        linear_cross_entropy(hidden_ND, weight_VD, targets_N, chunk=counted)
    assert sizes == [1_024, 1_024, 452]


@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 24, 37])
def test_equals_torch_cross_entropy(num_rows, ignored):
    hidden_ND, weight_VD, targets_N = inputs = make_inputs(num_rows, ignored)
    expected_N = reference(*inputs)
    expected_grads = torch.autograd.grad(expected_N.sum() * 0.25, (hidden_ND, weight_VD))
    total, losses_N = linear_cross_entropy(*inputs)
    assert not losses_N.requires_grad
    torch.testing.assert_close(losses_N, expected_N.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, expected_N.sum(), rtol=1e-5, atol=1e-4)
    assert torch.all(losses_N[targets_N == IGNORE] == 0)
    grads = torch.autograd.grad(total * 0.25, (hidden_ND, weight_VD))
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [(0.5, 0.25), (0.0, 0.0), (2.0,)])
def test_further_targets_are_learnt_by_their_weights_and_not_reported(weights):
    hidden_ND, weight_VD, targets_N = inputs = make_inputs(37)
    further = mtp_targets(targets_N.view(1, -1), weights)
    further[0][0][3] = targets_N[3] = 5  # one token twice in a row
    expected = reference(*inputs).sum()
    for distance, weight in enumerate(weights, 1):  # the row's tokens, `distance` beyond the next
        expected = (
            expected + weight * reference(hidden_ND[:-distance], weight_VD, further[distance - 1][0][:-distance]).sum()
        )
    total, losses_N = linear_cross_entropy(*inputs, further)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(losses_N, reference(*inputs).detach(), rtol=1e-5, atol=1e-5)
    of_both = [torch.autograd.grad(loss, (hidden_ND, weight_VD)) for loss in (total, expected)]
    for grad, known in zip(*of_both, strict=True):
        torch.testing.assert_close(grad, known, rtol=1e-4, atol=1e-5)


def test_further_targets_are_tokens_of_the_same_row():
    targets_BT = torch.tensor([[1, 2, 3, IGNORE], [5, 6, 7, 8]])
    (two, weight), (three, _) = mtp_targets(targets_BT, (0.5, 0.25))
    assert weight == 0.5
    assert two.tolist() == [2, 3, IGNORE, IGNORE, 6, 7, 8, IGNORE]
    assert three.tolist() == [3, IGNORE, IGNORE, IGNORE, 7, 8, IGNORE, IGNORE]


def test_large_logits_stay_finite():
    hidden_ND, weight_VD, targets_N = make_inputs(9, 0.0)
    inputs = (hidden_ND * 1000, weight_VD, targets_N)
    total, losses_N = linear_cross_entropy(*inputs)
    torch.testing.assert_close(losses_N, reference(*inputs).detach(), rtol=1e-5, atol=1e-2)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(total, (hidden_ND, weight_VD)))


def test_bf16_autocast_is_close_and_keeps_the_dtypes_of_parameters():
    hidden_ND, weight_VD, _ = inputs = make_inputs(37)
    expected_N = reference(*inputs)
    expected_grads = torch.autograd.grad(expected_N.sum(), (hidden_ND, weight_VD))
    with torch.autocast("cpu", torch.bfloat16):
        total, losses_N = linear_cross_entropy(*inputs)
    assert losses_N.dtype == total.dtype == torch.float32
    assert not torch.equal(losses_N, expected_N), "autocast must reach the products"
    assert (losses_N - expected_N).abs().max() < 0.1
    for grad, expected in zip(torch.autograd.grad(total, (hidden_ND, weight_VD)), expected_grads, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("weights", [(), (0.5, 0.25)])
def test_one_product_without_gradients_and_three_with_them(weights):
    hidden_ND, weight_VD, targets_N = make_inputs(24)
    product = 2 * 24 * HIDDEN * VOCAB
    with FlopCounterMode(display=False) as with_gradients:
        linear_cross_entropy(hidden_ND, weight_VD, targets_N, mtp_targets(targets_N.view(2, -1), weights))
    assert with_gradients.get_total_flops() == 3 * product
    with torch.no_grad(), FlopCounterMode(display=False) as without:
        measured, _ = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    assert without.get_total_flops() == product
    total, _ = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
    assert torch.equal(measured, total.detach())
    assert not measured.requires_grad


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TORCH_COMPILE_DISABLE") == "1", reason="torch.compile is switched off")
def test_traces_as_one_graph_with_and_without_gradients(compiler):
    """`aot_eager` is torch.compile without its code generator: it needs no C++ compiler."""
    hidden_ND, weight_VD, _ = inputs = make_inputs(16)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    expected, _ = linear_cross_entropy(*inputs)
    expected_grads = torch.autograd.grad(expected, (hidden_ND, weight_VD))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs)[0], expected.detach())
    actual, _ = compiled(*inputs)
    torch.testing.assert_close(actual, expected)
    for grad, known in zip(torch.autograd.grad(actual, (hidden_ND, weight_VD)), expected_grads, strict=True):
        torch.testing.assert_close(grad, known)

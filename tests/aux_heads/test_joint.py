"""Trunk and heads together: what is built, what the trunk feels, what is summed, that heads learn from real text."""

import copy

import pytest
import torch

from aux_heads.joint import JointModel, build_heads
from configs.errors import UserError
from configs.schema import AuxiliaryConfig, ModelConfig
from lm.model import Transformer
from lm.runtime.compiler import compile_choice
from tests.aux_heads.small_trunk import (
    HIDDEN_SIZE,
    SEQ_LENGTH,
    generator,
    joint_model,
    let_it_copy,
    run,
    text_batches,
)
from tests.program import ALL_HEADS


@pytest.fixture(autouse=True)
def _one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def train(model: JointModel, batches, scale: float = 0.0) -> None:
    """Trunk and heads have their own optimizers, as in a real run."""
    optimizers = [torch.optim.Adam(model.trunk.parameters(), lr=3e-3)]
    if model.heads:
        optimizers.append(torch.optim.Adam(model.heads.parameters(), lr=3e-3))
    for step, tokens in enumerate(batches):
        output = run(model, tokens, seed=step, trunk_gradient_scale=scale)
        (output.total / tokens[:, 1:].numel()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def held_out(model: JointModel) -> dict[str, float]:
    """Losses and measures, averaged over held-out batches at fixed positions."""
    model.eval()
    with torch.no_grad():
        outputs = [run(model, tokens, seed=7) for tokens in text_batches(8, seed=99)]
    values = [output.head_losses | output.measures for output in outputs]
    return {name: sum(float(value[name]) for value in values) / len(values) for name in values[0]}


def same_trunk(a: JointModel, b: JointModel) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.trunk.parameters(), b.trunk.parameters(), strict=True))


@pytest.mark.parametrize(
    ("enabled", "built", "losses"),
    [
        ([], set(), set()),
        (["enable_dynamics"], {"dynamics"}, {"dynamics"}),
        (["enable_policy"], {"dynamics", "policy"}, {"policy"}),
        (["enable_value"], {"value"}, {"value"}),
        (["enable_span_contrastive"], {"span_contrastive"}, {"span_contrastive"}),
    ],
)
def test_a_head_that_is_off_is_not_built(enabled, built, losses):
    model = joint_model(**dict.fromkeys(enabled, True))
    assert set(model.heads) == built
    output = run(model, text_batches(1)[0])
    assert set(output.head_losses) == losses
    output.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_rows_too_short_to_look_ahead_are_refused_by_name():
    with pytest.raises(UserError, match=r"model\.seq_length is 32"):
        build_heads(AuxiliaryConfig(enable_value=True), HIDDEN_SIZE, seq_length=32)


def test_building_and_drawing_leave_global_random_numbers_alone():
    before = torch.get_rng_state()
    aux = AuxiliaryConfig(**ALL_HEADS)
    heads = build_heads(aux, HIDDEN_SIZE, SEQ_LENGTH)
    JointModel(torch.nn.Identity(), heads, aux, None).sample_positions(4, SEQ_LENGTH, generator())
    assert torch.equal(before, torch.get_rng_state())


def test_trunk_is_bit_identical_with_and_without_heads():
    bare, with_heads, coupled = joint_model(), joint_model(**ALL_HEADS), joint_model(**ALL_HEADS)
    assert same_trunk(bare, with_heads)
    batches = text_batches(5)
    train(bare, batches)
    train(with_heads, batches)
    train(coupled, batches, scale=1.0)
    assert same_trunk(bare, with_heads)
    assert not same_trunk(bare, coupled)  # the comparison can fail


def test_only_the_hidden_state_ever_carries_head_gradients_to_the_trunk():
    for scale, reaches_layers in ((0.0, False), (1.0, True)):
        model = joint_model(**ALL_HEADS)
        lm_loss = model.loss_fn
        model.loss_fn = lambda *inputs, lm_loss=lm_loss: tuple(loss.detach() for loss in lm_loss(*inputs))
        run(model, text_batches(1)[0], trunk_gradient_scale=scale).total.backward()
        assert (model.trunk.layers[0].weight.grad is not None) is reaches_layers
        assert model.trunk.output.weight.grad is None


def test_trunk_gradient_is_scaled():
    def head_gradient(scale):
        model = joint_model(**ALL_HEADS)
        lm_loss = model.loss_fn
        model.loss_fn = lambda *inputs: tuple(loss.detach() for loss in lm_loss(*inputs))
        run(model, text_batches(1)[0], trunk_gradient_scale=scale).total.backward()
        return model.trunk.layers[0].weight.grad

    torch.testing.assert_close(head_gradient(0.25), 0.25 * head_gradient(1.0))


def test_total_weighs_heads_by_tokens():
    weights = {"policy_kl_weight": 0.1, "value_weight": 0.2, "dynamics_weight": 0.3, "span_contrastive_weight": 0.4}
    model = joint_model(**ALL_HEADS, **weights)
    tokens = text_batches(1)[0]
    targets = tokens[:, 1:].clone()
    targets[:3] = -100
    output = model(tokens, targets, model.sample_positions(*targets.shape, generator()))
    losses = output.head_losses
    heads = 0.1 * losses["policy"] + 0.2 * losses["value"] + 0.3 * losses["dynamics"] + 0.4 * losses["span_contrastive"]
    torch.testing.assert_close(output.total, output.loss_sum + targets[3:].numel() * heads)


def test_a_micro_batch_without_targets_still_gives_every_head_a_finite_gradient():
    model = joint_model(**ALL_HEADS)
    tokens = text_batches(1)[0]
    targets = torch.full_like(tokens[:, 1:], -100)
    model(tokens, targets, model.sample_positions(*targets.shape, generator())).total.backward()
    for name, parameter in model.heads.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert not parameter.grad.any(), name


@pytest.mark.slow
def test_every_head_learns_from_real_text():
    model = joint_model(**ALL_HEADS)
    before = held_out(model)
    train(model, text_batches(200, seed=1))
    after = held_out(model)
    assert after == held_out(model)  # same positions, same numbers

    copying = copy.deepcopy(model)
    copying.heads["dynamics"] = build_heads(AuxiliaryConfig(enable_dynamics=True), HIDDEN_SIZE, SEQ_LENGTH)["dynamics"]
    let_it_copy(copying)
    copy_of_h = held_out(copying)
    for k in (1, 2, 3):
        assert after[f"dynamics/error_{k}"] < 0.9
        assert after[f"dynamics/centred_cosine_{k}"] > 0.3
        assert after[f"policy/acceptance_{k}"] > copy_of_h[f"policy/acceptance_{k}"] + 0.1
    assert after["policy"] < 0.7 * copy_of_h["policy"]
    assert after["value"] < before["value"] - 1
    assert after["value/correlation"] > 0.1
    assert after["span_contrastive/top1"] > 2 * after["span_contrastive/chance"]
    assert after["span_contrastive/top1_same_document"] > after["span_contrastive/chance_same_document"] + 0.1


CAN_COMPILE, WHY_NOT = compile_choice("cpu")
needs_compiler = pytest.mark.skipif(not CAN_COMPILE, reason=WHY_NOT)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow(60), needs_compiler])]
)
def test_compiled_heads_equal_eager_ones(backend, compiler):
    eager, compiled = joint_model(**ALL_HEADS), joint_model(**ALL_HEADS)
    compiled.load_state_dict(eager.state_dict())
    compiled.compile_trunk_and_heads(backend=backend)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for seed, tokens in enumerate(text_batches(2)):
        expected, got = run(eager, tokens, seed=seed), run(compiled, tokens, seed=seed)
        torch.testing.assert_close(got.head_losses, expected.head_losses, rtol=1e-4, atol=1e-5)
        expected.total.backward()
        got.total.backward()
    for (name, parameter), twin in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-3, atol=1e-2, msg=name)


@pytest.mark.slow
def test_a_compiled_trunk_keeps_no_scores_of_its_attention(compiler):
    """They grow with the square of the context, and would be most of what a long row needs."""
    rows, length, num_heads = 2, 1024, 2
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=num_heads, seq_length=length, vocab_size=300)
    aux = AuxiliaryConfig()
    model = JointModel(Transformer(config, 300), build_heads(aux, 32, length), aux, lambda *_: None)
    model.compile_trunk_and_heads(backend="aot_eager_decomp_partition")
    hidden = model.trunk_forward(torch.zeros((rows, length), dtype=torch.int64))
    kept = {
        saved.untyped_storage().data_ptr(): saved.untyped_storage().nbytes() for saved in hidden.grad_fn.saved_tensors
    }
    kept_of_weights = sum(weight.untyped_storage().nbytes() for weight in model.trunk.parameters())
    unmasked_scores = 4 * rows * num_heads * length**2 // 2  # of one layer, in bytes
    assert sum(kept.values()) - kept_of_weights < unmasked_scores

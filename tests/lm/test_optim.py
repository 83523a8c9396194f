"""Muon against torch's own, decay that never fights the update, the schedule, and one group for each parameter."""

import io

import pytest
import torch
from torch import nn

from aux_heads.joint import JointModel, build_heads
from configs.schema import AuxiliaryConfig, ModelConfig, TrainConfig
from lm.loss import linear_cross_entropy
from lm.model import Transformer
from lm.optim import (
    CONTINUED_SHARE,
    Muon,
    build_optimizers,
    orthogonalize,
    peak_learning_rates,
    set_learning_rate,
)
from tests.lm.small_step import ALL_HEADS

pytestmark = pytest.mark.core


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix_with_singular_values(rows: int, columns: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(a matrix with these singular values, the semi-orthogonal matrix nearest to it)."""
    u, _, v = torch.linalg.svd(random(rows, columns, seed=rows), full_matrices=False)
    return u @ torch.diag(values) @ v, u @ v


# ---- Muon -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (48, 16), (16, 48), (2, 2), (1, 8), (8, 1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_orthogonalize_finds_the_nearest_semi_orthogonal_matrix(rows, columns, scale):
    values = torch.logspace(-1, 0, min(rows, columns)) * scale
    matrix, nearest = matrix_with_singular_values(rows, columns, values)
    found = orthogonalize(torch.stack([matrix, -matrix])).float()
    assert found.shape == (2, rows, columns)
    singular_values = torch.linalg.svdvals(found)
    assert singular_values.min() > 0.6
    assert singular_values.max() < 1.3
    for sign, one in zip((1, -1), found, strict=True):
        cosine = (one * nearest * sign).sum() / (one.norm() * nearest.norm())
        assert cosine > 0.97


def train_side_by_side(shapes, num_steps: int = 6, lr: float = 0.05) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters after the same gradients under our Muon and under torch's, both without weight decay."""
    ours = [nn.Parameter(random(*shape, seed=index)) for index, shape in enumerate(shapes)]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    our_muon = Muon([{"params": ours, "lr": lr}])
    their_muon = torch.optim.Muon(theirs, lr=lr, weight_decay=0.0, momentum=0.95, adjust_lr_fn="original")
    for step in range(num_steps):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = random(*a.shape, seed=100 * step + index) * 0.3**step
            b.grad = a.grad.clone()
        our_muon.step()
        their_muon.step()
    return ours, theirs


def test_muon_agrees_with_torch():
    """Shrinking gradients make the momentum's weight visible; bf16 products leave about a percent of difference."""
    shapes = [(24, 24), (48, 16), (16, 48), (16, 48), (24, 24)]
    ours, theirs = train_side_by_side(shapes)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        start = random(*shapes[index], seed=index)
        assert (a - b).norm() < 0.01 * (b - start).norm()


@pytest.mark.parametrize("parts", [(1, 1, 1), (4, 2, 2)], ids=["alike", "grouped"])
def test_fused_parts_step_like_separate_matrices(parts):
    """Queries, keys and values below each other in one parameter, and the same three alone."""
    separate = [nn.Parameter(random(8 * share, 16, seed=part)) for part, share in enumerate(parts)]
    fused = nn.Parameter(torch.cat([parameter.detach() for parameter in separate]))
    rate = {"lr": 0.1, "weight_decay": 0.3}
    muons = [Muon([{"params": separate, **rate}]), Muon([{"params": [fused], "parts": parts, **rate}])]
    for step in range(3):
        for part, parameter in enumerate(separate):
            parameter.grad = random(*parameter.shape, seed=10 * step + part)
        fused.grad = torch.cat([parameter.grad for parameter in separate])
        for muon in muons:
            muon.step()
    torch.testing.assert_close(fused, torch.cat([parameter.detach() for parameter in separate]), rtol=0, atol=1e-6)


def test_groups_keep_their_own_rate_although_shapes_are_batched():
    slow, fast = (nn.Parameter(random(8, 8)) for _ in range(2))
    muon = Muon([{"params": [slow], "lr": 0.01}, {"params": [fast], "lr": 0.1}])
    slow.grad = fast.grad = random(8, 8, seed=1)
    muon.step()
    torch.testing.assert_close((fast - random(8, 8)), 10 * (slow - random(8, 8)), rtol=1e-3, atol=1e-6)


def test_decay_never_works_against_the_update():
    """Where the update shrinks a weight, decay shrinks it by lr * weight_decay of itself more; elsewhere it is off."""
    start, gradient, lr, decay = random(32, 32), random(32, 32, seed=1), 0.1, 0.5
    moves = []
    for weight_decay in (0.0, decay):
        parameter = nn.Parameter(start.clone())
        parameter.grad = gradient
        Muon([{"params": [parameter], "lr": lr, "weight_decay": weight_decay}]).step()
        moves.append(parameter.detach() - start)
    plain, decayed = moves
    shrinks = plain * start < 0
    assert 0.3 < shrinks.float().mean() < 0.7
    torch.testing.assert_close(decayed[~shrinks], plain[~shrinks], rtol=0, atol=1e-6)
    torch.testing.assert_close(decayed[shrinks], (plain - lr * decay * start)[shrinks], rtol=0, atol=1e-6)


def test_parameters_without_gradient_stay():
    still, moving = nn.Parameter(random(4, 4)), nn.Parameter(random(4, 4))
    moving.grad = random(4, 4, seed=1)
    Muon([{"params": [still, moving], "weight_decay": 0.5}]).step()
    assert torch.equal(still, random(4, 4))
    assert not torch.equal(moving, random(4, 4))


def test_a_step_whose_gradients_were_no_numbers_changes_nothing_where_it_is_told_so():
    """What a GPU does in place of a branch: torch's AdamW and Muon are told in the same way."""
    for make in (lambda p: Muon([{"params": [p], "weight_decay": 0.5}]), lambda p: torch.optim.AdamW([p], fused=True)):
        matrix = nn.Parameter(random(6, 4))
        optimizer = make(matrix)
        history = []
        for gradient, told in ((random(6, 4, seed=1), 0.0), (random(6, 4) / 0, 1.0), (random(6, 4, seed=2), 0.0)):
            matrix.grad, optimizer.found_inf = gradient, torch.tensor(told)
            optimizer.step()
            history.append([matrix.detach().clone(), *(value.clone() for value in optimizer.state[matrix].values())])
        first, told_so, last = history
        assert all(map(torch.equal, first, told_so))
        assert not any(map(torch.equal, told_so, last))


# ---- groups -----------------------------------------------------------------------------------------------------


WIDE = ModelConfig(hidden_size=768, num_layers=1, num_heads=12, seq_length=64)


def joint_model(tied: bool = False, heads: AuxiliaryConfig = ALL_HEADS) -> JointModel:
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=64, mlp_size=64, tie_embeddings=tied)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return JointModel(Transformer(config, 300), build_heads(heads, 32, 64), heads, linear_cross_entropy)


def optimizers_of(model: JointModel, **train) -> list[torch.optim.Optimizer]:
    rates = peak_learning_rates(TrainConfig(**train), model.trunk.config, 16_384)
    return build_optimizers(model.trunk, model.heads, rates, TrainConfig(**train).weight_decay)


@pytest.mark.parametrize("heads", [AuxiliaryConfig(), ALL_HEADS], ids=["no heads", "all heads"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_exactly_one_group(tied, heads):
    model = joint_model(tied, heads)
    grouped = [
        id(parameter)
        for optimizer in optimizers_of(model)
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_muon_has_the_hidden_matrices_alone_cut_into_their_parts():
    model = joint_model()
    muon, _, _ = optimizers_of(model)
    parts = {id(parameter): group["parts"] for group in muon.param_groups for parameter in group["params"]}
    for layer in model.trunk.layers:
        assert parts.pop(id(layer.attention.qkv.weight)) == (2, 2, 2)
        assert parts.pop(id(layer.mlp.gate_up.weight)) == (1, 1)
        assert parts.pop(id(layer.attention.proj.weight)) == (1,)
        assert parts.pop(id(layer.mlp.down.weight)) == (1,)
    assert not parts


def test_a_presets_rates_reach_their_groups_and_only_matrices_decay():
    model = joint_model()
    rates = {"matrix": 0.011, "embedding": 0.022, "output": 0.033, "scalar": 0.044}
    optimizers = optimizers_of(
        model, weight_decay=0.7, **{f"{name}_learning_rate": rate for name, rate in rates.items()}
    )
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    known = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    trunk = model.trunk
    assert known[id(trunk.layers[1].mlp.down.weight)] == (0.011, 0.7)
    assert known[id(trunk.embed.weight)] == (0.022, 0.0)
    assert known[id(trunk.output.weight)] == (0.033, 0.0)
    assert known[id(trunk.layers[0].attention.q_norm.weight)] == known[id(trunk.norm.weight)] == (0.044, 0.0)
    of_heads = {(parameter.ndim, *known[id(parameter)]) for parameter in model.heads.parameters()}
    assert of_heads == {(2, 0.011, 0.7), (1, 0.044, 0.0)}
    set_learning_rate(optimizers, 0.5)
    set_learning_rate(optimizers, 0.25)
    assert [group["lr"] for group in groups] == [group["peak_lr"] * 0.25 for group in groups]


def test_default_rates_scale_with_batch_and_width():
    full, quarter = (peak_learning_rates(TrainConfig(), WIDE, tokens) for tokens in (524_288, 131_072))
    assert quarter == pytest.approx({name: rate / 2 for name, rate in full.items()})
    narrow = peak_learning_rates(TrainConfig(), WIDE.model_copy(update={"hidden_size": 192}), 524_288)
    factors = {"matrix": 1, "embedding": 2, "output": 2, "scalar": 1}
    assert narrow == pytest.approx({name: full[name] * factor for name, factor in factors.items()})


def test_a_normed_embedding_takes_larger_steps():
    normed, plain = (
        peak_learning_rates(TrainConfig(), WIDE.model_copy(update={"embedding_norm": norm}), 524_288)
        for norm in (True, False)
    )
    assert normed == pytest.approx(plain | {"embedding": 4 * plain["embedding"]})


def test_a_model_that_is_trained_already_takes_small_steps():
    models = WIDE, WIDE.model_copy(update={"init_from": "some/model"})
    new, continued = (peak_learning_rates(TrainConfig(), model, 524_288) for model in models)
    shares = {name: continued[name] / rate for name, rate in new.items()}
    assert shares["matrix"] == shares["output"] == shares["scalar"] == pytest.approx(CONTINUED_SHARE)
    assert continued["embedding"] == continued["output"]
    chosen = peak_learning_rates(TrainConfig(matrix_learning_rate=0.5), models[1], 524_288)
    assert chosen["matrix"] == 0.5


def test_a_tied_embedding_has_the_output_layers_rate_and_no_other():
    train = {"embedding_learning_rate": 0.022, "output_learning_rate": 0.033}
    model = joint_model(tied=True)
    assert "embedding" not in peak_learning_rates(TrainConfig(**train), model.trunk.config, 524_288)
    _, adam, _ = optimizers_of(model, **train)
    assert [group["lr"] for group in adam.param_groups if group["params"][0] is model.trunk.embed.weight] == [0.033]


def test_saved_state_continues_identically():
    tokens = torch.randint(300, (6, 4, 65), generator=torch.Generator().manual_seed(5))

    def train(model: JointModel, optimizers: list[torch.optim.Optimizer], batches: torch.Tensor) -> None:
        for index, batch in enumerate(batches):
            sampled = model.sample_positions(4, 64, torch.Generator().manual_seed(index))
            model(batch, batch[:, 1:], sampled).total.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    model = joint_model()
    optimizers = optimizers_of(model)
    train(model, optimizers, tokens[:3])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, *optimizers)], file)
    file.seek(0)
    resumed = joint_model()
    resumed_optimizers = optimizers_of(resumed)
    for part, saved in zip((resumed, *resumed_optimizers), torch.load(file), strict=True):
        part.load_state_dict(saved)
    train(model, optimizers, tokens[3:])
    train(resumed, resumed_optimizers, tokens[3:])
    for (name, expected), actual in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, actual), name

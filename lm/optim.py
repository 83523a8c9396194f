"""Muon for hidden matrices and AdamW for everything else, with learning rates that are a pure
function of tokens seen.

Muon (Jordan et al., kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by its
nearest semi-orthogonal matrix, approximated with five Newton-Schulz iterations. Matrices of one
shape are stacked and orthogonalised in one batch of matmuls; `torch.optim.Muon` does the same one
tensor at a time and is the reference of the tests. Never here: gradients, clipping, when to step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from configs.model import ModelConfig
from configs.schema import TrainConfig
from lm.model import Transformer
from lm.sizes import NEWTON_SCHULZ_STEPS

# Quintic with the steepest slope at 0 that stays near 1 (Jordan et al.).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MUON_MOMENTUM = 0.95
BATCH_SIZE = 2**24  # elements in a batch of matrices, of which several copies are made
ADAM_BETAS = (0.8, 0.95)
ADAM_EPS = 1e-10
NORMED_EMBEDDING = 4  # times the embedding's default rate, if the layers read it at an rms of 1 (benchmarks/LOG.md)
CONTINUED_SHARE = 0.05  # of the default rates, for a model that is trained already (docs/start-from-a-model.md)


def orthogonalize(matrices_NRC: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximate the nearest semi-orthogonal matrix of each of N matrices
    (R, C); bf16 is precise enough."""
    a, b, c = NEWTON_SCHULZ
    if dtype == torch.float16:  # in which gradients would be too small
        matrices_NRC = matrices_NRC / (matrices_NRC.norm(dim=(-2, -1), keepdim=True) + 1e-30)
    x = matrices_NRC.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum, with decoupled weight decay only where the
    update shrinks a weight too.

    A parameter that stacks matrices (R, C) (queries, keys and values; gate and up) counts as that
    many matrices; `parts` has the shares of its rows, such as (1, 1) or (4, 2, 2). The step of a
    matrix is lr * sqrt(max(1, R / C)) times the orthogonalised matrix. `groups`: dicts with
    `params`, `parts`, `lr`, `weight_decay`; `lr` may be changed at any time, and the decay is
    scaled by lr as in AdamW.
    """

    def __init__(self, groups: Iterable[dict], dtype: torch.dtype = torch.bfloat16):
        super().__init__(groups, {"parts": (1,), "lr": 0.02, "weight_decay": 0.0})
        self.dtype = dtype  # of the matmuls; another where the hardware is slow at bfloat16
        self.found_inf: Tensor | None = None  # set before a step: if not 0, nothing changes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
        batches: dict[tuple, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        rates: dict[float | int, Tensor] = {}
        for group in self.param_groups:
            rate = id(group["lr"]) if isinstance(group["lr"], Tensor) else group["lr"]
            rates[rate] = torch.as_tensor(group["lr"], device=group["params"][0].device)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                tensors = (parameter.grad, state["momentum"], parameter.data)
                rows, columns = parameter.shape
                sizes = [rows * part // sum(group["parts"]) for part in group["parts"]]
                for part in zip(*(tensor.split(sizes) for tensor in tensors), strict=True):
                    batches[len(part[0]), columns, rate, group["weight_decay"]].append(part)
        for (rows, columns, rate, weight_decay), members in batches.items():
            at_once = max(1, BATCH_SIZE // (rows * columns))
            for start in range(0, len(members), at_once):
                scale = math.sqrt(max(1.0, rows / columns))
                self._step(members[start : start + at_once], rates[rate], scale, weight_decay)

    def _step(
        self, members: list[tuple[Tensor, Tensor, Tensor]], lr: Tensor, scale: float, weight_decay: float
    ) -> None:
        """Update matrices of one shape, given (gradient, momentum, matrix) of each."""
        _, momenta, matrices = lists = list(zip(*members, strict=True))
        gradient, momentum, matrix = map(torch.stack, lists)
        new_momentum = momentum.lerp(gradient, 1 - MUON_MOMENTUM)
        direction = orthogonalize(gradient.lerp_(new_momentum, MUON_MOMENTUM), self.dtype).to(matrix.dtype)
        new_matrix = matrix.addcmul(direction, lr, value=-scale)
        if weight_decay:
            shrinks = direction * matrix > 0  # cautious decay: never against the update
            new_matrix.addcmul_(matrix * shrinks, lr, value=-weight_decay)
        if self.found_inf is not None:
            sound = self.found_inf == 0
            new_momentum = torch.where(sound, new_momentum, momentum)
            new_matrix = torch.where(sound, new_matrix, matrix)
        torch._foreach_copy_([*momenta, *matrices], [*new_momentum, *new_matrix])


def peak_learning_rates(train: TrainConfig, model: ModelConfig, tokens_per_step: int) -> dict[str, float]:
    """Return the peak learning rate of each group; rates set in the preset are used unchanged.
    A tied embedding is the output layer, and has no rate of its own.

    The defaults are for 524k tokens per step and scale with the square root of that number; those
    of embedding and output also scale with 1/sqrt(width). The output layer's is four times the one
    used for billions of tokens (benchmarks/LOG.md). For a model that is trained already (init_from)
    they are CONTINUED_SHARE of that, and the embedding has the output layer's: its default is for
    the large embeddings that a run from scratch begins with.
    """
    batch, width = math.sqrt(tokens_per_step / 524_288), math.sqrt(768 / model.hidden_size)
    defaults = {"matrix": 0.11 * batch, "embedding": 0.3 * width * batch, "output": 0.032 * width * batch}
    defaults["scalar"] = 0.015 * batch
    if model.embedding_norm:
        defaults["embedding"] *= NORMED_EMBEDDING
    if model.init_from:
        defaults["embedding"] = defaults["output"]
        defaults = {name: CONTINUED_SHARE * rate for name, rate in defaults.items()}
    if model.tie_embeddings:
        del defaults["embedding"]
    return {name: getattr(train, f"{name}_learning_rate") or rate for name, rate in defaults.items()}


def build_optimizers(
    trunk: Transformer,
    heads: nn.Module,
    peak_rates: dict[str, float],
    weight_decay: float,
    dtype: torch.dtype = torch.bfloat16,
) -> list[torch.optim.Optimizer]:
    """Build Muon for the trunk's hidden matrices, AdamW for its other parameters and the heads'
    biases, and Muon for the heads' matrices if there are any.

    `peak_rates`: what `peak_learning_rates` returns; each group keeps its own as `peak_lr`. The
    heads have their own Muon, since the last bit of what is orthogonalised in one batch of matmuls
    may depend on the batch.
    """
    device = trunk.embed.weight.device
    on_gpu = device.type == "cuda"  # there captured steps read the rate from memory
    matrices: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
    scalars: list[nn.Parameter] = []
    for name, parameter in trunk.layers.named_parameters():
        if parameter.ndim == 2:
            qkv, gate_up = name.endswith("qkv.weight"), name.endswith("gate_up.weight")
            matrices[trunk.config.heads_qkv if qkv else (1, 1) if gate_up else (1,)].append(parameter)
        else:
            scalars.append(parameter)
    scalars += trunk.norm.parameters()
    head_matrices = [parameter for parameter in heads.parameters() if parameter.ndim == 2]
    head_biases = [parameter for parameter in heads.parameters() if parameter.ndim < 2]
    of_matrices = {"lr": peak_rates["matrix"], "weight_decay": weight_decay}
    muon_groups = [
        {"params": parameters, "parts": parts, **of_matrices}
        for parts, parameters in sorted(matrices.items(), key=lambda item: len(item[0]))
    ]
    tied = trunk.config.tie_embeddings
    adam_groups = [
        {"params": [trunk.embed.weight], "lr": peak_rates["output" if tied else "embedding"]},
        {"params": scalars, "lr": peak_rates["scalar"]},
        *([] if tied else [{"params": [trunk.output.weight], "lr": peak_rates["output"]}]),
        *([{"params": head_biases, "lr": peak_rates["scalar"]}] if head_biases else []),
    ]
    optimizers = [
        Muon(muon_groups, dtype),
        torch.optim.AdamW(adam_groups, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=0.0, fused=True, capturable=on_gpu),
        *([Muon([{"params": head_matrices, **of_matrices}], dtype)] if head_matrices else []),
    ]
    tensors: dict[float, Tensor] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
            if on_gpu:
                group["lr"] = tensors.setdefault(group["lr"], torch.tensor(group["lr"], device=device))
    return optimizers


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["peak_lr"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

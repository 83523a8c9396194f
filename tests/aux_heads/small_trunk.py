"""A trunk small enough for these tests, and real text for it: the bytes of a few files of Python's standard library."""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aux_heads.joint import JointModel, build_heads
from configs.schema import AuxiliaryConfig

HIDDEN_SIZE, SEQ_LENGTH, NUM_ROWS, VOCAB_SIZE = 64, 128, 16, 257


class SmallTrunk(nn.Module):
    """Two causal convolutions over the last 21 tokens: enough to learn something in a hundred steps."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
        self.layers = nn.ModuleList(nn.Conv1d(HIDDEN_SIZE, HIDDEN_SIZE, 5, dilation=d) for d in (1, 4))
        self.norm = nn.RMSNorm(HIDDEN_SIZE)
        self.output = nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.forward_embedded(self.embed(tokens_BT))

    def forward_embedded(self, x_BTD: Tensor) -> Tensor:
        x_BDT = x_BTD.transpose(1, 2)
        for layer in self.layers:
            x_BDT = x_BDT + F.gelu(layer(F.pad(x_BDT, (4 * layer.dilation[0], 0))))
        return self.norm(x_BDT.transpose(1, 2))


def summed_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, further=()) -> tuple[Tensor, Tensor]:
    assert not further
    losses_N = F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, ignore_index=-100, reduction="none")
    return losses_N.sum(), losses_N.detach()


@torch.no_grad()
def let_it_copy(model: JointModel) -> None:
    """Dynamics leaves the state as it is; the trunk's last norm has no gain yet, so nothing is lost in normalising."""
    linear = model.heads["dynamics"].linear.weight
    linear.copy_(torch.cat((torch.eye(HIDDEN_SIZE), torch.zeros(HIDDEN_SIZE, HIDDEN_SIZE)), dim=1))


def joint_model(seed: int = 0, **auxiliary) -> JointModel:
    """The same seed gives the same trunk whatever heads there are."""
    torch.manual_seed(seed)
    aux = AuxiliaryConfig(**auxiliary)
    trunk = SmallTrunk()
    return JointModel(trunk, build_heads(aux, HIDDEN_SIZE, SEQ_LENGTH), aux, summed_cross_entropy)


def text_batches(num_batches: int, seed: int = 0) -> list[Tensor]:
    """Batches of (NUM_ROWS, SEQ_LENGTH + 1) tokens: 0 starts a document, byte b is token b + 1."""
    stream = []
    for name in ("argparse.py", "ast.py", "calendar.py", "difflib.py", "inspect.py", "random.py", "tarfile.py"):
        text = Path(os.__file__).with_name(name).read_bytes()[:40_000]
        for document in text.split(b"\n\n\n"):
            stream += [0, *(byte + 1 for byte in document)]
    stream = torch.tensor(stream)
    starts = torch.randint(len(stream) - SEQ_LENGTH - 1, (num_batches * NUM_ROWS,), generator=generator(seed))
    rows = torch.stack([stream[start : start + SEQ_LENGTH + 1] for start in starts])
    return list(rows.split(NUM_ROWS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(model: JointModel, tokens_BT1: Tensor, seed: int = 0, **options):
    sampled = model.sample_positions(len(tokens_BT1), tokens_BT1.shape[1] - 1, generator(seed))
    return model(tokens_BT1, tokens_BT1[:, 1:], sampled, **options)

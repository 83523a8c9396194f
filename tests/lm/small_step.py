"""The training step of a model small enough to know its gradients exactly."""

import torch

from aux_heads.joint import JointModel, build_heads
from configs.schema import AuxiliaryConfig, ModelConfig, TrainConfig
from lm.captured_step import CapturedTrainStep
from lm.loss import linear_cross_entropy
from lm.model import Transformer
from lm.optim import build_optimizers, peak_learning_rates
from lm.runtime.distributed import World
from lm.train_step import TrainStep
from tests import program

VOCAB, SEQ_LENGTH, NUM_ROWS = 60, 64, 8
ALONE = World(0, 0, 1, torch.device("cpu"))
NO_HEADS = AuxiliaryConfig()
ALL_HEADS = AuxiliaryConfig(**program.ALL_HEADS)


def make_step(
    aux: AuxiliaryConfig = NO_HEADS,
    *,
    world: World = ALONE,
    batch_rows: int = NUM_ROWS,
    seed: int = 1337,
    clip: float = 1e9,
    loss=linear_cross_entropy,
    captured: bool = False,
    **options,
) -> TrainStep:
    """The same model on every rank; its blocks are not the identity, so that every matrix has a gradient."""
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=SEQ_LENGTH, mlp_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = Transformer(config, VOCAB)
        for parameter in trunk.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
        heads = build_heads(aux, 32, SEQ_LENGTH)
    trunk, heads = trunk.to(world.device), heads.to(world.device)
    joint = JointModel(trunk, heads, aux, loss)
    rates = peak_learning_rates(TrainConfig(), trunk.config, NUM_ROWS * SEQ_LENGTH)
    optimizers = build_optimizers(trunk, heads, rates, TrainConfig().weight_decay)
    sizes = {"batch_rows": batch_rows, "gradient_clip": clip, "seed": seed}
    kind = CapturedTrainStep if captured else TrainStep
    return kind(joint, optimizers, world, **sizes, **options)

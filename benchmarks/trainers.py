"""Every trainer that benchmarks compare, by its name."""

from benchmarks.contenders import litgpt, nanogpt, ours, trainer
from benchmarks.speedrunners import modded_nanogpt, nanochat

TRAINERS = {
    "ours": ours,
    "nanoGPT": nanogpt,
    "nanochat": nanochat,
    "modded-nanogpt": modded_nanogpt,
    "litgpt": litgpt,
    "HF Trainer": trainer,
}

"""The learner: model, heads, loss, optimizers and training step, configured for this machine.

Everything random in it is a function of `train.seed` and of the row's index in the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from aux_heads.joint import JointModel, build_heads
from configs.errors import UserError
from configs.schema import Preset, saved_preset
from lm.captured_step import CapturedTrainStep
from lm.loss import compiled_linear_cross_entropy, linear_cross_entropy
from lm.loss_scale import LossScale
from lm.model import Transformer
from lm.optim import Muon, build_optimizers, peak_learning_rates
from lm.runtime.compiler import compile_choice, compile_problem
from lm.runtime.devices import device_choice
from lm.runtime.distributed import World
from lm.runtime.estimate import check_memory, with_vocabulary
from lm.runtime.machine import (
    device_name,
    keep_freed_memory,
    precision_choice,
    thread_choice,
)
from lm.runtime.openmp import wait_policy_decisions
from lm.start_point import StartPoint
from lm.train_step import TrainStep

MISFIT = (
    "The last checkpoint is not what its own preset makes: {} does not fit. Another program has changed it, or another "
    "version of this one has made it: put a copy of it back, go on with that version, or move the run elsewhere."
)


class Learner:
    """State that training changes (`state`, `load_state`) and the `train_step` that changes it."""

    def __init__(
        self,
        preset: Preset,
        world: World,
        *,
        vocab_size: int,
        end_of_text: int,
        tokens_per_step: int,
        start: StartPoint | None = None,
    ):
        """Raises UserError if memory cannot hold the model, if rows are too short for heads, or if
        the weights of `start`, which are the trunk's if it is given, are not finite."""
        self.preset, self.world = preset, world
        model, train, aux = preset.model, preset.train, preset.auxiliary
        self.device_type, self.vocab_size = world.device.type, vocab_size
        self.dtype, dtype_reason = precision_choice(self.device_type)
        self.compiled, compile_reason = compile_choice(self.device_type)
        if self.compiled and (problem := compile_problem(self.device_type)):
            self.compiled, compile_reason = False, problem
        self._decisions = [
            (device_name(world.device), device_choice(world.size).reason),
            (self.precision, dtype_reason),
            ("torch.compile" if self.compiled else "no torch.compile", compile_reason),
        ]
        if self.device_type == "cpu":
            threads, thread_reason = thread_choice()
            torch.set_num_threads(threads)
            self._decisions += [(f"{threads} threads", thread_reason), *wait_policy_decisions()]
        too_large: UserError | None = None
        try:
            self._check_memory(compiled=self.compiled)
        except UserError as error:
            too_large = error
        world.raise_on_all(too_large)
        if self.device_type == "cpu":
            keep_freed_memory()
        torch.set_float32_matmul_precision("high")  # TF32 on hardware that supports it
        torch.manual_seed(train.seed)
        self.trunk = Transformer(model, vocab_size).to(world.device)
        if start:  # DDP copies the first rank's weights to the others
            world.from_first(start.load_into, self.trunk)
        self.heads = build_heads(aux, model.hidden_size, model.seq_length).to(world.device)
        loss = compiled_linear_cross_entropy() if self.compiled else linear_cross_entropy
        self.joint = JointModel(self.trunk, self.heads, aux, loss, end_of_text)
        if self.compiled:
            torch._dynamo.reset()  # else a fifth run of one process has no room for its graphs, and runs eagerly
            self.joint.compile_trunk_and_heads()
        self.peak_rates = peak_learning_rates(train, model, tokens_per_step)
        self.optimizers = build_optimizers(self.trunk, self.heads, self.peak_rates, train.weight_decay, self.dtype)
        captured = self.device_type == "cuda" and world.gradients is None
        self.train_step = (CapturedTrainStep if captured else TrainStep)(
            self.joint,
            self.optimizers,
            world,
            batch_rows=train.per_gpu_batch_size,
            gradient_clip=train.gradient_clip,
            seed=train.seed,
            autocast=self.autocast,
            loss_scale=LossScale(world.device) if self.dtype == torch.float16 else None,
        )

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def decisions(self) -> list[tuple[str, str]]:
        """(decision, reason) pairs for the start card; complete only after the dry run."""
        if self.device_type != "cuda":
            return self._decisions
        refused = "torchrun's processes average their gradients on the way"
        if isinstance(self.train_step, CapturedTrainStep):
            refused = self.train_step.refused
        graphs = (
            ("no CUDA graphs", refused) if refused else ("CUDA graphs", "a GPU is not kept waiting between kernels")
        )
        return [*self._decisions, graphs]

    def _check_memory(self, *, compiled: bool) -> None:
        sized, low_precision = with_vocabulary(self.preset, self.vocab_size), self.dtype != torch.float32
        check_memory(sized, self.device_type, low_precision=low_precision, compiled=compiled)

    def stop_compiling(self, reason: str) -> None:
        """Use no compiled code from here on. Raises UserError if memory cannot hold eager steps."""
        self._check_memory(compiled=False)
        self.compiled = False
        without = {"torch.compile": ("no torch.compile", reason)}
        self._decisions = [without.get(what, (what, why)) for what, why in self._decisions]
        self.joint.run_eagerly(linear_cross_entropy)
        self.train_step.reset()

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def state(self) -> dict[str, Any]:
        scale = self.train_step.loss_scale
        return {
            **({"loss_scale": scale.state} if scale else {}),
            "model": self.trunk.state_dict(),
            "heads": self.heads.state_dict(),
            # Moments only: rates and decay are functions of the preset, which may be edited,
            # and of the tokens seen.
            "optimizer": [{"state": optimizer.state_dict()["state"]} for optimizer in self.optimizers],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a checkpoint's state; raises UserError if it does not fit this model."""
        check_shapes({"model": self.trunk, "heads": self.heads}, state)
        if misfit := next(self._misfits(state["optimizer"]), None):
            raise UserError(MISFIT.format(misfit))
        if _shape(state.get("loss_scale", torch.zeros(2))) != (2,):
            raise UserError(MISFIT.format("loss_scale"))
        self.trunk.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizer"], strict=True):
            optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
        # Of float16; without one the run was begun on other hardware.
        if self.train_step.loss_scale and "loss_scale" in state:
            self.train_step.loss_scale.load(state["loss_scale"])
        self.train_step.reset()

    def _misfits(self, saved_states: list[Any]) -> Iterator[str]:
        """Yield the names of moments that no parameter has, or one of another shape."""
        if len(saved_states) != len(self.optimizers):
            yield "optimizer"
        for optimizer, saved in zip(self.optimizers, saved_states, strict=False):
            names = {"momentum"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
            parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
            moments = saved.get("state") if isinstance(saved, dict) else None
            if not isinstance(moments, dict):
                yield "optimizer"
                continue
            for number, of_one in moments.items():
                if number not in parameters or not isinstance(of_one, dict) or of_one.keys() != names:
                    yield f"optimizer's {number}"
                    continue
                shapes = dict.fromkeys(names, parameters[number].shape) | {"step": torch.Size()}
                yield from (f"optimizer's {name}" for name in names if _shape(of_one[name]) != shapes[name])


def preset_of(state: Mapping[str, Any]) -> Preset:
    """Return the preset of a checkpoint's state. Raises UserError if it does not say the model's shape."""
    preset = saved_preset(state["preset"])
    if preset.model.unknown:
        raise UserError(MISFIT.format("the preset"))
    return preset


def check_shapes(parts: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
    """Raise UserError unless each part of a checkpoint's state has the tensors of its module."""
    for part, module in parts.items():
        saved, shapes = state[part], {name: tensor.shape for name, tensor in module.state_dict().items()}
        for name in shapes | saved:
            if shapes.get(name) != _shape(saved.get(name)):
                raise UserError(MISFIT.format(name))


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, torch.Tensor) else None

"""Dynamic loss scaling for float16 (Micikevicius et al., arXiv 1710.03740).

The smallest float16 is 6e-8, more than most gradients of a mean over a step. So the loss is
multiplied by a scale before the backward pass, and gradients, which are float32 once they reach
the parameters, are divided by it. A gradient that overflows skips the step and halves the scale;
after many finite steps it is doubled. As it is a power of two, the division is exact.

torch's GradScaler does the same, but decides per optimizer and on the host; here all tensors stay
on the device, so that a step can be captured, and one decision is made for the whole step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

INITIAL, SMALLEST, LARGEST = 2.0**16, 1.0, 2.0**24
STEPS_TO_GROW = 500  # finite steps after which the scale is doubled: several times in a run


class LossScale:
    """The scale of the loss; `state`, part of a checkpoint, is [scale, finite steps since it changed]."""

    def __init__(self, device: torch.device):
        self.state = torch.zeros(2, device=device)
        self.restart()

    def restart(self) -> None:
        self.state.copy_(torch.tensor([INITIAL, 0.0]))

    def load(self, state: Tensor) -> None:
        scale, steps = state.tolist()
        self.state.copy_(torch.tensor([min(max(scale, SMALLEST), LARGEST), min(max(steps, 0.0), STEPS_TO_GROW)]))

    @property
    def scale(self) -> Tensor:
        return self.state[0]

    @property
    def can_shrink(self) -> Tensor:
        return self.scale > SMALLEST

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale; those that are not finite remain so."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, self.scale.reciprocal())

    def update(self, finite: Tensor, overflowed: Tensor) -> None:
        """Adapt the scale to a step, which was finite, or overflowed, or went wrong in another way."""
        scale, steps = self.state.unbind()
        grows = finite & (steps + 1 >= STEPS_TO_GROW)
        new_scale = torch.where(overflowed, scale / 2, torch.where(grows, scale * 2, scale)).clamp(SMALLEST, LARGEST)
        new_steps = torch.where(overflowed | grows, 0.0, steps + finite)
        self.state.copy_(torch.stack([new_scale, new_steps]))

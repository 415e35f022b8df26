"""Muon: momentum whose matrix updates are replaced by the nearest (semi-)orthogonal matrix.

The orthogonal factor comes from an odd polynomial iterated on the normalised matrix (Newton-Schulz); its
coefficients trade exactness for speed: singular values land near 1, not on it, which is enough for an update.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, *, num_steps: int, dtype: torch.dtype) -> Tensor:
    """The approximate orthogonal factor of `matrix` (any rectangle), as float32."""
    first, second, third = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).contiguous()
    x = (x / (x.norm() + 1e-7)).to(dtype)
    for _ in range(num_steps):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=second, alpha=third)
        x = torch.addmm(x, polynomial, x, beta=first)
    return (x.T if tall else x).float()


class Muon:
    """Nesterov momentum, orthogonalised, with decoupled weight decay; for matrices inside the blocks."""

    def __init__(
        self, parameters: Iterable[Tensor], *, momentum: float, weight_decay: float, num_steps: int, dtype: torch.dtype
    ) -> None:
        self.parameters = list(parameters)
        self.velocities = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.num_steps = num_steps
        self.dtype = dtype

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter from its gradient; raises ValueError when one has none."""
        for parameter, velocity in zip(self.parameters, self.velocities, strict=True):
            gradient = parameter.grad
            if gradient is None:
                raise ValueError("Muon.step: a parameter has no gradient; call backward first")
            velocity.lerp_(gradient, 1 - self.momentum)
            direction = gradient.lerp(velocity, self.momentum)
            update = orthogonalise(direction, num_steps=self.num_steps, dtype=self.dtype)
            # A tall matrix maps to more outputs: its update keeps the same change per output.
            scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.mul_(1 - learning_rate * self.weight_decay)
            parameter.add_(update, alpha=-learning_rate * scale)

    def state(self) -> list[Tensor]:
        """The velocities, in the order of the parameters."""
        return self.velocities

    @torch.no_grad()
    def load_state(self, velocities: list[Tensor]) -> None:
        """Restore what `state` returned."""
        for mine, stored in zip(self.velocities, velocities, strict=True):
            mine.copy_(stored)

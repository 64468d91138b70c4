"""The regularised inverse of layers too large to write out: by iteration, preconditioned by the layer as if it were circular."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lobpcg, lsmr
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sash.errors import InputError
from sash.ops._adjoint import conv_adjoint
from sash.ops._separable_bands import Geometry, pad

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TOLERANCE = 1e-13
"""Of a solution's residual, by the layer's and the output's size. What is left of it is below what rounding leaves."""
MOST_STEPS = 20_000
LEAST_GRAM = 1e-10
"""Of the circular layer's squared singular values by the largest: smaller ones are raised to it, in the preconditioner only."""
PROBED = 1e-6
"""The same, of the expected error's solutions."""
PROBES = 4
"""Random signs in the place of the inputs, for the mean error."""
RESOLVED = 0.1
"""Least squared singular value, by the noise, that is told from zero."""
CLOSE = 0.05
"""Most that an eigenvalue may be unsure by, of itself."""
BLOCK, ROUNDS = 4, 60
"""Vectors that are followed to an eigenvalue at once, and how far."""


class LargeLayer:
    """A convolution of stride 1 with noise, as an operator on the numbers of one image."""

    def __init__(self, weight: Tensor, spectrum: Tensor, geometry: Geometry, sides: tuple[int, ...], groups: int, noise: float) -> None:
        """`spectrum`: the layer as if it were circular, (group, frequency..., outputs, inputs)."""
        self.weight, self.geometry, self.sides, self.groups, self.noise = weight.detach(), geometry, sides, groups, noise
        self.shape = groups * weight.shape[1], *sides
        self.made = weight.shape[0], *geometry.outputs(sides)
        self.inputs, self.outputs = math.prod(self.shape), math.prod(self.made)
        gram = spectrum.mH @ spectrum
        ridge = max(noise, LEAST_GRAM * float(gram.abs().max()))
        self.root = torch.linalg.cholesky(gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).mH

    def apply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The outputs of a map, without bias."""
        padded, kept = pad(x[None], self.geometry.pads, self.geometry.mode)
        weight = self.weight if weight is None else weight
        return CONVOLVE[len(self.sides)](padded, weight, None, 1, kept, self.geometry.dilation, self.groups)[0]

    def adjoint(self, y: Tensor) -> Tensor:
        pads: Any = self.geometry.pads
        settings: dict[str, Any] = {"dilation": tuple(self.geometry.dilation), "padding_mode": self.geometry.mode}
        return conv_adjoint(y[None], self.weight, self.sides, padding=pads, groups=self.groups, **settings)[0]

    def solve(self, of_outputs: Tensor | None, of_inputs: Tensor | None, tolerance: float = TOLERANCE) -> Tensor:
        """The x of least |Ax - of_outputs|² + noise · |x - of_inputs / √noise|². Raises `InputError` where iteration does not find it."""
        wanted = np.zeros(self.outputs + self.inputs)
        if of_outputs is not None:
            wanted[: self.outputs] = _numbers(of_outputs)
        if of_inputs is not None:
            wanted[self.outputs :] = _numbers(of_inputs)
        if not np.isfinite(wanted).all():
            return torch.full(self.shape, math.nan, dtype=self.weight.dtype, device=self.weight.device)
        found = lsmr(self._stacked(), wanted, atol=tolerance, btol=tolerance, conlim=0, maxiter=MOST_STEPS)
        z, stopped, steps = found[:3]
        if stopped == 7:
            raise InputError(f"no estimate was found in {steps} steps with noise of {self.noise:g}; more noise needs fewer.")
        return self._preconditioned(self._map(z, self.shape))

    def condition(self) -> float:
        """The largest singular value by the smallest; infinite where the noise hides the smallest, nan where it was not found."""
        if self.outputs < self.inputs:
            return math.inf
        normal = self._square(lambda x: self.adjoint(self.apply(x)) + self.noise * x)
        inverse = self._square(lambda x: self._preconditioned(self._preconditioned(x, adjoint=True)))
        most, _ = _end(normal, largest=True)
        least, unsure = _end(normal, largest=False, near_inverse=inverse)
        # No eigenvalue lies above what a vector reaches: hidden is hidden, however far the iteration has come.
        if least - self.noise < RESOLVED * self.noise:
            return math.inf
        return math.sqrt((most - self.noise) / (least - self.noise)) if unsure < CLOSE * (least - self.noise) else math.nan

    def error(self) -> float:
        """Of white inputs under white noise, the relative error in root mean square: that of a few random inputs."""
        generator = torch.Generator().manual_seed(0)
        lost = 0.0
        for _ in range(PROBES):
            signs = torch.randint(2, self.shape, generator=generator).to(self.weight) * 2 - 1
            lost += float((signs * self.solve(None, math.sqrt(self.noise) * signs, PROBED)).mean())
        return math.sqrt(max(lost, 0.0) / PROBES)

    def _stacked(self) -> LinearOperator:
        """The layer above √noise times the identity, of preconditioned inputs."""
        ridge = math.sqrt(self.noise)

        def forward(z: np.ndarray) -> np.ndarray:
            x = self._preconditioned(self._map(z, self.shape))
            return np.concatenate([_numbers(self.apply(x)), _numbers(ridge * x)])

        def back(r: np.ndarray) -> np.ndarray:
            x = self.adjoint(self._map(r[: self.outputs], self.made)) + ridge * self._map(r[self.outputs :], self.shape)
            return _numbers(self._preconditioned(x, adjoint=True))

        return _operator((self.outputs + self.inputs, self.inputs), forward, back)

    def _square(self, function: Callable[[Tensor], Tensor]) -> LinearOperator:
        def forward(x: np.ndarray) -> np.ndarray:
            return _numbers(function(self._map(x, self.shape)))

        return _operator((self.inputs, self.inputs), forward, forward)

    def _preconditioned(self, x: Tensor, adjoint: bool = False) -> Tensor:
        last = [*range(-len(self.sides), 0)]
        spectrum = torch.fft.rfftn(x, dim=last).unflatten(0, (self.groups, -1)).movedim(1, -1).unsqueeze(-1)
        root = self.root.mH if adjoint else self.root
        solved = torch.linalg.solve_triangular(root, spectrum, upper=not adjoint)
        return torch.fft.irfftn(solved.squeeze(-1).movedim(-1, 1).flatten(0, 1), s=self.sides, dim=last)

    def _map(self, numbers: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.weight.device).view(shape)


class Estimate(torch.autograd.Function):
    """The inputs that outputs (image, out, side...) of a layer are estimated to have had."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, layer: LargeLayer) -> Tensor:
        x = torch.stack([layer.solve(one, None) for one in y])
        ctx.layer = layer
        ctx.save_for_backward(y, weight, x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, weight, x = ctx.saved_tensors
        layer: LargeLayer = ctx.layer
        # With u = (AᵀA + noise)⁻¹ g, of x = (AᵀA + noise)⁻¹ Aᵀy: the gradient of y is Au, that of A is (y − Ax) uᵀ − Au xᵀ.
        inner = [layer.solve(None, one / math.sqrt(layer.noise)) for one in gradients[0]]
        outer = [layer.apply(one) for one in inner]
        of_weight = None
        if ctx.needs_input_grad[1]:
            with torch.enable_grad():
                moving = weight.detach().requires_grad_()
                parts = [
                    (layer.apply(u, moving) * (one - layer.apply(found))).sum() - (layer.apply(found, moving) * own).sum()
                    for u, own, one, found in zip(inner, outer, y, x, strict=True)
                ]
                (of_weight,) = torch.autograd.grad(torch.stack(parts).sum(), moving)
        return torch.stack(outer), of_weight, None


def _end(operator: LinearOperator, largest: bool, near_inverse: LinearOperator | None = None) -> tuple[float, float]:
    """The largest or smallest eigenvalue of a symmetric operator, as far as the iteration comes, and how far the true one may be off."""
    count = operator.shape[0]
    start = np.random.default_rng(0).standard_normal((count, min(BLOCK, max(count // 5, 1))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it did not come further
        values, vectors = lobpcg(operator, start, M=near_inverse, largest=largest, tol=0.0, maxiter=ROUNDS)[:2]
    place = int(values.argmax() if largest else values.argmin())
    vector = vectors[:, place]
    return float(values[place]), float(np.linalg.norm(operator.matvec(vector) - values[place] * vector))


def _operator(shape: tuple[int, int], forward: Any, back: Any) -> LinearOperator:
    return LinearOperator(shape, matvec=forward, rmatvec=back, dtype=np.float64)  # pyright: ignore[reportCallIssue]


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().reshape(-1).numpy()

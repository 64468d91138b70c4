"""The lever that runs a depthwise and a pointwise convolution as one, in bands, so that the map between them is never held whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sash.cost import Workload
from sash.errors import InputError, ModelError
from sash.ops import separable_conv
from sash.plans._flow import Flow, record_flow
from sash.plans._lever import Exactness, Lever, pull
from sash.plans._separable_chains import ACTIVATIONS, CONVOLUTIONS, NORMS, Chain, chains_in, is_depthwise, is_pointwise, refusals_in


@dataclass(frozen=True)
class Separable(Lever):
    """Depthwise and pointwise convolutions as one operator, with a batch norm of fixed statistics and an activation between them.

    The pointwise layer runs all of it; the others hand on what they are given. Parameters, buffers and the keys of the state dict stay.
    A norm that is set to training later has its batch's statistics again: its chain then runs layer by layer.
    """

    name: ClassVar[str] = "separable"
    chains: tuple[tuple[str, str, str, str, str], ...]
    """Paths of the depthwise layer, the norm, the activation, the pointwise layer and the norm after it; empty where there is none."""
    lean: bool = False
    """Also on small maps, where running the layers whole is quicker: training then saves none of the maps between."""

    @property
    def exactness(self) -> Exactness:
        return Exactness.ROUNDING

    def describe(self) -> str:
        shown = ", ".join(f"{depthwise} with {pointwise}" for depthwise, _, _, pointwise, _ in self.chains[:2])
        count, more = len(self.chains), ", …" if len(self.chains) > 2 else ""
        return f"{count} separable convolution{'s' * (count != 1)} fused{', small maps too' * self.lean}: {shown}{more}"

    def on_model(self, model: nn.Module) -> nn.Module:
        known = dict(model.named_modules(remove_duplicate=False))
        for chain in self.chains:
            _check(known, Chain(*chain))
        for chain in self.chains:
            depthwise, norm, activation, pointwise, out_norm = (known.get(path) if path else None for path in chain)
            # A tuple, so that the layers are not registered a second time.
            pointwise.fused = (depthwise, norm, activation, out_norm)  # pyright: ignore
            pointwise.lean = self.lean  # pyright: ignore
            for layer in (depthwise, norm, out_norm):
                _become(layer, _PASSING)
            _become(pointwise, _FUSED)
            for parent in list(model.modules()):
                for name, child in list(parent.named_children()):
                    if child is activation:
                        setattr(parent, name, nn.Identity())
        return model


def propose(work: Workload, model: nn.Module) -> Separable | None:
    """The lever where only a pointwise convolution reads a depthwise one's map, directly or by way of a fixed norm and an activation."""
    if not any(is_depthwise(module) for module in model.modules()):
        return None
    flow = record_flow(work)
    found = list(chains_in(flow))
    # A map of another size than the input's may have been asked for its size, which no operator tells: see whether anything changed.
    for chains in (found, [chain for chain in found if _keeps_shape(flow, chain)]):
        lever = Separable(tuple(chains))
        if chains and _same_shapes(flow, work, lever):
            return lever
    return None


def why_not(work: Workload, model: nn.Module) -> str | None:
    """Why a depthwise and a pointwise convolution stay apart, though one follows the other: the first such pair's reason."""
    if not any(is_depthwise(module) for module in model.modules()):
        return None
    return next((told for told in refusals_in(record_flow(work))), None)


class _Passing:
    """Hands on what it is given: its parameters are used by the pointwise layer."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class _Fused:
    """A pointwise convolution that runs the layers before it, and a norm after it, as well."""

    fused: tuple[Any, Any, Any, Any]
    lean: bool

    def forward(self, input: Tensor) -> Tensor:
        first, norm, activation, out_norm = self.fused
        second: Any = self
        if any(one is not None and one.training for one in (norm, out_norm)):
            layers = [layer for layer in (first, norm, activation, second, out_norm) if layer is not None]
            for layer in layers:
                input = _plainly(layer, input)
            return input
        return separable_conv(
            input,
            first.weight,
            second.weight,
            second.bias,
            stride=first.stride,
            padding=first.padding,
            dilation=first.dilation,
            padding_mode=first.padding_mode,
            depthwise_bias=first.bias,
            norm=_scale_and_shift(norm),
            activation=activation,
            out_norm=_scale_and_shift(out_norm),
            lean=self.lean,
        )


class PassingConv1d(_Passing, nn.Conv1d): ...


class PassingConv2d(_Passing, nn.Conv2d): ...


class PassingConv3d(_Passing, nn.Conv3d): ...


class PassingNorm1d(_Passing, nn.BatchNorm1d): ...


class PassingNorm2d(_Passing, nn.BatchNorm2d): ...


class PassingNorm3d(_Passing, nn.BatchNorm3d): ...


class FusedConv1d(_Fused, nn.Conv1d): ...


class FusedConv2d(_Fused, nn.Conv2d): ...


class FusedConv3d(_Fused, nn.Conv3d): ...


_PASSING = dict(
    zip(
        (*CONVOLUTIONS, *NORMS),
        (PassingConv1d, PassingConv2d, PassingConv3d, PassingNorm1d, PassingNorm2d, PassingNorm3d),
        strict=True,
    )
)
_FUSED = dict(zip(CONVOLUTIONS, (FusedConv1d, FusedConv2d, FusedConv3d), strict=True))
_PLAIN = {made: plain for kinds in (_PASSING, _FUSED) for plain, made in kinds.items()}


def _become(layer: Any, kinds: dict) -> None:
    if layer is not None:
        layer.__class__ = kinds[type(layer)]


def _plainly(layer: Any, x: Tensor) -> Tensor:
    kind = _PLAIN.get(type(layer))
    return layer(x) if kind is None else kind.forward(layer, x)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor] | None:
    if norm is None:
        return None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _check(known: dict[str, nn.Module], chain: Chain) -> None:
    """Raises `InputError` where the model is not the one that was planned for."""
    for part, kinds in zip(chain, (CONVOLUTIONS, NORMS, ACTIVATIONS, CONVOLUTIONS, NORMS), strict=True):
        if part and type(known.get(part)) not in kinds:
            found = type(known[part]).__name__ if part in known else "nothing"
            raise InputError(f"'separable' was planned for a model with another layer at {part!r}, where this one has {found}; plan again.")
    first, second = known[chain.depthwise], known[chain.pointwise]
    if not (is_depthwise(first) and is_pointwise(second)):
        raise InputError(
            f"'separable' was planned for a depthwise convolution at {chain.depthwise!r} and a 1x1 one at {chain.pointwise!r}, "
            f"where this model has {first} and {second}; plan again."
        )


def _keeps_shape(flow: Flow, chain: Chain) -> bool:
    visits = flow.visits_of()
    return visits[chain.depthwise][0].given[0].shape == visits[chain.pointwise][0].given[0].shape


def _same_shapes(flow: Flow, work: Workload, lever: Separable) -> bool:
    """Whether every other layer is given and returns tensors of the same shapes with the lever."""
    members = {path for chain in lever.chains for path in chain}
    try:
        changed = record_flow(pull(work, [lever]))
    except ModelError:
        return False
    return _outside(flow, members) == _outside(changed, members)


def _outside(flow: Flow, members: set[str]) -> list[tuple]:
    """Shapes in and out of the model, and of every layer that is neither in a chain nor around a layer of one."""
    around = {path[:at] for path in members for at in range(len(path)) if path[at] == "."}
    return [
        (visit.path, [one.shape for one in visit.given], [one.shape for one in visit.returned])
        for visit in flow.visits
        if not visit.path or visit.path not in members | around
    ]

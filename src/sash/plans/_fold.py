"""The lever that folds batch norms into the layers before them, for inference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sash.cost import Workload, forecast
from sash.errors import InputError, ModelError
from sash.plans._flow import Flow, record_flow
from sash.plans._lever import Exactness, Lever, pull

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *_TRANSPOSED)


@dataclass(frozen=True)
class Fold(Lever):
    """Convolution or linear layer and batch norm as one layer, for inference.

    The layer takes the scale and shift of the norm's running statistics into its weight and bias, computed in double precision; the norm
    becomes an `nn.Identity`. The result is another model: its state dict has the folded weights, a bias for every folded layer, and
    nothing of the norms; it is not to be trained further.
    """

    name: ClassVar[str] = "fold"
    pairs: tuple[tuple[str, str], ...]
    """Paths of a layer and of the batch norm that takes its output."""

    @property
    def exactness(self) -> Exactness:
        return Exactness.ROUNDING

    def describe(self) -> str:
        shown = ", ".join(f"{norm} into {layer}" for layer, norm in self.pairs[:2]) + (", …" if len(self.pairs) > 2 else "")
        return f"{len(self.pairs)} batch norm{'s' * (len(self.pairs) != 1)} folded: {shown}"

    def on_model(self, model: nn.Module) -> nn.Module:
        known = dict(model.named_modules(remove_duplicate=False))
        for paths in self.pairs:
            for path, kinds in zip(paths, (_LAYERS, _NORMS), strict=True):
                if type(known.get(path)) not in kinds:
                    found = type(known[path]).__name__ if path in known else "nothing"
                    raise InputError(
                        f"'fold' was planned for a model with a layer to fold at {path!r}, where this one has {found}; plan again."
                    )
            layer, norm = known[paths[0]], known[paths[1]]
            _fold(layer, norm)
            for parent in model.modules():
                for name, child in parent.named_children():
                    if child is norm:
                        setattr(parent, name, nn.Identity())
        return model


def propose(work: Workload, model: nn.Module) -> Fold | None:
    """The lever where a batch norm is all that reads a layer's output, in inference, and the peak does not rise with it."""
    if work.train or not _has_norms(model):
        return None
    pairs = _pairs(record_flow(work))
    if not pairs:
        return None
    lever = Fold(pairs)
    try:
        found = forecast(pull(work, [lever])).peak_bytes
    except ModelError:
        return None  # forward asks for a norm's own attributes
    # It saves time even where the peak is elsewhere.
    return lever if found <= forecast(work).peak_bytes else None


def why_not(work: Workload, model: nn.Module) -> str | None:
    """Why a training step is not folded, where inference would be."""
    if not work.train or not _has_norms(model):
        return None
    pairs = _pairs(record_flow(replace(work, train=False, optimizer=None, loss=None, accumulate=1)))
    if not pairs:
        return None
    layer, norm = pairs[0]
    return (
        f"{norm} normalises by each batch's own statistics in training, and folded into {layer} it would not; "
        "fold for inference (train=False), where it uses the running ones."
    )


def _has_norms(model: nn.Module) -> bool:
    return any(type(module) in _NORMS for module in model.modules())


def _pairs(flow: Flow) -> tuple[tuple[str, str], ...]:
    """Layers and norms where the norm, with fixed statistics, is given exactly the layer's output, and nobody else is."""
    modules, calls = dict(flow.model.named_modules()), flow.visits_of()
    # Each called once: a second call would be scaled as well.
    once = {path: visits[0] for path, visits in calls.items() if len(visits) == 1 and _is_plain(modules[path])}
    made_by = {
        visit.returned[0].storage: path for path, visit in once.items() if type(modules[path]) in _LAYERS and len(visit.returned) == 1
    }
    found = []
    for path, visit in once.items():
        norm: Any = modules[path]
        if type(norm) not in _NORMS or visit.training or norm.running_mean is None or len(visit.given) != 1:
            continue
        given = visit.given[0]
        layer = made_by.get(given.storage)
        if layer is None or given.storage in flow.kept:
            continue
        returned = once[layer].returned[0]
        same = (returned.shape, returned.strides) == (given.shape, given.strides) and len(given.shape) == _axes(modules[layer])
        if same and all(visit.start <= index < visit.stop for index in flow.reads[given.storage]):
            found.append((layer, path))
    return tuple(found)


def _is_plain(module: nn.Module) -> bool:
    """Without hooks, which could see what folding changes, and without a weight that is computed."""
    return not (module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module))


def _axes(layer: nn.Module) -> int:
    """Of an output whose channels are on axis 1, where a batch norm looks for them."""
    return 2 if isinstance(layer, nn.Linear) else layer.weight.dim()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = (layer.weight.double() * _along(layer, scale)).to(layer.weight.dtype)
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(weight.dtype), layer.weight.requires_grad)


def _along(layer: Any, scale: Tensor) -> Tensor:
    """The scale of every output channel, where the weight has it: transposed layers have (in, out / groups, …)."""
    rest = (1,) * (layer.weight.dim() - 2)
    if not isinstance(layer, _TRANSPOSED):
        return scale.view(-1, 1, *rest)
    each = scale.view(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1)
    return each.reshape(layer.in_channels, -1, *rest)

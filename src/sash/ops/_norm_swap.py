"""Every batch norm of a model exchanged for another norm, in one call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from sash.errors import InputError
from sash.ops._accumulated import AccumulatedBatchNorm
from sash.ops._norms import FrozenBatchNorm, GhostBatchNorm, check_groups

Norm = _BatchNorm | FrozenBatchNorm
Replacement = Callable[[Norm, str], nn.Module]
"""(a batch norm, its path in the model) → what comes in its place."""

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, AccumulatedBatchNorm, GhostBatchNorm, FrozenBatchNorm)


def swap_norms(model: nn.Module, to: Replacement, *, only: Callable[[str, nn.Module], bool] | None = None) -> nn.Module:
    """A copy of the model in which every batch norm is what `to` makes of it; the model itself stays as it is.

    `to` is `to_frozen`, `to_group(groups)`, `to_layer`, `to_instance`, `to_ghost(size)`, `to_accumulated` or `to_batch(axes)`, or any
    function of a norm and its path. Batch norms are `nn.BatchNorm1d` to `3d`, `nn.SyncBatchNorm`, and those of `sash.ops`. Weights, biases,
    names, devices, types and training mode are carried over, running statistics where the new norm has them; a norm that stands in several
    places becomes one norm in the same places. `only(path, norm)` says which to exchange: all if None.

    An optimizer of the model knows nothing of the copy: make it after.
    Raises `InputError`, with the layer's path, for a norm that cannot become what was asked, and for a batch norm whose forward is its own:
    what else that does would be lost.
    """
    found = model.named_modules(remove_duplicate=False)
    paths = [path for path, norm in found if isinstance(norm, Norm) and (only is None or only(path, norm))]
    for path in paths:
        _check(model.get_submodule(path), path)
    model, made = copy.deepcopy(model), dict[nn.Module, nn.Module]()
    for path, norm in [(path, model.get_submodule(path)) for path in paths]:
        assert isinstance(norm, Norm)
        if norm not in made:
            made[norm] = to(norm, path).train(norm.training)
        if not path:
            return made[norm]
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made[norm])
    return model


def to_frozen(norm: Norm, path: str) -> nn.Module:
    """A `FrozenBatchNorm` with the statistics of the batch norm, and its weight and bias, which no longer train."""
    if norm.running_mean is None or norm.running_var is None:
        raise InputError(f"{path or 'the model'} has no running statistics to freeze (track_running_stats=False).")
    found = FrozenBatchNorm(_channels(norm), norm.eps)
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(norm, name)
        setattr(found, name, getattr(found, name).to(norm.running_mean) if value is None else value.detach())
    return found


def to_group(groups: int) -> Replacement:
    """Group norms of so many groups, each of neighbouring channels."""

    def replacement(norm: Norm, path: str) -> nn.Module:
        check_groups(_channels(norm), groups, path or "the model")
        return _affine_of(norm, nn.GroupNorm(groups, _channels(norm), norm.eps, norm.weight is not None))

    return replacement


def to_layer(norm: Norm, path: str) -> nn.Module:
    """Layer norm over all channels and places of a sample, weights a channel: a group norm of one group. For any size of input."""
    return to_group(1)(norm, path)


def to_instance(norm: Norm, path: str) -> nn.Module:
    """Instance norm: a group norm of one channel a group, which unlike `nn.InstanceNorm1d` never takes a batch for channels."""
    return to_group(_channels(norm))(norm, path)


def to_ghost(size: int) -> Replacement:
    """`GhostBatchNorm` of virtual batches of so many samples."""
    return lambda norm, path: _batch_norm_of(norm, GhostBatchNorm(_channels(norm), size, **_settings(norm)))


def to_accumulated(norm: Norm, path: str) -> nn.Module:
    """`AccumulatedBatchNorm`, which also takes a batch in parts."""
    return _batch_norm_of(norm, AccumulatedBatchNorm(_channels(norm), **_settings(norm)))


def to_batch(axes: int) -> Replacement:
    """torch's batch norm for so many spatial axes, 0 to 3: to thaw frozen norms, or to run synchronised ones in one process."""
    kinds = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    if axes not in kinds:
        raise InputError(f"batch norms for {axes!r} spatial axes were asked for; torch has them for 0 to 3.")
    return lambda norm, path: _batch_norm_of(norm, kinds[axes](_channels(norm), **_settings(norm)))


def _settings(norm: Norm) -> dict[str, Any]:
    """What one batch norm is built with, for another; a frozen one gathers statistics again, at torch's own pace."""
    momentum = norm.momentum if isinstance(norm, _BatchNorm) else 0.1
    tracks = norm.running_mean is not None
    return {"eps": norm.eps, "momentum": momentum, "affine": norm.weight is not None, "track_running_stats": tracks}


def _batch_norm_of(norm: Norm, found: _BatchNorm) -> nn.Module:
    _affine_of(norm, found)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        value = getattr(norm, name, None)
        if value is not None:
            setattr(found, name, value)
    return found


def _affine_of(norm: Norm, found: nn.Module) -> nn.Module:
    """With the weight and bias of a norm, the same tensors where they are parameters."""
    like = norm.weight if norm.weight is not None else norm.running_mean
    if like is not None:
        found.to(like.device, like.dtype)
    for name in ("weight", "bias"):
        value: Tensor | None = getattr(norm, name)
        if value is not None:
            setattr(found, name, value if isinstance(value, nn.Parameter) else nn.Parameter(value))
    return found


def _channels(norm: Norm) -> int:
    return norm.channels if isinstance(norm, FrozenBatchNorm) else norm.num_features


def _check(norm: nn.Module, path: str) -> None:
    """Raises `InputError` for a norm that is more, or less, than a batch norm."""
    called = f"{path or 'the model'} is a {type(norm).__name__}"
    if isinstance(norm, _LazyNormBase):
        raise InputError(f"{called}, which has no channels yet; run the model once, then swap.")
    if type(norm).forward not in [kind.forward for kind in KINDS]:
        raise InputError(
            f"{called}, whose forward is its own and may do more than normalise (an activation, say); "
            "leave it with only=lambda path, norm: ..., or build the model with plain batch norms."
        )

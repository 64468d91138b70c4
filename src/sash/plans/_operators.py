"""What can be said of an operator call: what it reads, what it writes into, what it makes, and how to run it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

LOOKS = frozenset({aten.detach.default, aten.alias.default, aten.lift_fresh.default})
"""They only look: no call of theirs is counted."""


def tensors_in_call(args: Any) -> Iterator[Tensor]:
    """Every tensor among an operator's arguments, lists of tensors included, in order."""
    for value in args.values() if isinstance(args, dict) else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in_call(value)


def outputs_of(result: Any) -> tuple[Any, ...]:
    """An operator's results by their places; what is no tensor is None."""
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, (tuple, list)):
        return tuple(value if isinstance(value, Tensor) else None for value in result)
    return ()


@cache
def written_places(func: Any) -> tuple[int | str, ...]:
    """Arguments that the operator writes into, by place or, where they are keywords, by name."""
    places: list[int | str] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            places.append(argument.name if argument.kwarg_only else index)
    return tuple(places)


def written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """Tensors that the call writes into."""
    found: list[Any] = []
    for place in written_places(func):
        if isinstance(place, str):
            found.append(kwargs.get(place))
        elif place < len(args):
            found.append(args[place])
    return [tensor for tensor in tensors_in_call(found)]


@cache
def is_random(func: Any) -> bool:
    """Whether it draws from a generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


_WRITES_UNSAID = frozenset({"batch_norm_update_stats", "_fused_moving_avg_obs_fq_helper", "rrelu_with_noise", "rrelu_with_noise_"})


@cache
def is_replayable(func: Any) -> bool:
    """Whether calling it again with the same values gives the same bits and changes nothing that lives on."""
    name = func.overloadpacket.__name__
    # A custom operator's kernel may do anything.
    return func.namespace in ("aten", "prims", "mkldnn", "mkl") and name not in _WRITES_UNSAID


def storages(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Tensors by what tells their storages apart while they live."""
    return {tensor.untyped_storage()._cdata: tensor for tensor in tensors if is_plain(tensor)}


def is_plain(tensor: Tensor) -> bool:
    """Whether sizes, strides, an offset and a type say all of it."""
    return tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()


def copied(tensor: Tensor) -> Tensor:
    """The same window on a copy of the whole storage."""
    whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return whole.clone().as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def updated(func: Any, args: tuple) -> list[Tensor]:
    """Tensors that the call changes though its schema does not say so."""
    if func is aten.native_batch_norm.default and args[5]:
        return list(tensors_in_call(args[3:5]))
    return [args[1]] if func.overloadpacket.__name__.startswith("rrelu_with_noise") else []


@cache
def is_pure(func: Any) -> bool:
    """Whether no call of the operator changes any of its arguments."""
    name = func.overloadpacket.__name__
    return not written_places(func) and name not in _WRITES_UNSAID and func is not aten.native_batch_norm.default


def without_updates(func: Any, args: tuple) -> tuple:
    """The arguments for a second run: a batch norm in training shall not update its running statistics again."""
    if func is aten.native_batch_norm.default and args[5]:
        return (*args[:3], None, None, *args[5:])
    return args


def call_again(func: Any, args: tuple, kwargs: dict, noted: tuple[Tensor, ...] | None) -> Any:
    """The operator's results once more, bit for bit; `noted` is what `notes` had of the first time.

    What was drawn by `bernoulli_` is read from its bits. Batch norm in training would read its input twice more to find the statistics that
    it found before. Its kernel computes x·α + β with α = w/σ and β = b - μ·α: given the batch's own μ as the running mean, a running
    variance of 1 with ε = 0, and w/σ as the weight, evaluation makes the same α and β, in a quarter of the time. Only where the input is
    dense: the kernel for other layouts sums in another order.
    Source: `batch_norm_cpu_collect_linear_and_constant_terms` in aten/src/ATen/native/cpu/batch_norm_kernel.cpp.
    """
    if func is aten.bernoulli_.float and noted is not None:
        return _drawn(args[0], noted[0])
    if func is not aten.native_batch_norm.default:
        return func(*args, **kwargs)
    x, weight, bias, _, _, training, momentum, _ = args
    if not training:
        return func(*args, **kwargs)
    dense = x.is_contiguous() or (x.dim() > 3 and x.is_contiguous(memory_format=_last(x)))
    if noted is None or not dense or weight is None or noted[1].dtype is not weight.dtype:
        return func(*args, **kwargs)
    mean, inverse_deviation = noted
    return func(x, inverse_deviation * weight, bias, mean, torch.ones_like(mean), False, momentum, 0.0)[0], mean, inverse_deviation


def share_again(func: Any, args: tuple) -> float:
    """Time of a second run against the first's, estimated: see `call_again`."""
    if func is aten.native_batch_norm.default:
        return 0.3
    return 0.12 if note_bytes(func, args) else 1.0


def notes(func: Any, args: tuple, result: Any) -> tuple[Tensor, ...] | None:
    """What `call_again` needs of the first call beside its arguments: a batch norm's mean and inverse deviation, a draw's bits."""
    if func is aten.native_batch_norm.default and result[1].numel():
        return result[1].detach(), result[2].detach()
    return (_bits(result),) if note_bytes(func, args) else None


def note_bytes(func: Any, args: tuple) -> int:
    """Bytes that a draw's bits take: an eighth of a byte an element, and no generator has to draw again. 0 for any other call.

    Dropout on a CPU multiplies by noise of as many floats as its input has, and saves it for backward: made of zeros and ones.
    """
    if func is not aten.bernoulli_.float or not aten.is_non_overlapping_and_dense(args[0]):
        return 0
    count = args[0].numel()
    return count // 8 if count % 8 == 0 else 0


_SPREAD = 0x8040201008040201 - (1 << 64)
"""Times eight bytes of 0 or 1, their bits in the highest byte; times a byte, its bits in the highest of each of eight bytes."""
_LOWEST = 0x0101010101010101


def _bits(drawn: Tensor) -> Tensor:
    """Zeros and ones, eight to a byte."""
    words = (_flat(drawn) != 0).view(torch.int64)
    return words.mul_(_SPREAD).bitwise_right_shift_(56).to(torch.uint8)


def _drawn(out: Tensor, bits: Tensor) -> Tensor:
    """`out`, filled with zeros and ones."""
    words = bits.to(torch.int64).mul_(_SPREAD).bitwise_right_shift_(7).bitwise_and_(_LOWEST)
    _flat(out).copy_(words.view(torch.uint8))
    return out


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements as they lie."""
    return tensor.as_strided((tensor.numel(),), (1,))


IN_PLACE = {
    aten.relu.default: aten.relu_.default,
    aten.silu.default: aten.silu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.tanh.default: aten.tanh_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.hardsigmoid.default: aten.hardsigmoid_.default,
    aten.leaky_relu.default: aten.leaky_relu_.default,
    aten.elu.default: aten.elu_.default,
    aten.gelu.default: aten.gelu_.default,
}
"""The same bits written over the input, where nothing else wants that."""


def _last(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d

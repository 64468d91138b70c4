"""Where an operator puts the samples that it is given: one rule for every kind of operator."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from sash.plans._mixing_losses import likelihood, measured, of_totals
from sash.plans._recorded import Call, Ref
from sash.plans._samples import SAME_ORDER, Const, Mixes, Place, Reader, Rows, State, Total, same_number, same_scalars


def outcome(reader: Reader, call: Call, twin: Call) -> list[State]:
    """What every output holds. Raises `Mixes`, its message the end of a sentence that starts with the operator."""
    states = [reader.state(ref) for ref in call.refs()]
    name = call.name if call.name in _RULES else call.name.removesuffix("_")
    if call.name.endswith("_") and isinstance(call.args.get("self"), Ref) and reader.full.storage(call.args["self"]) in reader.full.static:
        return [Const()] * len(call.outputs)  # a buffer is written, which is told in any case
    if any(isinstance(state, Total) for state in states):
        return [of_totals(reader, call, twin, name)] * len(call.outputs)
    if not any(isinstance(state, Rows) for state in states):
        return _of_constants(reader, call, twin, name)
    if name.startswith("rand") and name.endswith("_like"):
        return _same_order(reader, call)
    if name.endswith("_like") or name.startswith("new_"):
        same_scalars(call, twin, name)
        return [Const(flat=True)] * len(call.outputs)
    for ref, state in zip(call.refs(), states, strict=True):
        if isinstance(state, Const) and not state.flat and reader.grows(ref):
            raise Mixes("is given a constant whose size depends on the batch")
    rule = _RULES.get(name)
    if rule is None and torch.Tag.pointwise in call.func.tags:
        rule = _pointwise
    if rule is None:
        raise Mixes("is an operator of which sash does not know whether it keeps samples apart")
    same_scalars(call, twin, name)
    return rule(reader, call)


def _of_constants(reader: Reader, call: Call, twin: Call, name: str) -> list[State]:
    flat = name in _FACTORIES or name.endswith("_like") or name.startswith("new_")
    states = [reader.state(ref) for ref in call.refs()]
    if not flat and states and (name in SAME_ORDER or name in _RULES or torch.Tag.pointwise in call.func.tags):
        flat = all(isinstance(state, Const) and state.flat for state in states)
    if flat and name in ("full", "fill", "scalar_tensor", "new_full", "full_like"):
        values = [key for key in ("fill_value", "value", "s") if key in call.args]
        flat = all(isinstance(call.args[key], Ref) or same_number(call.args[key], twin.args[key]) for key in values)
    random = torch.Tag.nondeterministic_seeded in call.func.tags
    return [_made_of_constants(reader, call, twin, name, ref, flat and not random, random) for ref in call.outputs]


def _made_of_constants(reader: Reader, call: Call, twin: Call, name: str, ref: Ref, flat: bool, random: bool) -> State:
    if flat or not reader.grows(ref):
        return Const(flat)
    if random:
        return reader.rows_by_shape(ref)
    if name == "expand":
        return _copies_along(reader, ref, call.args["size"], twin.args["size"], lambda dim: 1)
    if name == "repeat":
        shape = reader.full.shape(ref)
        return _copies_along(reader, ref, call.args["repeats"], twin.args["repeats"], lambda dim: shape[dim] // reader.batch)
    return Const()


def _copies_along(reader: Reader, ref: Ref, sizes: list[int], others: list[int], inner: Callable[[int], int]) -> State:
    """The same constant for every sample, where one dimension's copies are as many as samples."""
    dims = [dim for dim, (one, two) in enumerate(zip(sizes, others, strict=True)) if one != two]
    return reader.rows_along(ref, dims[0], inner(dims[0])) if len(dims) == 1 and sizes[dims[0]] == reader.batch else Const()


def _pointwise(reader: Reader, call: Call) -> list[State]:
    shape = reader.full.shape(call.outputs[0])
    steps = set()
    for ref, _ in reader.given(call):
        at = reader.place(ref)
        own = reader.full.shape(ref)
        dim = at.dim + len(shape) - len(own)
        if own[at.dim] != shape[dim]:
            raise Mixes("pairs samples with each other")
        steps.add(at.inner * prod(shape[dim + 1 :]))
    if len(steps) > 1:
        raise Mixes("pairs samples with each other")
    return [Rows(steps.pop())] * len(call.outputs)


def _same_order(reader: Reader, call: Call) -> list[State]:
    """Views that keep the order of the elements, and copies."""
    ((_, state),) = reader.given(call)[:1]
    return [state] * len(call.outputs)


def _permuted(reader: Reader, call: Call) -> list[State]:
    ((ref, state),) = reader.given(call)
    at, count = reader.place(ref), len(reader.full.shape(ref))
    order = list(range(count))
    if call.name == "permute":
        order = [dim % count for dim in call.args["dims"]]
    else:
        first, second = (0, 1) if call.name == "t" else (call.args["dim0"], call.args["dim1"])
        order[first], order[second] = order[second], order[first]
    return [reader.rows_along(call.outputs[0], order.index(at.dim), at.inner, state.source)]


def _expanded(reader: Reader, call: Call) -> list[State]:
    ((ref, state),) = reader.given(call)
    at = reader.place(ref)
    more = len(reader.full.shape(call.outputs[0])) - len(reader.full.shape(ref))
    return [reader.rows_along(call.outputs[0], at.dim + more, at.inner, state.source)]


def _untouched(reader: Reader, call: Call, touched: set[int], at: Place, what: str) -> None:
    if at.dim in touched:
        raise Mixes(f"{what} the samples of the batch")


def _dims(call: Call, count: int, keys: tuple[str, ...] = ("dim", "dims")) -> set[int]:
    for key in keys:
        if key in call.args:
            value = call.args[key]
            if value is None or value == []:
                return set(range(count))
            return {dim % max(count, 1) for dim in (value if isinstance(value, list) else [value])}
    return set(range(count))


def _cut(reader: Reader, call: Call) -> list[State]:
    """Pieces along one dimension; `select` and `unbind` take it away."""
    ((ref, state),) = reader.given(call)
    at, shape = reader.place(ref), reader.full.shape(ref)
    dim = call.args["dim"] % len(shape)
    if dim == at.dim:
        if call.name == "slice" and reader.full.shape(call.outputs[0]) == shape:
            return [state]
        raise Mixes("picks samples of the batch")
    gone = call.name in ("select", "unbind") and dim < at.dim
    return [reader.rows_along(out, at.dim - gone, at.inner, state.source) for out in call.outputs]


def _reduced(reader: Reader, call: Call) -> list[State]:
    ((ref, _),) = reader.given(call)[:1]
    if len(reader.given(call)) > 1:
        raise Mixes("is given samples twice")
    at, shape = reader.place(ref), reader.full.shape(ref)
    gone = _dims(call, len(shape))
    if at.dim not in gone:
        left = at.dim - (0 if call.args.get("keepdim") else sum(dim < at.dim for dim in gone))
        return [reader.rows_along(out, left, at.inner) for out in call.outputs]
    if call.name in ("sum", "mean"):
        return [Total(call.name)]
    raise Mixes("is taken over the samples of the batch")


def _along(reader: Reader, call: Call) -> list[State]:
    """Mixes along the dimensions that it names, and keeps the others."""
    at = reader.one_place(call)
    ref = reader.given(call)[0][0]
    _untouched(reader, call, _dims(call, len(reader.full.shape(ref))), at, "runs along")
    return [reader.rows_along(out, at.dim, at.inner) for out in call.outputs]


def _joined(reader: Reader, call: Call) -> list[State]:
    at = reader.one_place(call)
    if any(isinstance(reader.state(ref), Const) and not reader.grows(ref) for ref in call.refs()):
        raise Mixes("joins samples and what is none")
    count = len(reader.full.shape(call.outputs[0]))
    dim = call.args["dim"] % count
    if call.name == "stack":
        return [reader.rows_along(call.outputs[0], at.dim + (dim <= at.dim), at.inner)]
    _untouched(reader, call, {dim}, at, "lengthens")
    return [reader.rows_along(call.outputs[0], at.dim, at.inner)]


def _trailing(count: int | Callable[[Call], int]) -> Callable[[Reader, Call], list[State]]:
    """Mixes along the last dimensions only."""

    def rule(reader: Reader, call: Call) -> list[State]:
        at = reader.one_place(call)
        size = len(reader.full.shape(reader.given(call)[0][0]))
        touched = count if isinstance(count, int) else count(call)
        _untouched(reader, call, set(range(size - touched, size)), at, "runs over")
        return [reader.rows_along(out, at.dim, at.inner) for out in call.outputs]

    return rule


def _leading(reader: Reader, call: Call) -> list[State]:
    """The first dimension counts independent problems."""
    at = reader.one_place(call)
    if at.dim != 0:
        raise Mixes(f"is given the samples along axis {at.dim} and not along the first")
    return [reader.rows_along(out, 0, at.inner) if reader.grows(out) else Const(flat=True) for out in call.outputs]


def _weighted(reader: Reader, call: Call) -> list[State]:
    first = next(iter(call.args.values()))
    if any(ref != first for ref, _ in reader.given(call)):
        raise Mixes("has weights that depend on the samples")
    return _leading(reader, call)


def _contracted(pattern: str, skip: int = 0) -> Callable[[Reader, Call], list[State]]:
    left, right, out = pattern.replace("->", ",").split(",")

    def rule(reader: Reader, call: Call) -> list[State]:
        refs = call.refs()
        found: dict[str, Place] = {}
        for ref, letters in zip(refs[skip : skip + 2], (left, right), strict=True):
            if isinstance(reader.state(ref), Rows):
                at = reader.place(ref)
                if found.setdefault(letters[at.dim], at).inner != at.inner:
                    raise Mixes("is given the samples of its arguments in different orders")
        if len(found) > 1:
            raise Mixes("multiplies the batch with itself (a contrastive loss or attention between samples)")
        ((letter, at),) = found.items() if found else (("", None),)
        state: State = Const()
        if at is not None:
            if letter not in out:
                both = all(isinstance(reader.state(ref), Rows) for ref in refs[skip : skip + 2])
                if not both:
                    raise Mixes("weighs the samples of the batch against each other")
                state = Total("sum")
            else:
                state = reader.rows_along(call.outputs[0], out.index(letter), at.inner)
        if skip and isinstance(reader.state(refs[0]), Rows):
            added = reader.place(refs[0])
            own, shape = reader.full.shape(refs[0]), reader.full.shape(call.outputs[0])
            if state != reader.rows_along(call.outputs[0], added.dim + len(shape) - len(own), added.inner):
                raise Mixes("pairs samples with each other")
        return [state]

    return rule


def _embedded(reader: Reader, call: Call) -> list[State]:
    if isinstance(reader.state(call.args["weight"]), Rows):
        raise Mixes("has a table that depends on the samples")
    ((_, state),) = reader.given(call)
    width = reader.full.shape(call.args["weight"])[1]
    return [Rows(state.step * width)]


def _indexed(reader: Reader, call: Call) -> list[State]:
    if isinstance(reader.state(call.args["self"]), Rows):
        at = reader.place(call.args["self"])
        indices = call.args["indices"]
        if (at.dim < len(indices) and indices[at.dim] is not None) or any(
            isinstance(reader.state(one), Rows) for one in indices if one is not None
        ):
            raise Mixes("picks samples of the batch")
    return [reader.rows_by_shape(out) for out in call.outputs]


def _normalised(reader: Reader, call: Call) -> list[State]:
    """Batch norm: over the batch where it lies along any dimension but the channels' (instance norm puts it there)."""
    at = reader.place(call.args["input"])
    if (call.args.get("training") is True or call.name == "_batch_norm_with_update") and at.dim != 1:
        reader.normed[call.module or "the model"] = None
    if any(reader.place(ref).inner != at.inner for ref, _ in reader.given(call)):
        raise Mixes("has weights for other samples than it is given")
    sizes = len(reader.full.shape(call.args["input"]))
    return [
        reader.rows_along(out, at.dim if len(reader.full.shape(out)) == sizes else 0, at.inner) if reader.grows(out) else Const(flat=True)
        for out in call.outputs
    ]


def _recurrent(reader: Reader, call: Call) -> list[State]:
    if any(reader.place(ref).dim != 1 for ref, _ in reader.given(call)):
        raise Mixes("runs along the samples of the batch, as if they were time")
    return [reader.rows_by_shape(out) if reader.grows(out) else Const(flat=True) for out in call.outputs]


def _padded(reader: Reader, call: Call) -> list[State]:
    at = reader.one_place(call)
    size = len(reader.full.shape(call.args["self"]))
    pad = call.args["pad"]
    touched = {size - 1 - index // 2 for index, length in enumerate(pad) if length}
    _untouched(reader, call, touched, at, "pads along")
    return [reader.rows_along(out, at.dim, at.inner) for out in call.outputs]


def _tiled(reader: Reader, call: Call) -> list[State]:
    ((ref, _),) = reader.given(call)
    at = reader.place(ref)
    more = len(call.args["repeats"]) - len(reader.full.shape(ref))
    if call.args["repeats"][at.dim + more] != 1:
        raise Mixes("repeats the samples of the batch")
    return [reader.rows_along(call.outputs[0], at.dim + more, at.inner)]


def _paired(reader: Reader, call: Call) -> list[State]:
    """Complex numbers as pairs of real ones, and back."""
    ((_, state),) = reader.given(call)
    return [Rows(state.step * 2 if call.name == "view_as_real" else state.step // 2)]


def _restrided(reader: Reader, call: Call) -> list[State]:
    """Adaptive pooling to one element names its strides anew."""
    ref = call.args["self"]
    at, shape = reader.place(ref), reader.full.shape(call.outputs[0])
    if list(shape) != call.args["size"] or at.dim or call.args["stride"][0] != prod(shape[1:]):
        raise Mixes("moves samples in a way that is not known")
    return [reader.state(ref)]


def _copied(reader: Reader, call: Call) -> list[State]:
    """The first argument takes the values of the second."""
    target, source = call.args["self"], call.args["src"]
    if not isinstance(reader.state(source), Rows):
        return [reader.state(target)]
    at = reader.place(source)
    shape = reader.full.shape(target)
    made = reader.rows_along(target, at.dim + len(shape) - len(reader.full.shape(source)), at.inner)
    before = reader.state(target)
    if isinstance(before, Rows) and before.step != made.step:
        raise Mixes("pairs samples with each other")
    return [made]


BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "cudnn_batch_norm")
"""They write into the running statistics, in training."""
_FACTORIES = frozenset({"empty", "zeros", "ones", "full", "scalar_tensor", "zero", "fill", "empty_strided"})
_POOLS = {
    f"{kind}{size}d{tail}": size
    for size in (1, 2, 3)
    for kind, tail in (
        ("avg_pool", ""),
        ("max_pool", "_with_indices"),
        ("adaptive_max_pool", ""),
        ("adaptive_avg_pool", ""),
        ("_adaptive_avg_pool", ""),
        ("reflection_pad", ""),
        ("replication_pad", ""),
        ("upsample_nearest", ""),
        ("_upsample_nearest_exact", ""),
    )
} | {"upsample_bilinear2d": 2, "_upsample_bilinear2d_aa": 2, "upsample_bicubic2d": 2, "upsample_linear1d": 1, "upsample_trilinear3d": 3}
_RULES: dict[str, Callable[[Reader, Call], list[State]]] = (
    dict.fromkeys(SAME_ORDER, _same_order)
    | dict.fromkeys(("permute", "transpose", "t"), _permuted)
    | dict.fromkeys(("slice", "select", "unbind", "split", "split_with_sizes"), _cut)
    | dict.fromkeys(("sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "logsumexp"), _reduced)
    | dict.fromkeys(("norm", "linalg_vector_norm", "argmax", "argmin", "any", "all", "nansum", "median", "count_nonzero"), _reduced)
    | dict.fromkeys(
        ("_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "topk", "flip", "roll", "glu", "_safe_softmax"), _along
    )
    | dict.fromkeys(("_safe_softmax", "gather", "scatter", "scatter_add", "_fft_r2c", "_fft_c2c", "_fft_c2r"), _along)
    | dict.fromkeys(("cat", "stack"), _joined)
    | {name: _trailing(size) for name, size in _POOLS.items()}
    | dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _trailing(3))
    | dict.fromkeys(("tril", "triu"), _trailing(2))
    | {"native_layer_norm": _trailing(lambda call: len(call.args["normalized_shape"]))}
    | {"_fused_rms_norm": _trailing(lambda call: len(call.args["normalized_shape"]))}
    | dict.fromkeys(("convolution", "native_group_norm", "im2col", "col2im", "channel_shuffle", "native_channel_shuffle"), _weighted)
    | dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "_scaled_dot_product_flash_attention_for_cpu"), _leading)
    | {"mm": _contracted("nk,km->nm"), "bmm": _contracted("pnk,pkm->pnm"), "mv": _contracted("nk,k->n"), "dot": _contracted("k,k->")}
    | {"addmm": _contracted("nk,km->nm", 1), "baddbmm": _contracted("pnk,pkm->pnm", 1), "addmv": _contracted("nk,k->n", 1)}
    | {"_addmm_activation": _contracted("nk,km->nm", 1)}
    | dict.fromkeys(BATCH_NORMS, _normalised)
    | dict.fromkeys(("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "l1_loss", "soft_margin_loss"), measured)
    | {"binary_cross_entropy_with_logits": measured, "nll_loss_forward": likelihood, "nll_loss2d_forward": likelihood}
    | {"native_dropout": _pointwise, "bernoulli": _pointwise, "masked_fill": _pointwise, "where": _pointwise, "lerp": _pointwise}
    | {"rrelu_with_noise": _pointwise, "_prelu_kernel": _pointwise}
    | {"expand": _expanded, "embedding": _embedded, "index": _indexed, "mkldnn_rnn_layer": _recurrent, "repeat": _tiled}
    | {"constant_pad_nd": _padded, "view_as_real": _paired, "view_as_complex": _paired, "copy_": _copied, "as_strided_": _restrided}
)

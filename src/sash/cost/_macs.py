"""Multiply-accumulates of one operator call, from shapes alone.

The rule: one MAC is one product that is added into a sum, over a window, a contraction or a reduction. From it follow

* **convolutions**: outputs × taps × channels read by an output; transposed: inputs × taps × channels written by an input. Taps that
  lie on padding count, and so do the writes that a transposed convolution's padding crops: the dense count, the field's convention.
  Adding the bias counts 0. In backward the gradients of the input and of the weight count once each, where asked for.
* **contractions** (linear, mm, bmm, mv, dot, …): outputs × contracted length. einsum, tensordot, GRU, RNN and the cells arrive as these.
* **attention**: both contractions in full, masked and causal entries included. Fused backward counts five: it computes the scores again.
* **recurrent layers**: both gate matrices at each step; backward twice that. The gates themselves are elementwise.
* **normalisation**: one for each element summed into a variance or a norm, so 0 where running statistics are used. Scale and shift are
  elementwise. In backward one an element for each sum of gradient × input: batch and group norm make one that their gradients share,
  layer norm makes one for each of its gradients. RMSNorm reaches the CPU as elementwise operators and counts 0.
* **FFT**: (5/2)·N·log2 N for a complex transform over N points (all transformed axes together), half of it for a real one: FLOPs / 2 of
  the 5·N·log2 N by which FFTs are compared.
  Source: M. Frigo, S. G. Johnson, "The Design and Implementation of FFTW3", Proceedings of the IEEE 93 (2), 2005.
* **resampling** (linear, bilinear, trilinear, bicubic, grid_sample): taps of each output, forward and for each gradient. Antialiased
  resampling counts 0.
* **distances** (cdist) and bags of embeddings with weights (forward): one for each summed product.

Everything else counts 0: elementwise operators (addcmul and optimizer steps too), pooling (maxima are comparisons, averages add without
weights), softmax, losses, copies, factorisations such as SVD.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2, prod
from typing import Any

import torch
from torch import Tensor

_Arguments = dict[str, Any]
_Count = Callable[[_Arguments, Any], int]


def operator_macs(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any], outputs: Any) -> int:
    """Multiply-accumulates (FLOPs / 2) of one call of an ATen operator below autograd, as a dispatch mode sees it; 0 for what has none.

    Reads shapes only: tensors may be real, meta or fake. Composite operators other than `linear` and `matmul` must have been decomposed.
    """
    count = _COUNTS.get(func._schema.name)
    if count is None:
        return 0
    arguments = {argument.name: argument.default_value for argument in func._schema.arguments}
    arguments.update(zip(arguments, args, strict=False))
    arguments.update(kwargs)
    return count(arguments, outputs[0] if isinstance(outputs, tuple | list) else outputs)


def _convolution(call: _Arguments, out: Tensor) -> int:
    # A weight is (out, in / groups, taps) or, transposed, (in, out / groups, taps): all but its first axis is one place's work.
    places = call["input"] if call["transposed"] else out
    return places.numel() * prod(call["weight"].shape[1:])


def _convolution_backward(call: _Arguments, _: Any) -> int:
    gradients = sum(call["output_mask"][:2])
    return gradients * _convolution(call, call["grad_output"])


def _contraction(left: str) -> _Count:
    """Outputs × the last axis of the left factor, whose argument is named `left`."""

    def count(call: _Arguments, out: Tensor) -> int:
        return out.numel() * call[left].shape[-1]

    return count


def _summed_batches(call: _Arguments, out: Tensor) -> int:
    batches, _, contracted = call["batch1"].shape
    return out.numel() * batches * contracted


def _grouped_contraction(call: _Arguments, out: Tensor) -> int:
    rows = call["self"]
    # Two matrices and a batched result: the groups share out the contracted axis, so each has a part of it.
    groups = out.shape[0] if rows.dim() == 2 and call["mat2"].dim() == 2 else 1
    return out.numel() * rows.shape[-1] // groups


def _linear_backward(call: _Arguments, _: Any) -> int:
    return sum(call["output_mask"][:2]) * call["grad_output"].numel() * call["weight"].shape[-1]


def _trilinear(call: _Arguments, _: Any) -> int:
    factors = [call["i1"], call["i2"], call["i3"]]
    for index, axes in enumerate((call["expand1"], call["expand2"], call["expand3"])):
        for axis in sorted(axes):
            factors[index] = factors[index].unsqueeze(axis)
    return prod(torch.broadcast_shapes(*(factor.shape for factor in factors)))


def _attention(scores: int, values: int) -> _Count:
    """So many contractions over the head width of the queries, and so many over that of the values."""

    def count(call: _Arguments, _: Any) -> int:
        query, key, value = call["query"], call["key"], call["value"]
        pairs = prod(query.shape[:-1]) * key.shape[-2]
        return pairs * (scores * query.shape[-1] + values * value.shape[-1])

    return count


def _multi_head_attention(call: _Arguments, _: Any) -> int:
    query, key, width = call["query"], call["key"], call["embed_dim"]
    return _attention_block(query.shape[0], query.shape[1], key.shape[1], width)


def _attention_block(batch: int, queries: int, keys: int, width: int) -> int:
    projections = (2 * queries + 2 * keys) * width * width
    return batch * (projections + 2 * queries * keys * width)


def _transformer_encoder_layer(call: _Arguments, _: Any) -> int:
    batch, length, width = call["src"].shape
    feed_forward = batch * length * (call["ffn_weight_1"].numel() + call["ffn_weight_2"].numel())
    norms = 2 * call["src"].numel()
    return _attention_block(batch, length, length, width) + feed_forward + norms


def _recurrent(weights: Callable[[_Arguments], Sequence[Tensor]], passes: int) -> _Count:
    """Each gate matrix meets every step of every sequence once a pass; the vectors among `weights` are biases."""

    def count(call: _Arguments, _: Any) -> int:
        steps = prod(call["input"].shape[:-1])
        return passes * steps * sum(weight.numel() for weight in weights(call) if weight.dim() == 2)

    return count


def _per_element(name: str) -> _Count:
    return lambda call, out: call[name].numel()


def _norm_with_flag(flag: str) -> _Count:
    return lambda call, out: call["input"].numel() if call[flag] else 0


def _batch_norm_backward(flag: str) -> _Count:
    def count(call: _Arguments, _: Any) -> int:
        for_input, for_weight = call["output_mask"][:2]
        return call["input"].numel() if for_weight or (for_input and call[flag]) else 0

    return count


def _layer_norm_backward(call: _Arguments, _: Any) -> int:
    return sum(call["output_mask"][:2]) * call["input"].numel()


def _group_norm_backward(call: _Arguments, _: Any) -> int:
    return call["input"].numel() if any(call["output_mask"][:2]) else 0


def _vector_norm(call: _Arguments, _: Any) -> int:
    return call["self"].numel() if call["ord"] == 2 else 0


def _fourier(call: _Arguments, out: Tensor) -> int:
    axes = call["dim"]
    # The longer side of a real transform carries its length: the input of r2c, the output of c2r.
    signal = out if "last_dim_size" in call else call["self"]
    points = prod(signal.shape[axis] for axis in axes)
    if points < 2:
        return 0
    transforms = signal.numel() // points
    real = "last_dim_size" in call or not call["self"].is_complex()
    return transforms * round((1.25 if real else 2.5) * points * log2(points))


def _resampling(taps: int) -> _Count:
    return lambda call, out: taps * call.get("grad_output", out).numel()


def _grid_sample(call: _Arguments, out: Tensor) -> int:
    bilinear, nearest, _ = range(3)
    axes = call["grid"].shape[-1]
    mode = call["interpolation_mode"]
    if mode == nearest:
        return 0
    taps = (2 if mode == bilinear else 4) ** axes
    places = call.get("grad_output", out)
    return taps * places.numel() * sum(call.get("output_mask", (True,)))


def _distances(call: _Arguments, out: Tensor) -> int:
    return call.get("cdist", out).numel() * call["x1"].shape[-1]


def _embedding_bag(call: _Arguments, _: Any) -> int:
    if call["per_sample_weights"] is None:
        return 0
    return call["indices"].numel() * call["weight"].shape[-1]


_SDPA = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention", "fused_attention_overrideable")
_UPSAMPLE = {"linear1d": 2, "bilinear2d": 4, "trilinear3d": 8, "bicubic2d": 16}

_COUNTS: dict[str, _Count] = {
    f"aten::{name}": count
    for names, count in (
        (("convolution", "_convolution", "convolution_overrideable"), _convolution),
        (("convolution_backward", "convolution_backward_overrideable"), _convolution_backward),
        (("mm", "bmm", "mv", "dot", "vdot", "matmul", "_int_mm", "_scaled_mm", "mkldnn_linear"), _contraction("self")),
        (("_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu"), _contraction("self")),
        (("linear",), _contraction("input")),
        (("addmm", "_addmm_activation"), _contraction("mat1")),
        (("addmv",), _contraction("mat")),
        (("baddbmm",), _contraction("batch1")),
        (("addbmm",), _summed_batches),
        (("_grouped_mm",), _grouped_contraction),
        (("mkldnn_linear_backward",), _linear_backward),
        (("_trilinear",), _trilinear),
        ([f"_scaled_dot_product_{kind}" for kind in _SDPA], _attention(scores=1, values=1)),
        ([f"_scaled_dot_product_{kind}_backward" for kind in _SDPA], _attention(scores=3, values=2)),
        (("_native_multi_head_attention",), _multi_head_attention),
        (("_transformer_encoder_layer_fwd",), _transformer_encoder_layer),
        (("mkldnn_rnn_layer",), _recurrent(lambda call: (call["weight0"], call["weight1"]), passes=1)),
        (("mkldnn_rnn_layer_backward",), _recurrent(lambda call: (call["weight1"], call["weight2"]), passes=2)),
        (("_cudnn_rnn",), _recurrent(lambda call: call["weight"], passes=1)),
        (("_cudnn_rnn_backward",), _recurrent(lambda call: call["weight"], passes=2)),
        (
            ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "cudnn_batch_norm"),
            _norm_with_flag("training"),
        ),
        (("native_batch_norm_backward",), _batch_norm_backward("train")),
        (("batch_norm_backward",), _batch_norm_backward("update")),
        (("_batch_norm_with_update", "native_layer_norm", "native_group_norm", "_fused_rms_norm"), _per_element("input")),
        (("cudnn_batch_norm_backward",), _per_element("input")),
        (("native_layer_norm_backward", "_fused_rms_norm_backward"), _layer_norm_backward),
        (("native_group_norm_backward",), _group_norm_backward),
        (("var", "std", "var_mean", "std_mean"), _per_element("self")),
        (("_weight_norm_interface",), _per_element("v")),
        (("linalg_vector_norm",), _vector_norm),
        (("_fft_r2c", "_fft_c2c", "_fft_c2r"), _fourier),
        (("grid_sampler_2d", "grid_sampler_3d", "grid_sampler_2d_backward", "grid_sampler_3d_backward"), _grid_sample),
        (("_cdist_forward", "_euclidean_dist", "_cdist_backward"), _distances),
        (("_embedding_bag", "_embedding_bag_forward_only"), _embedding_bag),
        *(((f"upsample_{kind}", f"upsample_{kind}_backward"), _resampling(taps)) for kind, taps in _UPSAMPLE.items()),
    )
    for name in names
}

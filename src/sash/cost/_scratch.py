"""What each operator's kernel allocates inside, beside its results.

One table: operator → rule. An operator without a rule and without the tag `pointwise` allocates nothing beside its results, as far as
was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sash.cost import _scratch_convolution as convolutions
from sash.cost import _scratch_maps as maps
from sash.cost import _scratch_matrices as matrices
from sash.cost import _scratch_norms as norms
from sash.cost._ledger import Scratch, data_bytes

Rule = Callable[[tuple, dict, Any], Scratch | int | None]

_RULES: dict[str, Rule] = {
    "convolution": convolutions.forward_scratch,
    "convolution_backward": convolutions.backward_scratch,
    "native_batch_norm": norms.batch_norm,
    "_native_batch_norm_legit": norms.batch_norm,
    "_native_batch_norm_legit_no_training": norms.batch_norm,
    "native_batch_norm_backward": norms.batch_norm_backward,
    "native_group_norm": norms.group_norm,
    "native_group_norm_backward": norms.group_norm_backward,
    "native_layer_norm": norms.layer_norm,
    "native_layer_norm_backward": norms.layer_norm_backward,
    "_softmax": norms.softmax,
    "_log_softmax": norms.softmax,
    "_softmax_backward_data": norms.softmax_backward,
    "_log_softmax_backward_data": norms.softmax_backward,
    "_safe_softmax": norms.safe_softmax,
    "logsumexp": norms.logsumexp,
    "binary_cross_entropy_with_logits": norms.bce_with_logits,
    "mse_loss": norms.reduced_loss,
    "smooth_l1_loss": norms.reduced_loss,
    "huber_loss": norms.reduced_loss,
    "log_sigmoid_forward": norms.log_sigmoid,
    "mm": matrices.matrix_product,
    "addmm": matrices.matrix_product,
    "bmm": matrices.matrix_product,
    "baddbmm": matrices.matrix_product,
    "_scaled_dot_product_flash_attention_for_cpu": matrices.flash_attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": matrices.flash_attention_backward,
    "_native_multi_head_attention": matrices.fused_attention_layer,
    "mkldnn_rnn_layer": matrices.recurrent_layer,
    "mkldnn_rnn_layer_backward": matrices.recurrent_layer_backward,
    "_fft_r2c": matrices.fft,
    "_fft_c2c": matrices.fft,
    "_fft_c2r": matrices.fft_to_real,
    "max_pool2d_with_indices_backward": maps.pool_backward,
    "avg_pool2d_backward": maps.pool_backward,
    "_adaptive_avg_pool2d_backward": maps.pool_backward,
    "upsample_nearest2d": maps.resample,
    "_upsample_nearest_exact2d": maps.resample,
    "upsample_bilinear2d": maps.resample,
    "_upsample_bilinear2d_aa": maps.resample_smoothed,
    "_upsample_bicubic2d_aa": maps.resample_smoothed,
    "im2col": maps.unfold,
    "affine_grid_generator": maps.affine_grid,
    "roll": maps.roll,
    "where": maps.choice,
    "masked_fill": maps.choice,
    "masked_fill_": maps.choice,
    "embedding": maps.embedding,
    "embedding_dense_backward": maps.embedding_backward,
    "sum": maps.total,
    "mean": maps.average,
    "cumsum": maps.running_total,
    "median": maps.median,
    "kthvalue": maps.kth_value,
    "_euclidean_dist": maps.distance,
    "sort": maps.sort,
    "_linalg_svd": matrices.singular_values,
    "linalg_inv_ex": matrices.inverse,
    "linalg_qr": matrices.orthogonal,
    "_trilinear": maps.unknown,
}


def kernel_scratch(func: Any, args: tuple, kwargs: dict, outputs: Any) -> Scratch | None:
    """What the kernel allocates beside its results; None where that cannot be told."""
    rule = _RULES.get(func.overloadpacket.__name__) if func.namespace == "aten" else None
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = maps.pointwise
    found = rule(args, kwargs, outputs) if rule is not None else 0
    return Scratch(found) if isinstance(found, int) else found


def kept_bytes(func: Any, args: tuple, kwargs: dict, outputs: Any) -> dict[int, int]:
    """Bytes of the storages behind some results, by their place, where the fake kernel understates them."""
    name = func.overloadpacket.__name__
    if name == "mkldnn_rnn_layer":
        return matrices.recurrent_workspace(args, kwargs, outputs)
    if name == "max_pool2d_with_indices" and not torch.is_grad_enabled() and args[0].shape[-2] == 1 and args[1][0] == 1:
        # max_pool1d without gradients has a kernel without indices; over fake tensors torch takes the other one.
        return {1: 0}
    if name in ("mse_loss", "smooth_l1_loss") and isinstance(outputs, Tensor) and outputs.numel() < args[0].numel():
        # The reduced loss is written into the first element of the map of losses.
        return {0: data_bytes(args[0])}
    return {}

"""A convolutional front end: tens of thousands of samples in, a few dozen steps out, for what cannot read the long signal itself."""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

import math

from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from sash.errors import InputError
from sash.models._lengths import check_lengths, ended
from sash.models._pictures import check_counts
from sash.units import format_shape


def front_end(
    in_channels: int = 1, width: int = 128, *, strides: tuple[int, ...] = (10, 10, 10), out_channels: int | None = None
) -> FrontEnd:
    """A chain of strided convolutions: (batch, length, in_channels) → (batch, length // prod(strides), out_channels).

    By default 60 000 steps become 60. Each convolution reads two strides (one more where the stride is odd), so that every sample is seen
    from at least two outputs; a normalisation over channels, step by step, and GELU follow. The last one makes `out_channels`, which is
    `width` unless given. Saved for backward are some three maps a layer, of which the first is length / strides[0] × width: with one input
    channel it is the stride of the first layer that decides about the memory.

    Raises `InputError` for a count below 1 and for no strides.
    """
    if not strides:
        raise InputError("strides=(): a front end has at least one, as (10, 10, 10) to get from 60 000 steps to 60.")
    wide = width if out_channels is None else out_channels
    check_counts("a front end", in_channels=in_channels, width=width, out_channels=wide)
    check_counts("each stride of a front end", **{f"strides[{index}]": stride for index, stride in enumerate(strides)})
    return FrontEnd(in_channels, width, strides, wide)


class FrontEnd(nn.Module):
    """`front_end` as a module."""

    def __init__(self, in_channels: int, width: int, strides: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        widths = [in_channels, *[width] * (len(strides) - 1), out_channels]
        self.in_channels, self.strides = in_channels, strides
        self.convolutions = nn.ModuleList(
            # Two strides and as much padding as one, made odd where that is needed to halve it: length // stride outputs, centred.
            nn.Conv1d(before, after, 2 * stride + stride % 2, stride, padding=(stride + 1) // 2)
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(after) for after in widths[1:])

    def forward(
        self, x: Float[Tensor, "batch length channel"], lengths: Integer[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch steps out"]:
        """The shortened signals.

        With `lengths`, what lies behind a signal's length is taken for zero, whatever it is: each comes out as it would alone, and is zero
        from step `outputs(length)` on. Raises `InputError` for another rank or other channels, for signals shorter than the product of the
        strides, and for lengths that are not one whole number a signal, or that lie beyond the signals (not looked at where tensors have no
        values).
        """
        check_lengths("signals", x, self.in_channels, lengths)
        if x.shape[1] < math.prod(self.strides):
            shape, least = format_shape(x.shape), math.prod(self.strides)
            raise InputError(f"the signals are {shape}, {x.shape[1]} steps long; strides {self.strides} make one output of {least}.")
        y = ended(x, lengths)
        # Of one channel, a transposed signal passes for channels-last too; kernels for that take twice the memory.
        y = y.reshape(x.shape[0], 1, x.shape[1]) if self.in_channels == 1 else y.transpose(1, 2)
        for convolution, norm, stride in zip(self.convolutions, self.norms, self.strides, strict=True):
            lengths = None if lengths is None else lengths // stride
            y = ended(F.gelu(norm(convolution(y).transpose(1, 2))), lengths).transpose(1, 2)
        return y.transpose(1, 2)

    def outputs(self, length: int) -> int:
        """Steps that come out of `length` samples; of a tensor of lengths, a tensor."""
        return length // math.prod(self.strides)

"""What kernels allocate inside: the forecast's rules against the allocator's own record, operator by operator, forward and backward."""

import bisect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler import profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from sash.cost import _onednn
from sash.cost._scratch import kernel_scratch

SLACK_BYTES = 16 << 10
"""Index tables and partial sums of a few KiB are not modelled."""


class Audit(TorchDispatchMode):
    """Runs every operator between two marks, and asks the rules about it."""

    def __init__(self):
        super().__init__()
        self.forecast = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with record_function(f"audit {len(self.forecast)}"):
            outputs = func(*args, **kwargs)
        found = kernel_scratch(func, args, kwargs, outputs)
        shapes = [f"{value.dtype}{list(value.shape)}" for value in args if isinstance(value, Tensor)]
        self.forecast.append((f"{func} {' '.join(shapes)}", None if found is None else found.bytes))
        return outputs


def audit(step):
    """(operator, forecast bytes, observed bytes) of every operator that the step runs."""
    step()
    mode = Audit()
    with profile(profile_memory=True, use_kineto=True) as record, mode:
        step()
    memory, spans = [], {}
    for event in record.kineto_results.events():
        if event.name() == "[memory]":
            memory.append((event.start_ns(), event.nbytes()))
        elif event.name().startswith("audit "):
            spans[int(event.name()[6:])] = event.start_ns(), event.start_ns() + event.duration_ns()
    memory.sort(key=lambda event: event[0])
    times = [at for at, _ in memory]
    rows = []
    for index, (start, stop) in spans.items():
        level = peak = 0
        for _, size in memory[bisect.bisect_left(times, start) : bisect.bisect_right(times, stop)]:
            level += size
            peak = max(peak, level)
        rows.append((*mode.forecast[index], peak - max(level, 0)))
    return rows


def assert_scratch_is_forecast(forward: Callable[[], Tensor]):
    def step():
        outputs = forward()
        if outputs.requires_grad:
            outputs.float().mean().backward()

    rows = audit(step)
    assert rows
    wrong = [row for row in rows if row[1] is None or abs(row[1] - row[2]) > max(SLACK_BYTES, row[2] // 50)]
    assert not wrong, "\n".join(f"{name}: forecast {said}, observed {seen}" for name, said, seen in wrong)


def leaf(*shape, dtype=torch.float32, last=False):
    made = torch.randn(*shape).to(dtype)
    return (made.contiguous(memory_format=torch.channels_last) if last else made).requires_grad_()


IMAGE, LAST, HALF = leaf(4, 32, 56, 56), leaf(4, 32, 56, 56, last=True), leaf(4, 32, 56, 56, dtype=torch.bfloat16)
SIGNAL, VOLUME, WORDS = leaf(4, 32, 2000), leaf(2, 8, 12, 24, 24), leaf(8, 200, 64)
WORDS_HALF, DOUBLE = leaf(8, 200, 64, dtype=torch.bfloat16), leaf(4, 8, 40, 40, dtype=torch.float64)
HEADS, HEADS_LONG = leaf(2, 4, 200, 32), leaf(1, 4, 900, 64)


def conv(kind, *sizes, x, **settings):
    layer = kind(*sizes, **settings).to(x.dtype)
    return lambda: layer(x)


CONVOLUTIONS = {
    "3x3": conv(nn.Conv2d, 32, 40, 3, x=IMAGE, padding=1),
    "1x1": conv(nn.Conv2d, 32, 48, 1, x=IMAGE),
    "strided 1x1": conv(nn.Conv2d, 32, 64, 1, x=IMAGE, stride=2, bias=False),
    "7x7 on few channels": conv(nn.Conv2d, 3, 64, 7, x=leaf(4, 3, 112, 112), stride=2, padding=3),
    "depthwise": conv(nn.Conv2d, 32, 32, 3, x=IMAGE, padding=1, groups=32),
    "grouped": conv(nn.Conv2d, 32, 64, 3, x=IMAGE, padding=1, groups=4),
    "dilated": conv(nn.Conv2d, 32, 32, 3, x=IMAGE, dilation=2),
    "channels last": conv(nn.Conv2d, 32, 40, 3, x=LAST, padding=1),
    "depthwise, channels last": conv(nn.Conv2d, 32, 32, 7, x=LAST, padding=3, groups=32),
    "bfloat16": conv(nn.Conv2d, 32, 40, 3, x=HALF, padding=1),
    "one dimension": conv(nn.Conv1d, 32, 40, 5, x=SIGNAL, padding=2, dilation=1),
    "one dimension, circular": conv(nn.Conv1d, 32, 32, 3, x=SIGNAL, padding=2, dilation=2, padding_mode="circular"),
    "three dimensions": conv(nn.Conv3d, 8, 16, 3, x=VOLUME, padding=1),
    "transposed": conv(nn.ConvTranspose2d, 32, 24, 2, x=IMAGE, stride=2),
    "transposed, one dimension": conv(nn.ConvTranspose1d, 32, 16, 4, x=SIGNAL, stride=2),
    "transposed, three dimensions": conv(nn.ConvTranspose3d, 8, 4, 2, x=VOLUME, stride=2),
    "float64": conv(nn.Conv2d, 8, 12, 3, x=DOUBLE, padding=1),
    "float64, grouped": conv(nn.Conv2d, 8, 12, 3, x=DOUBLE, padding=1, groups=4),
    "float64, dilated": conv(nn.Conv2d, 8, 12, 3, x=DOUBLE, dilation=2),
    "float64, transposed": conv(nn.ConvTranspose2d, 8, 6, 3, x=DOUBLE, stride=2),
    "one small picture": conv(nn.Conv2d, 3, 8, 3, x=leaf(1, 3, 60, 60)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_allocate_what_is_forecast(name):
    assert_scratch_is_forecast(CONVOLUTIONS[name])


NORMS = {
    "batch": (nn.BatchNorm2d(32), IMAGE),
    "batch, channels last": (nn.BatchNorm2d(32), LAST),
    "batch, of what needs no gradient": (nn.BatchNorm2d(32), IMAGE.detach()),
    "batch, channels last, of what needs no gradient": (nn.BatchNorm2d(32), LAST.detach()),
    "batch, bfloat16": (nn.BatchNorm2d(32), HALF),
    "batch, evaluation": (nn.BatchNorm2d(32).eval(), IMAGE),
    "batch, one dimension": (nn.BatchNorm1d(32), SIGNAL),
    "batch, rows": (nn.BatchNorm1d(500), leaf(200, 500)),
    "instance": (nn.InstanceNorm2d(32, affine=True), IMAGE),
    "group": (nn.GroupNorm(8, 32), IMAGE),
    "group, channels last": (nn.GroupNorm(8, 32), LAST),
    "layer": (nn.LayerNorm(64), WORDS),
    "root mean square": (nn.RMSNorm(64), WORDS),
    "softmax": (nn.Softmax(-1), WORDS),
    "softmax over channels": (nn.Softmax2d(), IMAGE),
    "log-softmax": (nn.LogSoftmax(1), IMAGE),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_allocate_what_is_forecast(name):
    layer, x = NORMS[name]
    assert_scratch_is_forecast(lambda: layer(x))


MAPS = {
    "max pooling": lambda: F.max_pool2d(IMAGE, 2),
    "max pooling, channels last": lambda: F.max_pool2d(LAST, 2),
    "average pooling, channels last": lambda: F.avg_pool2d(LAST, 2),
    "adaptive pooling": lambda: F.adaptive_avg_pool2d(IMAGE, 7),
    "global average, bfloat16": lambda: HALF.mean((2, 3)),
    "sum over batch and places, bfloat16": lambda: HALF.sum((0, 2, 3)),
    "nearest, small": lambda: F.interpolate(leaf(4, 32, 28, 28), scale_factor=2),
    "bilinear, small": lambda: F.interpolate(leaf(4, 32, 28, 28), scale_factor=2, mode="bilinear"),
    "bilinear, large": lambda: F.interpolate(IMAGE, scale_factor=2, mode="bilinear"),
    "unfold": lambda: F.unfold(IMAGE, 3, padding=1),
    "rolled twice": lambda: IMAGE.roll((1, 2), (2, 3)),
    "embedding": lambda: F.embedding(torch.randint(100, (200, 100)), leaf(100, 64)),
    "transposed embedding": lambda: F.embedding(torch.randint(100, (200, 100)).t(), leaf(100, 64)).detach(),
    "mixed types": lambda: IMAGE + HALF,
    "flags times numbers": lambda: (IMAGE > 0) * IMAGE,
    "where": lambda: torch.where(IMAGE > 0, IMAGE, IMAGE * 2),
    "squared error": lambda: F.mse_loss(IMAGE, torch.zeros(4, 32, 56, 56)),
    "binary cross-entropy": lambda: F.binary_cross_entropy_with_logits(IMAGE, torch.rand(4, 32, 56, 56)),
    "cross-entropy over places": lambda: F.cross_entropy(IMAGE, torch.randint(32, (4, 56, 56))),
    "logsumexp": lambda: torch.logsumexp(WORDS, -1),
    "running product": lambda: WORDS.cumprod(1),
    "distances": lambda: torch.cdist(WORDS, WORDS),
    "sorted along words": lambda: WORDS.sort(-1).values,
    "sorted along places": lambda: leaf(20_000, 4).sort(0, descending=True).values,
    "median along places": lambda: leaf(4, 20_000).median(1).values,
    "median of all": lambda: WORDS.median(),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_and_losses_allocate_what_is_forecast(name):
    assert_scratch_is_forecast(MAPS[name])


SQUARES = leaf(50, 40, 40)
LSTM, ENCODER = nn.LSTM(64, 96, 2, batch_first=True), nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
PRODUCTS = {
    "attention": lambda: F.scaled_dot_product_attention(HEADS, HEADS, HEADS),
    "attention, long": lambda: F.scaled_dot_product_attention(HEADS_LONG, HEADS_LONG, HEADS_LONG, is_causal=True),
    "attention with dropout": lambda: F.scaled_dot_product_attention(HEADS, HEADS, HEADS, dropout_p=0.1),
    "transformer layer": lambda: ENCODER(WORDS),
    "linear, bfloat16": lambda: F.linear(WORDS_HALF, leaf(128, 64, dtype=torch.bfloat16)),
    "batched product, bfloat16": lambda: WORDS_HALF @ WORDS_HALF.transpose(1, 2),
    "LSTM": lambda: LSTM(WORDS)[0],
    "singular values and vectors": lambda: torch.linalg.svd(SQUARES, full_matrices=False)[1],
    "inverse": lambda: torch.linalg.inv(SQUARES),
    "orthogonal and triangular": lambda: torch.linalg.qr(SQUARES)[1],
    "real transform": lambda: torch.fft.irfft(torch.fft.rfft(WORDS, dim=1), dim=1, n=200),
    "real transform in two dimensions": lambda: torch.fft.irfft2(torch.fft.rfft2(IMAGE) * leaf(32, 56, 29), s=(56, 56)),
    "complex transform along words": lambda: torch.fft.fft(torch.fft.fft(WORDS, dim=-1), dim=-2).real,
    "short-time transform": lambda: torch.stft(leaf(4, 8000), 256, 64, window=torch.hann_window(256), return_complex=True).abs(),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_transforms_allocate_what_is_forecast(name):
    assert_scratch_is_forecast(PRODUCTS[name])


def test_onednn_tells_a_convolutions_layouts():
    # 24 channels are padded to 32 and 40 to 48 where a vector holds 16 numbers; whatever the processor, never to less than they are.
    assert _onednn.available()
    plan = _onednn.convolution(
        "forward", False, (8, 24, 56, 56), (40, 24, 3, 3), (8, 40, 56, 56), True, (1, 1), (1, 1), ((1, 1), (1, 1)), 1, torch.float32, False
    )
    assert plan is not None
    assert plan.result >= 8 * 40 * 56 * 56 * 4


def test_a_library_without_the_symbols_is_told_so(tmp_path):
    stranger = tmp_path / "libother.so"
    stranger.write_bytes(b"\x7fELF\x02\x01" + bytes(58))
    assert _onednn._symbols(stranger, ["dnnl_version"]) == {"dnnl_version": None}

"""Multiply-accumulates against a walk over outputs and taps, and against counts worked out by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from sash.cost._macs import operator_macs

FORWARD = {False: (F.conv1d, F.conv2d, F.conv3d), True: (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)}


class Counter(TorchDispatchMode):
    """Adds up the MACs of every operator that runs under it."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.macs += operator_macs(func, args, kwargs or {}, outputs)
        return outputs


def counted(work) -> int:
    with Counter() as counter:
        work()
    return counter.macs


def forward_and_backward(function, *inputs) -> tuple[int, int]:
    with Counter() as forward:
        output = function(*inputs)
    while isinstance(output, tuple):
        output = output[0]
    seed = torch.ones_like(output)
    return forward.macs, counted(lambda: output.backward(seed))


def values(*shape: int, grad: bool = True) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=grad)


@dataclass(frozen=True)
class Convolution:
    batch: int
    groups: int
    in_per_group: int
    out_per_group: int
    lengths: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]
    extra: tuple[int, ...]
    """Output padding, of a transposed convolution."""
    transposed: bool
    wants_input: bool
    wants_weight: bool

    @property
    def out_lengths(self) -> tuple[int, ...]:
        axes = zip(self.lengths, self.taps, self.stride, self.dilation, self.pad, self.extra, strict=True)
        if self.transposed:
            return tuple((n - 1) * s + d * (k - 1) + 1 - 2 * p + e for n, k, s, d, p, e in axes)
        return tuple(len(range(-p, n + p - d * (k - 1), s)) for n, k, s, d, p, _ in axes)


def some_convolution(rng: random.Random, dimensions: int, transposed: bool) -> Convolution:
    longest, most_taps = {1: (12, 4), 2: (6, 3), 3: (3, 2)}[dimensions]
    while True:
        stride, dilation = (tuple(rng.randint(1, 3) for _ in range(dimensions)) for _ in range(2))
        depthwise = rng.random() < 0.3
        wants = rng.choice([(True, True), (True, False), (False, True)])
        found = Convolution(
            batch=rng.randint(1, 2),
            groups=rng.randint(2, 4) if depthwise else rng.randint(1, 3),
            in_per_group=1 if depthwise else rng.randint(1, 3),
            out_per_group=rng.randint(1, 2),
            lengths=tuple(rng.randint(1, longest) for _ in range(dimensions)),
            taps=tuple(rng.randint(1, most_taps) for _ in range(dimensions)),
            stride=stride,
            dilation=dilation,
            pad=tuple(rng.randint(0, 2) for _ in range(dimensions)),
            extra=tuple(rng.randrange(max(pair)) if transposed else 0 for pair in zip(stride, dilation, strict=True)),
            transposed=transposed,
            wants_input=wants[0],
            wants_weight=wants[1],
        )
        if all(length > 0 for length in found.out_lengths):
            return found


@dataclass
class Walk:
    """A convolution and its gradients, one product at a time."""

    output: np.ndarray
    input_gradient: np.ndarray
    weight_gradient: np.ndarray
    products: dict[str, int] = field(default_factory=lambda: {"output": 0, "input": 0, "weight": 0})


def walked(case: Convolution, x: np.ndarray, weight: np.ndarray, gradient: np.ndarray) -> Walk:
    """Visits every output and tap (every input and tap where transposed); what lies outside the signal is a product with 0."""
    walk = Walk(np.zeros_like(gradient), np.zeros_like(x), np.zeros_like(weight))
    places = case.lengths if case.transposed else case.out_lengths
    far = case.out_lengths if case.transposed else case.lengths
    axes = (range(case.batch), range(case.groups), range(case.in_per_group), range(case.out_per_group))
    for n, group, i, o in product(*axes):
        source, target = group * case.in_per_group + i, group * case.out_per_group + o
        for place in product(*map(range, places)):
            for tap in product(*map(range, case.taps)):
                other = tuple(a * s + t * d - p for a, t, s, d, p in zip(place, tap, case.stride, case.dilation, case.pad, strict=True))
                inside = all(0 <= position < length for position, length in zip(other, far, strict=True))
                read, written = (place, other) if case.transposed else (other, place)
                kernel = (source, o, *tap) if case.transposed else (target, i, *tap)
                at_input, at_output = (n, source, *read), (n, target, *written)
                if inside:
                    walk.output[at_output] += x[at_input] * weight[kernel]
                    walk.input_gradient[at_input] += gradient[at_output] * weight[kernel]
                    walk.weight_gradient[kernel] += gradient[at_output] * x[at_input]
                for name in walk.products:
                    walk.products[name] += 1
    return walk


@pytest.mark.parametrize("transposed", [False, True], ids=["direct", "transposed"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_count_the_products_of_a_walk_over_outputs_and_taps(dimensions, transposed):
    rng = random.Random(f"{dimensions} {transposed}")
    torch.manual_seed(dimensions)
    for _ in range(100):
        case = some_convolution(rng, dimensions, transposed)
        channels_in, channels_out = case.groups * case.in_per_group, case.groups * case.out_per_group
        kernel = (channels_in, case.out_per_group) if transposed else (channels_out, case.in_per_group)
        x = torch.randn(case.batch, channels_in, *case.lengths, dtype=torch.float64, requires_grad=case.wants_input)
        weight = torch.randn(*kernel, *case.taps, dtype=torch.float64, requires_grad=case.wants_weight)
        bias = torch.zeros(channels_out, dtype=torch.float64, requires_grad=True)
        # Keyword arguments, so that the operator's own defaults and order are what is counted.
        settings = {"stride": case.stride, "padding": case.pad, "dilation": case.dilation, "groups": case.groups}
        if transposed:
            settings["output_padding"] = case.extra
        with Counter() as forward:
            output = FORWARD[transposed][dimensions - 1](x, weight, bias, **settings)
        gradient = torch.randn_like(output)
        with Counter() as backward:
            output.backward(gradient)

        walk = walked(case, x.detach().numpy(), weight.detach().numpy(), gradient.numpy())
        assert forward.macs == walk.products["output"], case
        expected = case.wants_input * walk.products["input"] + case.wants_weight * walk.products["weight"]
        assert backward.macs == expected, case
        # The walk is the convolution itself, so what it counts is the convolution's work.
        np.testing.assert_allclose(output.detach().numpy(), walk.output, atol=1e-12)
        assert (x.grad is not None, weight.grad is not None) == (case.wants_input, case.wants_weight)
        if x.grad is not None:
            np.testing.assert_allclose(x.grad.numpy(), walk.input_gradient, atol=1e-12)
        if weight.grad is not None:
            np.testing.assert_allclose(weight.grad.numpy(), walk.weight_gradient, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        # Reported as 0 by one counter (DeepSpeed#8323) and as 81 by another (fvcore#78).
        (nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=4), (2, 4, 8, 8), 4608),
        (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (2, 4, 8, 8), 49152),
        (nn.ConvTranspose2d(6, 6, 2, stride=2, groups=3), (2, 6, 8, 8), 6144),
        (nn.ConvTranspose2d(32, 1, 3), (1, 32, 1, 1), 288),
        # AlexNet's second convolution: 27 × 27 outputs of 256 channels, 5 × 5 taps of 48 channels.
        (nn.Conv2d(96, 256, 5, padding=2, groups=2), (1, 96, 27, 27), 27 * 27 * 256 * 25 * 48),
    ],
)
def test_convolutions_that_other_counters_get_wrong(layer, shape, macs):
    forward, backward = forward_and_backward(layer, values(*shape))
    assert forward == macs
    assert backward == 2 * macs


def test_fake_tensors_count_like_real_ones():
    def step():
        model = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1, padding=1), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2))
        return forward_and_backward(model, values(2, 3, 8, 8))

    real = step()
    with FakeTensorMode():
        assert step() == real
    assert min(real) > 0


def test_linear_layers_count_rows_times_the_weight():
    forward, backward = forward_and_backward(nn.Linear(4, 5), values(2, 3, 4))
    assert (forward, backward) == (6 * 20, 2 * 6 * 20)
    assert counted(lambda: nn.Linear(4, 5, bias=False)(values(2, 3, 4))) == 6 * 20


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (torch.mm, [(2, 3), (3, 5)], 2 * 3 * 5),
        (torch.bmm, [(4, 2, 3), (4, 3, 5)], 4 * 2 * 3 * 5),
        (torch.mv, [(2, 3), (3,)], 6),
        (torch.dot, [(7,), (7,)], 7),
        (torch.addmm, [(5,), (2, 3), (3, 5)], 2 * 3 * 5),
        (torch.addmv, [(2,), (2, 3), (3,)], 6),
        (torch.baddbmm, [(4, 2, 5), (4, 2, 3), (4, 3, 5)], 4 * 2 * 3 * 5),
        (torch.addbmm, [(2, 5), (4, 2, 3), (4, 3, 5)], 4 * 2 * 3 * 5),
        (torch.matmul, [(6, 1, 2, 3), (7, 3, 5)], 6 * 7 * 2 * 3 * 5),
        (lambda a, b: torch.einsum("bij,bkj->bik", a, b), [(4, 2, 3), (4, 5, 3)], 4 * 2 * 3 * 5),
        (lambda a, b: torch.tensordot(a, b, 2), [(4, 2, 3), (2, 3, 5)], 4 * 2 * 3 * 5),
        (nn.Bilinear(3, 4, 5), [(6, 3), (6, 4)], 6 * 3 * 4 * 5),
        (torch.cdist, [(2, 8, 4), (2, 6, 4)], 2 * 8 * 6 * 4),
        (torch.cdist, [(2, 38, 4), (2, 36, 4)], 2 * 38 * 36 * 4),
    ],
)
def test_contractions_count_outputs_times_the_contracted_length(function, shapes, macs):
    inputs = [values(*shape, grad=False) for shape in shapes]
    assert counted(lambda: function(*inputs)) == macs


def attention(query, key, value, **settings):
    return forward_and_backward(lambda *qkv: F.scaled_dot_product_attention(*qkv, **settings), query, key, value)


def test_attention_counts_both_contractions_and_fused_backward_five():
    shapes = (2, 4, 16, 8), (2, 4, 12, 8), (2, 4, 12, 8)
    contraction = 2 * 4 * 16 * 12 * 8
    assert attention(*(values(*shape) for shape in shapes)) == (2 * contraction, 5 * contraction)
    with sdpa_kernel(SDPBackend.MATH):
        assert attention(*(values(*shape) for shape in shapes)) == (2 * contraction, 4 * contraction)


def test_causal_and_masked_attention_count_in_full():
    full = attention(*(values(2, 4, 16, 8) for _ in range(3)))
    assert attention(*(values(2, 4, 16, 8) for _ in range(3)), is_causal=True) == full
    assert attention(*(values(2, 4, 16, 8) for _ in range(3)), attn_mask=torch.ones(16, 16, dtype=torch.bool)) == full


def test_grouped_queries_count_every_query_head():
    shapes = (2, 4, 16, 8), (2, 2, 16, 8), (2, 2, 16, 8)
    contraction = 2 * 4 * 16 * 16 * 8
    assert attention(*(values(*shape) for shape in shapes), enable_gqa=True)[0] == 2 * contraction


@pytest.mark.parametrize("fast", [False, True], ids=["composed", "fused"])
def test_an_encoder_layer_counts_alike_composed_and_fused(fast):
    batch, length, width, hidden = 2, 6, 8, 16
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True).eval()
    x = values(batch, length, width, grad=False)
    with torch.set_grad_enabled(not fast):
        macs = counted(lambda: layer(x))
    projections = batch * length * 4 * width * width
    scores = 2 * batch * length * length * width
    feed_forward = 2 * batch * length * width * hidden
    variances = 2 * batch * length * width
    assert macs == projections + scores + feed_forward + variances


@pytest.mark.parametrize(
    ("kind", "gates"),
    [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)],
)
@pytest.mark.parametrize("both_ways", [False, True])
def test_recurrent_layers_count_both_gate_matrices_at_every_step(kind, gates, both_ways):
    steps, batch, inputs, hidden, ways = 7, 3, 4, 5, 1 + both_ways
    layer = kind(inputs, hidden, num_layers=2, bidirectional=both_ways)
    widths = [inputs, ways * hidden]
    macs = sum(steps * batch * ways * gates * hidden * (width + hidden) for width in widths)
    forward, backward = forward_and_backward(layer, values(steps, batch, inputs))
    assert forward == macs
    # The first hidden state needs no gradient, which a layer composed of matrix products leaves out.
    first = 2 * ways * gates * batch * hidden * hidden
    assert backward == 2 * macs - (0 if kind is nn.LSTM else first)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_cells_count_both_gate_matrices(kind, gates):
    cell, x = kind(4, 5), values(3, 4)
    assert counted(lambda: cell(x)) == 3 * gates * 5 * (4 + 5)


@pytest.mark.parametrize(
    ("layer", "forward", "backward"),
    [
        (nn.BatchNorm1d(8), 96, 96),
        (nn.BatchNorm1d(8).eval(), 0, 96),
        (nn.BatchNorm1d(8, affine=False).eval(), 0, 0),
        (nn.InstanceNorm1d(8), 96, 96),
        (nn.GroupNorm(2, 8), 96, 96),
        (nn.LayerNorm(6), 96, 2 * 96),
        (nn.LayerNorm(6, elementwise_affine=False), 96, 96),
    ],
)
def test_normalisation_counts_its_sums_of_products(layer, forward, backward):
    assert forward_and_backward(layer, values(2, 8, 6)) == (forward, backward)


def test_fourier_transforms_count_half_of_five_n_log_n():
    real = values(3, 8, 8, grad=False)
    transform = counted(lambda: torch.fft.fft2(real.to(torch.complex64)))
    assert transform == 3 * 5 * 64 * 6 // 2
    assert counted(lambda: torch.fft.rfft2(real)) == transform // 2
    spectrum = torch.fft.rfft2(real)
    assert counted(lambda: torch.fft.irfft2(spectrum)) == transform // 2
    assert counted(lambda: torch.fft.fft(values(3, 1, grad=False))) == 0
    frames = counted(lambda: torch.stft(values(2, 64, grad=False), 16, hop_length=4, window=torch.ones(16), return_complex=True))
    assert frames == 2 * 17 * 5 * 16 * 4 // 4


@pytest.mark.parametrize(("mode", "taps"), [("nearest", 0), ("bilinear", 4), ("bicubic", 16)])
def test_resampling_counts_the_taps_of_each_output(mode, taps):
    x = values(1, 2, 4, 4)
    assert forward_and_backward(lambda x: F.interpolate(x, scale_factor=2, mode=mode), x) == (128 * taps, 128 * taps)
    grid = values(1, 3, 3, 2)
    assert forward_and_backward(lambda x, grid: F.grid_sample(x, grid, mode=mode, align_corners=False), x, grid) == (
        18 * taps,
        2 * 18 * taps,
    )


@pytest.mark.parametrize(
    "work",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.gelu(x) * x,
        lambda x: torch.addcmul(x, x, x),
        lambda x: x.softmax(1),
        lambda x: F.mse_loss(x, x),
        lambda x: F.unfold(x, 2),
    ],
)
def test_operators_that_sum_no_products_count_nothing(work):
    x = values(1, 2, 4, 4, grad=False)
    assert counted(lambda: work(x)) == 0


def test_only_weighted_bags_of_embeddings_sum_products():
    bag, indices = nn.EmbeddingBag(10, 4, mode="sum"), torch.zeros(3, 2, dtype=torch.long)
    assert counted(lambda: bag(indices)) == 0
    assert counted(lambda: bag(indices, per_sample_weights=torch.ones(3, 2))) == 6 * 4


def test_keyword_arguments_count_like_positional_ones():
    x, weight = values(1, 4, 5, grad=False), values(4, 2, 3, grad=False)
    settings = {"stride": [1], "padding": [0], "dilation": [1], "transposed": False, "output_padding": [0], "groups": 2}
    out = torch.ops.aten.convolution(x, weight, None, **settings)
    assert operator_macs(torch.ops.aten.convolution.default, (x, weight, None), settings, out) == out.numel() * 2 * 3

"""Lengths, reads and coverage against torch's own operators."""

import itertools
import random
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from sash.window import WHOLE, Adaptive, Chain, Circular, Interval, Transposed, Window


def configurations(count, seed):
    """Random (length, size, stride, dilation, pad)."""
    draw = random.Random(seed)
    for _ in range(count):
        yield draw.randint(1, 40), draw.randint(1, 7), draw.randint(1, 5), draw.randint(1, 4), draw.randint(0, 6)


def torch_length(operation):
    """Length that torch makes; 0 where it refuses because nothing would be left."""
    try:
        return operation().shape[-1]
    except RuntimeError:
        return 0


def test_convolution_lengths_equal_torchs_on_1500_configurations():
    kept = 0
    for length, size, stride, dilation, pad in configurations(1500, 0):
        signal, weight = torch.ones(1, 1, length), torch.ones(1, 1, size)
        made = torch_length(lambda: F.conv1d(signal, weight, None, stride, pad, dilation))  # noqa: B023
        assert Window(size, stride, dilation, (pad, pad)).outputs(length) == made, (length, size, stride, dilation, pad)
        kept += made > 0
    assert kept > 1000


@pytest.mark.parametrize("ceil", [False, True])
def test_pooling_lengths_equal_torchs_on_1500_configurations(ceil):
    kept = 0
    for length, size, stride, dilation, wanted in configurations(1500, 1 + ceil):
        pad = min(wanted, size // 2)
        made = torch_length(lambda: F.max_pool1d(torch.ones(1, 1, length), size, stride, pad, dilation, ceil_mode=ceil))  # noqa: B023
        assert Window(size, stride, dilation, (pad, pad), ceil).outputs(length) == made, (length, size, stride, dilation, pad)
        kept += made > 0
    assert kept > 1000


def test_average_pooling_keeps_the_same_partial_windows():
    for length, size, stride, _, wanted in configurations(400, 3):
        pad = min(wanted, size // 2)
        made = torch_length(lambda: F.avg_pool1d(torch.ones(1, 1, length), size, stride, pad, ceil_mode=True))  # noqa: B023
        assert Window(size, stride, 1, (pad, pad), ceil=True).outputs(length) == made


def test_transposed_lengths_equal_torchs_on_1000_configurations():
    kept = 0
    for (length, size, stride, dilation, pad), phase in zip(configurations(1000, 4), itertools.cycle(range(12)), strict=False):
        output_pad = phase % max(stride, dilation)
        signal, weight = torch.ones(1, 1, length), torch.ones(1, 1, size)
        made = torch_length(lambda: F.conv_transpose1d(signal, weight, None, stride, pad, output_pad, 1, dilation))  # noqa: B023
        assert Transposed(Window(size, stride, dilation, (pad, pad)), output_pad).outputs(length) == made
        kept += made > 0
    assert kept > 700


def test_adaptive_bins_equal_torchs():
    for length in range(1, 30):
        for count in range(1, 12):
            signal = torch.arange(length, dtype=torch.float64)
            made = F.adaptive_avg_pool1d(signal[None, None], count)[0, 0]
            bins = [Adaptive(count).reads(output, output + 1, length) for output in range(count)]
            torch.testing.assert_close(made, torch.stack([signal[start:stop].mean() for start, stop in bins]))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_same_and_circular_padding_are_torchs():
    for length, size, _, dilation, _ in configurations(300, 5):
        window = Window.same(size, 1, dilation)
        conv = torch.nn.Conv1d(1, 1, size, dilation=dilation, padding="same", bias=False)
        assert conv(torch.ones(1, 1, length)).shape[-1] == window.outputs(length)
        assert counts_by_gradient([window], length) == window.coverage(length)
        around = Circular(Window(size, 2, dilation, window.pad))
        if max(window.pad) <= length:
            assert counts_by_gradient([around], length) == around.coverage(length)


def run(link, signal):
    """torch's operator of the link with every weight 1."""
    if isinstance(link, Adaptive):
        bins = [link.reads(output, output + 1, signal.shape[-1]) for output in range(link.count)]
        return torch.stack([signal[..., start:stop].sum(-1) for start, stop in bins], -1)
    window = link if isinstance(link, Window) else link.window
    weight = torch.ones(1, 1, window.size, dtype=signal.dtype)
    if isinstance(link, Transposed):
        made = F.conv_transpose1d(signal, weight, None, window.stride, 0, link.output_pad, 1, window.dilation)
        return made[..., window.pad[0] : made.shape[-1] - window.pad[1]]
    padded = F.pad(signal, window.pad, "circular" if isinstance(link, Circular) else "constant")
    return F.conv1d(padded, weight, None, window.stride, 0, window.dilation)


def gradient(links, length, output=None):
    """Gradient of one output, or of the sum of all, with respect to the signal."""
    signal = torch.zeros(1, 1, length, dtype=torch.float64, requires_grad=True)
    made = signal
    for link in links:
        made = run(link, made)
    (made.sum() if output is None else made[0, 0, output]).backward()
    return signal.grad[0, 0]


def counts_by_gradient(links, length):
    return tuple(int(count) for count in gradient(links, length))


def random_chain(draw, transposes=True):
    links = []
    for _ in range(draw.randint(1, 4)):
        size, stride, dilation = draw.randint(1, 5), draw.randint(1, 3), draw.randint(1, 3)
        reach = dilation * (size - 1)
        if transposes and draw.random() < 0.3:
            size = max(size, stride)
            links.append(Transposed(Window(size, stride, 1, (draw.randint(0, (size - 1) // 2),) * 2)))
        else:
            links.append(Window(size, stride, dilation, (draw.randint(0, reach), draw.randint(0, reach))))
    return Chain(links)


def test_the_receptive_field_equals_the_one_found_by_gradients():
    draw, compared = random.Random(6), 0
    while compared < 150:
        chain = random_chain(draw)
        length = 4 * chain.receptive_field + 24
        outputs = chain.outputs(length)
        if outputs < 3 or length > 1500:
            continue
        # Every phase of the pattern, in the middle of the signal where no end is near.
        middle = round((length / 2 - float(chain.offset)) / float(chain.jump))
        period = Fraction(chain.jump).denominator * 36
        widest = 0
        for output in range(max(middle - period // 2, 0), min(middle + period // 2 + 1, outputs)):
            read = chain.reads(output, output + 1)
            if read.start < 0 or read.stop > length:
                continue
            found = gradient(chain.links, length, output).nonzero()[:, 0]
            assert Interval(int(found[0]), int(found[-1]) + 1) == read, (chain, output)
            widest = max(widest, read.length)
            if widest == chain.receptive_field:
                break
        assert widest == chain.receptive_field, chain
        compared += 1


def test_coverage_of_a_chain_equals_the_gradient_of_ones():
    draw, compared = random.Random(7), 0
    while compared < 300:
        chain = random_chain(draw)
        if draw.random() < 0.3:
            chain = chain.then(draw.choice([WHOLE, Adaptive(3)]))
        length = draw.randint(1, 60)
        if chain.outputs(length) == 0 or 0 in chain.lengths(length):
            continue
        assert chain.coverage(length) == counts_by_gradient(chain.links, length), (chain, length)
        compared += 1


def test_tiles_computed_alone_equal_the_whole():
    draw, compared = random.Random(8), 0
    while compared < 150:
        chain, length = random_chain(draw), draw.randint(5, 90)
        if not 0 < chain.outputs(length) < 100:
            continue
        signal = torch.randn(1, 1, length, dtype=torch.float64)
        whole = signal
        for link in chain.links:
            whole = run(link, whole)
        for tile in chain.tiles(length, 5):
            # Samples outside the tile's input are poisoned: the tile's outputs must not see them.
            poisoned = torch.full_like(signal, float("nan"))
            poisoned[..., slice(*tile.inputs)] = signal[..., slice(*tile.inputs)]
            for link in chain.links:
                poisoned = run(link, poisoned)
            torch.testing.assert_close(poisoned[..., slice(*tile.outputs)], whole[..., slice(*tile.outputs)])
        compared += 1

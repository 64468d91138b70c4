"""Seconds from shapes: laws that hold whatever the rates are, over the rates of a made-up machine."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sash.cost import Bound, Phase, Workload, forecast, operator_seconds, read_rates
from sash.cost._laws import MAPPED, SUMMED
from sash.cost._process import run_heap
from sash.cost._results import Moment
from sash.cost._time import pieces
from sash.cost._trace import Life, Trace
from sash.models import basic_block, unet

RATES = read_rates(Path(__file__).with_name("rates.json").read_text())
aten = torch.ops.aten


def seconds(func, *args, **kwargs):
    """Of a call over stand-ins; tensors are given as they would be, and nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        return operator_seconds(func, fake, kwargs, func(*fake, **kwargs), RATES)


def convolution(batch=2, inputs=64, outputs=64, side=28, taps=3, groups=1, dtype=torch.float32, last=False, transposed=False):
    format = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(batch, inputs, side, side, dtype=dtype).contiguous(memory_format=format)
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    weight = torch.empty(*shape, taps, taps, dtype=dtype).contiguous(memory_format=format)
    return seconds(aten.convolution.default, x, weight, None, [1, 1], [taps // 2] * 2, [1, 1], transposed, [0, 0], groups)


channels = st.integers(1, 12).map(lambda count: 16 * count)


@given(channels, channels, st.integers(4, 40), st.sampled_from(["batch", "inputs", "outputs", "side"]), st.booleans())
def test_a_larger_convolution_does_not_take_less_time(inputs, outputs, side, grown, last):
    small = {"batch": 2, "inputs": inputs, "outputs": outputs, "side": side, "last": last}
    assert convolution(**{**small, grown: 2 * small[grown]}).seconds >= convolution(**small).seconds


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(0, 2))
def test_a_larger_product_does_not_take_less_time(rows, inner, columns, grown):
    def product(rows, inner, columns):
        return seconds(aten.mm.default, torch.empty(rows, inner), torch.empty(inner, columns)).seconds

    sizes = [rows, inner, columns]
    larger = [size + 64 * (place == grown) for place, size in enumerate(sizes)]
    crossed = min(rows, columns) < 16 <= min(larger[0], larger[2])
    # Products of few rows or columns have a law of their own: across that border only the sum of both laws' rates could be compared.
    assert crossed or product(*larger) >= product(*sizes)


@given(st.integers(1, 1 << 22), st.integers(1, 1 << 20))
def test_a_larger_map_does_not_take_less_time_on_either_side_of_the_grain(count, more):
    small, large = (seconds(aten.mul.Tensor, torch.empty(size, device="meta"), 2.0).seconds for size in (count, count + more))
    assert large >= small or count < 32768 <= count + more  # from there on the threads share the work


def test_more_taps_and_fewer_groups_take_longer():
    assert convolution(taps=5).seconds > convolution(taps=3).seconds
    assert convolution(groups=1).seconds > convolution(groups=4).seconds > convolution(groups=64).seconds


def test_half_the_width_takes_less_time_where_arithmetic_or_traffic_counts():
    full, half = (convolution(inputs=256, outputs=256, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.seconds < full.seconds
    full, half = (seconds(aten.mul.Tensor, torch.empty(1 << 24, dtype=dtype), 2.0) for dtype in (torch.float32, torch.bfloat16))
    assert half.seconds < full.seconds


def test_channels_last_saves_the_copies_into_blocks():
    plain, last = convolution(batch=4, side=112), convolution(batch=4, side=112, last=True)
    assert last.seconds < plain.seconds


def test_a_copy_into_another_order_is_not_a_straight_one():
    x = torch.empty(512, 512)
    straight = pieces(aten.clone.default, (x,), {}, x)
    turned = pieces(aten.clone.default, (x.t(),), {"memory_format": torch.contiguous_format}, x)
    assert straight[0].law == "copy.straight.f32"
    assert turned[0].law == "copy.permuted.f32"


def test_a_view_costs_its_call_and_nothing_else():
    x = torch.empty(1 << 20)
    found = operator_seconds(aten.view.default, (x, [1024, 1024]), {}, x.view(1024, 1024), RATES)
    assert found == (RATES["view.s"], Bound.OVERHEAD, RATES["view.s"], 0.0)


@pytest.mark.parametrize(
    ("found", "bound"),
    [
        (lambda: seconds(aten.mm.default, torch.empty(2048, 2048), torch.empty(2048, 2048)), Bound.ARITHMETIC),
        (lambda: convolution(inputs=256, outputs=256), Bound.ARITHMETIC),
        (lambda: seconds(aten.add.Tensor, torch.empty(1 << 24), torch.empty(1 << 24)), Bound.MEMORY),
        (lambda: convolution(batch=8, inputs=16, outputs=16, side=112, taps=1), Bound.MEMORY),
        (lambda: seconds(aten.add.Tensor, torch.empty(4), torch.empty(4)), Bound.OVERHEAD),
        (lambda: convolution(batch=1, inputs=16, outputs=16, side=1, taps=1), Bound.OVERHEAD),
    ],
)
def test_what_an_operator_waits_for(found, bound):
    assert found().bound is bound


def test_no_operator_is_faster_than_its_limit():
    for found in (
        convolution(inputs=512, outputs=512),
        seconds(aten.mm.default, torch.empty(2048, 2048), torch.empty(2048, 2048)),
        seconds(aten.mul.Tensor, torch.empty(1 << 24), 2.0),
    ):
        assert 0 < found.limit_s <= found.seconds


def test_a_broadcast_operand_is_read_once():
    x, row = torch.empty(4096, 4096), torch.empty(4096)
    whole = pieces(aten.add.Tensor, (x, x), {}, x)[0].bytes
    assert pieces(aten.add.Tensor, (x, row.expand(4096, 4096)), {}, x)[0].bytes == 2 * x.nbytes + row.nbytes < whole


def test_a_result_that_overwrites_its_operand_takes_less_time_than_a_new_one():
    x = torch.empty(1 << 20)
    assert seconds(aten.relu_.default, x).seconds < seconds(aten.relu.default, x).seconds


def test_rows_have_a_start_each():
    long, short = (torch.empty(*shape) for shape in ((64, 4096), (4096, 64)))
    assert seconds(aten._softmax.default, short, 1, False).seconds > seconds(aten._softmax.default, long, 1, False).seconds
    assert [piece.calls for piece in pieces(aten.sum.dim_IntList, (short, [1]), {}, short.sum(1))] == [4096]
    layer = torch.empty(4, 8, 16, 32)
    outputs = aten.native_layer_norm(layer, [16, 32], None, None, 1e-5)
    assert pieces(aten.native_layer_norm.default, (layer, [16, 32], None, None, 1e-5), {}, outputs)[0].calls == 4 * 8


def test_what_a_norm_does_not_find_in_a_row_is_copied_first():
    straight, turned = torch.empty(64, 512), torch.empty(512, 64).t()
    laws = [
        [piece.law for piece in pieces(aten.native_layer_norm.default, (x, [512], None, None, 1e-5), {}, (x, x[:, :1], x[:, :1]))]
        for x in (straight, turned)
    ]
    assert laws == [["layer_norm.f32"], ["layer_norm.f32", "copy.permuted.f32"]]


@pytest.mark.parametrize("exponent", [2, 2.0, 3])
def test_a_small_power_is_a_product(exponent):
    x = torch.empty(64)
    assert pieces(aten.pow.Tensor_Scalar, (x, exponent), {}, x)[0].law == "elementwise.mul.f32"
    assert pieces(aten.pow.Tensor_Scalar, (x, exponent + 0.7), {}, x)[0].law == "elementwise.pow.f32"
    assert pieces(aten.pow.Scalar, (2, x), {}, x)[0].law == "elementwise.pow.f32"


def test_views_that_do_not_say_so_cost_a_view():
    x = torch.empty(64, 64)
    assert pieces(aten._unsafe_view.default, (x, [4096]), {}, x.view(4096)) == []
    assert pieces(aten.unsafe_split.Tensor, (x, 16), {}, x.split(16)) == []


def test_the_operators_of_an_optimizer_are_started_at_a_rate_of_their_own():
    found = forecast(Workload(nn.Linear(4, 4), "2x4", train=True, optimizer="adamw")).timeline.moments
    beside = [moment.seconds for moment in found if moment.phase is Phase.OPTIMIZER]
    assert len(beside) > 10
    assert beside == pytest.approx([RATES["optimizer.s"]] * len(beside), rel=0.1)


class Sequence(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(50, 32), cell(32, 32, batch_first=True), nn.Linear(32, 5)

    def forward(self, tokens):
        return self.head(self.cell(self.embed(tokens))[0]).log_softmax(-1)


class Maps(nn.Module):
    """What the other models leave out: transforms, gathers, sorting, resampling, norms, volumes."""

    def __init__(self):
        super().__init__()
        self.group, self.layer, self.instance = nn.GroupNorm(2, 8), nn.LayerNorm(16), nn.InstanceNorm2d(8)
        self.volume, self.up = nn.Conv3d(8, 4, 3), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.wide = nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8)

    def forward(self, x):
        y = self.layer(self.instance(self.group(x)))
        y = y + torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])
        y = nn.functional.interpolate(self.up(self.wide(y)), scale_factor=0.5, mode="bilinear")
        y = nn.functional.adaptive_avg_pool2d(nn.functional.avg_pool2d(y, 2), 4).repeat(1, 1, 4, 4)
        best, places = y.flatten(2).topk(4)
        picked = y.flatten(2).gather(2, places).cumsum(-1) + best
        volume = self.volume(nn.functional.pad(y.unsqueeze(2), (1, 1, 1, 1, 1, 1))).roll(1, -1)
        return picked.logsumexp(-1).sum() + volume.var() + nn.functional.dropout(x, 0.5).std()


def small_resnet():
    blocks = (basic_block(16), nn.MaxPool2d(2), basic_block(32, stride=2, in_channels=16), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), *blocks, nn.Flatten(), nn.Linear(32, 10))


MODELS = {
    "resnet": lambda: Workload(small_resnet(), "2x3x64x64", train=True, optimizer="adamw"),
    "resnet in channels last": lambda: Workload(
        small_resnet().to(memory_format=torch.channels_last), torch.empty(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    ),
    "unet in bf16": lambda: Workload(unet(width=8), "1x3x64x64", train=True, optimizer="momentum", autocast="bf16"),
    "encoder": lambda: Workload(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), "2x16x32", train=True, optimizer="rmsprop"),
    "lstm": lambda: Workload(Sequence(nn.LSTM), "4x12:int64<50", train=True, optimizer="adagrad"),
    "gru": lambda: Workload(Sequence(nn.GRU), "4x12:int64<50", train=True),
    "signal": lambda: Workload(nn.Sequential(nn.Conv1d(2, 8, 9, padding=4), nn.BatchNorm1d(8), nn.MaxPool1d(2)), "2x2x200", train=True),
    "maps": lambda: Workload(Maps(), "2x8x16x16", train=True),
    "double": lambda: Workload(nn.Conv2d(3, 8, 3).double(), "2x3x16x16:float64", train=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_operator_of_a_model_takes_some_time(name):
    found = forecast(MODELS[name]())
    assert all(0 < moment.seconds < math.inf for moment in found.timeline.moments)
    assert found.wall_s == pytest.approx(sum(moment.seconds for moment in found.timeline.moments))
    by_layer = sum(layer.forward_s + layer.backward_s for layer in found.layers)
    beside = sum(moment.seconds for moment in found.timeline.moments if moment.phase in (Phase.LOSS, Phase.OPTIMIZER))
    assert by_layer + beside == pytest.approx(found.wall_s)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_new_pages_are_told_apart(accumulate, tmp_path, monkeypatch):
    work = Workload(unet(width=8, depth=2), "4x3x256x256", train=True, optimizer="adamw", accumulate=accumulate)
    before = forecast(work)
    assert 0 < before.paging_s < before.wall_s
    dearer = {**RATES.values, "fresh.s_per_byte": 3 * RATES["fresh.s_per_byte"]}
    (tmp_path / "rates.json").write_text(replace(RATES, values=dearer).to_json())
    monkeypatch.setenv("SASH_RATES", str(tmp_path / "rates.json"))
    after = forecast(work)
    assert after.paging_s == pytest.approx(3 * before.paging_s)
    assert after.wall_s - after.paging_s == pytest.approx(before.wall_s - before.paging_s)


@pytest.mark.parametrize("name", MODELS)
def test_every_law_that_a_model_meets_has_its_rates(name):
    met = set()

    class Meet(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            outputs = func(*args, **(kwargs or {}))
            met.update(piece.law for piece in pieces(func, args, kwargs or {}, outputs))
            return outputs

    work = MODELS[name]()
    model = work.model.train(work.train)
    inputs = [
        torch.zeros(value.shape, dtype=getattr(torch, value.dtype)) if not isinstance(value, torch.Tensor) else value
        for value in work.inputs
    ]
    with Meet(), torch.autocast("cpu", torch.bfloat16, enabled=work.autocast is not None):
        outputs = model(*inputs)
        if work.train:
            outputs.float().mean().backward()
    assert met <= {*SUMMED, *MAPPED}


def test_micro_batches_all_count_and_the_optimizer_steps_once():
    def wall(count):
        return forecast(Workload(nn.Linear(64, 64), "32x64", train=True, optimizer="adamw", accumulate=count))

    two, four, eight = wall(2), wall(4), wall(8)
    assert eight.wall_s - four.wall_s == pytest.approx(2 * (four.wall_s - two.wall_s), rel=0.02)
    assert eight.layers[0].forward_s == pytest.approx(2 * four.layers[0].forward_s, rel=0.02)


def test_pages_that_the_system_hands_over_take_time():
    def moment(side):
        return forecast(Workload(nn.ReLU(), f"1x1x{side}x{side}")).timeline.moments[0].seconds

    # 36 MiB are mapped anew in each step; of 25 MiB the heap may give some back, and is told to meet half of them again.
    small, large = moment(2560), moment(3072)
    made = 3072 * 3072 * 4 * RATES["fresh.s_per_byte"]
    assert large - small > 0.9 * made


def test_what_the_heap_takes_back_is_shared_out_over_what_is_made():
    sizes = (8 << 20, 4 << 20, 4 << 20, 8 << 20)
    made = [Life(size, "", "aten.relu", Phase.FORWARD, moment, 4) for moment, size in enumerate(sizes)]
    moments = [Moment(Phase.FORWARD, "", "aten.relu")] * 5
    # All of it is free between the steps, and more than the heap keeps: the next step makes the pages anew, or not.
    fresh = run_heap(Trace(moments=moments, lives=made), None, None).fresh
    assert fresh[0] == fresh[3] == pytest.approx(2 * fresh[1], abs=1)
    assert fresh[1] == fresh[2] > 0
    assert fresh[4] == 0
    assert 0.4 * sum(sizes) < sum(fresh.values()) < 0.6 * sum(sizes)
    mapped = [Life(40 << 20, "", "aten.relu", Phase.FORWARD, 0, 1)]
    assert run_heap(Trace(moments=moments[:2], lives=mapped), None, None).fresh[0] == pytest.approx(40 << 20, abs=1 << 16)

"""A made-up training step, shaped like a real one: forward saves, backward frees and leaves gradients."""

from dataclasses import replace

import pytest
from torch import nn

from sash.cost import Block, Category, Environment, Forecast, LayerCost, Measurement, Moment, Phase, Reason, Timeline, Workload
from sash.plans import Largest, Plan
from sash.plans._layout import Layout
from sash.plans._recompute import Recompute

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
"""A name under which `add_module` takes a module."""


def make_forecast(name: str = "UNet", depth: int = 100, width: int = 24, separable: bool = False) -> Forecast:
    """A forecast of a network of `depth` blocks of a convolution, a norm and an activation; 15 or so operator calls a block."""
    blocks: list[Block] = []
    moments: list[Moment] = []
    layers: list[LayerCost] = []
    paths = []
    for index in range(depth):
        side, level = ("down", index) if index < depth / 2 else ("up", depth - 1 - index)
        paths.append((f"{side}.{level // 10}.block{index % 10}", 2 ** min(level // 10, 4)))
    calls = depth * 3
    end = calls + 4 + calls * 2 + calls
    shape = {scale: (8, width * scale, 256 // scale, 256 // scale) for _, scale in paths}
    weight = {path: (width * scale) ** 2 * (1 if separable else 9) * 4 for path, scale in paths}

    def live(count, category, path, operator, born, died, kept_for="", sizes=()):
        blocks.append(Block(count, category, path, operator, born, died, kept_for, sizes))

    live(8 * 3 * 256 * 256 * 4, Category.INPUT, "", "input 0", 0, end)
    forward_end, backward_start = calls, calls + 4
    for index, (path, scale) in enumerate(paths):
        size = 4
        for length in shape[scale]:
            size *= length
        size *= 2 if separable else 1
        back = backward_start + (depth - 1 - index) * 6
        live(weight[path], Category.PARAMETER, f"{path}.conv", "weight", 0, end, sizes=(width * scale, width * scale, 3, 3))
        live(width * scale * 8, Category.BUFFER, f"{path}.norm", "running_mean", 0, end)
        live(weight[path] * 2, Category.OPTIMIZER, f"{path}.conv", "exp_avg", 0, end)
        at = index * 3
        for part, operator, kept_for in (
            ("conv", "aten.convolution", "NativeBatchNormBackward0"),
            ("norm", "aten.native_batch_norm", "ReluBackward0"),
            ("act", "aten.relu", "ConvolutionBackward0"),
        ):
            moments.append(Moment(Phase.FORWARD, f"{path}.{part}", operator))
            if part != "act" or index % 2:
                live(size, Category.SAVED, f"{path}.{part}", operator, at, back + 5, kept_for, shape[scale])
            if part == "conv":
                live(size * 3 // 2, Category.SCRATCH, f"{path}.{part}", operator, at, at + 1)
            at += 1
        live(weight[path], Category.GRADIENT, f"{path}.conv", "aten.convolution_backward", back + 3, end)
        live(size, Category.TEMPORARY, f"{path}.act", "aten.threshold_backward", back, back + 4)
        live(size, Category.SCRATCH, f"{path}.conv", "aten.convolution_backward", back + 2, back + 4)
    moments += [Moment(Phase.LOSS, "", operator) for operator in ("aten.mean", "aten.add", "aten.ones_like", "aten.expand")]
    for path, _ in reversed(paths):
        for part, operator in (
            ("act", "aten.threshold_backward"),
            ("norm", "aten.native_batch_norm_backward"),
            ("conv", "aten.convolution_backward"),
        ):
            moments += [Moment(Phase.BACKWARD, f"{path}.{part}", operator)] * 2
    moments += [Moment(Phase.OPTIMIZER, "", "aten._foreach_addcdiv_")] * (end - len(moments))
    timeline = Timeline(tuple(moments), tuple(blocks))
    peak = timeline.peak_moment
    at_peak: dict[str, int] = {}
    for block in timeline.alive(peak):
        at_peak[block.module] = at_peak.get(block.module, 0) + block.bytes

    def layer(path, kind, leaf, outputs, params=0, macs=0, held=0):
        top = timeline.levels[min(forward_end - 1, peak)]
        forward_s = macs * 1e-11 + (held if leaf else 0) * 1e-10
        bytes_and_times = (held, top, at_peak.get(path, 0), forward_s, 2 * forward_s)
        layers.append(LayerCost(path, kind, leaf, 1, outputs, params, params * 4, macs, macs * 2, *bytes_and_times))

    layer("", name, False, ((8, 1, 256, 256),), held=timeline.levels[forward_end])
    seen = set()
    for index, (path, scale) in enumerate(paths):
        parts = path.split(".")
        for count in (1, 2):
            outer = ".".join(parts[:count])
            if outer not in seen:
                seen.add(outer)
                layer(outer, "Sequential", False, (shape[scale],), held=10**8 // count)
        size = 4 * shape[scale][0] * shape[scale][1] * shape[scale][2] * shape[scale][3]
        layer(path, "Block", False, (shape[scale],), held=size * (2 + index % 2))
        params = weight[path] // 4
        layer(f"{path}.conv", "Conv2d", True, (shape[scale],), params, params * shape[scale][2] ** 2 * 8, size)
        layer(f"{path}.norm", "BatchNorm2d", True, (shape[scale],), width * scale * 2, 0, size)
        layer(f"{path}.act", "ReLU", True, (shape[scale],), 0, 0, size if index % 2 else 0)
    static = sum(block.bytes for block in blocks if block.born == 0 and block.died == end)
    level = max(timeline.levels)
    return Forecast(
        name=name,
        setting="8x3x256x256, one training step, AdamW, float32",
        peak_bytes=level,
        reserved_bytes=level,
        process_bytes=int(level * 1.22),
        static_bytes=static,
        params=sum(one.params for one in layers),
        macs=sum(one.macs for one in layers),
        macs_backward=sum(one.macs_backward for one in layers),
        layers=tuple(layers),
        timeline=timeline,
        environment=Environment("2.13.0", "3.11.2", 2, "x86_64 AVX512"),
        notes=("One kernel has no scratch model: aten.grid_sampler_2d.",),
        mapped_bytes=int(level * 1.03),
        first_step_peak_bytes=level + 4096,
        reasons=(
            Reason(
                "Backward of the convolutions keeps the inputs of 100 layers; the largest are in down.0.",
                level // 2,
                ("down.0.block0.conv",),
            ),
            Reason("AdamW keeps two numbers for every parameter.", static // 2),
            Reason("A step takes 1.92 s: 0.70 s forward and 1.22 s backward.", 0, (), 1.92),
        ),
        forecast_s=0.412,
        wall_s=1.92,
    )


def make_measurement(forecast: Forecast) -> Measurement:
    """What a measurement of the forecast step could have found: more operator calls, slightly fewer bytes."""
    moments = tuple(moment for moment in forecast.timeline.moments for _ in range(2))
    blocks = tuple(
        replace(
            block,
            bytes=int(block.bytes * 0.997),
            category=Category.OBSERVED,
            module="",
            born=block.born * 2,
            died=block.died * 2,
            kept_for="",
        )
        for block in forecast.timeline.blocks
    )
    timeline = Timeline(moments, blocks)
    level = max(timeline.levels)
    layers = tuple(
        replace(layer, held_bytes=int(layer.held_bytes * 0.99), at_peak_bytes=0, forward_s=0.0, backward_s=0.0) for layer in forecast.layers
    )
    shared = {
        name: getattr(forecast, name) for name in ("name", "setting", "static_bytes", "params", "macs", "macs_backward", "environment")
    }
    return Measurement(
        **shared,
        peak_bytes=level,
        reserved_bytes=level,
        process_bytes=int(level * 1.11),
        layers=layers,
        timeline=timeline,
        notes=("One warm-up step was run.",),
        allocator="default",
        wall_s=1.84,
        process_runs=(int(level * 1.11), int(level * 1.08), int(level * 1.09)),
    )


@pytest.fixture(scope="session")
def forecast() -> Forecast:
    return make_forecast(depth=20)


@pytest.fixture(scope="session")
def measurement(forecast) -> Measurement:
    return make_measurement(forecast)


@pytest.fixture(scope="session")
def twin() -> Forecast:
    return make_forecast("SeparableUNet", depth=20, separable=True)


@pytest.fixture(scope="session")
def long_forecast(forecast) -> Forecast:
    """50,000 moments and 50,000 blocks under hostile and ordinary names, one moment higher than all others."""
    count = 50_000
    spike = 31_415
    phases = (Phase.FORWARD, Phase.BACKWARD)
    moments = tuple(
        Moment(phases[index >= count // 2], f"layers.{index % 500}.attention", f"aten.op{index % 40}") for index in range(count)
    )
    blocks = tuple(
        Block(
            1000 + index * 7919 % 9973,
            Category.SAVED,
            f"layers.{index}.attention.projection",
            "aten.mm",
            index,
            min(index + 900, count),
            "",
            (8, 128, index),
        )
        for index in range(count - 1)
    )
    return replace(
        forecast, name=HOSTILE, timeline=Timeline(moments, (*blocks, Block(10**9, Category.SCRATCH, "spike", "aten.mm", spike, spike + 1)))
    )


@pytest.fixture(scope="session")
def hostile(forecast) -> Forecast:
    """A forecast whose model, modules, operators, reasons and notes all carry markup."""
    moments = tuple(replace(moment, module=HOSTILE, operator=HOSTILE) for moment in forecast.timeline.moments)
    blocks = tuple(replace(block, module=HOSTILE, operator=HOSTILE, kept_for=HOSTILE) for block in forecast.timeline.blocks)
    layers = tuple(replace(layer, path=f"{layer.path}.{HOSTILE}", kind=HOSTILE) for layer in forecast.layers)
    reasons = (Reason(HOSTILE, 1, (HOSTILE,)),)
    return replace(
        forecast, name=HOSTILE, setting=HOSTILE, timeline=Timeline(moments, blocks), layers=layers, reasons=reasons, notes=(HOSTILE,)
    )


@pytest.fixture(scope="session")
def plan(forecast) -> Plan:
    """A plan of two levers for the made-up step, 10 % below the plain peak."""
    levers = (Layout(), Recompute((), 3 * 2**20, 0.25))
    planned, plain = replace(forecast, wall_s=2.2), int(forecast.peak_bytes / 0.9)
    return Plan(Workload(nn.Linear(2, 2), "1x2", train=True), int(forecast.peak_bytes * 1.01), levers, planned, plain, 0.1, ())


@pytest.fixture(scope="session")
def found(forecast) -> Largest:
    """A largest batch of 6,000 for the made-up step."""
    budget, over = int(forecast.peak_bytes * 1.02), int(forecast.peak_bytes * 1.05)
    shapes = ("6000x3x32x32",)
    return Largest(Workload(nn.Linear(2, 2), "1x2"), "batch", 6000, 8, shapes, budget, forecast, 6008, over, "", 4, 1.5)

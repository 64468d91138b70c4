"""
Do separable convolutions need less memory?
===========================================

A depthwise-separable convolution replaces a 3×3 convolution by a 3×3 convolution of each channel alone and a 1×1 convolution across
channels. A U-Net rebuilt with them shrinks from 17 million parameters to 2 million, and yet tools report that its *activations* grew.
Who is wrong?

This page forecasts one training step of both nets, layer by layer, then runs both and compares.
"""

# %%
# Two nets, one step
# ------------------
# The same U-Net twice; only the convolution differs. A step is forward, loss, backward and the optimizer's update.

from textwrap import fill

import matplotlib.pyplot as plt

import sash
from sash.cost import Category, Phase
from sash.models import unet
from sash.units import format_bytes, format_count

SIDE = 256
kinds = ("plain", "separable")


def step(kind: str, side: int) -> sash.Workload:
    return sash.Workload(unet(kind), f"1x3x{side}x{side}", train=True, optimizer="adamw")


work = {kind: step(kind, SIDE) for kind in kinds}
forecast = {kind: sash.forecast(work[kind]) for kind in kinds}
measured = {kind: sash.measure(work[kind]) for kind in kinds}
saved = {kind: max(forecast[kind].timeline.levels_of(Category.SAVED)) for kind in kinds}

print(f"{'':<34}{'plain':>12}{'separable':>12}{'ratio':>8}")
rows = {
    "parameters": ([forecast[kind].params for kind in kinds], format_count),
    "MACs, forward": ([forecast[kind].macs for kind in kinds], format_count),
    "weights and optimizer state": ([forecast[kind].static_bytes for kind in kinds], format_bytes),
    "saved for backward, at most": ([saved[kind] for kind in kinds], format_bytes),
    "peak of a step, forecast": ([forecast[kind].peak_bytes for kind in kinds], format_bytes),
    "peak of a step, measured": ([measured[kind].peak_bytes for kind in kinds], format_bytes),
}
for name, ((plain, separable), show) in rows.items():
    print(f"{name:<34}{show(plain):>12}{show(separable):>12}{separable / plain:>8.2f}")
print(f"{'time of a step':<34}{measured['plain'].wall_s:>10.2f} s{measured['separable'].wall_s:>10.2f} s")

# %%
# Level by level
# --------------
# Parameters sit at the bottom of the U, where maps are small and channels many. What a level *holds* after its forward sits at the top,
# where maps are large. So the two numbers are about different ends of the net. Marks are measured.

levels = ["enter", *(f"down.{i}" for i in range(4)), *(f"up.{i}" for i in range(4))]


def params_below(cost: sash.Forecast, path: str) -> int:
    return sum(layer.params for layer in cost.layers if layer.path == path or layer.path.startswith(path + "."))


def held(cost: sash.Forecast | sash.Measurement, path: str) -> int:
    return next(layer.held_bytes for layer in cost.layers if layer.path == path)


fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
places = range(len(levels))
for shift, kind in zip((-0.2, 0.2), kinds, strict=True):
    left.bar([place + shift for place in places], [params_below(forecast[kind], level) / 1e6 for level in levels], 0.4, label=kind)
    right.bar([place + shift for place in places], [held(forecast[kind], level) / 2**20 for level in levels], 0.4, label=kind)
    marks = [held(measured[kind], level) / 2**20 for level in levels]
    right.plot([place + shift for place in places], marks, "k_", markersize=10, label="measured" if kind == "separable" else None)
left.set_title("parameters (millions)")
right.set_title("held after forward (MiB)")
for axis in (left, right):
    axis.set_xticks(list(places), levels, rotation=60)
    axis.legend()

# %%
# One block under the glass
# -------------------------
# The first block of each net. Every convolution, normalisation and activation leaves the map its backward will need. The separable net has
# two convolutions where the plain one has one, so one more map stands between them.

for kind in kinds:
    print(f"\n{kind}\n{'layer':<22}{'kind':<16}{'parameters':>12}{'holds':>12}{'measured':>12}")
    for layer in forecast[kind].layers:
        if layer.leaf and layer.path.startswith("enter."):
            seen = format_bytes(held(measured[kind], layer.path))
            print(f"{layer.path:<22}{layer.kind:<16}{format_count(layer.params):>12}{format_bytes(layer.held_bytes):>12}{seen:>12}")

# %%
# Over time
# ---------
# The allocator's level through forward and backward, operator by operator.

fig, axis = plt.subplots(figsize=(9, 3.5), layout="constrained")
for kind in kinds:
    timeline = forecast[kind].timeline
    shown = zip(timeline.moments, timeline.levels, strict=True)
    heights = [level / 2**20 for moment, level in shown if moment.phase is not Phase.OPTIMIZER]
    axis.plot([place / len(heights) for place in range(len(heights))], heights, label=kind)
axis.set_xlabel("share of the operators of forward and backward")
axis.set_ylabel("MiB")
axis.set_ylim(bottom=0)
axis.legend()

# %%
# Which net needs less depends on the picture
# -------------------------------------------
# Weights, gradients and the optimizer's two copies cost the same for any picture; activations grow with its area. Forecasts alone say where
# the balance tips: nothing is run here.

sides = (64, 128, 192, 256, 384, 512)
peaks = {kind: [sash.forecast(step(kind, side)).peak_bytes for side in sides] for kind in kinds}
fig, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for kind in kinds:
    axis.plot(sides, [peak / 2**20 for peak in peaks[kind]], "o-", label=kind)
axis.set_xlabel("side of the picture (pixels)")
axis.set_ylabel("peak of a training step (MiB)")
axis.set_xticks(sides)
axis.legend()

# %%
# The answer
# ----------

larger = [side for side, plain, separable in zip(sides, *peaks.values(), strict=True) if separable > plain]
smaller = [side for side in sides if side not in larger]
fewer = forecast["plain"].params / forecast["separable"].params
static = {kind: format_bytes(forecast[kind].static_bytes) for kind in kinds}

print(
    fill(
        f"Nobody is wrong; they speak of different memory. The separable net has {fewer:.1f} times fewer parameters, so weights and "
        f"optimizer state went from {static['plain']} to {static['separable']}. What training saves for backward went from "
        f"{format_bytes(saved['plain'])} to {format_bytes(saved['separable'])}: between its two halves each separable convolution keeps "
        "one more map, as large as its input.",
        100,
    )
)
if smaller:
    print(f"In all, the separable net needs less memory on pictures of side {', '.join(map(str, smaller))}.")
if larger:
    print(f"It needs more on sides {', '.join(map(str, larger))}: there the activations outweigh the weights.")
for kind in kinds:
    error = forecast[kind].peak_bytes / measured[kind].peak_bytes - 1
    print(f"{kind}: forecast {format_bytes(forecast[kind].peak_bytes)}, measured {format_bytes(measured[kind].peak_bytes)} ({error:+.2%}).")
print("\nWhat holds the separable net's peak, in sash's own words:")
for reason in forecast["separable"].why()[:3]:
    print("*", reason.text)

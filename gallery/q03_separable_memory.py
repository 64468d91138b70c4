"""
Do separable convolutions need less memory?
===========================================

A depthwise-separable convolution replaces a 3×3 convolution by a 3×3 convolution of each channel alone and a 1×1 convolution across
channels. A U-Net rebuilt with them shrinks from 17 million parameters to 2 million, and yet tools report that its *activations* grew.
Who is wrong? And can one have the small net without the large maps?

This page forecasts one training step of both nets, layer by layer, and measures it. Then it runs the separable net in a way that never
holds the map between its two convolutions, and at last inside a budget that the separable net as it stands does not keep.
"""

# %%
# Two nets, one step
# ------------------
# The same U-Net twice; only the convolution differs. A step is forward, loss, backward and the optimizer's update.
#
# *Size of all outputs, twice* is what tools print that know shapes only: each layer's output, once for forward and once for backward.

from math import prod
from textwrap import fill
from typing import Literal

import matplotlib.pyplot as plt
import torch

import sash
from sash.cost import Category, Phase, compare
from sash.models import unet
from sash.units import format_bytes, format_count

SIDE = 256


def step(kind: Literal["plain", "separable", "fused"], side: int) -> sash.Workload:
    torch.manual_seed(0)
    return sash.Workload(unet(kind), f"1x3x{side}x{side}", train=True, optimizer="adamw")


def outputs_twice(cost: sash.Forecast) -> int:
    return 2 * sum(4 * prod(shape) for layer in cost.layers if layer.leaf for shape in layer.outputs)


def most_saved(cost: sash.Forecast) -> int:
    return max(cost.timeline.levels_of(Category.SAVED))


work = {"plain": step("plain", SIDE), "separable": step("separable", SIDE)}
forecast = {kind: sash.forecast(one) for kind, one in work.items()}

print(f"{'':<34}{'plain':>12}{'separable':>12}{'ratio':>8}")
for name, figure, show in (
    ("parameters", lambda cost: cost.params, format_count),
    ("MACs, forward", lambda cost: cost.macs, format_count),
    ("size of all outputs, twice", outputs_twice, format_bytes),
    ("weights and optimizer state", lambda cost: cost.static_bytes, format_bytes),
    ("saved for backward, at most", most_saved, format_bytes),
    ("peak of a step", lambda cost: cost.peak_bytes, format_bytes),
):
    plain, separable = (figure(forecast[kind]) for kind in ("plain", "separable"))
    print(f"{name:<34}{show(plain):>12}{show(separable):>12}{separable / plain:>8.2f}")

# %%
# Where the difference comes from, in sash's own words. Nothing has run yet: these are forecasts.

for reason in compare(forecast["plain"], forecast["separable"]):
    print(fill(reason.text, 80, initial_indent="* ", subsequent_indent="  "))

# %%
# A budget, and what keeps it
# ---------------------------
# What grew is the map between the depthwise and the pointwise convolution. Nothing of it is needed later that could not be computed from
# the input again: the two can run as one operator, over a band of rows at a time, forward and backward.
#
# ``sash.fit`` finds such pairs by itself where a budget asks for it. Here the budget is 60 % of what the separable net needs.

budget = forecast["separable"].peak_bytes * 6 // 10
plan = sash.fit(work["separable"], budget)
print(plan)

# %%
# The plan computes the same
# --------------------------
# One step in float64 of the net as it is, and of the net with the plan in it: the largest difference of any output and of any gradient,
# as a share of the largest value among them.

torch.manual_seed(1)
model = unet("separable").double()
planned = plan.apply(model)
image = torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)
found = []
for one in (model, planned):
    output = one(image)
    gradients = torch.autograd.grad(output.square().mean(), list(model.parameters()))
    found.append((output.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
off = {name: float((a - b).abs().max() / a.abs().max()) for name, a, b in zip(("outputs", "gradients"), *found, strict=True)}
print(", ".join(f"{name} off by up to {share:.1g}" for name, share in off.items()))

# %%
# Four ways to run a step
# -----------------------
# *Fused* is the separable net with each pair of convolutions as one operator, as `unet` also builds it. On small maps the two are quicker
# one after the other, and are left so. *Planned* is the plan above. Each is forecast, and then measured in a process of its own.

work["fused"] = step("fused", SIDE)
work["planned"] = plan.planned
forecast |= {"fused": sash.forecast(work["fused"]), "planned": plan.forecast}
measured = {kind: sash.measure(one) for kind, one in work.items()}

made_on = measured["plain"].environment
print(f"torch {made_on.torch}, Python {made_on.python}, {made_on.threads} threads, {made_on.machine}\n")
print(f"{'':<28}" + "".join(f"{kind:>10}" for kind in work))
for name, cells in {
    "parameters": [format_count(forecast[kind].params) for kind in work],
    "saved for backward, at most": [format_bytes(most_saved(forecast[kind])) for kind in work],
    "peak of a step, forecast": [format_bytes(forecast[kind].peak_bytes) for kind in work],
    "peak of a step, measured": [format_bytes(measured[kind].peak_bytes) for kind in work],
    "within the budget": ["yes" if measured[kind].peak_bytes <= budget else "no" for kind in work],
    "time of a step, forecast": [f"{forecast[kind].wall_s:.2f} s" for kind in work],
    "time of a step, measured": [f"{measured[kind].wall_s:.2f} s" for kind in work],
}.items():
    print(f"{name:<28}" + "".join(f"{cell:>10}" for cell in cells))

# %%
# Over time
# ---------
# The allocator's level through forward and backward, operator by operator: lines are forecasts, dots the measured peaks.

colours = dict(zip(work, ("tab:gray", "tab:orange", "tab:blue", "tab:green"), strict=True))
fig, axis = plt.subplots(figsize=(10, 4.2), layout="constrained")
for kind in work:
    timeline = forecast[kind].timeline
    shown = [level / 2**20 for moment, level in zip(timeline.moments, timeline.levels, strict=True) if moment.phase is not Phase.OPTIMIZER]
    share = [place / len(shown) for place in range(len(shown))]
    axis.plot(share, shown, label=kind, color=colours[kind], linewidth=1.2)
    axis.plot(share[shown.index(max(shown))], measured[kind].peak_bytes / 2**20, "o", color=colours[kind], markersize=5)
axis.axhline(budget / 2**20, color="black", linestyle="--", linewidth=1, label="the budget")
axis.set_xlabel("share of the operators of forward and backward")
axis.set_ylabel("MiB")
axis.set_ylim(bottom=0)
axis.legend(loc="upper left", ncols=2, fontsize=9)

# %%
# Level by level
# --------------
# Parameters sit at the bottom of the U, where maps are small and channels many. What a level *holds* after its forward sits at the top,
# where maps are large. So the two numbers are about different ends of the net. Marks are measured.

levels = ["enter", *(f"down.{i}" for i in range(4)), *(f"up.{i}" for i in range(4))]
kinds = ("plain", "separable", "fused")


def params_below(cost: sash.Forecast, path: str) -> int:
    return sum(layer.params for layer in cost.layers if layer.path == path or layer.path.startswith(path + "."))


def held(cost: sash.Forecast | sash.Measurement, path: str) -> int:
    return next(layer.held_bytes for layer in cost.layers if layer.path == path)


fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for shift, kind in zip((-0.27, 0, 0.27), kinds, strict=True):
    places = [place + shift for place in range(len(levels))]
    left.bar(places, [params_below(forecast[kind], level) / 1e6 for level in levels], 0.27, label=kind, color=colours[kind])
    right.bar(places, [held(forecast[kind], level) / 2**20 for level in levels], 0.27, label=kind, color=colours[kind])
    marks = [held(measured[kind], level) / 2**20 for level in levels]
    right.plot(places, marks, "k_", markersize=7, label="measured" if kind == kinds[-1] else None)
left.set_title("parameters (millions)")
right.set_title("held after forward (MiB)")
for axis in (left, right):
    axis.set_xticks(range(len(levels)), levels, rotation=60)
    axis.legend()

# %%
# One block under the glass
# -------------------------
# The first block of each net. Every convolution, normalisation and activation leaves the map its backward will need. The separable net has
# two convolutions where the plain one has one, so one more map stands between them; fused, the pair leaves what one convolution leaves.

for kind in kinds:
    print(f"\n{kind}\n{'layer':<22}{'kind':<16}{'parameters':>12}{'holds':>12}{'measured':>12}")
    for layer in forecast[kind].layers:
        # Fused, the two convolutions are one call of the layer around them.
        if layer.path.startswith("enter.") and (layer.path.count(".") == 1 if kind == "fused" else layer.leaf):
            params, seen = format_count(params_below(forecast[kind], layer.path)), format_bytes(held(measured[kind], layer.path))
            print(f"{layer.path:<22}{layer.kind:<16}{params:>12}{format_bytes(layer.held_bytes):>12}{seen:>12}")

print()
for reason in compare(forecast["separable"], forecast["fused"]):
    print(fill(reason.text, 80, initial_indent="* ", subsequent_indent="  "))

# %%
# Which net needs less depends on the picture
# -------------------------------------------
# Weights, gradients and the optimizer's two copies cost the same for any picture; activations grow with its area. Forecasts alone say where
# the balance tips: nothing is run here.

sides = (128, 256, 384, 512)
peaks = {}
for kind in kinds:
    peaks[kind] = [sash.forecast(step(kind, side)).peak_bytes for side in sides]
fig, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for kind in kinds:
    axis.plot(sides, [peak / 2**20 for peak in peaks[kind]], "o-", label=kind, color=colours[kind])
axis.set_xlabel("side of the picture (pixels)")
axis.set_ylabel("peak of a training step (MiB)")
axis.set_xticks(sides)
axis.legend()

# %%
# The answer
# ----------


def told(text: str) -> None:
    print(fill(text, 80), end="\n\n")


def list_of(found: list[int]) -> str:
    return ", ".join(map(str, found)) or "none"


fewer = forecast["plain"].params / forecast["separable"].params
static = {kind: format_bytes(forecast[kind].static_bytes) for kind in kinds}
saved = {kind: format_bytes(most_saved(forecast[kind])) for kind in work}
told(
    f"Nobody is wrong; they speak of different memory. The separable net has {fewer:.1f} times fewer parameters, so weights and "
    f"optimizer state went from {static['plain']} to {static['separable']}. What training saves for backward went from "
    f"{saved['plain']} to {saved['separable']}: between its two halves each separable convolution keeps one more map, as large as its "
    "input."
)
for kind in ("separable", "fused"):
    less = [side for side, plain, own in zip(sides, peaks["plain"], peaks[kind], strict=True) if own < plain]
    more = [side for side in sides if side not in less]
    told(f"{kind.capitalize()}, the net peaks below the plain one on pictures of side {list_of(less)}; above it on {list_of(more)}.")
print(f"{'against the plain net, measured':<34}{'peak':>8}{'time':>8}")
for kind in list(work)[1:]:
    peak, time = (getattr(measured[kind], name) / getattr(measured["plain"], name) for name in ("peak_bytes", "wall_s"))
    print(f"{kind:<34}{peak:>8.2f}{time:>8.2f}")
print()
over = measured["separable"].peak_bytes - budget
kept = "keeps it" if measured["planned"].peak_bytes <= budget else "does not keep it"
told(
    f"So the claim can be made true: fused, the separable net saves {saved['fused']} where it saved {saved['separable']}, and computes the "
    f"same up to rounding. Against the budget of {format_bytes(budget)} the separable net as it stands is {format_bytes(over)} over; "
    f"planned ({', '.join(lever.name for lever in plan.levers)}), it peaks at {format_bytes(measured['planned'].peak_bytes)} and {kept}."
)
worst = max(abs(forecast[kind].peak_bytes / measured[kind].peak_bytes - 1) for kind in work)
print(f"Forecast and measured peaks differ by up to {worst:.3%}.")

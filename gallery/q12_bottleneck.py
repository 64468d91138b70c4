"""
Why does a bottleneck widen only to narrow again?
=================================================

ResNet-50 is a chain of *bottleneck* blocks. Each takes 256 channels, narrows them to 64 with a 1×1 convolution, looks around with a 3×3
convolution there, and widens back to 256 with another 1×1; the next block narrows again. Why not stay at 256, or at 64?

This page puts three residual blocks side by side: a *basic* block (two 3×3 convolutions) that stays at 256 channels, the bottleneck, and a
basic block that stays at 64. It forecasts what each layer costs, then runs them.
"""

# %%
# The three blocks
# ----------------
# All see a 56×56 map, the size at which ResNet-50's first stage works, in batches of 8.
# One step is a training step: forward, loss, backward.

from textwrap import fill

import matplotlib.pyplot as plt

import sash
from sash.models import basic_block, bottleneck
from sash.units import format_bytes, format_count

BATCH, SIDE, WIDE, NARROW = 8, 56, 256, 64

blocks = {
    f"basic, {WIDE} wide": (basic_block(WIDE), WIDE),
    f"bottleneck, {WIDE} wide, {NARROW} inside": (bottleneck(WIDE, NARROW), WIDE),
    f"basic, {NARROW} wide": (basic_block(NARROW), NARROW),
}
work = {name: sash.Workload(block, f"{BATCH}x{width}x{SIDE}x{SIDE}", train=True) for name, (block, width) in blocks.items()}
forecast = {name: sash.forecast(step) for name, step in work.items()}
measured = {name: sash.measure(step) for name, step in work.items()}

# %%
# What each layer costs
# ---------------------
# *Holds* is what a layer's forward leaves in memory, mostly for its own or the next layer's backward.
# A MAC is one multiplication and its addition; the column is for forward.

for name, cost in forecast.items():
    print(f"\n{name}")
    print(f"{'layer':<14}{'kind':<14}{'parameters':>12}{'MACs':>10}{'holds':>11}{'measured':>11}")
    observed = {layer.path: layer for layer in measured[name].layers}
    for layer in cost.layers:
        if layer.leaf and layer.kind != "Identity":
            held = format_bytes(observed[layer.path].held_bytes)
            own = f"{format_count(layer.params):>12}{format_count(layer.macs):>10}{format_bytes(layer.held_bytes):>11}"
            print(f"{layer.path:<14}{layer.kind:<14}{own}{held:>11}")

# %%
# The blocks as wholes
# --------------------

fig, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained", sharey=True)
columns = {
    "parameters (millions)": [cost.params / 1e6 for cost in forecast.values()],
    "MACs, forward (billions)": [cost.macs / 1e9 for cost in forecast.values()],
    "peak of a training step (MiB)": [cost.peak_bytes / 2**20 for cost in forecast.values()],
    "time of a training step (ms)": [cost.wall_s * 1e3 for cost in measured.values()],
}
for axis, (title, values) in zip(axes, columns.items(), strict=True):
    bars = axis.barh(list(forecast), values, color=["tab:gray", "tab:blue", "tab:green"])
    axis.bar_label(bars, fmt="%.3g", padding=3)
    axis.set_title(title, fontsize=10)
    axis.margins(x=0.2)
# Peaks are drawn twice: the forecast as a bar, the measurement as a mark on it.
axes[2].plot([cost.peak_bytes / 2**20 for cost in measured.values()], list(measured), "k|", markersize=16, label="measured")
axes[2].legend(loc="lower right", fontsize=8)
axes[0].invert_yaxis()

# %%
# Where the multiplications go
# ----------------------------

fig, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
for row, ((block, _), cost) in enumerate(zip(blocks.values(), forecast.values(), strict=True)):
    start = 0.0
    for layer in cost.layers:
        if layer.kind == "Conv2d":
            colour = "tab:orange" if block.get_submodule(layer.path).kernel_size == (3, 3) else "tab:blue"
            axis.barh(row, layer.macs / 1e9, left=start, color=colour, edgecolor="white")
            start += layer.macs / 1e9
axis.set_yticks(range(len(forecast)), list(forecast))
axis.invert_yaxis()
axis.set_xlabel("billions of MACs, one bar a convolution: 3×3 orange, 1×1 blue")

# %%
# The answer
# ----------

wide, narrowing, narrow = forecast.values()
wide_seen, narrowing_seen, narrow_seen = measured.values()
fewer_macs, fewer_params = wide.macs / narrowing.macs, wide.params / narrowing.params
faster = wide_seen.wall_s / narrowing_seen.wall_s

print(
    fill(
        f"A 3x3 convolution costs 9 x (channels in) x (channels out) at each pixel. Narrowing {WIDE} to {NARROW} first divides that by "
        f"{(WIDE // NARROW) ** 2}, and the two 1x1 convolutions around it are cheap. At the same outer width the bottleneck has "
        f"{format_count(narrowing.params)} parameters instead of {format_count(wide.params)} ({fewer_params:.1f} times fewer) and needs "
        f"{format_count(narrowing.macs)} MACs instead of {format_count(wide.macs)} ({fewer_macs:.1f} times fewer).",
        100,
    )
)
print()
print(
    fill(
        f"So why not stay at {NARROW}? A basic block that is {NARROW} wide throughout has {format_count(narrow.params)} parameters and "
        f"{format_count(narrow.macs)} MACs, {narrow.macs / narrowing.macs:.2f} times the bottleneck's. For nearly that price the "
        f"bottleneck hands {WIDE} channels to the next block, not {NARROW}. It widens because the wide map is what the network "
        "remembers, carried on by the residual sum; it narrows again because looking around is what costs.",
        100,
    )
)
print()
print(
    fill(
        f"Memory and time follow another rule. The MACs fell {fewer_macs:.1f} times, the time of a training step {faster:.1f} times "
        f"({wide_seen.wall_s * 1e3:.0f} to {narrowing_seen.wall_s * 1e3:.0f} ms), and its peak went from {format_bytes(wide.peak_bytes)} "
        f"to {format_bytes(narrowing.peak_bytes)} (measured: {format_bytes(wide_seen.peak_bytes)} "
        f"to {format_bytes(narrowing_seen.peak_bytes)}). "
        f"The {NARROW}-wide block needs {format_bytes(narrow.peak_bytes)} and {narrow_seen.wall_s * 1e3:.0f} ms. Training keeps maps, not "
        "multiplications, and the bottleneck's outer maps are as wide as the wide block's: they still have to be held, read and written.",
        100,
    )
)

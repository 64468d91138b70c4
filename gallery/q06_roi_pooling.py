"""
What does the RoI layer do to proposals of different sizes?
===========================================================

A detector in the manner of Fast R-CNN computes one feature map for the whole image, and then looks at some thousand *proposals*: boxes of
any size and shape. The fully connected layers behind want each as the same number of values. The RoI layer (*region of interest*) is what
stands between. This page follows proposals through it in exact numbers, sets it beside spatial pyramid pooling, and shows what its
rounding costs and how RoIAlign does without.
"""

# %%
# From pixels to cells
# --------------------
# The map here has one cell for 16 by 16 pixels. A box's ends are given in pixels; divided by 16 and rounded they are cells, and both end
# cells belong to the box. Of n cells, bin i of 7 has those from ⌊i·n/7⌋ to before ⌈(i+1)·n/7⌉, as far as they are on the map.
# ``positions`` says in which cell each bin found its maximum.

import math
from itertools import groupby
from textwrap import fill

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle

from sash.ops import pyramid_pool, roi_align, roi_pool

STRIDE, ROWS, COLUMNS, BINS = 16, 14, 18, 7

generator = torch.Generator().manual_seed(0)
features = torch.rand(1, 1, ROWS, COLUMNS, generator=generator)
proposals = {
    "large": (20, 10, 270, 205),
    "wide": (24, 60, 250, 110),
    "tiny": (100, 90, 130, 125),
    "over the border": (200, 120, 330, 260),
}
rois = torch.tensor([(0.0, *box) for box in proposals.values()])
values, positions = roi_pool(features, rois, BINS, 1 / STRIDE, return_positions=True)


def bins(low: float, high: float, side: int) -> list[tuple[int, int]]:
    """The first cell of each bin along one axis, and the one after its last."""
    first, last = (math.floor(end / STRIDE + 0.5) for end in (low, high))
    cells = last - first + 1
    edges = ((first + i * cells // BINS, first + math.ceil((i + 1) * cells / BINS)) for i in range(BINS))
    return [(min(start, side), min(stop, side)) for start, stop in edges]


columns = [bins(x1, x2, COLUMNS) for x1, _, x2, _ in proposals.values()]
rows = [bins(y1, y2, ROWS) for _, y1, _, y2 in proposals.values()]

print(f"{'proposal':<18}{'pixels, x1 y1 x2 y2':<24}{'cells across':<15}{'cells down':<13}{'values':<11}{'empty bins':>10}")
for k, (name, box) in enumerate(proposals.items()):
    across, down = (f"{edges[k][0][0]} to {edges[k][-1][1] - 1}" for edges in (columns, rows))
    shape, empty = "x".join(map(str, values[k].shape)), int((positions[k] < 0).sum())
    print(f"{name:<18}{' '.join(map(str, box)):<24}{across:<15}{down:<13}{shape:<11}{empty:>10}")

# %%
# One proposal on its cells
# -------------------------
# Grey is the map, orange the proposal as it was given, blue the 7 by 7 bins that its cells fall into, and the white dots are the cells
# whose values came through as maxima. Where 7 does not divide the number of cells, neighbouring bins share some; a proposal of fewer than 7
# cells a side has the same cell in several bins.


def draw(axis, k: int, title: str) -> None:
    """The map, a proposal, its bins and their maxima."""
    axis.imshow(features[0, 0], cmap="gray", vmin=-0.3, vmax=1, extent=(0, COLUMNS, ROWS, 0))
    for top, bottom in rows[k]:
        for left, right in columns[k]:
            if bottom > top and right > left:
                axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="tab:blue", linewidth=1.2))
    found = positions[k, 0].flatten()
    found = found[found >= 0]
    axis.plot(found % COLUMNS + 0.5, found // COLUMNS + 0.5, "o", color="white", markeredgecolor="black", markersize=5)
    x1, y1, x2, y2 = (rois[k, 1:] / STRIDE).tolist()
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="tab:orange", linewidth=2.5))
    axis.set_xlim(-0.5, max(COLUMNS, x2) + 0.5)
    axis.set_ylim(max(ROWS, y2) + 0.5, -0.5)
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])


fig, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
for k, (axis, name) in enumerate(zip(axes.flat, proposals, strict=True)):
    draw(axis, k, f"{name}: {len(positions[k].unique()) - int((positions[k] < 0).any())} cells gave the {BINS}x{BINS} values")

# %%
# The same layer at three sizes is a spatial pyramid
# --------------------------------------------------
# Spatial pyramid pooling takes the maxima of 4×4, 2×2 and 1×1 bins and lists them all. Over the whole map the RoI layer with that many bins
# has the same numbers: a pyramid is the RoI layer at several sizes, on one box. Fast R-CNN keeps one level, for many boxes.

LEVELS = (4, 2, 1)
whole = torch.tensor([(0.0, 0, 0, COLUMNS - 1, ROWS - 1)])
pyramid = torch.cat([roi_pool(features, whole, level).flatten(1) for level in LEVELS], 1)
difference = (pyramid - pyramid_pool(features, LEVELS)).abs().max()
print(f"{pyramid.shape[1]} values from levels {LEVELS}; largest difference to spatial pyramid pooling: {difference:g}")

# %%
# What rounding costs
# -------------------
# A ramp of features, each cell's value its own place, says where a layer sees a box: the mean of its bins. The box moves by one pixel at a
# time, and so should that mean. RoI pooling stands still, then jumps; RoIAlign, which interpolates between cells, follows. (RoI pooling's
# line is also higher: of a bin on a rising ramp, the maximum is its right end.)

ramp = (torch.arange(COLUMNS, dtype=torch.float32) + 0.5).expand(1, 1, ROWS, COLUMNS) * STRIDE
moves = torch.arange(0, 65)
moving = torch.stack([torch.zeros(65), 64 + moves, torch.full((65,), 48), 128 + moves, torch.full((65,), 112)], 1)
centre = (moving[:, 1] + moving[:, 3]) / 2
seen = {
    "RoI pooling": roi_pool(ramp, moving, BINS, 1 / STRIDE).mean((1, 2, 3)),
    "RoIAlign": roi_align(ramp, moving, BINS, 1 / STRIDE),
    "RoIAlign, aligned": roi_align(ramp, moving, BINS, 1 / STRIDE, aligned=True),
}
seen = {name: places.view(len(moving), -1).mean(1) for name, places in seen.items()}

fig, axis = plt.subplots(figsize=(9, 4), layout="constrained")
axis.plot(moves, centre, color="black", linewidth=6, alpha=0.3, label="the box's centre")
for name, places in seen.items():
    axis.plot(moves, places, ".-", label=name)
axis.set_xlabel("pixels that the box has moved")
axis.set_ylabel("where the layer sees it, in pixels")
axis.legend()
steps = {name: places.diff() for name, places in seen.items()}
jumps = {name: step.abs().max().item() for name, step in steps.items()}
stands = max(len(list(run)) for moved, run in groupby((steps["RoI pooling"].abs() > 0).tolist()) if not moved)
offset, aligned_offset = ((seen[name] - centre).abs().max().item() for name in ("RoIAlign", "RoIAlign, aligned"))

# %%
# Where the gradient goes
# -----------------------
# In training, each bin's gradient goes back to the one cell that gave its maximum; RoIAlign spreads it over the cells around its samples.

shared = features.clone().requires_grad_()
reached = {}
for name, layer in (("RoI pooling", roi_pool), ("RoIAlign", roi_align)):
    (gradient,) = torch.autograd.grad(layer(shared, rois[:1], BINS, 1 / STRIDE).sum(), shared)
    reached[name] = (int((gradient != 0).sum()), gradient.sum().item())
for name, (cells, total) in reached.items():
    print(f"{name:<12} reaches {cells:>3} of {features.numel()} cells; the gradients add up to {total:.4g} for {BINS * BINS} bins")

# %%
# The answer
# ----------

wide_rows, wide_columns = (edges[1][-1][1] - edges[1][0][0] for edges in (rows, columns))
print(
    fill(
        f"Every proposal comes out as {BINS}x{BINS} values a channel. The layer divides its ends by the stride ({STRIDE}), rounds them to "
        f"cells, cuts the cells into {BINS}x{BINS} bins of nearly equal size, and takes the maximum of each. The wide proposal covers "
        f"{wide_rows} rows and {wide_columns} columns of cells: with fewer than {BINS} rows, one row of cells feeds several rows of bins. "
        f"What lies beyond the map is left out; a bin that has nothing left is 0, as {int((positions[3] < 0).sum())} bins of the proposal "
        "over the border are.",
        100,
    )
)
print()
print(
    fill(
        f"It is one level of a spatial pyramid, taken for each box: on a box that is the whole map, levels {LEVELS} of it are exactly the "
        f"pyramid. And it rounds: while a box moves pixel by pixel, RoI pooling stands still for up to {stands} steps, then jumps by "
        f"{jumps['RoI pooling']:.1f} pixels. RoIAlign interpolates and moves by {jumps['RoIAlign']:.2f} at most. Its first "
        f"form sees the box up to {offset:.2g} pixels off, half a cell; with aligned=True it is {aligned_offset:.1g}.",
        100,
    )
)

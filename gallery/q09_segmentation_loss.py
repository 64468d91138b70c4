"""
How is the softmax loss of a segmentation computed?
===================================================

A network that names every pixel makes a score for each class at each pixel, and is trained by the softmax loss. Which of the tensors' axes
is the classes'? What is the sum over pixels divided by? What becomes of pixels that nobody could label? And why does a step with many
classes on a large picture run out of memory in its loss, of all places?

This page computes the loss pixel by pixel, compares the four ways to divide it, trains a network with pixels left out, and then computes
the loss of 150 classes at 512×512 without ever holding a softmax.
"""

# %%
# Two tensors go in
# -----------------
# The scores (*logits*) are batch × class × height × width; the labels are one class number a pixel, batch × height × width. Coins on a
# table make the example: background 0, coin 1, and around each rim, where even a person would hesitate, the label 255: *ignore*.

import json
import math
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from scipy import ndimage
from skimage import data, filters, morphology, segmentation
from torch import nn
from torch.nn import functional as F

import sash
from sash.ops import softmax_loss, softmax_losses
from sash.units import format_bytes

IGNORE = 255
photograph = data.coins()
filled = ndimage.binary_fill_holes(photograph > filters.threshold_local(photograph, 101, offset=-8))
coins = morphology.remove_small_objects(morphology.opening(filled, morphology.disk(5)), max_size=300)
unsure = segmentation.find_boundaries(coins, mode="thick")
unsure = morphology.dilation(unsure, morphology.disk(1))
labels = torch.from_numpy(np.where(unsure, IGNORE, coins).astype(np.int64))[None]
picture = torch.from_numpy((photograph / 255).astype(np.float32))[None, None]
print(f"picture {tuple(picture.shape)}, labels {tuple(labels.shape)}: {(labels == IGNORE).float().mean():.1%} of the pixels are ignored")

# %%
# Pixel by pixel
# --------------
# At one pixel: the exponentials of its scores, divided by their sum, are probabilities, and the loss is minus the logarithm of the one of
# the label. A loop over every pixel of two crops, in Python's own numbers, beside ``softmax_losses``.


def loss_at(scores: list[float], label: int) -> float:
    """The softmax loss of one pixel, shifted by the largest score so that no exponential overflows."""
    largest = max(scores)
    return largest + math.log(sum(math.exp(score - largest) for score in scores)) - scores[label]


torch.manual_seed(0)
scores = 3 * torch.randn(2, 2, 64, 80, dtype=torch.float64)
named = torch.cat([labels[:, 20:84, 20:100], labels[:, 200:264, 250:330]])
by_loop = torch.zeros(named.shape, dtype=torch.float64)
for image, y, x in (named != IGNORE).nonzero().tolist():
    by_loop[image, y, x] = loss_at(scores[image, :, y, x].tolist(), int(named[image, y, x]))
losses = softmax_losses(scores, named, axis=1, ignore=IGNORE)
apart = (losses - by_loop).abs().max().item()
print(f"the loop and softmax_losses differ by {apart:.0e} at most, over {by_loop.numel()} pixels")

# %%
# The axis of the classes is a choice of layout, not of the loss: put last, as in language models, it gives the same numbers.

last = softmax_losses(scores.movedim(1, -1), named, axis=-1, ignore=IGNORE)
print(f"classes on the last axis: differ by {(last - losses).abs().max():.0e} at most")

# %%
# What the sum is divided by
# --------------------------
# Caffe has four answers. They are the same sum, and so the same direction of the gradient; what differs is its length, and with it what a
# learning rate means.

divisors = {}
for normalization in ("full", "valid", "batch_size", "none"):
    loss = softmax_loss(scores, named, ignore=IGNORE, normalization=normalization).item()
    divisors[normalization] = by_loop.sum().item() / loss
    print(f"{normalization:<11} loss {loss:>10.4f}    the sum divided by {divisors[normalization]:,.0f}")
nothing = torch.full_like(named, IGNORE)
print("nothing but ignored pixels:", softmax_loss(scores, nothing, ignore=IGNORE, normalization="valid").item())

# %%
# *Full* counts the ignored pixels although they add nothing: the more of a picture is ignored, the less the rest of it counts. *Valid*, the
# default of Caffe and of PyTorch, does not. With *batch size* and *none* a picture of twice the side has four times the loss.

shares = [0.0, 0.25, 0.5, 0.75, 0.95]
lengths: dict[str, list[float]] = {"full": [], "valid": []}
order = torch.rand(named.shape, generator=torch.Generator().manual_seed(1))
for share in shares:
    fewer = torch.where(order < share, IGNORE, named)
    for normalization in ("full", "valid"):
        lengths[normalization].append(softmax_loss(scores, fewer, ignore=IGNORE, normalization=normalization).item())

# %%
# Training with pixels left out
# -----------------------------
# A small network learns the coins from the left half of the picture; the ignored rims give it no gradient. It is then judged on the right
# half, at the pixels that have a label.

network = nn.Sequential(
    nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=4, dilation=2), nn.ReLU(),
    nn.Conv2d(16, 16, 5, padding=8, dilation=4), nn.ReLU(), nn.Conv2d(16, 2, 1),
)  # fmt: skip
half = picture.shape[-1] // 2
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
course = []
for _ in range(60):
    optimizer.zero_grad()
    loss = softmax_loss(network(picture[..., :half]), labels[..., :half], ignore=IGNORE)
    loss.backward()
    optimizer.step()
    course.append(loss.item())
with torch.no_grad():
    found = network(picture)
    where = labels != IGNORE
    right = (found.argmax(1) == labels)[..., half:][where[..., half:]].float().mean().item()
    always = max((labels[..., half:] == one).sum().item() for one in (0, 1)) / where[..., half:].sum().item()
print(f"loss {course[0]:.3f} -> {course[-1]:.3f}")
print(f"right at {right:.1%} of the labelled pixels that it never saw; one class throughout would be at {always:.1%}")

moving = found.clone().requires_grad_()
softmax_loss(moving, labels, ignore=IGNORE).backward()
assert moving.grad is not None
print("largest gradient at an ignored pixel:", moving.grad.abs().amax(1)[~where].max().item())

fig, axes = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
shown = {
    "photograph": (photograph, "gray"),
    "labels (white: ignored)": (np.where(unsure, 2, coins), ListedColormap(["#30507a", "#e0a030", "white"])),
    "loss at each pixel, after training": (softmax_losses(found, labels, ignore=IGNORE)[0].numpy(), "magma"),
}
for axis, (title, (values, colours)) in zip(axes, shown.items(), strict=False):
    axis.imshow(values, cmap=colours)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
axes[2].axvline(half, color="white", linewidth=1)
for normalization, values in lengths.items():
    axes[3].plot(shares, values, "o-", label=normalization)
axes[3].set_xlabel("share of the pixels ignored")
axes[3].set_title("loss by what it is divided by", fontsize=10)
axes[3].set_ylim(bottom=0)
axes[3].legend()

# %%
# The loss that never holds the softmax
# -------------------------------------
# With 150 classes at 512×512 the scores of one picture take 150 MiB. The usual loss computes their logarithmic softmax, keeps it for
# backward, and makes two more maps of the same size there. ``softmax_loss`` goes through the scores in chunks: forward keeps two numbers a
# pixel, backward makes each chunk's softmax again, straight into the gradient.


class Segmenting(nn.Module):
    """Scores of 150 classes from 8 features a pixel, and their loss."""

    def __init__(self, lean: bool) -> None:
        super().__init__()
        self.head, self.lean = nn.Conv2d(8, 150, 1), lean

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores = self.head(features)
        return softmax_loss(scores, labels, ignore=IGNORE) if self.lean else F.cross_entropy(scores, labels, ignore_index=IGNORE)


def step(lean: bool, batch: int) -> sash.Workload:
    shape = batch, 512, 512
    inputs = torch.randn(batch, 8, 512, 512), torch.randint(150, shape)
    return sash.Workload(Segmenting(lean), inputs, train=True)


of_scores = 150 * 512 * 512 * 4
measured = {name: sash.measure(step(lean, 1)) for name, lean in (("torch's cross_entropy", False), ("softmax_loss", True))}
forecast = {name: sash.forecast(step(lean, 1)) for name, lean in (("torch's cross_entropy", False), ("softmax_loss", True))}
for name, run in measured.items():
    print(
        f"{name:<22} peak {format_bytes(run.peak_bytes)} (forecast {format_bytes(forecast[name].peak_bytes)}), "
        f"{run.peak_bytes / of_scores:.2f} times the scores; {run.wall_s:.2f} s"
    )

# %%
# The same at a batch of four, alone and with the time measured in turn, was run for longer:

stored = next(path for path in map(Path, ("..", ".")) if (path / "bench").is_dir()) / "bench" / "results" / "loss.json"
longer = json.loads(stored.read_text())
row = longer["rows"]["4x150x512x512 float32"]
for name in ("torch", "sash"):
    peak, beside = (row["peaks"][name][key] for key in ("peak_bytes", "beside_bytes"))
    print(f"{name:<6} peak {format_bytes(peak)}, of which {format_bytes(beside)} beside the scores; {row['seconds'][name]:.2f} s")
print(f"on {longer['processor']}, {longer['threads']} threads, torch {longer['versions']['torch']}")

# %%
# Where the memory is
# -------------------

fig, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
for name, cost in forecast.items():
    levels = [level / 2**20 for level in cost.timeline.levels]
    axis.step([place / (len(levels) - 1) for place in range(len(levels))], levels, where="post", label=name)
axis.axhline(of_scores / 2**20, color="gray", linestyle=":", label="the scores alone")
axis.set_xlabel("course of the step, forecast")
axis.set_ylabel("MiB")
axis.set_ylim(bottom=0)
axis.legend()

# %%
# The answer
# ----------

maps = [run.peak_bytes / of_scores for run in measured.values()]
fewer, kept = (lengths[name][-1] / lengths[name][0] for name in ("full", "valid"))
print(
    fill(
        "Two blobs go in: scores with an axis of classes (axis 1 of batch x class x height x width), and labels without it. Each pixel's "
        "loss is minus the logarithm of the softmax at its label; an ignored label gives neither loss nor gradient. The sum is divided by "
        f"the pixels that count ('valid': {divisors['valid']:,.0f} here), by all ({divisors['full']:,.0f}), by the pictures "
        f"({divisors['batch_size']:,.0f}), or by 1: the same direction, another length, so another learning rate. With "
        f"{shares[-1]:.0%} of the pixels ignored, the loss divided by all is {fewer:.0%} of what it was; divided by those that count, "
        f"{kept:.0%}.",
        100,
    )
)
print()
print(
    fill(
        f"Memory: a softmax is as large as the scores. At its worst the usual loss held {maps[0]:.1f} maps of that size (its logarithm, "
        f"kept for backward, and gradients), the one in chunks {maps[1]:.1f}: the scores and their gradient. At a batch of four, the "
        f"scores not counted, it takes {row['beside_ratio']:.0%} of the memory and {row['time_ratio']:.0%} of the time.",
        100,
    )
)

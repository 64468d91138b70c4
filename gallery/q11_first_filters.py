"""
Who chooses the values of a filter?
===================================

A first layer of 32 filters of 3×3 holds 288 numbers. Nobody writes them down. They start as random numbers, and training moves each of
them a little at a time, in the direction that lowers the loss. Do they end as edge detectors, as books draw them? Are they all distinct?
And does the next run find the same ones?

This page trains one small network from several random starts, draws its filters, and measures how alike they are.
"""

# %%
# One network, several runs
# -------------------------
# 32 filters of 3×3, a ReLU, a pool, 32 filters more and a linear layer, trained on 1,200 of scikit-learn's handwritten digits (8×8 pixels);
# 597 are held out. Four runs begin from starts of their own. A fifth repeats the first with the same start and the same seed, and a sixth
# has the first one's start but sees the pictures in another order.

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from sash.models import train

FILTERS, SIZE, EPOCHS = 32, 3, 30


def network(start: int) -> nn.Sequential:
    torch.manual_seed(start)
    first = [nn.Conv2d(1, FILTERS, SIZE, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(FILTERS, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 2 * 2, 10))


def filters(model: nn.Sequential) -> np.ndarray:
    """The first layer's filters, one a row."""
    return model[0].weight.detach().flatten(1).numpy().copy()


def right(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(1) == labels).float().mean()


found = load_digits()
order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
pictures, labels = torch.from_numpy(found.images).float()[order, None] / 16, torch.from_numpy(found.target).long()[order]
to_learn, held_out = (pictures[:1200], labels[:1200]), (pictures[1200:], labels[1200:])

RUNS = {"first": (0, 0), "second": (1, 1), "third": (2, 2), "fourth": (3, 3), "first again": (0, 0), "first, other order": (0, 9)}
"""The random start and the seed of the pictures' order."""
before, after, accuracy = {}, {}, {}
for name, (start, seed) in RUNS.items():
    model = network(start)
    before[name] = filters(model)
    history = train(
        model,
        to_learn,
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        epochs=EPOCHS,
        batch=50,
        seed=seed,
        held_out=held_out,
        metrics={"accuracy": right},
        progress=False,
    )
    after[name] = filters(model)
    accuracy[name] = history.epochs[-1].held_out["accuracy"]
    print(f"{name:<20} held-out accuracy {accuracy[name]:.1%}")

# %%
# What they look like
# -------------------
# The first run's filters before and after training, and the second run's. Red is positive, blue negative; each filter has its own scale.


def draw(axis: plt.Axes, rows: np.ndarray, title: str) -> None:
    """Filters in rows of 16, with a gap between."""
    sheet = np.full((2 * (SIZE + 1) + 1, 16 * (SIZE + 1) + 1), np.nan)
    for index, row in enumerate(rows):
        top, left = (index // 16) * (SIZE + 1) + 1, (index % 16) * (SIZE + 1) + 1
        sheet[top : top + SIZE, left : left + SIZE] = row.reshape(SIZE, SIZE) / np.abs(row).max()
    axis.imshow(sheet, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_title(title, fontsize=10)
    axis.axis("off")


fig, axes = plt.subplots(3, 1, figsize=(9, 5), layout="constrained")
draw(axes[0], before["first"], "first run, before training: random numbers")
draw(axes[1], after["first"], "first run, after training")
draw(axes[2], after["second"], "second run, after training")

# %%
# Are they edges?
# ---------------
# Any 3×3 filter is a sum of three parts. The *mean* looks at brightness. The *slope*, a plane that rises in some direction, is what an edge
# detector is. The *rest* looks at spots, lines and corners. The share of each part is its share of the sum of squares. Of nine
# numbers, one belongs to the mean and two to the slope; so chance alone gives the slope two ninths.

rise = np.repeat([-1.0, 0.0, 1.0], 3)
parts = {"mean": np.ones((1, 9)) / 3, "slope": np.stack([rise, rise.reshape(3, 3).T.ravel()]) / np.sqrt(6)}


def shares(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of each filter, the share of its squares that lies in each part."""
    whole = (rows**2).sum(1)
    shown = {name: ((rows @ basis.T) ** 2).sum(1) / whole for name, basis in parts.items()}
    return {**shown, "rest": 1 - sum(shown.values())}


starts = np.concatenate([before[name] for name in list(RUNS)[:4]])
ends = np.concatenate([after[name] for name in list(RUNS)[:4]])
at_start, at_end = shares(starts), shares(ends)
edges = (at_end["slope"] > 0.5).mean()
for name in at_end:
    print(f"{name:<8} {at_start[name].mean():>6.0%} of the squares before training, {at_end[name].mean():>4.0%} after")
print(f"filters that are mostly slope: {(at_start['slope'] > 0.5).mean():.0%} before training, {edges:.0%} after")

fig, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.hist(
    [at_start["slope"], at_end["slope"]], bins=np.linspace(0, 1, 11), label=["before training", "after"], color=["lightgray", "tab:blue"]
)
axis.set(xlabel="share of a filter that is slope (an edge detector has 1)", ylabel="filters of four runs")
axis.legend()

# %%
# Are they distinct, and the same each run?
# -----------------------------------------
# Two filters are compared by their *cosine*: 1 is the same but for scale, 0 has nothing in common, −1 is the opposite. Within a layer each
# filter is compared with its most alike neighbour. Between two runs, every filter of one is matched with a filter of the other so that the
# cosines add up to the most that is possible (the order of filters means nothing). With 32 to choose from, chance alone matches well,
# so random numbers are the measure.


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    return one @ other.T


def nearest(rows: np.ndarray) -> np.ndarray:
    """For each filter, the largest cosine with another of its layer."""
    found = cosines(rows, rows)
    np.fill_diagonal(found, -1)
    return found.max(1)


def matched(one: np.ndarray, other: np.ndarray) -> float:
    """The mean cosine of the best matching."""
    found = cosines(one, other)
    return float(found[linear_sum_assignment(-found)].mean())


others = [name for name in RUNS if name not in ("first", "first again", "first, other order")]
between = {
    "random numbers, two starts": np.mean([matched(before["first"], before[name]) for name in others]),
    "trained, two starts": np.mean([matched(after["first"], after[name]) for name in others]),
    "before and after training": matched(before["first"], after["first"]),
    "same start, other order": matched(after["first"], after["first, other order"]),
    "same start, same seed": matched(after["first"], after["first again"]),
}
for name, value in between.items():
    print(f"{name:<28} mean cosine of matched filters {value:.3f}")
alike = {"random numbers": nearest(before["first"]), "trained": nearest(after["first"])}
for name, value in alike.items():
    print(f"{name:<28} nearest neighbour in the layer {value.mean():.3f} in the mean, {value.max():.3f} at most")

fig, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
bars = axis.barh(list(between), list(between.values()), color=["lightgray", "tab:blue", "tab:blue", "tab:blue", "tab:blue"])
axis.bar_label(bars, fmt="%.2f", padding=3)
axis.set(xlim=(0, 1.12), xlabel="mean cosine of matched filters")
axis.invert_yaxis()

# %%
# The answer
# ----------

same = bool((after["first"] == after["first again"]).all())
low, high = min(accuracy.values()), max(accuracy.values())
slope = {"before": at_start["slope"].mean(), "after": at_end["slope"].mean()}
print(
    fill(
        "Nobody chooses them: a random start does, and training moves them. They are not always edge detectors: after training "
        f"{edges:.0%} are mostly slope, and the slope's share went from {slope['before']:.0%} to {slope['after']:.0%}. Nothing keeps them "
        f"apart either: the two most alike filters of the first run have a cosine of {alike['trained'].max():.2f} "
        f"({alike['random numbers'].max():.2f} before training).",
        100,
    )
)
print()
print(
    fill(
        "Another start gives other filters. Matched as well as possible, those of two runs have a mean cosine of "
        f"{between['trained, two starts']:.2f}; random numbers that were never trained have {between['random numbers, two starts']:.2f}. "
        f"Filters stay near their own start ({between['before and after training']:.2f}), and near each other when only the order of the "
        f"pictures differs ({between['same start, other order']:.2f}). With the same start and the same order they are "
        f"{'equal to the last bit' if same else 'not equal to the last bit'}. All the runs classify about as well "
        f"({low:.1%} to {high:.1%}): many sets of filters do the same work.",
        100,
    )
)

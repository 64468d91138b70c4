"""
Dropout before a max-pool over a set: rescale at test time?
===========================================================

A network looks at a set of objects, however many there are, and keeps the largest value of each channel: a *max-pool over the set*. While
it trains, something is dropped at random. With plain dropout one learns to multiply by the keep probability at test time. Is that right for
a maximum?

This page tries every way there is to drop something from a small set, compares what the rules say with what comes out, and then trains a
network on sets of different sizes.
"""

# %%
# One set, three ways to drop
# ---------------------------
# Six objects have one value each in some channel. Everything stays with probability *keep*, and what is dropped may be
#
# * a *unit*: each value on its own becomes 0. The maximum is then taken over what is left and the zeros.
# * an *element*: the whole object leaves the set (one at least stays).
# * a *channel*: the channel becomes 0 for all objects of the set at once.
#
# Six objects have 64 masks. We can try them all.

import itertools
import math
import statistics
from textwrap import fill

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from sash.models import set_encoder, train
from sash.ops import DroppedMax, SetPool, dropped_max, expected_max, set_max

KEEP = 0.7
DROPS = ("unit", "element", "channel")
COLOURS = dict(zip(DROPS, ("tab:blue", "tab:orange", "tab:green"), strict=True))


def over_all_masks(values: list[float], drop: str) -> float:
    """The mean of the maximum over every mask, weighted by how likely it is; nothing is rescaled."""
    total = whole = 0.0
    for mask in itertools.product([False, True], repeat=1 if drop == "channel" else len(values)):
        chance = math.prod(KEEP if kept else 1 - KEEP for kept in mask)
        if drop == "channel":
            largest = max(values) if mask[0] else 0.0
        elif drop == "unit":
            largest = max(value if kept else 0.0 for value, kept in zip(values, mask, strict=True))
        elif any(mask):
            largest = max(value for value, kept in zip(values, mask, strict=True) if kept)
        else:
            continue
        total, whole = total + chance * largest, whole + chance
    return total / whole


sets = {"some positive": [2.0, 1.7, 0.9, 0.3, -0.5, -1.2], "all negative": [-0.4, -0.6, -0.9, -1.1, -1.5, -2.0]}
furthest = 0.0
print(f"{'values':<16}{'drop':<10}{'every mask':>12}{'expected_max':>14}{'keep x max':>12}{'max':>8}")
for name, values in sets.items():
    for drop in DROPS:
        tried = over_all_masks(values, drop)
        exact = expected_max(torch.tensor(values, dtype=torch.float64)[None, :, None], KEEP, drop, inverted=False).item()
        furthest = max(furthest, abs(exact - tried))
        print(f"{name:<16}{drop:<10}{tried:>12.4f}{exact:>14.4f}{KEEP * max(values):>12.4f}{max(values):>8.4f}")
print(f"\nThe largest difference between the first two columns: {furthest:.1e}")

# %%
# Multiplying by *keep* is right for channels only. When units are dropped, the runner-up steps in: the mean is above keep times the
# maximum. And where all values are negative, a single dropped one wins, being 0. When elements are dropped, the runner-up steps in as well,
# and there is no zero at all.

# %%
# How large the error is
# ----------------------
# That depends on how many objects there are, for the more there are, the closer the runner-up. Below, sets of normally distributed values;
# lines are `expected_max`, dots the mean of maxima that were drawn as in training.

SIZES, MANY = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64), 2000
generator = torch.Generator().manual_seed(0)
drawn_sets = torch.randn(MANY, max(SIZES), 1, generator=generator, dtype=torch.float64)
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
plain = [set_max(drawn_sets[:, :size]).mean().item() for size in SIZES]
left.plot(SIZES, plain, "k-", label="the maximum")
left.plot(SIZES, [KEEP * one for one in plain], "k:", label=f"{KEEP} × the maximum")
for drop in DROPS:
    expected = [expected_max(drawn_sets[:, :size], KEEP, drop, inverted=False).mean().item() for size in SIZES]
    drawn = [
        statistics.mean(dropped_max(drawn_sets[:, :size], KEEP, drop, inverted=False, generator=generator).mean().item() for _ in range(20))
        for size in SIZES
    ]
    left.plot(SIZES, expected, color=COLOURS[drop], label=f"{drop} dropped", linewidth=4 if drop == "channel" else 1.5, alpha=0.7)
    left.plot(SIZES, drawn, "o", color=COLOURS[drop], markersize=4)
left.set(xscale="log", xlabel="objects in the set", ylabel="mean of the pooled value", title=f"Nothing rescaled, keep = {KEEP}")
left.set_xticks(SIZES, map(str, SIZES), fontsize=8)
left.minorticks_off()
left.legend(fontsize=8)

KEEPS, SIZE = torch.linspace(0.05, 1, 39).tolist(), 16
some = drawn_sets[:, :SIZE]
for drop in DROPS:
    ratio = [expected_max(some, keep, drop).mean().item() / set_max(some).mean().item() for keep in KEEPS]
    right.plot(KEEPS, ratio, color=COLOURS[drop], label=f"{drop} dropped")
right.axhline(1, color="k", linewidth=0.8)
right.set(
    xlabel="keep", ylabel="expected / plain maximum", title=f"What stays divided by keep (elements: not), {SIZE} objects", yscale="log"
)
right.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
right.minorticks_off()
right.legend(fontsize=8)

# %%
# Today's libraries divide by *keep* while they train (inverted dropout), so that nothing has to be done at test time. On the right is how
# far that holds: for dropped channels exactly, at every keep. For dropped units the plain maximum is too small, for dropped elements too
# large.

# %%
# A network on sets of different sizes
# ------------------------------------
# Each of scikit-learn's 8×8 digits becomes the set of its inked pixels: row, column, and how much ink. A set encoder with context gating
# (the building block of MultiPath++) reads the sets, pools over them in each of its two blocks, and says which digit it is. It is trained
# once for each kind of dropout and seed; then each is tested with three pools in the place of the one that it was trained with.

TRAINED, EPOCHS, SEEDS, WIDTH = 1297, 15, (0, 1, 2), 48
digits = load_digits()
ink = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
rows, columns = (axis.flatten() for axis in torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij"))
found = [torch.stack([rows[one > 0], columns[one > 0], one[one > 0]], 1) for one in ink]
lengths = torch.tensor([len(one) for one in found])
values = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
known, unknown = order[:TRAINED], order[TRAINED:]
print(f"{len(labels)} sets of {int(lengths.min())} to {int(lengths.max())} elements; {len(known)} to train, {len(unknown)} to test")


def scaled_max(values: Tensor, lengths: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
    """The rule of plain dropout."""
    return KEEP * set_max(values, lengths, offsets=offsets)


def tested(model: torch.nn.Module) -> tuple[float, float]:
    """Accuracy and loss on what it was not trained on."""
    with torch.no_grad():
        scores = model(values[unknown], lengths[unknown])
    return (scores.argmax(1) == labels[unknown]).float().mean().item(), F.cross_entropy(scores, labels[unknown]).item()


def trained(drop: str, seed: int) -> dict[str, tuple[float, float]]:
    """By the pool it is tested with."""
    torch.manual_seed(seed)
    model = set_encoder(3, 10, width=WIDTH, blocks=2, pool=DroppedMax(KEEP, drop))
    data = ((values[known], lengths[known]), labels[known])
    train(model, data, loss=F.cross_entropy, optimizer=lambda of: torch.optim.Adam(of, 3e-3), epochs=EPOCHS, seed=seed, progress=False)
    result = {}
    for name, pool in {"expected": DroppedMax(KEEP, drop).eval(), "plain": SetPool(set_max), "keep x plain": SetPool(scaled_max)}.items():
        for block in model.blocks:
            block.pool = pool
        result[name] = tested(model)
    return result


results = {drop: [trained(drop, seed) for seed in SEEDS] for drop in DROPS}
pools = ("expected", "plain", "keep x plain")


def over_seeds(drop: str, pool: str, part: int) -> tuple[float, float]:
    """Mean, and half the distance between the extremes."""
    seen = [result[pool][part] for result in results[drop]]
    return statistics.mean(seen), (max(seen) - min(seen)) / 2


print(f"\nAccuracy (and loss) on sets not trained on: mean of {len(SEEDS)} seeds, ± half their range\n{'':<10}", end="")
print("".join(f"{pool:>28}" for pool in pools))
for drop in DROPS:
    print(f"{drop:<10}", end="")
    for pool in pools:
        (accuracy, wide), (loss, _) = over_seeds(drop, pool, 0), over_seeds(drop, pool, 1)
        print(f"{f'{accuracy:.1%} ± {wide:.1%} ({loss:.3f})':>28}", end="")
    print()

fig, axis = plt.subplots(figsize=(8, 3), layout="constrained")
for place, pool in enumerate(pools):
    losses = [over_seeds(drop, pool, 1) for drop in DROPS]
    spots = [number + 0.25 * (place - 1) for number in range(len(DROPS))]
    bars = axis.bar(spots, [mean for mean, _ in losses], 0.23, yerr=[half for _, half in losses], label=pool, capsize=3)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
axis.set_xticks(range(len(DROPS)), [f"trained with\n{drop} dropout" for drop in DROPS])
axis.set(ylabel="loss on new sets")
axis.margins(y=0.2)
axis.legend(title="pool at test time", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

# %%
# The answer
# ----------


def apart(drop: str) -> str:
    """The loss with the plain maximum, as a multiple of that with the expected one: the mean over seeds and the extremes."""
    shares = [result["plain"][1] / result["expected"][1] for result in results[drop]]
    return f"{statistics.mean(shares):.2f} times ({min(shares):.2f} to {max(shares):.2f} by seed)"


example = torch.tensor(sets["some positive"], dtype=torch.float64)[None, :, None]
unit, element = (expected_max(example, KEEP, drop, inverted=False).item() for drop in ("unit", "element"))
most = max(sets["some positive"])
print(
    fill(
        f"Only if whole channels were dropped. Then the pooled value is the maximum or 0, and its mean is keep times the maximum; with the "
        f"usual division by keep while training, the plain maximum is exact (the same network gives the same answers with both: "
        f"{over_seeds('channel', 'plain', 1)[0]:.3f} and {over_seeds('channel', 'expected', 1)[0]:.3f} loss).",
        100,
    )
)
print()
print(
    fill(
        f"Not if single values or whole objects were dropped: then the runner-up steps in. In the first set above, with keep {KEEP}, the "
        f"maximum is {most:.2f} and keep times it {KEEP * most:.2f}; the true mean is {unit:.2f} with units dropped and {element:.2f} with "
        f"elements dropped. The exact mean is a weighted sum of the sorted values, and costs one sort: sash.ops.expected_max.",
        100,
    )
)
print()
print(
    fill(
        f"Does a network notice? Tested with the plain maximum in place of the expected one, its loss is, after training with dropped "
        f"units, {apart('unit')} as large, with dropped elements {apart('element')}, with dropped channels {apart('channel')}. "
        f"These are {len(SEEDS)} seeds on one small data set; that expected_max is the mean over all masks holds for every set.",
        100,
    )
)

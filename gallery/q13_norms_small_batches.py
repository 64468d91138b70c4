"""
Batch norm with a batch of 10, or of 2: keep it, remove it, replace it?
=======================================================================

Batch norm takes the mean and the spread of each channel over the batch. In a batch of 64 pictures these are good estimates; in a batch of
2 they are noise, and what is noted for later use is a record of noise. Large pictures and small memories leave no other choice than small
batches, so people replace batch norm: by group norm, layer norm or instance norm, which look at one picture at a time; by frozen
statistics; by statistics accumulated over several small batches; or by nothing.

This page trains one small network with each of them at batches of 2, 4, 10 and 64, and forecasts the memory that each takes. What happens
when a large batch is *split* is `a page of its own <q13_batch_norm_micro_batches.html>`_.
"""

# %%
# One network, and a swap in one call
# -----------------------------------
# The network is written with batch norm. ``sash.ops.swap_norms`` returns a copy with another norm in each place; weights and names stay.

import json
import math
import statistics
import time
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import sash
from sash.models import train
from sash.ops import BatchNormAct, accumulate_batch_norm, swap_norms, to_frozen, to_ghost, to_group, to_instance, to_layer
from sash.units import format_bytes

BATCHES, SEEDS = (2, 4, 10, 64), (0, 1, 2)
PICTURES, EPOCHS, RATE, GHOST_BATCH = 480, 5, 0.01, 64
WIDTHS = (16, 32)
COLOURS = dict(zip(("batch", "group", "layer", "instance", "frozen", "ghost", "none"), plt.cm.tab10.colors, strict=False))

images, numbers = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
pictures = (images.float().view(-1, 1, 8, 8)[order] - 4.9) / 6.0
labels = numbers.long()[order]
to_learn, held_out = (pictures[:PICTURES], labels[:PICTURES]), (pictures[PICTURES:], labels[PICTURES:])


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((1, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        # Torch's own start shrinks maps layer by layer, which would be unfair to the network without a norm.
        nn.init.kaiming_normal_(layers[-3].weight, nonlinearity="relu")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * WIDTHS[-1], 10))


def removed(norm: nn.Module, path: str) -> nn.Module:
    return nn.Identity()


def with_norm(model: nn.Module, kind: str, batch: int) -> nn.Module:
    if kind == "frozen":
        # Frozen statistics have to come from somewhere. Mostly that is an earlier training; here it is the untrained network itself.
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
        with torch.no_grad():
            model(to_learn[0])
    swaps = {"group": to_group(8), "layer": to_layer, "instance": to_instance, "frozen": to_frozen}
    swaps |= {"ghost": to_ghost(batch), "none": removed}
    return model if kind == "batch" else swap_norms(model, swaps[kind])


print(swap_norms(network(), to_group(8)))

# %%
# *Ghost* norm is a control: it trains with batches of 64, of which it normalises 2, 4 or 10 pictures at a time. With it only the
# statistics are those of a small batch; the steps are those of a large one.
#
# What each takes
# ---------------
# The forecast peak of a training step on pictures of 128×128. Batch norm, group norm and its relatives all save their input for backward;
# frozen statistics need not. Where the activation can be undone (a leaky ReLU here), ``sash.ops.BatchNormAct`` saves the output of norm
# and activation only, which the next convolution saves in any case.


class Lean(nn.Module):
    """The network with norm and activation in one."""

    def __init__(self) -> None:
        super().__init__()
        kept = [layer for layer in network() if not isinstance(layer, nn.BatchNorm2d | nn.ReLU)]
        for place, width in ((1, WIDTHS[0]), (3, WIDTHS[1])):
            kept.insert(place, BatchNormAct(width, nn.LeakyReLU(0.01)))
        self.layers = nn.Sequential(*kept)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


models = {f"{kind} norm" if kind != "none" else "no norm": with_norm(network(), kind, 2) for kind in COLOURS if kind != "ghost"}
models["batch norm, lean"] = Lean()
peaks = {
    name: [sash.forecast(sash.Workload(model, f"{batch}x1x128x128", train=True)).peak_bytes for batch in BATCHES]
    for name, model in models.items()
}
print(f"{'':<20}" + "".join(f"{f'batch {batch}':>12}" for batch in BATCHES))
for name, found in peaks.items():
    print(f"{name:<20}" + "".join(f"{format_bytes(peak):>12}" for peak in found))

fig, axis = plt.subplots(figsize=(8, 3), layout="constrained")
bars = axis.barh([*peaks], [100 * found[-1] / peaks["batch norm"][-1] for found in peaks.values()], color="tab:blue")
axis.bar_label(bars, fmt="%.0f %%", padding=3)
axis.invert_yaxis()
axis.margins(x=0.12)
axis.set_xlabel(f"peak of a step at batch {BATCHES[-1]}, as a share of batch norm's (%)")

# %%
# How each trains
# ---------------
# scikit-learn's digits, 8×8 pixels. All see the same pictures as often, from three random starts; the learning rate grows with the root of
# the batch, and is not tuned to any norm.


def accuracy(kind: str, batch: int, seed: int) -> float:
    """Per cent of the held-out pictures that are told right."""
    taken = GHOST_BATCH if kind == "ghost" else batch
    model, rate = with_norm(network(seed), kind, batch), RATE * math.sqrt(taken / 64)
    train(
        model,
        to_learn,
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate),
        epochs=EPOCHS,
        batch=taken,
        seed=seed,
        progress=False,
    )
    with torch.no_grad():
        return 100 * float((model(held_out[0]).argmax(1) == held_out[1]).float().mean())


# Maps as small as these are done before a second core has started.
torch.set_num_threads(1)
began = time.process_time()
found = {kind: {batch: [accuracy(kind, batch, seed) for seed in SEEDS] for batch in BATCHES} for kind in COLOURS}
minutes = (time.process_time() - began) / 60


def tell(found: dict[str, dict[int, list[float]]]) -> None:
    """A table of means, and how far the runs lie apart."""
    print(f"{'':<10}" + "".join(f"{f'batch {batch}':>14}" for batch in BATCHES))
    for kind, row in found.items():
        cells = (f"{statistics.mean(row[batch]):.1f} ± {statistics.stdev(row[batch]):.1f}" for batch in BATCHES)
        print(f"{kind:<10}" + "".join(f"{cell:>14}" for cell in cells))


def draw(found: dict[str, dict[int, list[float]]], title: str) -> None:
    fig, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
    for index, (kind, row) in enumerate(found.items()):
        places = [place + 0.08 * (index - 3) for place in range(len(BATCHES))]
        for place, points in zip(places, row.values(), strict=True):
            axis.plot([place] * len(points), points, ".", color=COLOURS[kind], alpha=0.6)
        axis.plot(places, [statistics.mean(points) for points in row.values()], "-", color=COLOURS[kind], label=kind, alpha=0.8)
    axis.set_xticks(range(len(BATCHES)), [str(batch) for batch in BATCHES])
    axis.set(xlabel="batch", ylabel="held-out accuracy (%)", title=title)
    fig.legend(loc="outside right center")


print(f"{PICTURES} pictures, {EPOCHS} epochs, {len(SEEDS)} starts, {minutes:.1f} CPU minutes")
tell(found)
draw(found, "digits: each run, and the means")

# %%
# A longer run
# ------------
# The same question asked of Fashion-MNIST with a deeper network, run once by ``bench/norms_accuracy.py`` and stored with the code.

stored = next(path for path in map(Path, ("..", ".")) if (path / "bench").is_dir()) / "bench" / "results" / "norms_accuracy.json"
longer = json.loads(stored.read_text())
lasting = {kind: {int(batch): points for batch, points in row["accuracy_percent"].items()} for kind, row in longer["kinds"].items()}
print(f"{longer['data']}; {longer['epochs']} epochs, {len(longer['seeds'])} starts, {longer['cpu_minutes']:.0f} CPU minutes")
tell(lasting)
draw(lasting, "Fashion-MNIST: each run, and the means")

# %%
# Statistics of the whole batch, in the memory of a part
# ------------------------------------------------------
# Frozen statistics are one way to train batch norm in parts. ``sash.ops.accumulate_batch_norm`` is the exact one: it first finds the
# statistics of the whole batch, layer by layer and part by part, then what each layer's backward needs of the whole batch, and only then
# takes the step. The result is that of the whole batch up to rounding; the price is paid in passes.

inputs, wanted = to_learn[0][:64].double(), to_learn[1][:64]
whole, parts = network().double(), network().double()


def share(part: slice) -> Tensor:
    return F.cross_entropy(parts(inputs[part]), wanted[part], reduction="sum") / len(wanted)


started = time.perf_counter()
F.cross_entropy(whole(inputs), wanted).backward()
halfway = time.perf_counter()
accumulate_batch_norm(parts, [slice(first, first + 2) for first in range(0, 64, 2)], share)
seconds = halfway - started, time.perf_counter() - halfway
naive = network().double()
for first in range(0, 64, 2):
    (F.cross_entropy(naive(inputs[first : first + 2]), wanted[first : first + 2]) / 32).backward()


def distance(model: nn.Module) -> float:
    """From the whole batch's gradient, as a share of its length."""
    own, right = (torch.cat([weight.grad.flatten() for weight in each.parameters()]) for each in (model, whole))
    return float((own - right).norm() / right.norm())


apart = distance(parts)
print(f"difference of the gradient: accumulated {apart:.0e}, 2 by 2 without it {distance(naive):.0%}")
print(f"time: {seconds[1] / seconds[0]:.0f} times that of the whole batch at once")

# %%
# The answer
# ----------

small, large = BATCHES[0], BATCHES[-1]
mean = {kind: {batch: statistics.mean(points) for batch, points in row.items()} for kind, row in lasting.items()}
digits = {batch: statistics.mean(points) for batch, points in found["batch"].items()}
ranked = sorted((kind for kind in mean if kind != "ghost"), key=lambda kind: -mean[kind][small])
lean = 1 - peaks["batch norm, lean"][-1] / peaks["batch norm"][-1]
still = 1 - peaks["frozen norm"][-1] / peaks["batch norm"][-1]

print(
    fill(
        f"Keep it at batch 10, replace it at 2. In the longer run batch norm reaches {mean['batch'][large]:.1f} % at batch {large}, "
        f"{mean['batch'][10]:.1f} % at 10 and {mean['batch'][small]:.1f} % at {small}. Noisy statistics alone do that: with steps of "
        f"{GHOST_BATCH} pictures and statistics of {small} (ghost norm) it is {mean['ghost'][small]:.1f} %. At batch {small} the order is "
        + ", ".join(f"{kind} {mean[kind][small]:.1f}" for kind in ranked)
        + f". Those that do not look at the batch do as well with {small} pictures as with 10; with {large} all lose, for there are "
        "fewer steps to learn in. On the digits, with fewer layers and more epochs, small batches hurt batch norm less: "
        f"{digits[10]:.1f} % at 10, {digits[small]:.1f} % at {small}. That no norm at all does so well is a matter of depth: three layers "
        "train without one, many layers mostly do not.",
        100,
    )
)
print()
print(
    fill(
        "What a replacement costs is not memory: batch, group, layer and instance norm hold the same maps. Memory is saved by what need "
        f"not be held: frozen statistics take {still:.0%} off the peak here, and norm and activation in one {lean:.0%}, with the results "
        f"of the two in a row. Exact statistics of a large batch in the memory of a small one can be had as well ({apart:.0e} of "
        f"difference), for {seconds[1] / seconds[0]:.0f} times the time of a step here: worth it for few norms, hardly for many.",
        100,
    )
)

"""
Can a stride replace max-pooling?
=================================

Convolutional networks shrink their maps on the way. Max-pooling does it by keeping the largest of every few values. A convolution can do it
as well, by taking steps of two: a *stride*. Does the network lose accuracy without its pools? And does it have less to compute?

The paper that asked this (Springenberg and others, 2014) built four versions of one network, so that one can see what makes the difference.
This page does the same: it forecasts what each costs, measures it, and trains all four.
"""

# %%
# Four networks
# -------------
# Each halves the map twice. They differ only in how.
#
# * *pooled*: two convolutions, then a 3×3 max-pool that takes steps of two.
# * *strided*: the same convolutions and no pool; the second convolution takes the steps. No parameter more.
# * *all-conv*: a third 3×3 convolution in the pool's place takes the steps. It has more parameters, so if it wins, it may be for that.
# * *convpool*: the control. The third convolution is there, and the pool as well.

import json
import statistics
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import sash
from sash.models import all_cnn, train
from sash.units import format_bytes, format_count

KINDS = ("pooled", "strided", "convpool", "all-conv")
COLOURS = dict(zip(KINDS, ("tab:blue", "tab:orange", "tab:gray", "tab:green"), strict=True))

# %%
# What they cost
# --------------
# The networks at the size of the paper (base C), on 16 pictures of 32×32. A step is forward, loss, backward and the optimizer's update.
# A MAC is one multiplication and its addition; the column is for forward, of all the pictures.

BATCH = 16
work = {kind: sash.Workload(all_cnn(kind), f"{BATCH}x3x32x32", train=True, optimizer="momentum") for kind in KINDS}
forecast = {kind: sash.forecast(step) for kind, step in work.items()}
measured = {kind: sash.measure(step) for kind, step in work.items()}

print(f"{'':<10}{'parameters':>12}{'MACs':>10}{'peak, forecast':>16}{'measured':>12}{'a step':>10}")
for kind in KINDS:
    cost, seen = forecast[kind], measured[kind]
    print(
        f"{kind:<10}{format_count(cost.params):>12}{format_count(cost.macs):>10}{format_bytes(cost.peak_bytes):>16}"
        f"{format_bytes(seen.peak_bytes):>12}{seen.wall_s * 1e3:>7.0f} ms"
    )

# %%
# What they learn
# ---------------
# The same four networks, narrower, on scikit-learn's 1,797 handwritten digits, enlarged to 16×16: 1,200 to train with, 597 held out. Each
# is trained from three random starts, which also see the pictures in other orders.

WIDTH, EPOCHS, SEEDS = 12, 12, (0, 1, 2)


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pictures and labels, to train with and held out."""
    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    pictures = F.interpolate(torch.from_numpy(found.images).float()[:, None], scale_factor=2, mode="bilinear")[order]
    pictures, labels = (pictures - pictures.mean()) / pictures.std(), torch.from_numpy(found.target).long()[order]
    return (pictures[:1200], labels[:1200]), (pictures[1200:], labels[1200:])


def right(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(1) == labels).float().mean()


def accuracies(kind: str, seed: int) -> list[float]:
    """Of the held-out pictures, after each epoch."""
    torch.manual_seed(seed)
    model = all_cnn(kind, in_channels=1, width=WIDTH, dropout=(0, 0.2))
    history = train(
        model,
        to_learn,
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=4e-3),
        schedule=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * 24),
        epochs=EPOCHS,
        batch=50,
        seed=seed,
        held_out=held_out,
        metrics={"accuracy": right},
        progress=False,
    )
    return [epoch.held_out["accuracy"] for epoch in history.epochs]


to_learn, held_out = digits()
curves = {kind: [accuracies(kind, seed) for seed in SEEDS] for kind in KINDS}
final = {kind: [100 * curve[-1] for curve in runs] for kind, runs in curves.items()}

fig, (course, end) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for kind, runs in curves.items():
    for index, curve in enumerate(runs):
        course.plot(range(1, EPOCHS + 1), curve, color=COLOURS[kind], label=None if index else kind, alpha=0.8, linewidth=1)
course.set(xlabel="epoch", ylabel="held-out accuracy", ylim=(0.5, 1.01), title="each run")
course.legend()
for row, (kind, found) in enumerate(final.items()):
    end.plot(found, [row] * len(found), "o", color=COLOURS[kind], alpha=0.6)
    end.plot(statistics.mean(found), row, "|", color="black", markersize=18)
end.set_yticks(range(len(KINDS)), KINDS)
end.margins(y=0.15)
end.invert_yaxis()
end.set(xlabel="held-out accuracy at the end (%): runs, and their mean", title="at the end")

for kind, found in final.items():
    print(f"{kind:<10}{statistics.mean(found):>7.2f} %  ± {statistics.stdev(found):.2f} between {len(SEEDS)} runs")

# %%
# A longer run
# ------------
# The same question with more pictures, run once by ``bench/stride_pool.py`` and stored with the code.

stored = next(path for path in map(Path, ("..", ".")) if (path / "bench").is_dir()) / "bench" / "results" / "stride_pool.json"
longer = json.loads(stored.read_text())
print(f"{longer['data']}; {longer['epochs']} epochs, width {longer['width']}, {longer['cpu_minutes']:.0f} CPU minutes in all")
for kind in KINDS:
    found = longer["kinds"][kind]["accuracy_percent"]
    print(f"{kind:<10}{statistics.mean(found):>7.2f} %  ± {statistics.stdev(found):.2f} between {len(found)} runs")

# %%
# The answer
# ----------

mean = {kind: statistics.mean(longer["kinds"][kind]["accuracy_percent"]) for kind in KINDS}
quick = {kind: statistics.mean(found) for kind, found in final.items()}
fewer = 1 - forecast["strided"].macs / forecast["pooled"].macs
lighter = 1 - forecast["strided"].peak_bytes / forecast["pooled"].peak_bytes
faster = measured["pooled"].wall_s / measured["strided"].wall_s


def compared(one: str, other: str) -> str:
    """How much better the first is than the second, in points: in the longer run, and here."""
    return f"{mean[one] - mean[other]:+.2f} points in the longer run ({quick[one] - quick[other]:+.2f} here)"


print(
    fill(
        f"Taking the pool away and letting the convolution before it take the steps saves {fewer:.0%} of the MACs and {lighter:.0%} of the "
        f"memory, and a step runs {faster:.1f} times as fast. What it does to the accuracy, strided against pooled: "
        f"{compared('strided', 'pooled')}.",
        100,
    )
)
print()
print(
    fill(
        "A convolution of its own in the pool's place is another matter: that network has more parameters than the pooled one, so its fair "
        f"opponent is the control, which has as many. All-conv against convpool: {compared('all-conv', 'convpool')}, with "
        f"{1 - forecast['all-conv'].macs / forecast['convpool'].macs:.0%} fewer MACs and "
        f"{1 - forecast['all-conv'].peak_bytes / forecast['convpool'].peak_bytes:.0%} less memory. "
        f"All-conv against pooled: {compared('all-conv', 'pooled')}.",
        100,
    )
)
print()
behind = max(mean[other] - mean[one] for one, other in (("strided", "pooled"), ("all-conv", "convpool")))
spread = max(statistics.stdev(longer["kinds"][kind]["accuracy_percent"]) for kind in KINDS)
if behind <= 0.5:
    verdict = f"for less work, and at the same accuracy to within {max(behind, 0):.1f} points"
else:
    verdict = f"for less work; in trainings as short as these it costs up to {behind:.1f} points of accuracy"
print(fill(f"So a stride can replace a pool {verdict}. Runs of one network differ by {spread:.1f} points among themselves.", 100))

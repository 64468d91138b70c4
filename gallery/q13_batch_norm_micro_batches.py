"""
Can a batch be split when there is batch norm?
==============================================

A batch that does not fit in memory is often run in parts, *micro-batches*: forward and backward over one part after the other, gradients
added up, one optimizer step at the end. The gradient of a mean is the mean of the parts' gradients, so nothing seems to change.

Batch norm is where something does. In training it subtracts the mean of *the batch that it sees* and divides by its standard deviation; in
a micro-batch it sees fewer samples, and every output becomes another one. This page shows what sash says about it, how large the difference
is, and which normalisations have none. How the alternatives train is a question of its own, which is not answered here.
"""

# %%
# One network, three normalisations
# ---------------------------------
# The same small network with batch norm, with group norm, and with *frozen* batch norm, which uses the statistics that it has and gathers
# no new ones.

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sash
from sash.units import format_bytes

BATCH, SIDE, CLASSES = 16, 64, 10


class FrozenNorm(nn.BatchNorm2d):
    """Batch norm that stays in evaluation mode while the network trains."""

    def train(self, mode: bool = True) -> "FrozenNorm":
        return super().train(False)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def network(norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    layers = OrderedDict[str, nn.Module]()
    for number, (before, after, stride) in enumerate(((3, 16, 1), (16, 32, 2), (32, 32, 1)), 1):
        layers[f"conv{number}"] = nn.Conv2d(before, after, 3, stride, padding=1)
        layers[f"norm{number}"] = norm(after)
        layers[f"relu{number}"] = nn.ReLU()
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classify": nn.Linear(32, CLASSES)}
    return nn.Sequential(layers)


def descent(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    # With a rate of 1 a step changes every parameter by its gradient, so that a step can be read as one.
    return torch.optim.SGD(parameters, lr=1.0)


norms = {"batch norm": nn.BatchNorm2d, "group norm": group_norm, "frozen batch norm": FrozenNorm}
work = {name: sash.Workload(network(norm), f"{BATCH}x3x{SIDE}x{SIDE}", True, descent) for name, norm in norms.items()}
peak = sash.forecast(work["batch norm"]).peak_bytes
budget = peak // 5
print(f"A step peaks at {format_bytes(peak)}; the budget is a fifth of it, {format_bytes(budget)}.")

# %%
# What sash says
# --------------
# Micro-batches would keep that budget. With batch norm sash refuses to pull that lever by itself, and says why and what would make it
# exact.

try:
    sash.fit(work["batch norm"], budget)
except sash.DoesNotFit as error:
    print(error)

# %%
# With leave it does, and the plan says what that means.

plans = {"batch norm": sash.fit(work["batch norm"], budget, allow="microbatch")}
print(plans["batch norm"])

# %%
# The other two normalise each picture by itself, or by numbers that no batch changes. There micro-batches are exact up to the order of
# additions, and need no leave.

for name in ("group norm", "frozen batch norm"):
    plans[name] = sash.fit(work[name], budget)
    levers = "; ".join(lever.describe() for lever in plans[name].levers)
    print(f"{name}: {format_bytes(plans[name].forecast.peak_bytes)}, {plans[name].exactness}\n  {levers}")

# %%
# How large the difference is
# ---------------------------
# One step on the same 16 pictures, some brighter than others, each time from the same weights: with the whole batch, and in 2, 4, 8 and 16
# parts. Compared are what the step did to all parameters (the length of the difference, as a share of the whole batch's step), and the
# running means that batch norm gathers for later use. In float64, so that rounding is far below what is looked for.

torch.manual_seed(1)
light = torch.linspace(0.2, 1.8, BATCH, dtype=torch.float64)[torch.randperm(BATCH)]
pictures = torch.rand(BATCH, 3, SIDE, SIDE, dtype=torch.float64) * light[:, None, None, None]
labels = torch.randint(CLASSES, (BATCH,))
numbers = (2, 4, 8, 16)


def step(name: str, parts: int) -> tuple[Tensor, Tensor]:
    """What one step changes in the parameters, and the running means after it."""
    model = network(norms[name]).double()
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    split = next(lever for lever in plans[name].levers if lever.name == "microbatch")
    levers = (replace(split, parts=parts),) if parts > 1 else ()
    replace(plans[name], work=replace(work[name], model=model), levers=levers).step(pictures, labels, F.cross_entropy)
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    means = [buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")]
    return after - before, torch.cat(means) if means else torch.zeros(1, dtype=torch.float64)


def share(found: Tensor, whole: Tensor) -> float:
    return float((found - whole).norm() / whole.norm().clamp(min=1e-300))


steps, running = {}, {}
for name in norms:
    whole, gathered = step(name, 1)
    found = [step(name, parts) for parts in numbers]
    steps[name] = [share(changed, whole) for changed, _ in found]
    running[name] = [share(means, gathered) for _, means in found]

print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
print(f"{'pictures in a part':<28}" + "".join(f"{BATCH // parts:>10}" for parts in numbers))
for name, found in steps.items():
    print(f"{name:<28}" + "".join(f"{one:>10.1e}" for one in found))
print(f"{'batch norm, running means':<28}" + "".join(f"{one:>10.1e}" for one in running["batch norm"]))

fig, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, mark in zip(norms, ("o-", "s-", "^--"), strict=True):
    # Zero has no place on a logarithmic axis.
    axis.semilogy(range(len(numbers)), [max(one, 1e-18) for one in steps[name]], mark, label=name)
axis.axhline(1, color="gray", linestyle=":", linewidth=1)
axis.text(0, 1.3, "as large as the step itself", color="gray", fontsize=8)
axis.set_xticks(range(len(numbers)), [str(BATCH // parts) for parts in numbers])
axis.set_xlabel(f"pictures in a micro-batch, of a batch of {BATCH}")
axis.set_ylabel("difference of the step")
axis.set_ylim(top=20)
axis.legend()

# %%
# The answer
# ----------

exact = max(max(steps[name]) for name in ("group norm", "frozen batch norm"))
print(
    f"Split in parts of {BATCH // numbers[0]}, the network with batch norm takes a step that is off by {steps['batch norm'][0]:.0%} of its "
    f"length; in parts of {BATCH // numbers[-1]}, by {steps['batch norm'][-1]:.0%}."
)
print(f"With group norm, or with frozen statistics, the difference is {exact:.0e} at most: rounding.")
print("So sash splits a batch by itself where no layer looks across it, and where one does, only if allow names microbatch.")

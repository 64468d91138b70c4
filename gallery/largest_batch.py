"""
The largest batch that fits
===========================

How large a batch does this machine train? The usual way to find out is to try: double the batch until a step runs out of memory, then go
back. Each trial is a run, the last one is a crash, and what is found may still crash later.

This page asks for the largest batch without running anything, proves it by one run, and then asks how much larger it becomes with a plan.
"""

# %%
# From forecasts alone
# --------------------
# A U-Net, small enough for a page, and the memory that a training step of it may take.

from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import sash
from sash.models import unet
from sash.units import format_bytes, parse_bytes

SIDE = 96
budget = parse_bytes("384 MiB")

torch.manual_seed(0)
work = sash.Workload(unet(width=16, depth=3), f"1x3x{SIDE}x{SIDE}", train=True, optimizer="adamw")
found = sash.largest(work, budget)
print(found)

# %%
# The size named fits, the next does not, and that is known from their forecasts. The one run was made at the end, in a process of its own,
# to prove it.

assert found.measurement is not None
made_on = found.measurement.environment
print(f"torch {made_on.torch}, Python {made_on.python}, {made_on.threads} threads, {made_on.machine}")

# %%
# By trial and error
# ------------------
# What would a finder have done that only sees whether a step runs? Here its trials are answered by forecasts, so that none crashes.

peaks: dict[int, int] = {}


def peak_of(batch: int) -> int:
    if batch not in peaks:
        peaks[batch] = sash.forecast(replace(work, inputs=f"{batch}x3x{SIDE}x{SIDE}")).peak_bytes
    return peaks[batch]


def doubled() -> tuple[int, list[int]]:
    """The batch found by doubling until a step does not run, and the batches tried."""
    tried = [2]
    while peak_of(tried[-1]) <= budget:
        tried.append(2 * tried[-1])
    return tried[-2], tried


def bisected() -> tuple[int, list[int]]:
    """The same, and then by halving what is between the last that ran and the first that did not."""
    low, tried = doubled()
    high = tried[-1]
    while high - low > 1:
        tried.append((low + high) // 2)
        low, high = (tried[-1], high) if peak_of(tried[-1]) <= budget else (low, tried[-1])
    return low, tried


print(f"{'':<22}{'batch':>6}{'runs':>6}{'out of memory':>15}{'of the budget':>15}")
for name, (batch, tried) in {"doubling": doubled(), "doubling, halving": bisected()}.items():
    crashed = sum(peak_of(one) > budget for one in tried)
    print(f"{name:<22}{batch:>6}{len(tried):>6}{crashed:>15}{peak_of(batch) / budget:>15.0%}")
over = int(found.measurement.peak_bytes > budget)
print(f"{'sash.largest':<22}{found.size:>6}{1:>6}{over:>15}{found.peak_bytes / budget:>15.0%}")

# %%
# That is the best case of such a finder. Reports of the one in Lightning tell of others (numbers of its issues). Training with the batch
# that it had found ran out of memory (#8028, where the same batch ran when it was set by hand; #9625; #20231). It ran training steps for
# the first size only, and judged the larger ones by validation steps, which save nothing for backward (#13851). It ended at a batch of
# 67,108,864 (#3259). A forecast knows the step that it is about, and a budget is a number of bytes and not whatever happens to be free.

# %%
# With a plan
# -----------
# A larger batch needs another way to run the step. ``sash.fit`` plans it for twice and for three times the batch, or refuses before
# anything runs, with the least that it would take.

plan = None
for times in (2, 3):
    wanted = times * found.size
    try:
        fitted = sash.fit(replace(work, inputs=f"{wanted}x3x{SIDE}x{SIDE}"), budget)
    except sash.DoesNotFit as error:
        print(f"A batch of {wanted} is refused: the least that can be kept is {format_bytes(error.least_bytes)}.")
        continue
    plan = fitted
    print(f"A batch of {wanted} is planned in {plan.plan_s:.1f} s with {', '.join(lever.name for lever in plan.levers)}; {plan.exactness}.")
    for lever in plan.levers:
        print(f"  {lever.describe()}")
assert plan is not None

# %%
# A planned step has a largest batch, too. Here are the levers of the last plan, one after another. The time is the forecast's.

steps = {"as it is": work}
for count in range(1, len(plan.levers) + 1):
    name = ("with " if count == 1 else "and ") + plan.levers[count - 1].name
    steps[name] = replace(plan, levers=plan.levers[:count]).planned
most = {name: sash.largest(step, budget, prove=False) for name, step in steps.items()}

print(f"{'':<18}{'largest batch':>14}{'peak':>12}{'ms a picture':>14}")
for name, one in most.items():
    print(f"{name:<18}{one.size:>14}{format_bytes(one.peak_bytes):>12}{one.forecast.wall_s / one.size * 1e3:>14.1f}")

# %%
# One run proves the last of them. Lines in the picture are forecasts, crosses the largest batches, dots measured runs.

last = list(most.values())[-1]
proof = sash.measure(last.work)
top = last.size * 5 // 4
fig, axis = plt.subplots(figsize=(8, 4), layout="constrained")
for (name, step), one in zip(steps.items(), most.values(), strict=True):
    batches = sorted({max(top // 8, 1), top // 2, one.size, top})
    levels = [sash.forecast(replace(step, inputs=f"{batch}x3x{SIDE}x{SIDE}")).peak_bytes / 2**20 for batch in batches]
    (line,) = axis.plot(batches, levels, label=name)
    axis.plot(one.size, one.peak_bytes / 2**20, "x", color=line.get_color(), markersize=10)
axis.axhline(budget / 2**20, color="black", linestyle="--", linewidth=1, label="the budget")
for size, run in ((found.size, found.measurement), (last.size, proof)):
    axis.plot(size, run.peak_bytes / 2**20, "ko", markersize=4)
axis.set_xlabel("batch")
axis.set_ylabel("peak of a training step (MiB)")
axis.set_xlim(left=0)
axis.set_ylim(bottom=0)
axis.legend()

# %%
# The answer
# ----------


def proven(peak: int) -> str:
    return f"measured {format_bytes(peak)}, {'within' if peak <= budget else 'over'} the budget of {format_bytes(budget)}"


_, trials = bisected()
crashed = sum(peak_of(batch) > budget for batch in trials)
print(f"The largest batch is {found.size}, found by {found.forecasts} forecasts; {proven(found.measurement.peak_bytes)}.")
print(f"Trial and error would have run {len(trials)} batches to find it, {crashed} of them out of memory.")
longer = last.forecast.wall_s / last.size / (found.forecast.wall_s / found.size)
print(f"With {', '.join(lever.name for lever in plan.levers)} it is {last.size}; {proven(proof.peak_bytes)}.")
print(f"By forecast a picture then takes {longer:.2f} times as long.")

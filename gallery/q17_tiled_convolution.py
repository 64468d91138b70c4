"""
My FFT convolution of a large image runs out of memory. Can I cut it into tiles?
================================================================================

A convolution with a large kernel is quickest by Fourier transforms: transform the image, transform the kernel, multiply, transform back.
Done on the whole image this holds several copies of it, padded and as complex numbers. How large can the image be? Can it be cut into tiles
without seams? And do its sides have to be powers of two?

This page convolves a picture of stars with an aperture of six sides, whole and in tiles, inside budgets that are smaller than the picture.
"""

# %%
# A picture and a kernel
# ----------------------
# A deep field of stars and galaxies, mirrored until it is large enough to matter here and small enough for a page. Its sides are no powers
# of two. The kernel is what a lens out of focus makes of a point of light; it is no outer product, so that two passes would not do.

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import scipy.fft
import torch
from matplotlib.patches import Rectangle
from scipy.signal import fftconvolve
from skimage import data

import sash
from sash.arrays import convolve
from sash.units import format_bytes

REACH = 50
field = data.hubble_deep_field().astype(np.float32).mean(2) / 255
picture = np.pad(field, ((0, 2 * len(field)), (0, 3 * field.shape[1])), "symmetric")
HEIGHT, WIDTH = picture.shape

row, column = np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1]
sides = [np.abs(row * np.cos(angle) + column * np.sin(angle)) for angle in np.pi / 3 * np.arange(3)]
kernel = (np.max(sides, axis=0) <= 0.85 * REACH).astype(np.float32)
kernel /= kernel.sum()
TAPS = len(kernel)

made = convolve(picture, kernel, boundary="constant")
fig, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained", width_ratios=(1, 0.28, 1))
for axis, (title, shown) in zip(axes, {"a part of it": field, "the kernel": kernel, "convolved": made}.items(), strict=True):
    part = shown if shown is kernel else shown[:500, :500]
    axis.imshow(part, cmap="gray", vmax=None if shown is kernel else 0.6 if shown is field else 0.3)
    axis.set(title=title, xlabel="column", ylabel="row")
print(f"{HEIGHT}x{WIDTH} fp32, {format_bytes(picture.nbytes)}; kernel {TAPS}x{TAPS}")

# %%
# How large a whole transform can be
# ----------------------------------
# The usual way, written in torch. ``sash.largest`` finds the largest square image for a budget from forecasts of it; nothing is run. Beside
# it: the least budget that the same convolution in tiles, from file to file, would take for an image of that side.


def whole(image: torch.Tensor) -> torch.Tensor:
    """A convolution of the image's size, by transforms of the whole."""
    size = [side + TAPS - 1 for side in image.shape[-2:]]
    spectrum = torch.fft.rfft2(image, s=size) * torch.fft.rfft2(torch.from_numpy(kernel), s=size)
    return torch.fft.irfft2(spectrum, s=size)[..., REACH:-REACH, REACH:-REACH]


def least_budget(side: int, folder: Path) -> int:
    """For an image in a file; the file has holes for samples, and is only looked at."""
    path = folder / f"{side}.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (side, side))
    try:
        convolve(path, kernel, folder / "out.npy", budget="1 KiB", plan_only=True)
    except sash.DoesNotFit as refused:
        return refused.least_bytes
    raise AssertionError("no convolution holds less than a kibibyte")


work = sash.Workload(whole, "1x1x1024x1024")
rows = {}
with tempfile.TemporaryDirectory() as folder:
    print(f"{'budget':>8}{'largest whole image':>21}{'the image':>11}{'in tiles, from':>16}")
    for budget in ("16 MiB", "64 MiB", "256 MiB"):
        side = sash.largest(work, budget, vary="side", prove=False).size
        rows[budget] = side, least_budget(side, Path(folder))
        print(f"{budget:>8}{f'{side}x{side}':>21}{format_bytes(4 * side * side):>11}{format_bytes(rows[budget][1]):>16}")
several = 256 * 2**20 / (4 * rows["256 MiB"][0] ** 2)

# %%
# Where the tiles lie
# -------------------
# An output needs the samples under its kernel. So a tile reads the kernel's reach more than it makes; the outputs at its rim, for which
# samples are missing, are thrown away, and what is kept has no seam. This is called overlap-save. How much a transform keeps is the
# arithmetic of a window: as many outputs as a window of the kernel's size has on the transform's samples.

BUDGET = "16 MiB"
with tempfile.TemporaryDirectory() as folder:
    np.save(source := Path(folder) / "stars.npy", picture)
    plan = convolve(source, kernel, Path(folder) / "out.npy", budget=BUDGET, plan_only=True)
print(plan)
transform = int(plan.method.rpartition("x")[2])
window = sash.Window(TAPS)
kept = window.outputs(transform)
print(f"a transform of {transform} samples a side keeps {kept}: {(kept / transform) ** 2:.0%} of what it computes")

high, wide = plan.task_shape[-2:]
fig, axis = plt.subplots(figsize=(9, 6.2), layout="constrained")
axis.imshow(picture[::4, ::4], cmap="gray", vmax=0.6, alpha=0.55, extent=(0, WIDTH, HEIGHT, 0))
for top in range(0, HEIGHT, high):
    for left in range(0, WIDTH, wide):
        bottom, right = min(top + high, HEIGHT), min(left + wide, WIDTH)
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#0072B2", linewidth=1.5))
at = (HEIGHT // 2 // high) * high, (WIDTH // 2 // wide) * wide
across, down = (
    [(start, min(start + kept, stop)) for start in range(first, stop, kept)]
    for first, stop in ((at[1], min(at[1] + wide, WIDTH)), (at[0], min(at[0] + high, HEIGHT)))
)
for low, up in down:
    for left, right in across:
        axis.add_patch(Rectangle((left, low), right - left, up - low, fill=False, edgecolor="#0072B2", linestyle=":", linewidth=1.5))
reads = [window.reads(*span) for span in (down[0], across[0])]
first, last = ((each.start - REACH, each.stop - REACH) for each in reads)
axis.add_patch(Rectangle((last[0], first[0]), last[1] - last[0], first[1] - first[0], facecolor="#E69F00", alpha=0.35))
axis.add_patch(Rectangle((across[0][0], down[0][0]), across[0][1] - across[0][0], down[0][1] - down[0][0], facecolor="#D55E00", alpha=0.6))
axis.set(xlabel="column", ylabel="row")
axis.set_title("blue: tasks, one of them with its tiles (dotted); red: what one tile makes; orange: what it reads", fontsize=10)

# %%
# File to file, inside budgets
# ----------------------------
# Each row is a process of its own, which notes how much memory it grows by. First the usual way on the whole picture; then tiles. The
# result is compared with the whole-image result in float64.

CHILD = """
import sys, time
import numpy as np
from scipy.signal import fftconvolve
from sash.arrays import convolve

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

source, taps, out, budget = sys.argv[1:]
kernel = np.load(taps)
np.save(out + ".small.npy", np.zeros((600, 600), np.float32))
convolve(out + ".small.npy", kernel, out + ".made.npy", overwrite=True)  # so that libraries load what they need
fftconvolve(np.zeros((600, 600), np.float32), kernel, "same")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest level counts from here
before, started = status("VmRSS"), time.perf_counter()
if budget == "whole":
    np.save(out, fftconvolve(np.load(source), kernel, "same"))
else:
    convolve(source, kernel, out, budget=budget)
print(status("VmHWM") - before, time.perf_counter() - started)
"""

expected = fftconvolve(picture.astype(float), kernel.astype(float), "same")
found = {}
with tempfile.TemporaryDirectory() as folder:
    source, taps, out = (Path(folder) / name for name in ("stars.npy", "kernel.npy", "out.npy"))
    np.save(source, picture)
    np.save(taps, kernel)
    print(f"{'budget':>8}{'transforms':>12}{'tasks':>7}{'forecast':>11}{'measured':>11}{'off by':>9}{'read':>8}")
    for budget in ("whole", "64 MiB", BUDGET):
        run = subprocess.run([sys.executable, "-c", CHILD, source, taps, out, budget], capture_output=True, text=True, check=True)
        grown, took = map(float, run.stdout.split())
        off = float(np.abs(np.load(out) - expected).max())
        found[budget] = int(grown), took, off
        told = f"{budget:>8}{'':>12}{'':>7}{'':>11}{format_bytes(int(grown)):>11}{off:>9.0e}{'':>8}"
        out.unlink()
        if budget != "whole":
            plan = convolve(source, kernel, out, budget=budget, plan_only=True)
            size, read = plan.method.rpartition(" ")[2], plan.read_bytes / picture.nbytes
            told = f"{budget:>8}{size:>12}{plan.tasks:>7}{format_bytes(plan.peak_bytes):>11}{format_bytes(int(grown)):>11}"
            told += f"{off:>9.0e}{read:>8.2f}"
        print(told)
print(f"the picture is {format_bytes(picture.nbytes)}; 'read' is in pictures; beside what is counted a process grows by some of its own")

# %%
# Sides of any length
# -------------------
# A transform is quick where its length has small prime factors; it need not be a power of two. A length that is prime takes longer, and
# any length can be filled up with zeros to the next quick one. Transforms of one length after another, in turn; the middle of seven runs.

lengths = {"power of two": 1024, "2, 3 and 5": 1080, "2·509": 1018, "prime": 1021, "prime, filled up": 1021}
times: dict[str, list[float]] = {name: [] for name in lengths}
random = np.random.default_rng(0).random((1100, 1100), dtype=np.float32)
for _ in range(8):
    for name, length in lengths.items():
        taken = scipy.fft.next_fast_len(length, real=True) if "filled" in name else length
        sample = random[:length, :length]
        started = time.perf_counter()
        scipy.fft.rfft2(sample, s=(taken, taken))
        times[name].append(time.perf_counter() - started)
per_sample = {name: median(runs[1:]) / lengths[name] ** 2 for name, runs in times.items()}
print(f"{'side':<20}{'length':>8}{'transformed':>13}{'time a sample, by the power of two':>36}")
for name, length in lengths.items():
    taken = scipy.fft.next_fast_len(length, real=True) if "filled" in name else length
    print(f"{name:<20}{length:>8}{taken:>13}{per_sample[name] / per_sample['power of two']:>36.2f}")

fig, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
bars = axis.barh([f"{name}: {lengths[name]}" for name in lengths], [one / per_sample["power of two"] for one in per_sample.values()])
for bar, name in zip(bars, lengths, strict=True):
    bar.set_color("#D55E00" if name in ("2·509", "prime") else "#0072B2")
axis.bar_label(bars, fmt="%.2f", padding=3)
axis.invert_yaxis()
axis.margins(x=0.1)
axis.set_xlabel("time a sample, by that of the power of two")

# %%
# The answer
# ----------

grown, _, off = found[BUDGET]
side, from_bytes = rows["256 MiB"]
print(
    fill(
        f"How large: a whole transform holds {several:.1f} times the image at its peak, so that 256 MiB take an image of {side}x{side} and "
        f"no larger one. In tiles, from file to file, that image takes {format_bytes(from_bytes)}, and one of {rows['16 MiB'][0]}x"
        f"{rows['16 MiB'][0]} takes {format_bytes(rows['16 MiB'][1])}: what is held is a matter of the tiles, and hardly of the image.",
        100,
    )
)
print()
print(
    fill(
        f"Tiles: yes, if each reads the kernel's reach beside it. The picture of {format_bytes(picture.nbytes)} went from file to file "
        f"in a process that grew by {format_bytes(grown)}. Its budget, which does not count what the interpreter takes for itself, was "
        f"{BUDGET}. With the whole transform it grew by {format_bytes(found['whole'][0])}. Both are the exact result up to rounding: "
        f"off by {off:.0e} and {found['whole'][2]:.0e}, where the picture goes from 0 to 1.",
        100,
    )
)
print()
small, prime, filled = (per_sample[name] / per_sample["power of two"] for name in ("2, 3 and 5", "prime", "prime, filled up"))
print(
    fill(
        f"Powers of two: no. By the time a sample, a side of small factors took {small:.1f} times "
        f"that of a power of two here, a prime side {prime:.1f} times, and the same filled up with zeros to the next quick length "
        f"{filled:.1f} times. In tiles the image's own sides do not matter: the transforms have sides of their own, {transform} above.",
        100,
    )
)

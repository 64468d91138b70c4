"""
Does a convolution layer have an exact inverse? Is the transposed convolution it?
=================================================================================

A convolution layer is a linear map: there is a matrix A, and the layer makes Ax of its input x. The *transposed* convolution is the
matrix's transpose, Aᵀ. It brings a small map back to the size of the large one, and so it is sometimes called deconvolution; but Aᵀ is
not A⁻¹.

This page tests what Aᵀ is, computes A⁻¹ where there is one, says how far it can be trusted, and what is left to do where there is none:
first for layers, then for a picture in a file, inside a budget.
"""

# %%
# What the transposed convolution is
# ----------------------------------
# The *adjoint*: for every x and y, the inner products ⟨Ax, y⟩ and ⟨x, Aᵀy⟩ are one number. With a stride, several sizes of input have
# outputs of one size, so ``conv_adjoint`` wants to know which is meant.

import tempfile
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data
from torch.nn import functional as F

import sash
from sash.arrays import convolve, deconvolve
from sash.ops import conv_adjoint, invert_conv
from sash.units import format_bytes

torch.manual_seed(0)
print(f"{'stride':>6} {'dilation':>8} {'groups':>6}  {'<Ax, y>':>22} {'<x, A^T y>':>22}")
worst = 0.0
for stride, dilation, groups in ((1, 1, 1), (2, 1, 1), (3, 2, 2), (2, 3, 4)):
    x, weight = torch.randn(1, 8, 40, 37, dtype=torch.float64), torch.randn(4, 8 // groups, 3, 3, dtype=torch.float64)
    image = F.conv2d(x, weight, stride=stride, padding=1, dilation=dilation, groups=groups)
    y = torch.randn_like(image)
    back = conv_adjoint(y, weight, (40, 37), stride=stride, padding=1, dilation=dilation, groups=groups)
    one, other = (image * y).sum().item(), (x * back).sum().item()
    worst = max(worst, abs(one - other) / (image.norm() * y.norm()).item())
    print(f"{stride:>6} {dilation:>8} {groups:>6}  {one:>22.14f} {other:>22.14f}")
print(f"they agree within {worst:.0e} of the lengths of Ax and y")

# %%
# Three blurs, and what is left of the picture
# --------------------------------------------
# The layer here has one channel and circular padding that keeps the size, so the Fourier transform takes it apart: each frequency is
# multiplied by one number, and the inverse divides by it. The *condition number* is the largest of these numbers by the smallest: as much
# can a relative error of the output grow on its way back.

SIDE = 128
photograph = torch.from_numpy(data.camera()[128:384:2, 160:416:2].copy()).double()[None, None] / 255


def gaussian(sigma: float) -> torch.Tensor:
    """A window of 9×9 with sum 1."""
    line = torch.exp(-(torch.arange(-4, 5, dtype=torch.float64) ** 2) / (2 * sigma**2))
    return (line.outer(line) / line.sum() ** 2)[None, None]


def blurred(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer: padding that goes round and keeps the size."""
    before = (weight.shape[2] - 1) // 2
    after = weight.shape[2] - 1 - before
    return F.conv2d(F.pad(x, (before, after, before, after), "circular"), weight)


def apart(found: torch.Tensor, x: torch.Tensor = photograph) -> float:
    """The error's length by the picture's."""
    return ((found - x).norm() / x.norm()).item()


windows = {"Gaussian, sigma 0.5": gaussian(0.5), "Gaussian, sigma 1": gaussian(1.0), "Gaussian, sigma 1.5": gaussian(1.5)}
print(f"{'window':<22}{'type':<10}{'condition':>10}{'error to expect':>17}{'error':>10}{'after A^T':>11}")
shown, rows = [], {}
for name, weight in windows.items():
    for kind in (torch.float64, torch.float32):
        y = blurred(photograph.to(kind), weight.to(kind))
        adjoint = conv_adjoint(y, weight.to(kind), SIDE, padding="same", padding_mode="circular")
        try:
            found = invert_conv(y, weight)
        except sash.InputError:
            print(f"{name:<22}{str(kind)[6:]:<10}{'':>10}{'refused':>17}")
            continue
        rows[name, kind] = found.condition, apart(found.tensor), apart(adjoint)
        print(
            f"{name:<22}{str(kind)[6:]:<10}{found.condition:>10.1e}{found.error:>17.1e}{apart(found.tensor):>10.1e}{apart(adjoint):>11.1e}"
        )
        if kind is torch.float64:
            shown.append((name, y, adjoint, found.tensor))

fig, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
for row, (name, y, adjoint, tensor) in zip(axes, shown[::2], strict=True):
    pictures = {"x": photograph, f"Ax: {name}": y, "AᵀAx": adjoint, "A⁻¹Ax": tensor}
    for axis, (title, picture) in zip(row, pictures.items(), strict=True):
        axis.imshow(picture[0, 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()

# %%
# Several channels
# ----------------
# Where a layer has channels, each frequency has a small matrix in the place of one number. A layer with more channels out than in has an
# inverse too, on the outputs that it can make; one with fewer has none.

x = torch.randn(2, 8, 32, 32, dtype=torch.float64)
for out in (8, 12, 6):
    weight = torch.randn(out, 8, 3, 3, dtype=torch.float64)
    try:
        found = invert_conv(blurred(x, weight), weight)
        print(f"8 channels to {out}: condition {found.condition:.0f}, error {apart(found.tensor, x):.0e}")
    except sash.InputError as refused:
        print(f"8 channels to {out}: {refused}")

# %%
# No inverse
# ----------
# The mean of 2×2 pixels takes a chequerboard to plain grey: a zero in the spectrum. What is multiplied by zero cannot be divided back, and
# ``invert_conv`` says so.

refusal = ""
box = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
try:
    invert_conv(blurred(photograph, box), box)
except sash.InputError as refused:
    refusal = str(refused)
print(fill(refusal, 100))

# %%
# An estimate
# -----------
# Told how much noise there is, ``invert_conv`` gives the Wiener estimate: frequencies that are gone stay gone, weak ones are brought back
# only as far as the noise allows. It is the best for a *white* input, as strong at every frequency, and then its expected error is met.
# A photograph is weak where blurs do most harm, in its fine detail: there the noise is a larger share, and it pays to state more of it.

WEIGHT, NOISE = gaussian(1.0), 0.02
power = photograph.square().mean().item()
white = power**0.5 * torch.randn_like(photograph)
noisy, noisy_white = (blurred(x, WEIGHT) + NOISE * torch.randn_like(x) for x in (photograph, white))
plain = invert_conv(noisy, WEIGHT)
told = NOISE**2 / power

steps = [told * 10 ** (step / 4) for step in range(-8, 13)]
of_white = [apart(invert_conv(noisy_white, WEIGHT, noise=step).tensor, white) for step in steps]
of_photograph = [apart(invert_conv(noisy, WEIGHT, noise=step).tensor) for step in steps]
expected = invert_conv(noisy, WEIGHT, noise=told).error
best = min(range(len(steps)), key=of_photograph.__getitem__)
estimate = invert_conv(noisy, WEIGHT, noise=steps[best]).tensor
print(f"white input: expected error {expected:.3f}, found {of_white[steps.index(told)]:.3f}")
print(f"photograph: {apart(noisy):.3f} as blurred, {apart(plain.tensor):.3f} after the exact inverse, {of_photograph[best]:.3f} at best")

fig = plt.figure(figsize=(13, 3.4), layout="constrained")
curve, *rest = fig.subplots(1, 5, width_ratios=[1.5, 1, 1, 1, 1])
curve.loglog(steps, of_white, label="white input")
curve.loglog(steps, of_photograph, label="photograph")
curve.axvline(told, color="gray", linestyle=":", label="power of the noise by the input's")
curve.axhline(apart(noisy), color="tab:orange", linestyle="--", linewidth=1, label="photograph, as blurred")
curve.set_xlabel("noise=")
curve.set_ylabel("relative error")
curve.legend(fontsize=7)
pictures = {"x": photograph, "blurred, with noise": noisy, "A⁻¹ of it": plain.tensor, "Wiener estimate": estimate}
for axis, (title, picture) in zip(rest, pictures.items(), strict=True):
    axis.imshow(picture[0, 0], cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()

# %%
# A picture in a file
# -------------------
# The same for arrays of any size: ``sash.arrays.convolve`` blurs, ``sash.arrays.deconvolve`` undoes it, from file to file and inside a
# budget. Its plan has the condition number and the error to expect before anything is inverted, and the method: the exact inverse where it
# is no worse than Wiener's estimate, which here also learns from the data how the picture's power falls with frequency. The Gaussians are
# not cut off now, so that a larger sigma leaves next to nothing of the finest detail.

BUDGET = "32 MiB"
whole = data.camera() / 255


def kernel(sigma: float) -> np.ndarray:
    """A Gaussian, as far as float64 reaches."""
    line = np.exp(-0.5 * (np.arange(-int(9 * sigma) - 1, int(9 * sigma) + 2) / sigma) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def off(found: np.ndarray) -> float:
    """The error's length by the picture's."""
    return float(np.linalg.norm(found - whole) / np.linalg.norm(whole))


planned, after = {}, {}
print(f"{'sigma':>5}{'condition':>11}  {'method':<9}{'error to expect':>16}{'error':>9}{'as blurred':>12}{'held':>10}")
with tempfile.TemporaryDirectory() as folder:
    given, made = Path(folder) / "blurred.npy", Path(folder) / "found.npy"
    for sigma in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0):
        convolve(whole, kernel(sigma), given, boundary="wrap", tolerance=1e-13, overwrite=True)
        planned[sigma] = deconvolve(given, kernel(sigma), made, budget=BUDGET, plan_only=True)
        deconvolve(given, kernel(sigma), made, budget=BUDGET, overwrite=True)
        after[sigma] = off(np.load(made))
        print(
            f"{sigma:>5g}{planned[sigma].condition:>11.1e}  {planned[sigma].method:<9}{planned[sigma].error:>16.1e}{after[sigma]:>9.1e}"
            f"{off(np.load(given)):>12.1e}{format_bytes(planned[sigma].peak_bytes):>10}"
        )

# %%
# The adjoint is there as well, with any border; and it is no inverse here either.

v, w = np.random.default_rng(0).standard_normal((2, 120, 90))
there = (convolve(v, kernel(1), boundary="reflect", tolerance=1e-13) * w).sum()
here = (v * deconvolve(w, kernel(1), boundary="reflect", adjoint=True)).sum()
print(f"<Av, w> {there:.13f}, <v, A^T w> {here:.13f}")

# %%
# Asked for an inverse that is none, it refuses, and says where the spectrum fails:

smear = np.full((1, 16), 1 / 16)
moved = convolve(whole, smear, boundary="wrap", tolerance=1e-13)
try:
    deconvolve(moved, smear, method="inverse")
except sash.InputError as refused:
    print(fill(str(refused), 100))

# %%
# With noise the exact inverse is the worst of all answers long before the condition number forbids it.

SPOILT = 0.01
noisy_whole = convolve(whole, kernel(1), boundary="wrap", tolerance=1e-13) + SPOILT * np.random.default_rng(1).standard_normal(whole.shape)
ways = {
    "inverse": deconvolve(noisy_whole, kernel(1), method="inverse"),
    "wiener": deconvolve(noisy_whole, kernel(1), noise=SPOILT),
    "richardson-lucy": deconvolve(noisy_whole.clip(0), kernel(1), method="richardson-lucy", iterations=10),
}
as_it_is = off(noisy_whole)
chosen = deconvolve(noisy_whole, kernel(1), noise=SPOILT, plan_only=True)
print(f"sigma 1, noise of {SPOILT:g}: as it is {as_it_is:.3f}; " + ", ".join(f"{name} {off(way):.3g}" for name, way in ways.items()))
print(chosen)

fig = plt.figure(figsize=(14, 3.4), layout="constrained")
curve, *rest = fig.subplots(1, 5, width_ratios=[1.5, 1, 1, 1, 1])
curve.semilogy(list(planned), [plan.error for plan in planned.values()], "k_", markersize=12, label="error to expect")
for method, colour, mark in (("inverse", "#0072B2", "o"), ("wiener", "#D55E00", "s")):
    some = [sigma for sigma, plan in planned.items() if plan.method == method]
    curve.semilogy(some, [after[sigma] for sigma in some], mark, color=colour, label=f"error, {method}")
curve.set_xlabel("sigma (pixels), without noise")
curve.set_ylabel("relative error")
curve.legend(fontsize=8)
part = np.s_[100:228, 180:308]
pictures = {"blurred, with noise": noisy_whole, **{f"{name}: {off(way):.2g}": way for name, way in ways.items()}}
for axis, (title, picture) in zip(rest, pictures.items(), strict=True):
    axis.imshow(picture[part], cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()

# %%
# The answer
# ----------

(mild, middle, strong), wide, short = windows, torch.float64, torch.float32
condition, error, after_adjoint = rows[mild, wide]
print(
    fill(
        f"The transposed convolution is the adjoint: it passes the test of inner products within {worst:.0e}, for any stride, dilation "
        f"and groups. It is not the inverse: after {mild}, it leaves an error of {after_adjoint:.0%}, the exact inverse {error:.0e}.",
        100,
    )
)
print()
print(
    fill(
        "An exact inverse exists where no frequency is multiplied by zero, at stride 1 and with as many channels out as in. How exact it "
        f"is in practice, the condition number says. At {condition:.0f} hardly a digit is lost. At {rows[middle, wide][0]:.0e} the error "
        f"is {rows[middle, short][1]:.0e} in float32 and {rows[middle, wide][1]:.0e} in float64; at {rows[strong, wide][0]:.0e} only "
        f"float64 is left, with {rows[strong, wide][1]:.0e}. Where a frequency is gone, or where there is noise, the honest answer is an "
        f"estimate. Under noise of {NOISE:g}, on a scale from 0 to 1, the exact inverse gives an error {apart(plain.tensor):.0f} times the "
        f"picture, and the estimate one of {of_photograph[best]:.1%}; the blurred picture has {apart(noisy):.1%}.",
        100,
    )
)
print()
last = max(sigma for sigma, plan in planned.items() if plan.method == "inverse")
beyond = min(sigma for sigma, plan in planned.items() if plan.method != "inverse")
print(
    fill(
        f"Of a picture in a file the same is true. Without noise and in float64, the Gaussian of sigma {last:g} still has an inverse "
        f"(condition {planned[last].condition:.0e}, expected error {planned[last].error:.0e}, found {after[last]:.0e}); that of sigma "
        f"{beyond:g} is better estimated ({planned[beyond].condition:.0e}, {planned[beyond].error:.0e}, {after[beyond]:.0e}). With noise "
        f"of {SPOILT:g} at sigma 1, the inverse is off by {off(ways['inverse']):.1f} times the picture, Wiener's estimate by "
        f"{off(ways['wiener']):.1%}, where the data themselves are by {as_it_is:.1%}.",
        100,
    )
)

"""
Is a Gaussian blur in two passes exactly the 2-D filter, and when does the FFT win?
===================================================================================

A Gaussian blur replaces each pixel by a weighted mean of those around it. It is taught in three ways: as one window over rows and columns,
as a pass along the rows and one along the columns, and as a product of Fourier transforms. People also know recursive filters, whose cost
does not depend on sigma at all. Do these give one and the same picture? And which is the quickest?

This page compares them on a photograph, on a CPU and with one thread each: what they differ by, and how long they take as sigma grows.
"""

# %%
# Two passes and one window
# -------------------------
# The 2-D window of a Gaussian is an outer product: the weights of a column times those of a row. A sum over such a window is a sum of sums,
# so that two passes are the same sum in another order. What is left is rounding. It is not so in two cases: where the window is cut off
# round instead of square, it is an outer product no more; and where the picture between the passes is rounded to whole numbers.

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import scipy.fft
from numba import njit
from scipy import ndimage, signal
from skimage import data

import sash
from sash.arrays import blur

photograph = data.camera().astype(float) / 255


def gaussian(sigma: float, radius: int) -> np.ndarray:
    """Weights with sum 1, one for each of 2 * radius + 1 samples."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


line = gaussian(3, 12)
square = np.outer(line, line)
places = np.arange(-12, 13)
disc = np.where(places**2 + places[:, None] ** 2 <= 12**2, square, 0)
disc /= disc.sum()

in_passes = ndimage.convolve1d(ndimage.convolve1d(photograph, line, 0), line, 1)
apart = {
    "one square window": np.abs(ndimage.convolve(photograph, square) - in_passes).max(),
    "one round window": np.abs(ndimage.convolve(photograph, disc) - in_passes).max(),
    "two passes, bytes between them": np.abs(ndimage.gaussian_filter(data.camera(), 3) / 255 - in_passes).max(),
}
ranks = {"square": np.linalg.matrix_rank(square), "round": np.linalg.matrix_rank(disc)}
print(f"{'against two passes in float64, sigma 3':<40}{'off by up to, of the range':>27}")
for name, off in apart.items():
    print(f"{name:<40}{off:>27.1e}")
print("outer products in the window: " + ", ".join(f"{name} {rank}" for name, rank in ranks.items()))

# %%
# Six ways to blur
# ----------------
# * *one window*: every weight of the 2-D window, in a compiled loop;
# * *two passes* as in ``scipy.ndimage``, cut off at 4 sigma;
# * *two passes* as in ``sash``, which cuts off where the stated tolerance allows (a thousandth of the picture's range);
# * *two rates*, sash's way for large sigma: a spline brings the picture to fewer samples, a short Gaussian blurs these, the same spline
#   brings them back;
# * *recursive*: each output is made of four inputs and of the four outputs before it, once forwards and once backwards. The weights are
#   Deriche's fourth-order ones (Recursively implementing the Gaussian and its derivatives, 1993). sash has no such filter; it is written
#   here;
# * *transform*: the cosine transform of the whole picture, each frequency times the Gaussian's, and back. This kind of Fourier transform
#   supposes a mirrored border, as the others have it here.


@njit(fastmath=True)
def add_up(around, window, out):
    """Every output a sum over its window, whole rows at a time."""
    for row in range(out.shape[0]):
        for k in range(window.shape[0]):
            for j in range(window.shape[1]):
                source, weight = around[row + k], window[k, j]
                for column in range(out.shape[1]):
                    out[row, column] += weight * source[column + j]


def one_window(picture: np.ndarray, sigma: float) -> np.ndarray:
    radius, out = round(4 * sigma), np.zeros_like(picture)
    window = np.outer(gaussian(sigma, radius), gaussian(sigma, radius)).astype(picture.dtype)
    add_up(np.pad(picture, radius, "symmetric"), window, out)
    return out


def cosine_transform(picture: np.ndarray, sigma: float) -> np.ndarray:
    spectrum = scipy.fft.dctn(picture)
    for axis, length in enumerate(picture.shape):
        weights = gaussian(sigma, int(9.5 * sigma) + 1)
        share = signal.freqz(weights, worN=np.pi * np.arange(length) / length)[1]
        spectrum *= np.abs(share).astype(picture.dtype).reshape(-1, *[1] * (1 - axis))
    return np.asarray(scipy.fft.idctn(spectrum, overwrite_x=True))


def deriche(sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of the inputs forwards, of those backwards, and of earlier outputs."""
    top, bottom = np.zeros(1), np.ones(1)
    for cosine, sine, decay, turn in ((1.680, 3.735, 1.783, 0.6318), (-0.6803, -0.2598, 1.723, 1.997)):
        fall, angle = np.exp(-decay / sigma), turn / sigma
        numerator = np.array([cosine, fall * (sine * np.sin(angle) - cosine * np.cos(angle))])
        denominator = np.array([1, -2 * fall * np.cos(angle), fall**2])
        top = np.polynomial.polynomial.polyadd(np.convolve(top, denominator), np.convolve(numerator, bottom))
        bottom = np.convolve(bottom, denominator)
    back = np.append(top, 0) - top[0] * bottom  # without the sample itself, which the forward pass has
    total = top.sum() / bottom.sum() + back.sum() / bottom.sum()
    return np.resize(top, 4) / total, back[1:] / total, bottom[1:]


@njit(fastmath=True)
def sweep(lines, out, taps, feedback, begin, end, step, behind):
    """Down the rows of a picture, all columns side by side; rows beyond the ends are mirrored."""
    height, width = lines.shape
    made = np.zeros((4, width))
    for place in range(begin, end, step):
        new = made[place % 4]
        oldest = -feedback[3] * new
        for column in range(width):
            new[column] = oldest[column]
        for k in range(4):
            row = (place - step * (k + behind)) % (2 * height)
            source, weight = lines[min(row, 2 * height - 1 - row)], taps[k]
            for column in range(width):
                new[column] += weight * source[column]
        for k in range(3):
            before, weight = made[(place - step * (k + 1)) % 4], feedback[k]
            for column in range(width):
                new[column] -= weight * before[column]
        if 0 <= place < height:
            target = out[place]
            for column in range(width):
                target[column] += new[column]


def recursive(picture: np.ndarray, sigma: float) -> np.ndarray:
    forwards, backwards, feedback = deriche(sigma)
    warm = int(6 * sigma) + 1  # samples after which nothing is left of a start from zero
    for _ in range(2):
        height, out = len(picture), np.zeros_like(picture)
        sweep(picture, out, forwards, feedback, -warm, height, 1, 0)
        sweep(picture, out, backwards, feedback, height - 1 + warm, -1, -1, 1)
        picture = np.ascontiguousarray(out.T)
    return picture


METHODS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "one window": one_window,
    "two passes, scipy": ndimage.gaussian_filter,
    "two passes, sash": lambda picture, sigma: blur(picture, sigma, method="direct", workers=1),
    "two rates, sash": lambda picture, sigma: blur(picture, sigma, method="multirate", workers=1),
    "recursive": recursive,
    "transform": cosine_transform,
}
# Okabe and Ito's colours, which most eyes tell apart.
COLOURS = dict(zip(METHODS, ("#000000", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#009E73"), strict=True))
MARKS = dict(zip(METHODS, "osDv^P", strict=True))

# %%
# What they make of one bright line
# ---------------------------------
# A picture that is black but for one column, blurred, shows a method's weights. Its difference from the sampled Gaussian is the method's
# error, whatever the picture: the sum of the differences of one sign is the largest share of the range by which a pixel can be wrong, in
# one of the two directions.

SIGMA = 10
shown = 6 * SIGMA
spike = np.zeros((128, 512), np.float32)
spike[:, 256] = 1
exact = gaussian(SIGMA, int(9.5 * SIGMA))
exact = np.pad(exact, (256 - len(exact) // 2, 512 - 257 - len(exact) // 2))
weights = {name: method(spike, SIGMA)[64].astype(float) for name, method in METHODS.items()}
worst = {name: max((found - exact).clip(0).sum(), (exact - found).clip(0).sum()) for name, found in weights.items()}

fig, (above, below) = plt.subplots(2, 1, figsize=(9, 6.4), layout="constrained", sharex=True, height_ratios=(1, 1.3))
offsets = np.arange(512) - 256
above.plot(offsets, exact, color="gray", linewidth=6, alpha=0.4, label="the sampled Gaussian")
for name, found in weights.items():
    # The window has scipy's weights; its line is drawn wide, under the other.
    above.plot(offsets, found, color=COLOURS[name], linewidth=1)
    wide = {"linewidth": 4, "alpha": 0.3} if name == "one window" else {"linewidth": 1.2}
    below.semilogy(offsets, np.maximum(np.abs(found - exact) / exact.max(), 1e-9), color=COLOURS[name], label=name, **wide)
above.set(ylabel="weight", title=f"sigma {SIGMA}: six curves on one another", xlim=(-shown, shown))
above.legend()
below.set(xlabel="pixels from the line", ylabel="difference, by the largest weight", title="what they differ by", ylim=(1e-9, 1e-1))
below.legend(ncols=3, loc="upper center", fontsize=9)

# %%
# How long they take
# ------------------
# The photograph four times over, 1024×1024 in fp32. Every method runs in turn with the others; of seven runs the middle one counts, as a
# ratio to the quickest at that sigma. The one window is left out where it would take minutes, two rates where no samples can be left out.

picture = np.tile(photograph, (2, 2)).astype(np.float32)
SIGMAS = (0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 12, 20, 35)
ROUNDS = 7


def plan_of(sigma: float):
    """What sash would do; nothing is run."""
    return blur(picture, sigma, workers=1, plan_only=True)


def takes_part(name: str, sigma: float) -> bool:
    if name == "two rates, sash":
        try:
            blur(picture, sigma, method="multirate", plan_only=True)
        except sash.InputError:
            return False
    return name != "one window" or sigma <= 5


seconds: dict[str, dict[float, float]] = {name: {} for name in METHODS}
errors: dict[str, dict[float, float]] = {name: {} for name in METHODS}
for sigma in SIGMAS:
    truth = ndimage.gaussian_filter(picture.astype(float), sigma, truncate=9.5)
    able = [name for name in METHODS if takes_part(name, sigma)]
    runs: dict[str, list[float]] = {name: [] for name in able}
    for round_ in range(ROUNDS + 1):
        for name in able:
            started = time.perf_counter()
            made = METHODS[name](picture, sigma)
            runs[name].append(time.perf_counter() - started)
            if not round_:  # the first run compiles; it is not timed
                errors[name][sigma] = float(np.abs(made - truth).max() / np.ptp(picture))
    for name in able:
        seconds[name][sigma] = statistics.median(runs[name][1:])

best = {sigma: min(found[sigma] for found in seconds.values() if sigma in found) for sigma in SIGMAS}
print("time, by that of the quickest at the same sigma")
print(f"{'sigma':<20}" + "".join(f"{sigma:>7g}" for sigma in SIGMAS))
for name, found in seconds.items():
    print(f"{name:<20}" + "".join(f"{found[sigma] / best[sigma]:>7.1f}" if sigma in found else f"{'':>7}" for sigma in SIGMAS))
print()
print("largest error on this picture, as a share of its range")
for name, found in errors.items():
    print(f"{name:<20}" + "".join(f"{found[sigma]:>7.0e}" if sigma in found else f"{'':>7}" for sigma in SIGMAS))


def crossing(slow: str, quick: str) -> float | None:
    """The sigma from which on the second is quicker, up to the largest looked at; None where it is so from the first on, or not there."""
    gaps = [(sigma, np.log(seconds[slow][sigma] / seconds[quick][sigma])) for sigma in SIGMAS if sigma in seconds[slow]]
    found = None
    for (low, before), (high, after) in pairwise(gaps):
        if before < 0 <= after:
            found = float(low * (high / low) ** (before / (before - after)))
    return found if gaps[-1][1] >= 0 else None


crossings = {name: crossing(name, "transform") for name in METHODS if name != "transform"}
fig, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
for name, found in seconds.items():
    axis.loglog(list(found), [1e9 * value / picture.size for value in found.values()], color=COLOURS[name], marker=MARKS[name], label=name)
for name, at in crossings.items():
    if at is not None:
        height = np.exp(np.interp(np.log(at), np.log(list(seconds[name])), np.log(list(seconds[name].values()))))
        axis.plot(at, 1e9 * height / picture.size, "o", markersize=16, markerfacecolor="none", markeredgecolor="gray")
axis.set_xticks(SIGMAS, [f"{sigma:g}" for sigma in SIGMAS])
axis.minorticks_off()
axis.set(xlabel="sigma (pixels)", ylabel="nanoseconds a pixel", title="circled: where the transform becomes the quicker of two")
fig.legend(loc="outside right center")

# %%
# A method that is chosen
# -----------------------
# ``blur`` takes the quicker of its two ways by what they would compute. Was that the right one here, and how far is it from the quickest
# of all six?

print(f"{'sigma':>6}  {'sash takes':<14}{'by the quicker of its two':>27}{'by the quickest of all':>24}{'stated error':>14}{'found':>9}")
to_own, to_all = {}, {}
NAMES = {"direct": "two passes, sash", "multirate": "two rates, sash"}
for sigma in SIGMAS:
    plan = plan_of(sigma)
    taken = seconds[NAMES[plan.method]][sigma]
    to_own[sigma] = taken / min(seconds[name][sigma] for name in NAMES.values() if sigma in seconds[name])
    to_all[sigma] = taken / best[sigma]
    print(
        f"{sigma:>6g}  {NAMES[plan.method].removesuffix(', sash'):<14}{to_own[sigma]:>27.2f}{to_all[sigma]:>24.2f}{plan.error:>14.1e}"
        f"{errors[NAMES[plan.method]][sigma]:>9.0e}"
    )

# %%
# The answer
# ----------

print(
    fill(
        f"Two passes are the 2-D filter: with a square window they differ by {apart['one square window']:.0e} of the range, which is "
        f"rounding. With a window that is cut off round they differ by {apart['one round window']:.0e}, and rounded to bytes between the "
        f"passes, by {apart['two passes, bytes between them']:.0e}. Cutting off at 4 sigma is an error of its own "
        f"({worst['two passes, scipy']:.0e} in each direction), and so are a recursion of fourth order ({worst['recursive']:.0e}) and two "
        f"rates ({worst['two rates, sash']:.0e}); the cosine transform has next to none ({worst['transform']:.0e}).",
        100,
    )
)
print()
told = {
    name: f"{name}: from sigma {at:.1f} on" if at else f"{name}: {'never' if ahead else 'at every sigma'}"
    for name, at in crossings.items()
    for ahead in [seconds[name][max(seconds[name])] < seconds["transform"][max(seconds[name])]]
}
print(
    fill(
        "When the transform wins depends on against what. With one thread, and up to the largest sigma that each was run at, it wins over "
        + "; ".join(told.values())
        + ". It takes the same time at any sigma, but it has to hold the whole picture.",
        100,
    )
)
print()
apart_own = max(to_own.values()) - 1
print(
    fill(
        f"sash's choice between its two ways was {'within' if apart_own <= 0.15 else 'not always within'} 15 % of the quicker one (at most "
        f"{max(apart_own, 0):.0%} slower), and took at most {max(to_all.values()):.1f} times the time of the quickest of all six.",
        100,
    )
)

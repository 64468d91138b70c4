"""
How much buffer does an FFT need?
=================================

Manuals of FFT libraries say that a transform may need room beside its input and output, up to eight times the array. When is it eight
times, and when next to nothing? The answer matters to whoever transforms an array that nearly fills the memory.

This page writes down what an FFT library holds, as a forecast, and measures it: for lengths that are quick, lengths that are prime, real
and complex samples, one long line and many short ones. It runs on a CPU; of CUDA it says nothing.
"""

# %%
# What a transform holds
# ----------------------
# A length that is a product of small factors is transformed factor by factor: each sample is multiplied by *twiddle factors*, as many as
# there are samples, and one buffer as long as the line holds what comes between. A length with a large prime factor would be slow that way.
# It is written as a convolution (Bluestein's way), of a quick length that is at least twice as long, and this has twiddle factors, buffers
# and a spectrum of its own. Where there are many lines, they are done one after another, or a few side by side in the processor's vectors,
# in the same buffers.
#
# The rules below are those of pocketfft, the library inside ``scipy.fft`` (pocketfft_hdronly.hpp: which way a length goes, and what each
# class allocates). The real transform copies its line as well. Sizes are in bytes.

import json
import subprocess
import sys
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.fft import next_fast_len

import sash
from sash.units import format_bytes

COMPLEX, REAL = 8, 4
"""Bytes of a sample of complex64, and of fp32."""
LANES = 4
"""Lines of fp32 side by side, where the library was built for vectors of 128 bits, as its wheels are."""


def factors(length: int) -> list[int]:
    """Its prime factors."""
    found, factor = [], 2
    while factor * factor <= length:
        while length % factor == 0:
            found.append(factor)
            length //= factor
        factor += 1
    return [*found, length] if length > 1 else found


def work(length: int) -> float:
    """The library's guess of what a length costs, factor by factor."""
    return length * sum(factor if factor <= 5 else 1.1 * factor for factor in factors(length))


def filled_up(length: int) -> int:
    """The next length that is quick."""
    return int(next_fast_len(length) or length)


def longer(length: int, real: bool) -> int | None:
    """The length of Bluestein's convolution; None where a line goes factor by factor."""
    if length < 50 or max(factors(length)) ** 2 <= length:
        return None
    quick = filled_up(2 * length - 1)
    return quick if 3 * work(quick) < (0.5 if real else 1) * work(length) else None


def workspace(length: int, lines: int = 1, real: bool = False) -> int:
    """Bytes beside input and output, at most."""
    quick, side = longer(length, real), min(lines, LANES) if lines >= LANES else 1
    item = REAL if real else COMPLEX
    if quick is None:
        kept, buffers = length * item, length * item
    else:
        kept = (length + quick // 2 + 1 + quick) * COMPLEX
        buffers = (2 * quick + (length if real else 0)) * COMPLEX
    # The line itself: a real one is copied; a complex one only where several lie side by side, for one alone is done in the output.
    copies = length * item if real or side > 1 else 0
    held = kept + side * (buffers + copies)
    # Of one real line the output is written when the buffers are gone.
    output = (length // 2 + 1) * COMPLEX
    return max(held - output, kept + copies) if real and side == 1 else held


# %%
# Forecast and measured
# ---------------------
# Each library has a process of its own, which notes by how much it grows in a transform, beyond its input and output. ``numpy.fft`` is
# built on the same library and calls it in its own way. ``torch.fft`` is Intel's MKL where torch was built with it. Its rules are not
# public, and so it is measured only.

CASES = {
    "2^20": (2**20, 1),
    "2, 3, 5 and 7": (2**7 * 3**2 * 5**3 * 7, 1),
    "11 to 23": (11 * 13 * 17 * 19 * 23, 1),
    "6 times a prime": (6 * 174_763, 1),
    "prime": (2**20 - 3, 1),
    "many lines of 2^10": (2**10, 1024),
    "many prime lines": (1021, 1024),
}
CHILD = """
import ctypes, gc, json, sys
import numpy as np

name, cases = sys.argv[1], json.loads(sys.argv[2])
if name == "torch":
    import torch
    torch.set_num_threads(1)
    transforms, made = torch.fft, lambda array: torch.from_numpy(array)
elif name == "scipy":
    import scipy.fft
    transforms, made = scipy.fft, lambda array: array
else:
    transforms, made = np.fft, lambda array: array

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

M_MMAP_THRESHOLD = -3
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # what is freed leaves the process, in glibc
found = []
for kind, length, lines in cases:
    array = made(np.ones((lines, length), np.float32 if kind.startswith("rfft") else np.complex64))
    for short in range(60, 77):  # the library loads what it needs, and forgets the plans of earlier lengths
        getattr(transforms, kind)(array[:1, :short])
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest level counts from here
    before = status("VmRSS")
    result = getattr(transforms, kind)(array)
    found.append(max(status("VmHWM") - before - result.nbytes, 0))
    del result
print(json.dumps(found))
"""


def measured(name: str, cases: list[tuple[str, int, int]]) -> list[int]:
    """Bytes beside input and output, of each."""
    run = subprocess.run([sys.executable, "-c", CHILD, name, json.dumps(cases)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


kinds = [(kind, *case) for kind in ("fft", "rfft") for case in CASES.values()]
found = {name: dict(zip(kinds, measured(name, kinds), strict=True)) for name in ("scipy", "numpy", "torch")}
forecast = {(kind, length, lines): workspace(length, lines, kind == "rfft") for kind, length, lines in kinds}


def share(bytes_: int, case: tuple[str, int, int]) -> float:
    """Of the input."""
    kind, length, lines = case
    return bytes_ / (length * lines * (REAL if kind == "rfft" else COMPLEX))


mkl = "torch, by MKL" if torch.backends.mkl.is_available() else "torch"
print("beside input and output, by the input")
print(f"{'':<34}{'scipy':>18}{'numpy':>10}{mkl:>15}")
print(f"{'':<12}{'length':<22}{'forecast':>9}{'measured':>9}{'measured':>10}{'measured':>15}")
for kind in ("fft", "rfft"):
    for label, case in CASES.items():
        key = (kind, *case)
        cells = [share(forecast[key], key), *(share(found[name][key], key) for name in found)]
        widths = (9, 9, 10, 15)
        print(
            f"{'complex' if kind == 'fft' else 'real':<12}{label:<22}" + "".join(f"{c:>{w}.2f}" for c, w in zip(cells, widths, strict=True))
        )

COLOURS = {"scipy": "#0072B2", "numpy": "#E69F00", "torch": "#009E73"}
fig, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained", sharey=True)
for axis, kind, title in zip(axes, ("fft", "rfft"), ("complex", "real"), strict=True):
    for place, (name, colour) in enumerate(COLOURS.items()):
        values = [share(found[name][kind, *case], (kind, *case)) for case in CASES.values()]
        label = f"{mkl if name == 'torch' else name}, measured"
        axis.barh(np.arange(len(CASES)) + 0.27 * (place - 1), values, 0.25, color=colour, label=label)
    ticks = [share(forecast[kind, *case], (kind, *case)) for case in CASES.values()]
    axis.plot(ticks, np.arange(len(CASES)) - 0.27, "|", color="black", markersize=12, markeredgewidth=2, label="scipy, forecast")
    axis.axvline(8, color="gray", linestyle=":", linewidth=1, label="8 times")
    axis.set(title=f"{title} samples", xlabel="beside input and output, by the input")
axes[0].set_yticks(range(len(CASES)), list(CASES))
axes[0].invert_yaxis()
axes[1].legend(loc="lower right", fontsize=9)

# %%
# Any length
# ----------
# Lengths drawn at random, as an image's side or a recording's samples come. Most have a large prime factor.

drawn = sorted(int(length) for length in np.random.default_rng(0).integers(200_000, 400_000, 40))
cases = [("fft", length, 1) for length in drawn]
grown = measured("scipy", cases)
told = [workspace(length) for length in drawn]
off = max(abs(one - other) / other for one, other in zip(grown, told, strict=True))
bluestein = sum(longer(length, False) is not None for length in drawn) / len(drawn)
padded = [workspace(filled_up(length)) + (filled_up(length) - length) * 2 * COMPLEX for length in drawn]

fig, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
axis.plot(drawn, [share(one, case) for one, case in zip(told, cases, strict=True)], "_", color="black", markersize=14, label="forecast")
axis.plot(drawn, [share(one, case) for one, case in zip(grown, cases, strict=True)], "o", color="#0072B2", markersize=5, label="measured")
axis.plot(
    drawn,
    [share(one, case) for one, case in zip(padded, cases, strict=True)],
    "x",
    color="#D55E00",
    markersize=5,
    label="filled up with zeros to the next quick length, by forecast",
)
axis.set(xlabel="length (samples)", ylabel="workspace, by the input", ylim=(0, 10.5))
axis.legend(loc="upper left", ncols=3, fontsize=9)
print(f"{len(drawn)} lengths, {bluestein:.0%} by Bluestein's way; forecast and measured differ by {off:.1%} at most")

# %%
# Many axes
# ---------
# An image is transformed line by line, along one axis and then along the other. So a large image needs hardly more than its lines do.

prime = ("rfft2", 2039, 2039)
image = measured("scipy", [prime])[0] / (2039 * 2039 * REAL)
print(f"a real image of 2039x2039, both sides prime: {image:.2f} times the input")

# %%
# What sash forecasts
# -------------------
# ``sash.forecast`` counts what torch's allocator gives out. Buffers that a library takes from the system by itself are not among it.

for length in (2**20, 2**20 - 3):
    cost = sash.forecast(sash.Workload(torch.fft.fft, torch.ones(length, dtype=torch.complex64)))
    own = found["torch"]["fft", length, 1]
    print(
        f"torch.fft.fft of {length}: the allocator's peak {format_bytes(cost.peak_bytes)}; the library's own beside it {format_bytes(own)}"
    )

# %%
# The answer
# ----------

quick, slow = ("fft", *CASES["2^20"]), ("fft", *CASES["prime"])
real, many = ("rfft", *CASES["prime"]), ("fft", *CASES["many prime lines"])
names = ("scipy", "numpy", "torch")
listed = {
    key: ", ".join(f"{mkl if name == 'torch' else name} {share(found[name][key], key):.1f}" for name in names)
    for key in (quick, slow, real)
}
print(
    fill(
        f"It depends on the length. One line of 2^20 complex samples takes, in times of the input: {listed[quick]}. One of prime length: "
        f"{listed[slow]}. In scipy that is no safety margin, but the sum of what Bluestein's way holds: {share(forecast[slow], slow):.1f} "
        f"by forecast. Of real samples, whose array is half as large, it is {share(forecast[real], real):.0f} times the input by forecast, "
        f"and measured: {listed[real]}.",
        100,
    )
)
print()
filled = np.median([share(one, case) for one, case in zip(padded, cases, strict=True)])
print(
    fill(
        f"Many lines share their buffers: 1024 lines of prime length take {share(found['scipy'][many], many):.2f} times the input in "
        f"scipy, and an image {image:.2f}. So the manual's eight is for one long line of an unlucky length. Of the lengths drawn here "
        f"{bluestein:.0%} were unlucky. Filled up with zeros to the next quick length, as sash's own transforms of tiles are, they take "
        f"about {filled:.0f} times the input.",
        100,
    )
)

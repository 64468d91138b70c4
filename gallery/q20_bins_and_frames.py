"""
I take 1024-sample windows of a 44.1 kHz signal. What frequency is bin 3?
=========================================================================

A short-time Fourier transform cuts sound into frames, and tells for each frame how strong each frequency is in it. Its rows are *bins*, its
columns *frames*. Which frequency is a bin, and which time a frame? How near may two tones lie? And what does it cost, when the sound goes
on for hours?

This page computes the table, tests it with tones, reads the spectrogram of a recording, and transforms sound longer than the memory that
it is given.
"""

# %%
# Bins, frames, Hertz and seconds
# -------------------------------
# A frame of 1024 samples at 44,100 samples a second lasts 1024 / 44,100 seconds. Bin 1 is the wave that fits into a frame once, bin 3 the
# one that fits three times; half the rate is the last. ``explain_bins`` makes the table (in a shell, ``sash stft --explain 1024 44100``).

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import soundfile

import sash
from sash.arrays import explain_bins, istft, overlap_add, stft
from sash.units import format_bytes

FRAME, RATE = 1024, 44_100
table = explain_bins(FRAME, RATE)
print(table)

# %%
# The frames are those of a window that slides over the signal: ``sash.Window`` says how many there are, and what each reads. A tone of bin
# 3's frequency has its highest bin there:

second = np.arange(RATE) / RATE
tone = np.sin(2 * np.pi * table.hz(3) * second)
spectra = stft(tone, FRAME, table.hop, output="magnitude", centered=False)
loudest = int(spectra.mean(1).argmax())
window = sash.Window(FRAME, table.hop)
print(f"a tone of {table.hz(3):.2f} Hz is loudest in bin {loudest}")
print(
    f"one second: {window.outputs(RATE)} frames by the window, {spectra.shape[1]} from the transform; frame 10 reads {window.reads(10, 11)}"
)

# %%
# A tone between two bins
# -----------------------
# A tone whose frequency is no bin's does not fall into one. Cut off by the ends of the frame (*boxcar*, no window) it leaks into all of
# them. A window that fades at its ends confines it to a few, and pays with a wider peak.

WINDOWS = {"boxcar": "#000000", "hann": "#0072B2", "blackmanharris": "#D55E00"}
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
for axis, place in zip(axes, (30.0, 30.5), strict=True):
    for name, colour in WINDOWS.items():
        found = stft(np.sin(2 * np.pi * table.hz(place) * second), FRAME, window=name, output="power", centered=False)[:, 20]
        axis.plot(10 * np.log10(found / found.max() + 1e-15), ".-", color=colour, label=name, linewidth=1, markersize=4)
    axis.set(title=f"a tone at bin {place:g}, {table.hz(place):.0f} Hz", xlabel="bin", xlim=(0, 60), ylim=(-150, 5))
axes[0].set_ylabel("dB below the highest bin")
axes[0].legend(loc="upper left", fontsize=9)

print(f"{'window':<16}{'main lobe':>18}{'half power':>18}{'highest side lobe':>19}")
for name in WINDOWS:
    one = explain_bins(FRAME, RATE, window=name)
    lobe, half = f"{one.main_lobe_bins:.2f} bins {one.main_lobe_hz:.0f} Hz", f"{one.half_power_bins:.2f} bins {one.half_power_hz:.0f} Hz"
    print(f"{name:<16}{lobe:>18}{half:>18}{one.side_lobe_db:>16.1f} dB")

# %%
# Two tones, and a click
# ----------------------
# A longer frame has finer bins, and knows less well when something was. Two tones 60 Hz apart and a click, in frames of four lengths: short
# frames see when the click was, and one tone that swells and fades sixty times a second; long ones see two tones and a smeared click.

APART, CLICK_S = 60.0, 0.25
FRAMES = (256, 1024, 4096, 16384)
half_second = second[: RATE // 2]
signal = 0.5 * (np.sin(2 * np.pi * 1000 * half_second) + np.sin(2 * np.pi * (1000 + APART) * half_second))
signal[int(CLICK_S * RATE)] += 20
fig, axes = plt.subplots(1, len(FRAMES), figsize=(13, 3.4), layout="constrained", sharey=True)
for axis, frame in zip(axes, FRAMES, strict=True):
    one = explain_bins(frame, RATE, hop=64)
    levels = stft(signal, frame, 64, output="db")
    levels -= levels.max()
    ends = (-one.hop_ms / 2, (levels.shape[1] - 0.5) * one.hop_ms, -one.bin_hz / 2, RATE / 2 + one.bin_hz / 2)
    axis.imshow(levels, origin="lower", aspect="auto", extent=ends, cmap="magma", vmin=-60, vmax=0)
    axis.set(ylim=(700, 1360), xlim=(0, 500), xlabel="ms", title=f"{frame}: {one.bin_hz:.0f} Hz, {one.frame_ms:.0f} ms")
axes[0].set_ylabel("Hz")
fig.colorbar(axes[-1].images[0], ax=axes, label="dB below the highest", shrink=0.9)
needed = {frame: explain_bins(frame, RATE).half_power_hz for frame in FRAMES}
for frame, hz in needed.items():
    print(f"frame {frame:>6}: tones are told apart from about {hz:.0f} Hz on: {'two' if hz < APART else 'one'} at {APART:.0f} Hz")

# %%
# A recording
# -----------
# Many installations of Python carry a recording of some seconds among their own tests. Where it is missing, a made-up glide of four
# harmonics takes its place; the title says which it is.


def recording() -> tuple[np.ndarray, int, str]:
    """Samples, rate, and what they are."""
    tests = Path(sysconfig.get_path("stdlib")) / "test"
    for path in (tests / "audiotest.au", tests / "test_email" / "data" / "sndhdr.au"):
        if path.is_file():
            samples, rate = soundfile.read(path, dtype="float32")
            return samples, rate, f"a recording, {path.name} of Python's tests"
    rate = 8000
    at = np.arange(3 * rate) / rate
    pitch = np.cumsum(140 + 60 * np.sin(2 * np.pi * 0.7 * at)) / rate
    glide = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 5))
    return (0.3 * glide * np.sin(np.pi * at) ** 2).astype(np.float32), rate, "made up: no recording was found"


samples, rate, what = recording()
hop = 16
fig, axes = plt.subplots(3, 1, figsize=(11, 8), layout="constrained", sharex=True, height_ratios=(0.7, 1, 1))
axes[0].plot(np.arange(len(samples)) / rate, samples, color="#0072B2", linewidth=0.5)
axes[0].set(ylabel="sample", title=f"{what}; {rate} samples a second")
for axis, frame in zip(axes[1:], (64, 512), strict=True):
    one, levels = explain_bins(frame, rate, hop), stft(samples, frame, hop, output="db")
    levels -= levels.max()
    ends = (-one.hop_ms / 2e3, (levels.shape[1] - 0.5) * one.hop_ms / 1e3, -one.bin_hz / 2, one.hz(one.bins - 0.5))
    shown = axis.imshow(levels, origin="lower", aspect="auto", extent=ends, cmap="magma", vmin=-70, vmax=0)
    axis.set(
        ylabel="Hz",
        title=f"frames of {frame} samples: {one.frame_ms:.0f} ms, bins {one.bin_hz:.0f} Hz apart",
        xlim=(0, len(samples) / rate),
    )
    fig.colorbar(shown, ax=axis, label="dB below the highest")
axes[-1].set_xlabel("s")
print(f"{what}: {len(samples) / rate:.1f} s at {rate} Hz")

# %%
# How to read it: sound with a pitch is a ladder of lines, one step apart for each period a second. In short frames (above) the ladder is
# gone and the single openings of the vocal folds show as upright lines; in long ones (below) the ladder is there and the openings are gone.
# Hiss is a cloud without lines, and a click an upright line through all frequencies.
#
# Back to the signal
# ------------------
# The transform can be undone where the squared windows add up to something at every sample. ``overlap_add`` says whether they do.

exact = overlap_add("hann", 512, hop)
gap = overlap_add("hann", 512, 512)
back = istft(stft(samples, 512, hop), 512, hop, length=len(samples))
off = float(np.abs(back - samples).max())
print(exact)
print(gap)
print(f"there and back: off by {off:.0e}, where the loudest sample is {np.abs(samples).max():.2f}")

# %%
# Hours of sound
# --------------
# The recording over and over, as 1, 3 and 9 minutes in a file at 44.1 kHz, each transformed to a file by a process of its own within one
# budget. Beside it stands what a transform in memory would hold of the last: the samples and the spectra, at least.

BUDGET = "24 MiB"
CHILD = """
import sys
import numpy as np
from sash.arrays import stft

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

source, out, frame, budget = sys.argv[1:]
np.save(out + ".small.npy", np.zeros(100_000, np.float32))
stft(out + ".small.npy", int(frame), out=out + ".made.npy")  # so that libraries load what they need
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest level counts from here
before = status("VmRSS")
stft(source, int(frame), out=out, budget=budget)
print(status("VmHWM") - before)
"""

grown, sizes = {}, {}
print(f"{'sound':>10}{'samples':>11}{'spectra':>11}{'tasks':>7}{'forecast':>11}{'measured':>11}")
with tempfile.TemporaryDirectory() as folder:
    for minutes in (1, 3, 9):
        source, out = Path(folder) / f"{minutes}.npy", Path(folder) / f"{minutes}-spectra.npy"
        long = np.lib.format.open_memmap(source, "w+", np.float32, (minutes * 60 * RATE,))
        for start in range(0, len(long), len(samples)):
            long[start : start + len(samples)] = samples[: len(long) - start]
        del long
        plan = stft(source, FRAME, out=out, budget=BUDGET, plan_only=True)
        command = [sys.executable, "-c", CHILD, source, out, str(FRAME), BUDGET]
        grown[minutes] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        sizes[minutes] = source.stat().st_size + plan.written_bytes
        out.unlink()
        print(
            f"{f'{minutes} min':>10}{format_bytes(source.stat().st_size):>11}{format_bytes(plan.written_bytes):>11}{plan.tasks:>7}"
            f"{format_bytes(plan.peak_bytes):>11}{format_bytes(grown[minutes]):>11}"
        )
    # A file with holes for samples; it is planned for, not run.
    np.lib.format.open_memmap(hours := Path(folder) / "hours.npy", "w+", np.float32, (10 * 3600 * RATE,))
    ten = stft(hours, FRAME, out=Path(folder) / "ten.npy", budget=BUDGET, plan_only=True)
    told = f"{'10 h':>10}{format_bytes(hours.stat().st_size):>11}{format_bytes(ten.written_bytes):>11}{ten.tasks:>7}"
    print(f"{told}{format_bytes(ten.peak_bytes):>11}{'(not run)':>11}")

# %%
# The answer
# ----------

fine = next(frame for frame, hz in needed.items() if hz < APART)
print(
    fill(
        f"Bin 3 is {table.hz(3):.1f} Hz: bins lie rate / frame = {table.bin_hz:.2f} Hz apart, from 0 to half the rate. Frame k is the "
        f"sound around k times the hop, {table.hop_ms:.1f} ms here, and blurs what happens within {table.frame_ms:.1f} ms. With a Hann "
        f"window the peak of a tone is {table.main_lobe_bins:.0f} bins wide at its foot; of the frames tried, those of {fine} samples and "
        f"more show two tones {APART:.0f} Hz apart as two. Finer bins are longer frames: one cannot have both.",
        100,
    )
)
print()
print(
    fill(
        f"The transform costs an FFT a frame, and at this hop it writes {ten.written_bytes / (4 * 10 * 3600 * RATE):.1f} times the bytes "
        f"that it reads. What it holds does not grow with the sound: within a budget of {BUDGET}, a process grew by "
        + ", ".join(f"{format_bytes(size)} for {minutes} min" for minutes, size in grown.items())
        + f"; samples and spectra of the last have {format_bytes(sizes[9])}. Ten hours take {format_bytes(ten.peak_bytes)}, by forecast.",
        100,
    )
)

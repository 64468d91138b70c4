"""
We pad to keep the size, then pool to shrink it. Is that not a contradiction?
=============================================================================

Many networks pad every convolution so that the map keeps its size, and then pool so that it shrinks. If the map shall shrink anyway, why
pad?

Because padding is not about the size. It is about the *border*: without it, the samples at the edge are read less often than those in the
middle, and the deeper the network, the less. This page counts it, looks at what may stand beyond a border, and trains a network with and
without padding to see who misses an object that sits there.
"""

# %%
# One window on eight samples
# ---------------------------
# A window of 3 reads three neighbours. *Coverage* is how often each sample is read.

import statistics
from textwrap import fill
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import sash
from sash.arrays import blur
from sash.models import train

bare, padded = sash.Window(3), sash.Window(3, pad=(1, 1))
print("without padding:", bare.outputs(8), "outputs, coverage", bare.coverage(8))
print("with padding:   ", padded.outputs(8), "outputs, coverage", padded.coverage(8))

# %%
# Without padding the first sample is read once and its neighbour twice. With one sample of padding on each side the size stays, and the
# first sample is read twice: better, not equal.

# %%
# Four convolutions and two poolings
# ----------------------------------
# Now a small network: two convolutions, a pooling, two convolutions, a pooling. Every path from a sample to an output counts once.

LENGTH = 64


def network(pad):
    """Two rounds of two convolutions and a pooling."""
    conv, pool = sash.Window(3, pad=(pad, pad)), sash.Window(2, stride=2)
    return sash.Chain([conv, conv, pool, conv, conv, pool])


chains = {"without padding": network(0), "with padding": network(1)}
coverage = {name: chain.coverage(LENGTH) for name, chain in chains.items()}

figure, axes = plt.subplots(figsize=(8, 3.5))
for name, counts in coverage.items():
    lengths = " → ".join(map(str, dict.fromkeys(chains[name].lengths(LENGTH))))
    axes.step(range(LENGTH), counts, where="mid", label=f"{name} ({lengths})")
axes.set(xlabel="sample", ylabel="paths to an output", title="How often each sample is read", ylim=(0, None))
axes.legend(loc="lower center")
figure.tight_layout()
plt.show()

for name, counts in coverage.items():
    print(
        f"{name}: first sample {counts[0]}, middle {counts[LENGTH // 2]}: the border is read {counts[0] / counts[LENGTH // 2]:.0%} as often"
    )

# %%
# An image
# --------
# On an image a pixel's coverage is the product of its row's and its column's, so the corners lose twice.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
for panel, (name, counts) in zip(axes, coverage.items(), strict=True):
    line = torch.tensor(counts, dtype=torch.float64)
    share = torch.outer(line, line) / line.max() ** 2
    panel.imshow(share, vmin=0, vmax=1, cmap="viridis")
    panel.set(title=f"{name}\ncorner {share[0, 0]:.2g} of the most-read pixel", xlabel="column", ylabel="row")
figure.colorbar(axes[0].images[0], ax=axes, label="paths, as a share of the most")
plt.show()

# %%
# Is the count right?
# -------------------
# If every weight is 1, the gradient of the sum of all outputs is the number of paths. torch agrees with the map, pixel by pixel:

for name, pad in (("without padding", 0), ("with padding", 1)):
    image = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.float64, requires_grad=True)
    three, two = torch.ones(1, 1, 3, 3, dtype=torch.float64), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    made = image
    for _ in range(2):
        made = torch.conv2d(torch.conv2d(made, three, padding=pad), three, padding=pad)
        made = torch.conv2d(made, two, stride=2)
    made.sum().backward()
    assert image.grad is not None
    line = torch.tensor(coverage[name], dtype=torch.float64)
    print(f"{name}: equal to torch's gradient: {torch.equal(image.grad[0, 0], torch.outer(line, line))}")

# %%
# What stands beyond the border
# -----------------------------
# A window that hangs over the border reads something there, and it has to be made up. A blur shows how much that matters. A part of a
# photograph is blurred by itself, with each of the five ways to go on beyond its ends; the whole photograph has the right result.

SIGMA, SIDE, PLACES = 8, 256, (128, 384)
photograph = data.camera().astype(np.float32) / 255
inside = (slice(*PLACES), slice(*PLACES))
right = blur(photograph, SIGMA)[inside]
BEYOND: dict[Literal["constant", "wrap", "nearest", "mirror", "reflect"], str] = {
    "constant": "zeros",
    "wrap": "the other side",
    "nearest": "the last pixel, again and again",
    "mirror": "mirrored at the last pixel",
    "reflect": "mirrored beside the last pixel",
}
parts = {boundary: blur(np.ascontiguousarray(photograph[inside]), SIGMA, boundary=boundary) for boundary in BEYOND}

edge = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])
distance = np.minimum(edge[:, None], edge)
near = range(4 * SIGMA)
errors = {boundary: [float(np.sqrt(np.mean((found - right)[distance == away] ** 2))) for away in near] for boundary, found in parts.items()}
print(f"{'beyond the border':<34}{'error at the border':>20}{f'{2 * SIGMA} pixels in':>16}")
for boundary, name in BEYOND.items():
    print(f"{name:<34}{errors[boundary][0]:>20.3f}{errors[boundary][2 * SIGMA]:>16.4f}")

# %%
# Zeros, as layers pad, are the darkest guess. How dark is known beforehand: the same blur of a picture of ones says which share of the
# weights lies on the picture. Divided by it, the mean is one of real pixels again.

share = blur(np.ones((SIDE, SIDE), np.float32), SIGMA, boundary="constant")
divided = parts["constant"] / share
errors["constant, divided"] = [float(np.sqrt(np.mean((divided - right)[distance == away] ** 2))) for away in near]
print(f"share of the weights on the picture: corner {share[0, 0]:.2f}, edge {share[0, SIDE // 2]:.2f}, middle {share[128, 128]:.2f}")

figure = plt.figure(figsize=(12, 3.6), layout="constrained")
curves, *pictures = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
STYLES = dict(
    zip(errors, (("#000000", "-"), ("#D55E00", "-"), ("#E69F00", "-"), ("#009E73", "-"), ("#0072B2", "-"), ("#000000", ":")), strict=True)
)
for name, values in errors.items():
    curves.semilogy(near, values, color=STYLES[name][0], linestyle=STYLES[name][1], label=name)
curves.set(xlabel="pixels from the border", ylabel="error (root mean square)", title=f"sigma {SIGMA}")
curves.legend(fontsize=8)
for panel, (title, shown) in zip(
    pictures, {"from the whole": right, "constant": parts["constant"], "reflect": parts["reflect"]}.items(), strict=True
):
    panel.imshow(shown, cmap="gray", vmin=0, vmax=1)
    panel.set_title(title, fontsize=10)
    panel.set_axis_off()
plt.show()

# %%
# An object at the border
# -----------------------
# scikit-learn's digits, 8×8 pixels, on a noisy canvas of 24×24, anywhere on it. The network is the one above with channels, a mean over
# what is left of the map, and a linear layer; with and without padding it has the same parameters and sees the same pictures, from three
# random starts. The held-out digits are shown at stated distances from the nearest border.

CANVAS, DIGIT, EPOCHS, SEEDS = 24, 8, 8, (0, 1, 2)
DISTANCES = (0, 1, 2, 4, 8)
digits, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
digits, labels = digits.float().view(-1, DIGIT, DIGIT)[order] / 16, labels.long()[order]
LEARNT, ROOM = 1200, CANVAS - DIGIT


def placed(digits: Tensor, rows: Tensor, columns: Tensor, seed: int) -> Tensor:
    """Each digit on its canvas, among noise."""
    canvas = 0.3 * torch.rand(len(digits), 1, CANVAS, CANVAS, generator=torch.Generator().manual_seed(seed))
    for picture, digit, row, column in zip(canvas, digits, rows.tolist(), columns.tolist(), strict=True):
        picture[0, row : row + DIGIT, column : column + DIGIT] += digit
    return canvas - 0.2


def at_distance(away: int) -> Tensor:
    """The held-out digits, that far from one border, anywhere along it; from the others at least as far."""
    generator = torch.Generator().manual_seed(away)
    count = len(digits) - LEARNT
    rows = torch.where(torch.rand(count, generator=generator) < 0.5, away, ROOM - away)
    columns = torch.randint(away, ROOM - away + 1, (count,), generator=generator)
    turned = torch.rand(count, generator=generator) < 0.5
    return placed(digits[LEARNT:], torch.where(turned, rows, columns), torch.where(turned, columns, rows), away + 1)


def trained(pad: int, seed: int) -> nn.Module:
    """The network, after its epochs."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16)):
        for channels in (before, after):
            layers += [nn.Conv2d(channels, after, 3, padding=pad), nn.BatchNorm2d(after), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    train(
        model,
        to_learn,
        loss=F.cross_entropy,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        epochs=EPOCHS,
        batch=50,
        seed=seed,
        progress=False,
    )
    return model.eval()


def accuracy(model: nn.Module, pictures: Tensor) -> float:
    """Per cent of the held-out digits that are told right."""
    with torch.no_grad():
        return 100 * float((model(pictures).argmax(1) == labels[LEARNT:]).float().mean())


generator = torch.Generator().manual_seed(1)
rows, columns = torch.randint(ROOM + 1, (2, 2 * LEARNT), generator=generator)
to_learn = (placed(digits[:LEARNT].repeat(2, 1, 1), rows, columns, 0), labels[:LEARNT].repeat(2))
shown = {away: at_distance(away) for away in DISTANCES}
threads = torch.get_num_threads()
torch.set_num_threads(1)  # maps as small as these are done before a second core has started
found = {
    name: [[accuracy(model, pictures) for pictures in shown.values()] for model in (trained(pad, seed) for seed in SEEDS)]
    for name, pad in (("without padding", 0), ("with padding", 1))
}
torch.set_num_threads(threads)

means = {name: [statistics.mean(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
spread = {name: [statistics.stdev(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
print(f"{LEARNT} digits at two places each, {EPOCHS} epochs, {len(SEEDS)} starts; per cent right of {len(digits) - LEARNT} held out")
print(f"{'pixels from the border':<24}" + "".join(f"{away:>14}" for away in DISTANCES))
for name in found:
    print(f"{name:<24}" + "".join(f"{f'{mean:.1f} ± {off:.1f}':>14}" for mean, off in zip(means[name], spread[name], strict=True)))

figure, (example, curves) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(1, 2))
example.imshow(torch.cat([torch.cat([*shown[0][:2, 0]], 1), torch.cat([*shown[8][:2, 0]], 1)]), cmap="gray")
example.axhline(CANVAS - 0.5, color="white")
example.axvline(CANVAS - 0.5, color="white")
example.set(title="at the border; in the middle", xticks=[], yticks=[])
for (name, runs), colour, mark in zip(found.items(), ("#D55E00", "#0072B2"), "os", strict=True):
    for run in runs:
        curves.plot(DISTANCES, run, mark, color=colour, alpha=0.4, markersize=4)
    curves.plot(DISTANCES, means[name], "-", color=colour, label=name)
curves.set(xlabel="pixels from the border", ylabel="held-out accuracy (%)", title="each run, and the means")
curves.legend()
plt.show()

# %%
# The answer
# ----------

bare_line, padded_line = coverage.values()
lost = {name: values[-1] - values[0] for name, values in means.items()}
print(
    fill(
        "It is no contradiction. Pooling shrinks the map on purpose, everywhere alike. Convolution without padding shrinks it by accident, "
        f"at the border only: the first of {LENGTH} samples has {bare_line[0] / bare_line[LENGTH // 2]:.0%} of the middle's paths to an "
        f"output. With padding it has {padded_line[0] / padded_line[LENGTH // 2]:.0%}: more, though not as much as the middle.",
        100,
    )
)
print()
print(
    fill(
        f"From the middle to the border the accuracy falls by {lost['without padding']:.1f} points without padding, and by "
        f"{lost['with padding']:.1f} points with it ({means['without padding'][0]:.1f} % and {means['with padding'][0]:.1f} % at the "
        f"border; runs differ by some {max(max(values) for values in spread.values()):.1f}).",
        100,
    )
)
print()
best = min(BEYOND, key=lambda boundary: errors[boundary][0])
print(
    fill(
        f"What is padded matters too. At the border of a blurred photograph zeros are off by {errors['constant'][0]:.3f} of the range. "
        f"Divided by the share of weights on the picture it is {errors['constant, divided'][0]:.3f}, and with the best of the five ways, "
        f"{best}, {errors[best][0]:.3f}.",
        100,
    )
)

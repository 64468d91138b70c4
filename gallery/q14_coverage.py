"""
We pad to keep the size, then pool to shrink it. Is that not a contradiction?
=============================================================================

Many networks pad every convolution so that the map keeps its size, and then pool so that it shrinks. If the map shall shrink anyway, why
pad?

Because padding is not about the size. It is about the *border*: without it, the samples at the edge are read less often than those in the
middle, and the deeper the network, the less. This page counts it.
"""

# %%
# One window on eight samples
# ---------------------------
# A window of 3 reads three neighbours. *Coverage* is how often each sample is read.

import matplotlib.pyplot as plt
import torch

import sash

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
    picture = panel.imshow(share, vmin=0, vmax=1, cmap="viridis")
    panel.set(title=f"{name}\ncorner {share[0, 0]:.2g} of the most-read pixel", xlabel="column", ylabel="row")
figure.colorbar(picture, ax=axes, label="paths, as a share of the most")
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
    line = torch.tensor(coverage[name], dtype=torch.float64)
    print(f"{name}: equal to torch's gradient: {torch.equal(image.grad[0, 0], torch.outer(line, line))}")

# %%
# The answer
# ----------
# It is no contradiction. Pooling shrinks the map on purpose, everywhere alike. Convolution without padding shrinks it by accident, at the
# border only, and the samples there hardly count. Padding makes the border count again, though not quite as much as the middle.
#
# What this does to accuracy when the object sits at the border has to be trained and measured; that half of the question is for a later
# page.

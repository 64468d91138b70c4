"""
One huge image through a network
================================

A scan of a whole slide does not pass a network at once: its maps would outgrow the machine. Cut into tiles it fits anywhere, and then there
are seams: at a tile's border the network pads with zeros where the neighbour's pixels should have been.

How far does the padding reach, and what does it cost to do without?
"""

# %%
# A picture and a network
# -----------------------
# The page takes a picture of 768 x 640, so that the whole image fits beside its tiles and the two can be compared. A U-Net joins maps of
# several resolutions; its running statistics are drawn at random, as if it had been trained.

import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LogNorm

from sash import Workload, forecast
from sash.models import unet
from sash.plans import tiled
from sash.units import format_bytes

HEIGHT, WIDTH, TILE = 640, 768, 256

torch.manual_seed(3)
network = unet(width=8).eval()
for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.running_mean.normal_(0, 0.2)
        module.running_var.uniform_(0.5, 1.5)

rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
waves = 120 + 60 * np.sin(rows / 23) * np.cos(columns / 31) + 30 * np.sin((rows + columns) / 97)
noise = np.random.default_rng(0).normal(0, 12, (3, HEIGHT, WIDTH))
image = np.clip(waves + noise, 0, 255).astype(np.uint8)

with torch.inference_mode():
    whole = network(torch.from_numpy(image)[None].float() / 255)[0, 0].numpy()

# %%
# Tiles without a halo
# --------------------
# Every tile goes through the network as a picture of its own.

naive = np.empty_like(whole)
with torch.inference_mode():
    for top in range(0, HEIGHT, TILE):
        for left in range(0, WIDTH, TILE):
            part = np.s_[top : top + TILE, left : left + TILE]
            naive[part] = network(torch.from_numpy(image[:, *part])[None].float() / 255)[0, 0].numpy()

# %%
# Tiles with their halo
# ---------------------
# sash follows the network over the whole image without running it, and knows for each tile which part of every map on the way it needs.
# A tile at the image's border keeps the layers' own padding there, and only there.

exact = tiled(network, image, "1 GiB", tile=(TILE, TILE))[0, 0]
plan = tiled(network, image, "1 GiB", tile=(TILE, TILE), plan_only=True)
print(plan)

largest = np.abs(naive - whole).max()
fig, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
fig.colorbar(axes[0].imshow(whole, cmap="gray"), ax=axes[0], shrink=0.8)
axes[0].set_title("the network's output", fontsize=10)
for axis, found, name in ((axes[1], naive, "without a halo"), (axes[2], exact, "with it")):
    off = np.abs(found - whole)
    shown = axis.imshow(np.maximum(off, 1e-9), cmap="magma", norm=LogNorm(1e-9, largest))
    axis.set_title(f"{name}: off by up to {off.max():.0e}", fontsize=10)
    fig.colorbar(shown, ax=axis, shrink=0.8)
for axis in axes:
    axis.set_xticks([])
    axis.set_yticks([])

# %%
# How far the seam reaches
# ------------------------
# The mean difference by the distance from the nearest inner tile border. The halo is where it ends.

to_row = np.min([np.abs(np.arange(HEIGHT) - border + 0.5) for border in range(TILE, HEIGHT, TILE)], axis=0)
to_column = np.min([np.abs(np.arange(WIDTH) - border + 0.5) for border in range(TILE, WIDTH, TILE)], axis=0)
distance = np.minimum(to_row[:, None], to_column[None]).astype(int)
counts = np.bincount(distance.ravel())
fig, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, picture in (("without a halo", naive), ("with it", exact)):
    means = np.bincount(distance.ravel(), np.abs(picture - whole).ravel()) / counts
    axis.semilogy(means + 1e-10, label=name)
halo = max(side for pair in plan.halo for side in pair)
axis.axvline(halo, color="gray", linestyle="--", label=f"the halo: {halo} pixels")
axis.set_xlabel("pixels from the nearest seam")
axis.set_ylabel("mean difference")
axis.legend()

# %%
# What a budget costs
# -------------------
# Smaller tiles need less memory and compute more of the halo again. The tile for each budget comes from forecasts; nothing is run to find
# it. The last row is a scan of 16,384², from file to file: planned here from an empty file, not run.

print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
print(f"whole at once: {format_bytes(forecast(Workload(network, f'1x3x{HEIGHT}x{WIDTH}')).peak_bytes)}")
print(f"{'image':>14}{'budget':>10}{'tile':>14}{'tiles':>7}{'forecast':>11}{'more work':>11}{'off by':>9}{'seconds':>9}")
for budget in ("80 MiB", "40 MiB", "20 MiB"):
    found = tiled(network, image, budget, plan_only=True)
    started = time.perf_counter()
    made = tiled(network, image, budget)[0, 0]
    seconds = time.perf_counter() - started
    size = "x".join(map(str, found.tile))
    off = f"{np.abs(made - whole).max():.0e}"
    print(
        f"{f'{HEIGHT}x{WIDTH}':>14}{budget:>10}{size:>14}{found.tiles:>7}{format_bytes(found.peak_bytes):>11}{found.extra:>11.1%}"
        f"{off:>9}{seconds:>9.1f}"
    )

SIDE = 16_384
with tempfile.TemporaryDirectory() as folder:
    scan = Path(folder) / "scan.npy"
    np.lib.format.open_memmap(scan, "w+", np.uint8, (3, SIDE, SIDE))
    huge = tiled(network, scan, "2 GiB", Path(folder) / "scores.npy", plan_only=True)
size = "x".join(map(str, huge.tile))
print(f"{f'{SIDE}x{SIDE}':>14}{'2 GiB':>10}{size:>14}{huge.tiles:>7}{format_bytes(huge.peak_bytes):>11}{huge.extra:>11.1%}")
at_once = forecast(Workload(network, f"1x3x{SIDE}x{SIDE}")).peak_bytes
print(f"that scan at once: {format_bytes(at_once)}")

# %%
# The answer
# ----------

share = np.mean(np.abs(naive - whole) > 1e-3 * np.abs(whole).max())
print(f"Without a halo {share:.0%} of the pixels are off by more than a thousandth of the largest output, by up to {largest:.3f}.")
print(
    f"With a halo of {halo} pixels every pixel is the whole image's, up to rounding. At tiles of {TILE} x {TILE} that is "
    f"{plan.extra:.0%} more work; larger tiles need less."
)

"""
What does global pooling do, and how does a classifier take images of any size?
===============================================================================

A convolution does not care how large its input is; a fully connected layer does: it has one weight for every number that it was trained
on. So a classifier with such a head takes one size of image only. There are two ways out. Caffe's ``global_pooling`` puts a pooling window
as large as the map, whatever that is, before the head. And the head itself can be turned into convolutions, with the weights it has.

This page trains a small classifier on 8×8 digits, then runs it, unchanged, on a sheet on which many digits lie about.
"""

# %%
# Global pooling
# --------------
# One number a channel, of maps of any size: the window is the whole map. In a prototxt it stands in the place of ``kernel_size``.

from textwrap import fill
from time import perf_counter

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from sash.ops import convolutional_classifier, convolutional_head, global_pool

for sides in ((4, 4), (4, 9), (31, 17)):
    features = torch.randn(1, 32, *sides)
    pooled = global_pool(features)
    assert torch.equal(pooled.flatten(1), features.amax((2, 3)))
    print(f"a map of {'x'.join(map(str, features.shape)):<12} is pooled to {'x'.join(map(str, pooled.shape))}")

# %%
# A classifier of 8×8 digits
# --------------------------
# scikit-learn's digits, the last 400 for testing. The convolutions have no padding: what they make of an image does not depend on whether
# it stands alone or in a larger one. The head flattens a 4×4 map and goes on with fully connected layers. On a sheet most windows lie
# between digits; those are the eleventh class, and a part of the training images.

digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16
labels = torch.from_numpy(digits.target)
known, asked = slice(0, -400), slice(-400, None)
NOTHING = 10

torch.manual_seed(0)
model = nn.Sequential(
    nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()),
    nn.Flatten(),
    nn.Sequential(nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 11)),
)


def between(count: int) -> torch.Tensor:
    """Windows that are off a digit by two rows or three columns at least, with another digit beside it or none."""
    pairs = images[known][torch.randint(len(images[known]), (count, 2)), 0]
    pairs[:, 1] *= torch.rand(count, 1, 1) < 0.5
    side_by_side = F.pad(torch.cat([*pairs.unbind(1)], dim=2), (8, 0, 8, 8))
    down, along = torch.randint(0, 17, (count,)), torch.randint(0, 14, (count,))
    # The first digit stands at row 8, column 8.
    near = ((down - 8).abs() < 2) & ((along - 8).abs() < 3)
    windows = side_by_side.unfold(1, 8, 1).unfold(2, 8, 1)
    return windows[torch.arange(count), torch.where(near, down + 4, down), along][:, None]


def train(epochs: int = 30, batch: int = 64) -> None:
    """Adam, a third of each batch without a digit."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images[known])).split(batch):
            x = torch.cat([images[chosen], between(batch // 2)])
            y = torch.cat([labels[chosen], torch.full((batch // 2,), NOTHING)])
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


train()
model.eval()
with torch.no_grad():
    accuracy = (model(images[asked]).argmax(1) == labels[asked]).float().mean().item()
print(f"{accuracy:.1%} of the test digits are named right")

# %%
# The same weights on a sheet
# ---------------------------
# ``convolutional_classifier`` turns the first fully connected layer into a convolution whose window is the 4×4 map, and the others into 1×1
# convolutions. On an 8×8 image there is one position. On a sheet there are many, and each has the scores of the crop under it.

wide = convolutional_classifier(model, (1, 8, 8))
print(wide[-1])

ROWS, COLUMNS, CELL = 5, 9, 14
sheet = torch.zeros(1, 1, ROWS * CELL, COLUMNS * CELL)
truth = []
for place in range(ROWS * COLUMNS):
    if torch.rand(()) < 0.75:
        top, left = (CELL * at + int(torch.randint(0, CELL - 8, ())) for at in divmod(place, COLUMNS))
        number = len(images) - 400 + place
        sheet[0, 0, top : top + 8, left : left + 8] = images[number, 0]
        truth.append((top, left, int(labels[number])))

with torch.no_grad():
    started = perf_counter()
    scores = wide(sheet)[0]
    whole_s = perf_counter() - started
    crops = sheet[0, 0].unfold(0, 8, 1).unfold(1, 8, 1)
    started = perf_counter()
    one_by_one = model(crops.reshape(-1, 1, 8, 8)).T.reshape(scores.shape)
    crops_s = perf_counter() - started
apart = (scores - one_by_one).abs().max() / one_by_one.abs().max()
print(f"{scores[0].numel()} positions; scores differ from those of the crops by {apart:.1e} of the largest")
print(f"the sheet at once: {whole_s * 1e3:.1f} ms; crop by crop, in one batch: {crops_s * 1e3:.1f} ms")

# %%
# Where the classifier sees a digit
# ---------------------------------
# Each position's best digit, where its score is above that of the eleventh class, and no neighbour is surer.

best, named = scores[:NOTHING].max(0)
margin = best - scores[NOTHING]
peaks = (margin == F.max_pool2d(margin[None], 11, 1, 5)[0]) & (margin > 0)
found = {(int(row), int(column)): int(named[row, column]) for row, column in peaks.nonzero()}


def in_place(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Whether two digits are the same and lie within two pixels."""
    return abs(one[0] - other[0]) <= 2 and abs(one[1] - other[1]) <= 2 and one[2] == other[2]


answers = [(*place, digit) for place, digit in found.items()]
right = sum(any(in_place(one, other) for other in answers) for one in truth)

fig, axes = plt.subplots(2, 1, figsize=(9, 8.5), layout="constrained")
axes[0].imshow(sheet[0, 0], cmap="gray_r")
axes[0].set_title(
    f"the sheet, {sheet.shape[2]}×{sheet.shape[3]} pixels, and what was found (red: wrong, or where no digit is)", fontsize=10
)
for answer in answers:
    row, column, digit = answer
    colour = "tab:green" if any(in_place(answer, one) for one in truth) else "tab:red"
    axes[0].add_patch(plt.Rectangle((column - 0.5, row - 0.5), 8, 8, fill=False, color=colour))
    axes[0].text(column + 8, row + 1, str(digit), color=colour, fontsize=9)
drawn = axes[1].imshow(margin, cmap="RdBu_r", vmin=-15, vmax=15)
axes[1].set_title("score of the best digit less that of the eleventh class, for the crop that begins at each pixel", fontsize=10)
fig.colorbar(drawn, ax=axes[1], shrink=0.7)
for axis in axes:
    axis.set_axis_off()

# %%
# A global pool before the head
# -----------------------------
# With pooling in front, the head takes any size as it is, and gives one answer for the whole image. On crops of a stated size it is turned
# into windows just as well: pooling by a window of that size, one step apart.

pooled_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 11))
features = model[0]
with torch.no_grad():
    for picture in (images[:1], sheet):
        print(f"an image of {picture.shape[2]}x{picture.shape[3]}: scores {'x'.join(map(str, pooled_head(features(picture)).shape))}")
    moved = convolutional_head(pooled_head, 32, 4)
    print(f"the head as windows, on the sheet: scores {'x'.join(map(str, moved(features(sheet)).shape))}")
print(moved)

# %%
# The answer
# ----------

print(
    fill(
        "Caffe's global_pooling is pooling whose window is the map itself: one number a channel, whatever the sides, so that the fully "
        "connected layers behind it always see as many numbers. It answers once for the whole image.",
        100,
    )
)
print()
print(
    fill(
        "A head that was trained without it needs no new training either. A fully connected layer on a 4x4 map is a convolution with a "
        "4x4 window, and those after it are 1x1 convolutions, with the same weights. On this sheet of "
        f"{sheet.shape[2]}x{sheet.shape[3]} pixels it gives the scores of all {scores[0].numel()} crops, equal to the classifier's own "
        f"within {apart:.0e}, in {whole_s * 1e3:.1f} ms, where the crops in one batch take {crops_s * 1e3:.1f} ms: crops that overlap "
        f"share what is computed. {right} of {len(truth)} digits were found in place; "
        f"seen where none is, or under a wrong name: {len(answers) - right}.",
        100,
    )
)

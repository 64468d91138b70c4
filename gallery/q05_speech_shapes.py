"""
What are the shapes in a speech network?
========================================

A paper on speech recognition describes its network in one line: *150 feature maps, one convolution ply (filter size 8), one pooling ply
(size 6, shift 2), two hidden layers of 1000*. On 40 filter-bank values you compute 33 after the convolution and 14 after the pooling, but
the hidden layer wants a single row. Where do the 33 and the 14 go?

This page walks the shapes, draws what each layer sees, and then wires the network wrongly on purpose.
"""

# %%
# The walk
# --------
# A *window* slides over a signal. The number of places it can stand is the length that comes out. Written as one line, the network of the
# paper is:

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from torch import nn

import sash

one_map = sash.walk("40 | conv 8 | pool 6/2 | flatten | linear 1000 | linear 1000")
print(one_map)

# %%
# A filter of 8 on 40 values can stand in 33 places. A pool of 6 that moves by 2 can stand in 14 places on those 33. The hidden layer does
# not reduce 14 to 1: it *flattens*, so the 14 values are one row, and each of its 1000 units reads the whole row.
#
# With the 150 maps of the paper the row is 150 times as long:

with_maps = sash.walk("1x40 | conv 8 150 | pool 6/2 | flatten | linear 1000 | linear 1000")
print(with_maps)

# %%
# What one output sees
# --------------------
# Each row below is one signal of the network. The coloured stretch is what the marked output of the pooling ply reads on the way: its
# *receptive field*.

chain = sash.Chain([sash.Window(8), sash.Window(6, stride=2)])
lengths = chain.lengths(40)
output = lengths[-1] // 2
levels = chain.levels(output, output + 1, 40)

figure, axes = plt.subplots(figsize=(9, 3))
for row, (name, length, seen) in enumerate(zip(("input", "after conv 8", "after pool 6/2"), lengths, levels, strict=True)):
    # Every value is drawn at its centre on the input.
    part = sash.Chain(chain.links[:row])
    for value in range(length):
        colour = "tab:orange" if seen.start <= value < seen.stop else "lightgrey"
        axes.add_patch(Rectangle((float(part.centre(value)) - 0.35, -row - 0.3), 0.7, 0.6, color=colour))
    axes.text(-1.5, -row, f"{name}: {length}", ha="right", va="center")
axes.set(xlim=(-11, 40), ylim=(-2.6, 0.6), xlabel="position on the input", yticks=[], title=f"Output {output} of the pooling ply")
axes.spines[["left", "top", "right"]].set_visible(False)
axes.set_xticks(range(0, 40, 5))
figure.tight_layout()
plt.show()

print(f"One output of the pooling ply reads {chain.receptive_field} input values; the next one starts {chain.jump} further on.")
print(f"All {lengths[-1]} together read the values {chain.reads(0, lengths[-1], 40).start} to {chain.reads(0, lengths[-1], 40).stop - 1}.")

# %%
# The wrong wiring
# ----------------
# It is tempting to read "150 maps" as "the hidden layer gets 150 values". sash forecasts the model before anything runs, and says what is
# wrong:


def network(width):
    """The network of the paper with a first hidden layer that expects `width` values."""
    return nn.Sequential(
        nn.Conv1d(1, 150, 8),
        nn.ReLU(),
        nn.MaxPool1d(6, stride=2),
        nn.Flatten(),
        nn.Linear(width, 1000),
        nn.ReLU(),
        nn.Linear(1000, 1000),
    )


try:
    sash.forecast(sash.Workload(network(150), "8x1x40"))
except sash.ShapeError as error:
    print(error)

# %%
# With the width that the walk gives, the network stands:

width = with_maps.steps[3].values
forecast = sash.forecast(sash.Workload(network(width), "8x1x40"))
for layer in forecast.layers:
    if layer.leaf:
        print(f"{layer.path}  {layer.kind:<10} {'x'.join(map(str, layer.outputs[0])):>10}  {layer.params:>9,} parameters")

# %%
# The answer
# ----------
# The shapes are those of the walk above. Nothing shrinks to 1: the maps are flattened into one row, and a hidden layer reads all of it.
# Training the speech network itself is for a later page.

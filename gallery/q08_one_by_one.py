"""
Why is a 1×1 convolution a fully connected layer?
=================================================

A window of 1×1 looks at one pixel: it seems to have nothing to convolve. But a pixel of a map has as many numbers as the map has channels,
and the window has a weight for each of them, for each channel that it makes. That is a fully connected layer from the pixel's channels to
new ones, run at every pixel with the same weights. *Network in Network* calls it cross-channel parametric pooling.

This page turns one into the other and back, compares what they make, and then pools channels with fixed and with learned weights.
"""

# %%
# One made of the other
# ---------------------
# ``linear_to_conv`` and ``conv_to_linear`` copy the weights bit by bit. A linear layer takes features on the last axis, so channels go
# there.

from textwrap import fill

import matplotlib.pyplot as plt
import torch
from skimage import data
from torch import nn
from torch.nn import functional as F

import sash
from sash.ops import conv_to_linear, linear_to_conv
from sash.units import format_count

torch.manual_seed(0)
linear = nn.Linear(64, 128)
conv = linear_to_conv(linear)
back = conv_to_linear(conv)
print(f"{linear}  ->  {conv}  ->  {back}")
kept = torch.equal(back.weight, linear.weight) and torch.equal(back.bias, linear.bias)
print("every bit of weight and bias is the same after going there and back:", kept)


def at_each_pixel(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The layer on every pixel's channels."""
    return layer(x.movedim(1, -1)).movedim(-1, 1)


ROUNDING = 2**-24
with torch.no_grad():
    x = torch.randn(4, 64, 56, 56)
    ours, theirs = conv(x), at_each_pixel(linear, x)
    sums = F.conv2d(x.abs(), conv.weight.abs(), conv.bias.abs())
    same = (ours == theirs).float().mean().item()
    furthest = ((ours - theirs).abs() / sums).max().item() / ROUNDING
    whole = torch.randint(-9, 10, x.shape).float()
    for layer in (conv, linear):
        for parameter in layer.parameters():
            parameter.copy_((parameter * 64).round())
    exact = torch.equal(conv(whole), at_each_pixel(linear, whole))
print(f"random numbers: {same:.1%} of the outputs have the same bits; the others differ by {furthest:.1f} roundings of their terms at most")
print(f"whole numbers, whose sums need no rounding: all outputs have the same bits: {exact}")

# %%
# They cost the same
# ------------------
# As many parameters and as many multiplications.

for name, layer, shape in (("1x1 convolution", conv, "4x64x56x56"), ("linear layer", linear, "4x56x56x64")):
    cost = sash.forecast(sash.Workload(layer, shape))
    print(f"{name:<16} {format_count(cost.params)} parameters, {format_count(cost.macs)} MACs")

# %%
# Cross-channel pooling
# ---------------------
# Pooling over space takes neighbouring pixels of one channel. Pooling over channels takes one pixel of all channels: their mean is a 1×1
# convolution whose weights are all 1/channels. Here eight channels hold the edges of a photograph, one for each direction.

photograph = torch.from_numpy(data.camera()[64:320, 128:384].copy()).float()[None, None] / 255
angles = torch.arange(8) * (2 * torch.pi / 8)
across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
edges = torch.stack([angle.cos() * across + angle.sin() * across.T for angle in angles])[:, None]
directions = F.relu(F.conv2d(photograph, edges))

mean = nn.Conv2d(8, 1, 1, bias=False)
nn.init.constant_(mean.weight, 1 / 8)
with torch.no_grad():
    pooled = mean(directions)
print(f"the 1x1 convolution and the mean over channels differ by {(pooled - directions.mean(1, keepdim=True)).abs().max():.0e} at most")

# %%
# Parametric: the weights are learned
# -----------------------------------
# A mean treats all channels alike. With weights of its own, a 1×1 convolution can be taught what to pool. Here one is to find edges that go
# up and down, whatever is left and right. It is a fully connected layer, so on pixels as rows of features least squares finds the weights.

wanted = F.conv2d(photograph, edges[:1]).abs()
pixels = directions.movedim(1, -1).reshape(-1, 8)
solution = torch.linalg.lstsq(pixels, wanted.reshape(-1, 1)).solution
learned = nn.Linear(8, 1, bias=False)
learned.weight = nn.Parameter(solution.T)
with torch.no_grad():
    taught = linear_to_conv(learned)(directions)
print(
    "weights by direction:",
    "  ".join(f"{angle * 180 / torch.pi:.0f}°: {weight:z.2f}" for angle, weight in zip(angles, solution[:, 0], strict=True)),
)
error, error_of_mean = (((found - wanted).norm() / wanted.norm()).item() for found in (taught, pooled * (wanted.mean() / pooled.mean())))
print(f"error: {error:.1e} with learned weights, {error_of_mean:.2f} with the mean")

fig, axes = plt.subplots(1, 5, figsize=(14, 3.3), layout="constrained")
pictures = {
    "photograph": photograph,
    "channel of 0°": directions[:, :1],
    "channel of 90°": directions[:, 2:3],
    "mean over channels": pooled,
    "learned 1×1": taught,
}
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture[0, 0], cmap="gray", vmax=picture.quantile(0.99))
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()

# %%
# A network in the network
# ------------------------
# Several 1×1 convolutions with activations between are a small fully connected network that slides over the map: the *mlpconv* layer.

network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU())
slid = nn.Sequential(*(linear_to_conv(layer) if isinstance(layer, nn.Linear) else layer for layer in network))
with torch.no_grad():
    difference = (slid(directions) - at_each_pixel(network, directions)).abs().max().item()
print(f"the network at every pixel and its 1x1 convolutions on the map differ by {difference:.0e} at most")

# %%
# The answer
# ----------

print(
    fill(
        "A 1x1 convolution multiplies the channels of each pixel by one matrix, and that is what a fully connected layer does to its "
        "features. The weights carry over bit by bit, both ways. The outputs are the same sums, added in another order by another "
        f"routine: {same:.0%} of them came out with the same bits, the others within {furthest:.1f} roundings; where sums need no "
        "rounding, all are the same.",
        100,
    )
)
print()
print(
    fill(
        f"Cross-channel parametric pooling is the same thing seen from pooling: a weighted sum over channels in the place of a sum over "
        f"neighbours. With equal weights it is the mean; with weights that are learned it keeps what matters. Here it gave the wanted "
        f"edges with an error of {error:.0e}, where the mean is off by {error_of_mean:.0%}. Between activations, 1x1 convolutions are a "
        "whole network at every pixel: a network in the network.",
        100,
    )
)

"""Tiles against the whole image: every operator that is followed, every one that is refused, and random networks of them."""

import cloudpickle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sash.cost import Workload, forecast, measure
from sash.errors import InputError
from sash.models import unet
from sash.plans._lever import pull, shared_copy
from sash.plans._tile import Tile, propose, why_not

ROUNDING = 1e-11
"""In float64, on values of about 1 after a few layers: sums are made in another order, and nothing else differs."""


class Made(nn.Module):
    """A forward as a function of the image and some layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


class Positions(nn.Module):
    """Adds a learned map of the image's own size, and a ramp."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 3, 33, 41))
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.layer(x + self.places) * torch.arange(41, dtype=x.dtype)


def conv(*sizes, **settings):
    return nn.Conv2d(*sizes, **settings)


def squeeze_and_excite(x, first, down, up):
    y = first(x)
    return y * torch.sigmoid(up(F.relu(down(F.adaptive_avg_pool2d(y, 1)))))


def pyramid(x, first, after):
    y = first(x)
    mean = F.interpolate(after(F.adaptive_avg_pool2d(y, 3)), size=y.shape[2:], mode="bilinear")
    return torch.cat([y, mean, F.interpolate(F.adaptive_max_pool2d(y, (2, 3)), size=y.shape[2:])], 1)


def tokens(x, first, mix):
    y = first(x)
    return mix(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(y.shape)


def changes_a_view(x):
    y = x * 2
    y[:, :1].relu_()
    return y + 1


def windows_of_rows(x, mix):
    y = x[:, :, :32, :40].permute(0, 2, 3, 1).reshape(1, 8, 4, 10, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 3)
    y = mix(y.softmax(1)).view(1, 8, 10, 4, 4, 3)
    return y.permute(0, 1, 3, 2, 4, 5).reshape(1, 32, 40, 3).permute(0, 3, 1, 2)


FOLLOWED = {
    "a convolution": conv(3, 8, 3, padding=1),
    "strides and dilations": nn.Sequential(conv(3, 8, 7, stride=2, padding=3), nn.ReLU(True), conv(8, 4, 3, padding=2, dilation=2)),
    "a grouped convolution without padding": conv(3, 6, (3, 5), groups=3, stride=(2, 1)),
    "padding 'same'": conv(3, 4, (3, 5), padding="same", dilation=(1, 2)),
    "reflection": conv(3, 4, 5, padding=2, padding_mode="reflect"),
    "replication": nn.Sequential(conv(3, 4, 5, padding=2, padding_mode="replicate"), conv(4, 3, 3, padding=1, padding_mode="replicate")),
    "uneven padding, and cropping": Made(lambda x, c: c(F.pad(x, (3, -2, -1, 4), value=2.0)), conv(3, 8, 3)),
    "max pooling": nn.Sequential(nn.MaxPool2d(3, 2, 1), conv(3, 3, 3)),
    "max pooling in ceil mode": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "average pooling in ceil mode": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average pooling that leaves padding out": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "a transposed convolution": nn.ConvTranspose2d(3, 4, 4, 2, 1),
    "a transposed convolution with output padding": nn.ConvTranspose2d(3, 4, 3, 3, 0, output_padding=2),
    "a transposed convolution with gaps": nn.ConvTranspose2d(3, 4, 2, 3, 1, output_padding=1, dilation=2),
    "bilinear upsampling": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear upsampling with aligned corners": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "upsampling by one and a half": nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "nearest upsampling by an odd factor": nn.Upsample(scale_factor=2.3),
    "bicubic upsampling to a size": nn.Upsample(size=(50, 61), mode="bicubic"),
    "bicubic upsampling by three": nn.Upsample(scale_factor=3, mode="bicubic"),
    "shrinking by half": nn.Upsample(scale_factor=0.5, mode="bilinear"),
    "the exact nearest neighbour": nn.Upsample(size=(50, 30), mode="nearest-exact"),
    "area interpolation": Made(lambda x: F.interpolate(x[..., :32, :40], size=(8, 20), mode="area")),
    "pixel shuffle": nn.Sequential(conv(3, 12, 3, padding=1), nn.PixelShuffle(2), conv(3, 3, 3)),
    "pixel unshuffle": nn.Sequential(conv(3, 4, 3, 2, 1), nn.Upsample(size=(18, 22)), nn.PixelUnshuffle(2)),
    "every other pixel": Made(
        lambda x, c: c(torch.cat([x[..., :32:2, ::2], x[..., 1::2, ::2]], 1)[..., :15, :17]), conv(6, 4, 3, padding=1)
    ),
    "layer normalisation over channels": Made(
        lambda x, c, n, f: f(n(c(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2) + c(x),
        conv(3, 8, 3, padding=1),
        nn.LayerNorm(8),
        nn.Linear(8, 8),
    ),
    "positions as tokens": Made(tokens, conv(3, 8, 3, padding=1), nn.Linear(8, 8)),
    "windows mixed within": Made(windows_of_rows, nn.Linear(3, 3)),
    "rows joined below": Made(
        lambda x, c: c(torch.cat([x, x.mean(1, keepdim=True).expand(-1, 3, -1, -1), c(x)[:, :3]], 2)), conv(3, 8, 3, padding=1)
    ),
    "activations": nn.Sequential(nn.PReLU(3), nn.Softmax(1), nn.Hardswish(True), nn.GELU(), nn.Dropout(0.5)),
    "writing in place, on the image too": Made(lambda x, c: F.relu_(c(x.sub_(1).mul(2))).add_(1), conv(3, 8, 3, padding=1)),
    "several outputs": Made(lambda x, c: {"a": c(x), "b": (x, F.max_pool2d(c(x), 2))}, conv(3, 8, 3, padding=1)),
    "local response normalisation": nn.LocalResponseNorm(2),
    "positions of the image's own size": Positions(),
    "batch normalisation by running statistics": nn.Sequential(nn.BatchNorm2d(3), conv(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
}

IN_PASSES = {
    "squeeze and excite": (Made(squeeze_and_excite, conv(3, 8, 3, 2, 1), conv(8, 2, 1), conv(2, 8, 1)), 1),
    "group, then instance normalisation": (
        nn.Sequential(
            conv(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(True), conv(8, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        ),
        2,
    ),
    "pyramid pooling": (Made(pyramid, conv(3, 8, 3, 2, 1), conv(8, 3, 1)), 1),
    "a mean over columns, a maximum, a deviation": (
        Made(
            lambda x, c: c(x) * x.mean(3, keepdim=True) + x.amax((2, 3), keepdim=True) - x.std((2, 3)).view(1, 3, 1, 1),
            conv(3, 3, 3, padding=1),
        ),
        1,
    ),
    "a classifier": (Made(lambda x, c, f: f(c(x).mean((2, 3))), conv(3, 8, 3, padding=1), nn.Linear(8, 5)), 1),
    "a norm over the image": (Made(lambda x: x / (torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True) + 1)), 1),
}

REFUSED = {
    "attention": (Made(lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3)), "attention"),
    "attention by hand": (Made(lambda x: (x.flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(-1)), "every other, as attention"),
    "softmax over rows": (Made(lambda x: x.softmax(2)), "every position"),
    "circular padding": (
        nn.Sequential(conv(3, 4, 3), conv(4, 4, 3, padding=1, padding_mode="circular")),
        "1 (pad) pads with the image's other end",
    ),
    "a linear layer on the flat image": (nn.Sequential(nn.Flatten(), nn.Linear(3 * 33 * 41, 5)), "1 (linear) reads every position"),
    "a Fourier transform": (Made(lambda x: torch.fft.rfft2(x).abs()), "Fourier"),
    "rolling": (Made(lambda x: x.roll(1, 2)), "round its ends"),
    "mirroring": (Made(lambda x: x.flip(3)), "mirrors"),
    "a grid of samples": (Made(lambda x: F.grid_sample(x, torch.zeros(1, 4, 4, 2, dtype=x.dtype), align_corners=False)), "does not follow"),
    "a running sum": (Made(lambda x: x.cumsum(2)), "whole of an image axis"),
    "windows laid out": (Made(lambda x: F.unfold(x, 3)), "every window"),
    "a value read": (Made(lambda x: x * x.max().item()), "every position of the image at once"),
    "one row picked": (Made(lambda x: x[:, :, 3]), "absolute position"),
    "the image on its transpose": (Made(lambda x: x[..., :33] + x[..., :33].mT), "crosswise"),
    "layer normalisation over all": (nn.LayerNorm((3, 33, 41)), "channels alone, can be tiled"),
    "positions by value": (Made(lambda x: x[x > 0]), "own values"),
    "indices of a pool": (Made(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)), "without return_indices"),
    "an LSTM": (Made(lambda x, cell: cell(x.flatten(2).transpose(1, 2))[0], nn.LSTM(3, 3, batch_first=True)), "layers.0 (lstm)"),
    "a view written in place": (Made(changes_a_view), "changed in place"),
    "random numbers": (Made(lambda x: x + torch.randn_like(x)), "random"),
    "batch statistics": (nn.BatchNorm2d(3, track_running_stats=False), "statistics of the whole batch"),
}


def prepared(model):
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def assert_same(model, tile, x, two_pass=False):
    with torch.inference_mode():
        whole = model(x.clone())
        pieces = Tile(tile, two_pass=two_pass).on_model(shared_copy(model))(x.clone())
    first, second = pytree.tree_leaves(whole), pytree.tree_leaves(pieces)
    assert len(first) == len(second)
    for expected, found in zip(first, second, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() <= ROUNDING * max(1.0, expected.abs().max().item())


def image(height=33, width=41, batch=1):
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("tile", [(7, 9), (40, 16)])
def test_tiles_make_the_whole(name, tile):
    assert_same(prepared(FOLLOWED[name]), tile, image())


@pytest.mark.parametrize("name", IN_PASSES)
def test_what_sees_all_is_made_in_passes(name):
    model, _ = IN_PASSES[name]
    tile = (8, 9)
    if name == "a classifier":
        tile = (1, 1)  # its output has no axes to cut: one tile is the whole
    assert_same(prepared(model), tile, image(), two_pass=True)


@pytest.mark.parametrize("name", IN_PASSES)
def test_passes_are_offered_before_they_are_made(name):
    model, passes = IN_PASSES[name]
    with pytest.raises(InputError, match="sees the whole image") as caught, torch.inference_mode():
        Tile((8, 8)).on_model(shared_copy(prepared(model)))(image())
    assert "two_pass=True" in str(caught.value)
    assert (f"{passes} passes" if passes > 1 else "a pass") in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_tile_can_know_is_refused_by_its_name(name):
    model, told = REFUSED[name]
    with pytest.raises(InputError) as caught, torch.inference_mode():
        Tile((8, 8), two_pass=True).on_model(shared_copy(prepared(model)))(image())
    assert told in str(caught.value)


@pytest.mark.parametrize("kind", ["plain", "separable"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (67, 81), (16, 111)])
def test_a_unet_of_any_sides_is_the_same(kind, height, width):
    assert_same(prepared(unet(kind, width=4)), (32, 48), image(height, width, batch=2))


def test_one_and_three_axes_are_cut_too():
    signal = nn.Sequential(
        nn.Conv1d(3, 4, 9, stride=2, padding=4), nn.MaxPool1d(2), nn.Upsample(scale_factor=4), nn.Conv1d(4, 2, 3, padding=1)
    )
    volume = nn.Sequential(nn.Conv3d(3, 2, 3, padding=1), nn.AvgPool3d(2), nn.ConvTranspose3d(2, 2, 2, 2), nn.InstanceNorm3d(2))
    assert_same(prepared(signal), (37,), torch.randn(1, 3, 300, dtype=torch.float64))
    assert_same(prepared(volume), (5, 8, 6), torch.randn(1, 3, 12, 14, 16, dtype=torch.float64), two_pass=True)


LAYERS = st.sampled_from(
    [
        lambda c: (conv(c, c + 1, 3, padding=1), c + 1),
        lambda c: (conv(c, c, 5, stride=2, padding=2), c),
        lambda c: (conv(c, c, 3, padding=2, dilation=2, padding_mode="reflect"), c),
        lambda c: (conv(c, c, 3, padding=1, padding_mode="replicate"), c),
        lambda c: (nn.ConvTranspose2d(c, c, 3, 2, 1, output_padding=1), c),
        lambda c: (nn.MaxPool2d(3, 2, 1, ceil_mode=True), c),
        lambda c: (nn.AvgPool2d(2, ceil_mode=True), c),
        lambda c: (nn.AvgPool2d(3, 1, 1, count_include_pad=False), c),
        lambda c: (nn.Upsample(scale_factor=2, mode="bilinear"), c),
        lambda c: (nn.Upsample(scale_factor=1.6), c),
        lambda c: (nn.Upsample(size=(23, 31), mode="bilinear", align_corners=True), c),
        lambda c: (nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(True)), c),
        lambda c: (nn.GroupNorm(1, c), c),
        lambda c: (Made(lambda x, k: x + F.interpolate(k(F.max_pool2d(x, 2)), size=x.shape[2:]), conv(c, c, 3, padding=1)), c),
        lambda c: (Made(lambda x, k: x * torch.sigmoid(k(x.mean((2, 3), keepdim=True))), conv(c, c, 1)), c),
    ]
)


@settings(max_examples=20)
@given(st.lists(LAYERS, min_size=1, max_size=5), st.integers(20, 45), st.integers(20, 45), st.integers(3, 30), st.integers(3, 30))
def test_random_networks_are_the_same_in_tiles(makers, height, width, rows, columns):
    channels, layers = 3, []
    for make in makers:
        layer, channels = make(channels)
        layers.append(layer)
    assert_same(prepared(nn.Sequential(*layers)), (rows, columns), image(height, width), two_pass=True)


def test_float32_stays_within_rounding():
    model, x = unet(width=8).eval(), torch.rand(1, 3, 211, 177)
    with torch.inference_mode():
        whole, pieces = model(x), Tile((64, 80)).on_model(shared_copy(model))(x)
    assert (whole - pieces).abs().max() <= 1e-5 * whole.abs().max()


def test_the_lever_lowers_the_peak_to_what_it_forecasts():
    model = unet(width=8).eval()
    work = Workload(model, "1x3x512x480")
    plain = forecast(work).peak_bytes
    lever = propose(work, model, plain // 2)
    assert lever is not None
    assert "%" in lever.describe()
    tiled = pull(work, [lever])
    expected, observed = forecast(tiled).peak_bytes, measure(tiled).peak_bytes
    assert observed <= plain // 2
    assert abs(observed / expected - 1) < 0.005


def test_the_lever_keeps_names_and_travels():
    model = unet(width=4).eval()
    made = Tile((16, 16)).on_model(shared_copy(model))
    assert list(made.state_dict()) == list(model.state_dict())
    x = torch.rand(1, 3, 40, 40)
    with torch.inference_mode():
        before = made(x)
        again = cloudpickle.loads(cloudpickle.dumps(made))
        assert torch.equal(again(x), before)
    assert cloudpickle.loads(cloudpickle.dumps(Tile((16, 16)))) == Tile((16, 16))


def test_the_lever_is_proposed_for_inference_on_one_image_only():
    model = unet(width=4).eval()
    assert propose(Workload(model, "1x3x64x64"), model, 1000) is None
    assert propose(Workload(model, "1x3x64x64", train=True), model) is None
    assert "inference" in (why_not(Workload(model, "1x3x64x64", train=True), model) or "")
    assert why_not(Workload(model, "1x3x64x64"), model) is None
    circular = conv(3, 4, 3, padding=1, padding_mode="circular")
    assert propose(Workload(circular, "1x3x64x64"), circular) is None
    assert "circular" in (why_not(Workload(circular, "1x3x64x64"), circular) or "")
    assert "one floating image" in (why_not(Workload(nn.Linear(3, 3), "2x3"), nn.Linear(3, 3)) or "")


def test_a_training_mode_is_refused():
    made = Tile((16, 16)).on_model(shared_copy(unet(width=4)))
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        made(torch.rand(1, 3, 32, 32))
    with pytest.raises(InputError, match="inference_mode"):
        made.eval()(torch.rand(1, 3, 32, 32))


def test_a_tile_of_another_rank_is_refused():
    with pytest.raises(InputError, match="3 lengths"), torch.inference_mode():
        Tile((4, 4, 4)).on_model(shared_copy(unet(width=4).eval()))(torch.rand(1, 3, 32, 32))

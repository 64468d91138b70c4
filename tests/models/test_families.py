"""Every family of picture classifiers: what the literature says of its size, what it takes, what it refuses."""

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import sash.models
from sash.errors import InputError
from sash.models import FAMILIES, PictureNet, all_cnn, nin, resnet, vgg

SMALL = {
    "resnet18": partial(resnet, 18, classes=7, width=4),
    "resnet50": partial(resnet, 50, classes=7, width=4),
    "all-conv": partial(all_cnn, classes=7, width=4),
    "pooled": partial(all_cnn, "pooled", "A", classes=7, width=4),
    "strided": partial(all_cnn, "strided", "B", classes=7, width=4),
    "convpool": partial(all_cnn, "convpool", "C", classes=7, width=4),
    "nin": partial(nin, classes=7, width=6),
    "vgg": partial(vgg, 11, classes=7, width=4, hidden=16),
    "vgg-norm": partial(vgg, 11, classes=7, width=4, hidden=None, norm=True),
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def torchvision():
    bench = str(Path(__file__).parents[2] / "bench")
    sys.path.insert(0, bench)
    try:
        yield importlib.import_module("_torchvision").torchvision
    finally:
        sys.path.remove(bench)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # He 2015 and torchvision's tables.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        # Springenberg 2014, table 3, says 1.28 M, 1.35 M and 1.4 M; implementations of All-CNN-C count 1,369,738.
        ("all-cnn-a", 1_254_250),
        ("all-cnn-b", 1_300_618),
        ("all-cnn-c", 1_369_738),
        ("convpool-cnn-c", 1_369_738),
        ("pooled-cnn-c", 954_730),
        ("strided-cnn-c", 954_730),
        # The authors' Caffe model for CIFAR-10.
        ("nin", 966_986),
        # torchvision's tables.
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
    ],
)
def test_a_family_has_its_known_parameters(name, parameters):
    with torch.device("meta"):
        assert count(FAMILIES[name]()) == parameters


def test_what_the_paper_took_away_from_a_pooled_network_is_a_pool_and_nothing_else():
    for base, more in (("A", 415_008), ("B", 415_008), ("C", 415_008)):
        pooled, strided, convpool, conv = (count(all_cnn(kind, base)) for kind in ("pooled", "strided", "convpool", "all-conv"))
        assert pooled == strided
        assert convpool == conv == pooled + more  # 9 (96² + 192²) weights, 96 + 192 biases


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_with_torchvisions_weights_is_torchvisions(torchvision, depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).double().eval()
    ours = resnet(depth, classes=5).double().eval()
    weights = [value for name, value in theirs.state_dict().items()]
    assert [value.shape for value in ours.state_dict().values()] == [value.shape for value in weights]
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    x = torch.randn(2, 3, 65, 50, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depth", [34, 101, 152])
def test_every_resnet_has_its_parameters_in_torchvisions_order(torchvision, depth):
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, f"resnet{depth}")(), resnet(depth)
    assert [value.shape for value in ours.state_dict().values()] == [value.shape for value in theirs.state_dict().values()]


@pytest.mark.parametrize(("depth", "norm"), [(11, False), (13, True), (16, False), (19, True)])
def test_a_vgg_has_torchvisions_names_and_shapes(torchvision, depth, norm):
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, f"vgg{depth}{'_bn' if norm else ''}")(), vgg(depth, norm=norm)
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes


def test_a_vggs_convolutions_with_torchvisions_weights_are_torchvisions(torchvision):
    narrow = [side if side == "M" else side // 16 for side in torchvision.models.vgg.cfgs["A"]]
    theirs = torchvision.models.vgg.make_layers(narrow, batch_norm=True).double().eval()
    ours = vgg(11, width=4, hidden=None, norm=True).double().eval().features
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 70, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_version_1_strides_a_bottlenecks_first_convolution_and_version_1_5_its_second():
    for version, expected in (("v1", [(2, 2), (1, 1), (1, 1)]), ("v1.5", [(1, 1), (2, 2), (1, 1)])):
        block = resnet(50, width=4, version=version)[2][0]
        assert [layer.stride for layer in block.residual if isinstance(layer, nn.Conv2d)] == expected


@pytest.mark.parametrize("base", ["A", "B", "C"])
@pytest.mark.parametrize("kind", ["pooled", "strided", "convpool", "all-conv"])
def test_every_all_cnn_averages_six_by_six_scores_of_a_cifar_picture(kind, base):
    model = all_cnn(kind, base, width=4).eval()
    assert model[:-2](torch.randn(1, 3, 32, 32)).shape == (1, 10, 6, 6)
    windows = [layer for layer in model if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and layer.stride in (2, (2, 2))]
    assert len(windows) == 2
    assert {type(layer) for layer in windows} == {nn.MaxPool2d if "pool" in kind else nn.Conv2d}


@pytest.mark.parametrize("make", [partial(all_cnn, classes=2, width=4, dropout=(0, 0)), partial(nin, classes=2, width=6, dropout=0)])
def test_a_class_whose_score_is_negative_everywhere_still_learns(make):
    torch.manual_seed(0)
    model = make()
    scores = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][-1]
    nn.init.constant_(scores.bias, -100)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 0, 1])).backward()
    assert scores.bias.grad.all()


def test_network_in_network_has_caffes_sizes():
    model = nin(width=192).eval()
    sides, x = [], torch.randn(1, 3, 32, 32)
    for layer in model:
        x = layer(x)
        sides.append(tuple(x.shape[1:]))
    assert sides == [
        (96, 32, 32),
        (96, 16, 16),
        (96, 16, 16),
        (192, 16, 16),
        (192, 8, 8),
        (192, 8, 8),
        (192, 8, 8),
        (10, 8, 8),
        (10, 1, 1),
        (10,),
    ]


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_it_classifies_pictures_down_to_the_least_side_and_refuses_smaller_ones(make):
    model = make().eval()
    least = model.least_side
    assert model(torch.randn(2, 3, least, least + 5)).shape == (2, 7)
    if least > 1:
        with pytest.raises(InputError, match=f"2x3x{least - 1}x40; it has to be batch x 3 x height x width, both sides at least {least}"):
            model(torch.randn(2, 3, least - 1, 40))
        # What the message says is true of the layers too.
        with pytest.raises(RuntimeError):
            nn.Sequential(*model)(torch.randn(2, 3, least - 1, least - 1))


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_other_channels_and_other_ranks_are_named(make):
    model = make(in_channels=1).eval()
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 7)
    for shape, told in (((1, 3, 32, 32), "1x3x32x32"), ((1, 32, 32), "1x32x32")):
        with pytest.raises(InputError, match=f"the input is {told}; it has to be batch x 1 x height x width"):
            model(torch.randn(shape))


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_an_empty_batch_passes_through_with_its_gradient(make):
    x = torch.randn(0, 3, 32, 32, requires_grad=True)
    y = make().eval()(x)
    y.sum().backward()
    assert y.shape == (0, 7)
    assert x.grad is not None


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_every_parameter_gets_a_gradient(make):
    torch.manual_seed(0)
    model = make()
    model(torch.randn(4, 3, 40, 40)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_under_autocast_scores_are_those_of_single_precision_up_to_its_rounding(make):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, 3, 40, 40)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    # 2⁻⁸ of rounding a layer, on scores of which the largest are near 1.
    assert (found.float() - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_it_can_be_exported_with_a_free_batch(make):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(3, 3, 40, 40)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)).module()
    other = torch.randn(5, 3, 40, 40)
    torch.testing.assert_close(exported(other), model(other))


def test_a_part_of_a_network_takes_what_reaches_that_part():
    model = resnet(18, width=4).eval()
    features = model[:-3]
    assert not isinstance(features, PictureNet)
    assert isinstance(model[0], nn.Sequential)
    whole = model(x := torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(model[-3:](features(x)), whole)
    torch.testing.assert_close(model[1:](model[0](x)), whole)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (resnet, {"depth": 20}, "depth=20; a ResNet has 18, 34, 50, 101, 152 layers"),
        (resnet, {"classes": 0}, "classes=0: a ResNet has at least 1"),
        (resnet, {"version": "v2"}, "version='v2'; a bottleneck is of version 'v1' or 'v1.5'"),
        (all_cnn, {"kind": "pool"}, "kind='pool' is not a kind of All-CNN; there are 'all-conv', 'pooled', 'strided', 'convpool'"),
        (all_cnn, {"base": "D"}, "base='D' is not a base"),
        (all_cnn, {"width": 2.5}, "width=2.5: an All-CNN has at least 1"),
        (all_cnn, {"dropout": (0.2, 1.0)}, r"dropout=\(0.2, 1.0\); shares"),
        (nin, {"width": 32}, "width=32; the first layer narrows .* as 36"),
        (nin, {"dropout": -0.1}, "dropout=-0.1"),
        (nin, {"in_channels": True}, "in_channels=True: a Network in Network"),
        (vgg, {"depth": 12}, "depth=12; a VGG has 11, 13, 16, 19 layers"),
        (vgg, {"hidden": 0}, "hidden=0: a VGG has at least 1"),
        (vgg, {"dropout": 1.5}, "dropout=1.5"),
    ],
)
def test_what_cannot_be_built_is_named(make, settings, message):
    with pytest.raises(InputError, match=message):
        make(**settings)


def test_families_are_functions_of_the_folder_or_partials_of_them():
    for factory in FAMILIES.values():
        function = factory.func if isinstance(factory, partial) else factory
        assert getattr(sash.models, function.__name__) is function

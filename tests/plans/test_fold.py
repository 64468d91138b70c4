"""Batch norms folded into the layers before them, matched by the flow of data."""

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sash.cost import Workload, forecast, measure
from sash.errors import InputError
from sash.models import unet
from sash.plans._fold import Fold, propose, why_not
from sash.plans._lever import Exactness, pull, shared_copy


class Pair(nn.Module):
    """A layer and a norm, joined as a test says."""

    def __init__(self, layer, norm, forward=None):
        super().__init__()
        self.layer, self.norm = layer, norm
        self.own = forward

    def forward(self, x):
        return self.own(self.layer, self.norm, x) if self.own else self.norm(self.layer(x))


def with_statistics(model):
    """The model in evaluation, its norms with statistics, scales and shifts of their own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


LAYERS = [
    (lambda: nn.Conv1d(4, 6, 3), nn.BatchNorm1d, "2x4x16"),
    (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d, "2x4x9x9"),
    (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d, "2x4x9x9"),
    (lambda: nn.Conv3d(4, 6, 3, dilation=2), nn.BatchNorm3d, "2x4x9x9x9"),
    (lambda: nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d, "2x4x9"),
    (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d, "2x4x9x9"),
    (lambda: nn.ConvTranspose3d(4, 6, 3, bias=False), nn.BatchNorm3d, "2x4x5x5x5"),
    (lambda: nn.Linear(4, 6), nn.BatchNorm1d, "8x4"),
]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("layer", "norm", "shape"), LAYERS)
def test_the_folded_layer_returns_what_layer_and_norm_did(layer, norm, shape, affine):
    model = with_statistics(Pair(layer(), norm(6, affine=affine))).double()
    work = Workload(model, shape + ":float64")
    lever = propose(work, model)
    assert lever == Fold((("layer", "norm"),))
    assert lever.exactness is Exactness.ROUNDING
    folded = lever.on_model(shared_copy(model))
    x = torch.randn([int(size) for size in shape.split("x")], dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert isinstance(folded.norm, nn.Identity)
    assert isinstance(model.norm, norm)


def test_a_whole_unet_is_folded_within_float_rounding_and_its_peak_does_not_rise():
    model = with_statistics(unet(width=8, depth=2))
    work = Workload(model, "1x3x64x64")
    lever = propose(work, model)
    norms = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted(norm for _, norm in lever.pairs) == sorted(norms)
    fitted = pull(work, [lever])
    found, measured = forecast(fitted), measure(fitted)
    assert found.peak_bytes <= forecast(work).peak_bytes
    assert 0 <= found.peak_bytes - measured.peak_bytes <= 0.01 * measured.peak_bytes
    folded, x = lever.on_model(shared_copy(model)), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain, exact = model(x), copy.deepcopy(model).double()(x.double())
        # Ten layers one after the other, each with a relative rounding of its own: as near to the exact result as the plain model is.
        assert (folded(x) - exact).abs().max() <= 4 * (plain - exact).abs().max() + 1e-6 * exact.abs().max()


def test_half_precision_layers_are_folded_in_double():
    model = with_statistics(Pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).bfloat16()
    folded = Fold((("layer", "norm"),)).on_model(shared_copy(model))
    exact = Fold((("layer", "norm"),)).on_model(copy.deepcopy(model).double())
    assert torch.equal(folded.layer.weight, exact.layer.weight.bfloat16())
    assert torch.equal(folded.layer.bias, exact.layer.bias.bfloat16())


def conv():
    return nn.Conv2d(4, 4, 3, padding=1)


def beside(layer, norm, x):
    y = layer(x)
    return y + norm(y)


def both(layer, norm, x):
    y = layer(x)
    return y, norm(y)


NOT_FOLDED = {
    "read twice": Pair(conv(), nn.BatchNorm2d(4), beside),
    "something between": Pair(conv(), nn.BatchNorm2d(4), lambda layer, norm, x: norm(layer(x).relu())),
    "called twice": Pair(conv(), nn.BatchNorm2d(4), lambda layer, norm, x: norm(layer(layer(x)))),
    "norm called twice": Pair(conv(), nn.BatchNorm2d(4), lambda layer, norm, x: norm(norm(layer(x)))),
    "an output": Pair(conv(), nn.BatchNorm2d(4), both),
    "no statistics": Pair(conv(), nn.BatchNorm2d(4, track_running_stats=False)),
    "transposed": Pair(conv(), nn.BatchNorm2d(4), lambda layer, norm, x: norm(layer(x).transpose(1, 2))),
    "computed weight": Pair(parametrizations.weight_norm(conv()), nn.BatchNorm2d(4)),
    "norm first": Pair(conv(), nn.BatchNorm2d(4), lambda layer, norm, x: layer(norm(x))),
    "another norm": Pair(conv(), nn.InstanceNorm2d(4, track_running_stats=True)),
}


@pytest.mark.parametrize("name", NOT_FOLDED)
def test_what_is_no_pair_is_left_alone(name):
    model = with_statistics(NOT_FOLDED[name])
    assert propose(Workload(model, "2x4x4x4"), model) is None


def test_channels_that_are_not_on_axis_one_are_left_alone():
    # Linear's are last, and a batch norm over sequences takes them from axis 1; here both have six.
    model = with_statistics(Pair(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    assert propose(Workload(model, "2x6x4"), model) is None


def test_a_hook_on_a_layer_leaves_it_alone():
    model = with_statistics(Pair(conv(), nn.BatchNorm2d(4)))
    model.layer.register_forward_hook(lambda module, args, output: None)
    assert propose(Workload(model, "2x4x8x8"), model) is None


def test_a_norm_that_stays_in_training_is_left_alone():
    class Stubborn(Pair):
        def train(self, mode=True):
            return super().train(True)

    model = Stubborn(conv(), nn.BatchNorm2d(4))
    assert propose(Workload(model, "2x4x8x8"), model) is None


def test_a_forward_that_asks_for_the_norms_weight_is_left_alone():
    model = with_statistics(Pair(conv(), nn.BatchNorm2d(4), lambda layer, norm, x: norm(layer(x)) * norm.weight.mean()))
    assert propose(Workload(model, "2x4x8x8"), model) is None


def test_training_is_refused_with_the_layer_and_the_reason():
    model = Pair(conv(), nn.BatchNorm2d(4))
    work = Workload(model, "2x4x8x8", train=True, optimizer="sgd", loss=torch.sum)
    assert propose(work, model) is None
    assert why_not(work, model) == (
        "norm normalises by each batch's own statistics in training, and folded into layer it would not; "
        "fold for inference (train=False), where it uses the running ones."
    )
    assert why_not(Workload(model, "2x4x8x8"), model) is None
    assert why_not(Workload(conv(), "2x4x8x8", train=True), conv()) is None


def test_the_original_keeps_its_values_and_the_folded_state_dict_is_another():
    model = with_statistics(Pair(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = Fold((("layer", "norm"),)).on_model(shared_copy(model))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert list(folded.state_dict()) == ["layer.weight", "layer.bias"]


def test_it_is_plain_values_and_says_what_it_does():
    lever = Fold((("a", "b"), ("c", "d"), ("e", "f")))
    again = json.loads(json.dumps(dataclasses.asdict(lever)))
    assert Fold(tuple(tuple(pair) for pair in again["pairs"])) == lever
    assert lever.describe() == "3 batch norms folded: b into a, d into c, …"


def test_a_model_without_the_layer_is_refused_by_name():
    with pytest.raises(InputError, match="a layer to fold at 'other', where this one has nothing"):
        Fold((("other", "norm"),)).on_model(Pair(conv(), nn.BatchNorm2d(4)))
    with pytest.raises(InputError, match="a layer to fold at 'norm', where this one has Identity"):
        Fold((("layer", "norm"),)).on_model(Pair(conv(), nn.Identity()))

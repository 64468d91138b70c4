"""Depthwise and pointwise convolutions found by the flow of data, and run as one."""

import copy
import dataclasses
import json
from functools import partial

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from sash.cost import Workload, forecast, measure
from sash.errors import InputError
from sash.models import unet
from sash.ops import _separable
from sash.plans._lever import Exactness, pull, shared_copy
from sash.plans._separable import Separable, propose, why_not

KINDS = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}


@pytest.fixture
def _small_bands(monkeypatch):
    """Bands of a few rows, also where they do not pay."""
    for name in ("WHOLE_BYTES", "WHOLE_BYTES_LAST"):
        monkeypatch.setattr(_separable, name, 0)
    monkeypatch.setattr("sash.ops._separable_bands.BAND_BYTES", 2048)


class Own(nn.Module):
    """A block as users write them, its forward given by the test."""

    def __init__(self, forward, axes=2, channels=4, middle=None, **settings):
        super().__init__()
        convolution, norm = KINDS[axes]
        self.depthwise = convolution(channels, middle or channels, 3, groups=channels, **{"padding": 1, **settings})
        self.norm, self.act = norm(middle or channels), nn.ReLU()
        self.pointwise, self.after = convolution(middle or channels, 6, 1), norm(6)
        self.own = forward

    def forward(self, x):
        return self.own(self, x)


def direct(m, x):
    return m.pointwise(m.depthwise(x))


def normed(m, x):
    return m.after(m.pointwise(m.act(m.norm(m.depthwise(x)))))


class Frozen(nn.Sequential):
    """Norms keep their statistics in training as well."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def with_statistics(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


def assert_same_run(model, lever, shape, train):
    """Outputs, gradients and buffers with the lever and without, in double precision."""
    model = model.double().train(train)
    model.zero_grad()
    other, x = copy.deepcopy(model), torch.randn(shape, dtype=torch.float64)
    expected = other(x)
    expected.square().sum().backward()
    fused = lever.on_model(shared_copy(model))
    y = fused(x)
    y.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert list(fused.state_dict()) == list(model.state_dict())
    for (name, one), (_, kept), (_, reference) in zip(
        fused.named_parameters(), model.named_parameters(), other.named_parameters(), strict=True
    ):
        assert one is kept, name
        torch.testing.assert_close(one.grad, reference.grad, rtol=1e-10, atol=1e-10)
    for one, reference in zip(fused.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("_small_bands")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("axes", "settings"),
    [
        (1, {}),
        (2, {"stride": 2, "padding_mode": "reflect"}),
        (2, {"padding": "same", "dilation": 2, "bias": False}),
        (2, {"middle": 8}),
        (3, {"padding_mode": "circular"}),
    ],
)
def test_a_users_block_is_found_and_runs_the_same(axes, settings, train):
    model = nn.Sequential(Own(direct, axes, **settings), nn.ReLU(inplace=True))
    shape = (2, 4, *(12,) * axes)
    lever = propose(Workload(model, torch.randn(shape), train=train), model)
    assert lever == Separable((("0.depthwise", "", "", "0.pointwise", ""),))
    assert lever.exactness is Exactness.ROUNDING
    assert_same_run(model, lever, shape, train)
    assert_same_run(model, dataclasses.replace(lever, lean=True), shape, train)


@pytest.mark.usefixtures("_small_bands")
@pytest.mark.parametrize("train", [False, True])
def test_a_norm_with_fixed_statistics_and_an_activation_are_run_along(train):
    model = with_statistics(Frozen(Own(normed)))
    lever = propose(Workload(model, "2x4x12x12", train=train), model)
    assert lever == Separable((("0.depthwise", "0.norm", "0.act", "0.pointwise", "0.after"),))
    assert_same_run(model, lever, (2, 4, 12, 12), train)


def test_a_norm_that_is_set_to_training_later_runs_on_its_batch_again():
    model = with_statistics(nn.Sequential(Own(normed)))
    lever = propose(Workload(model, "2x4x12x12"), model)
    assert lever is not None
    assert_same_run(model, lever, (2, 4, 12, 12), True)


def test_a_norm_in_training_between_them_keeps_a_pair_apart_and_says_so():
    model = nn.Sequential(Own(normed))
    work = Workload(model, "2x4x12x12", train=True)
    assert propose(work, model) is None
    told = why_not(work, model)
    assert told is not None
    assert "0.depthwise and 0.pointwise stay apart: 0.norm normalises by each batch's own statistics" in told
    assert "model.0.norm.eval()" in told


def test_a_norm_in_training_after_them_stays_where_it_is():
    model = nn.Sequential(Own(lambda m, x: m.after(m.pointwise(m.depthwise(x)))))
    lever = propose(Workload(model, "2x4x12x12", train=True), model)
    assert lever == Separable((("0.depthwise", "", "", "0.pointwise", ""),))
    assert_same_run(model, lever, (2, 4, 12, 12), True)


def twice(m, x):
    t = m.depthwise(x)
    return m.pointwise(t) + t.mean()


def kept(m, x):
    m.seen = m.depthwise(x)
    return m.pointwise(m.seen)


def written(m, x):
    x = x * 1
    t = m.depthwise(x)
    x.add_(1)
    return m.pointwise(t)


def again(m, x):
    return m.pointwise(m.depthwise(m.depthwise(x)))


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (twice, "the output of 0.depthwise is used elsewhere"),
        (kept, "the output of 0.depthwise is used elsewhere"),
        (written, "the input of 0.depthwise is written over before 0.pointwise"),
        (again, "0.depthwise is called 2 times"),
        (lambda m, x: m.pointwise(m.depthwise(x) * 2), None),
        (lambda m, x: m.pointwise(m.depthwise(x).mT), None),
        (lambda m, x: m.pointwise(F.dropout(m.depthwise(x))), None),
        (lambda m, x: m.depthwise(m.depthwise(x)), None),
    ],
)
def test_what_does_not_go_straight_from_one_to_the_other_stays(forward, told):
    model = nn.Sequential(Own(forward))
    work = Workload(model, "2x4x12x12")
    assert propose(work, model) is None
    found = why_not(work, model)
    assert (found is None) if told is None else told in (found or "")


def test_an_activation_in_place_between_them_is_no_second_reader():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 1))
    lever = propose(Workload(model, "2x4x12x12"), model)
    assert lever == Separable((("0", "", "1", "2", ""),))
    assert_same_run(model, lever, (2, 4, 12, 12), True)


def test_reading_the_input_between_them_is_allowed():
    def skip(m, x):
        t = m.depthwise(x)
        mean = x.mean()
        return m.pointwise(t) + mean

    model = nn.Sequential(Own(skip))
    lever = propose(Workload(model, "2x4x12x12"), model)
    assert lever is not None
    assert_same_run(model, lever, (2, 4, 12, 12), True)


def test_a_map_whose_size_is_asked_for_stays():
    def asked(m, x):
        t = m.depthwise(x)
        return F.interpolate(m.pointwise(t), size=t.shape[-1])

    model = nn.Sequential(Own(asked, stride=2))
    assert propose(Workload(model, "2x4x12x12"), model) is None
    same = nn.Sequential(Own(asked))
    assert propose(Workload(same, "2x4x12x12"), same) is not None


@pytest.mark.parametrize("where", ["0.depthwise", "0.pointwise", "1"])
def test_layers_with_hooks_stay(where):
    model = nn.Sequential(Own(direct), nn.Sequential(nn.Conv2d(6, 6, 3, groups=6)), nn.Conv2d(6, 2, 1))
    model.get_submodule(where).register_forward_hook(lambda module, inputs, output: None)
    work = Workload(model, "2x4x12x12")
    expected = (("1.0", "", "", "2", ""),) if where.startswith("0") else (("0.depthwise", "", "", "0.pointwise", ""),)
    assert propose(work, model) == Separable(expected)
    assert f"{where} has hooks" in (why_not(work, model) or "")


def test_a_weight_that_is_computed_stays():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), parametrizations.weight_norm(nn.Conv2d(4, 6, 1)))
    assert propose(Workload(model, "2x4x12x12"), model) is None


def test_every_pair_of_the_separable_u_net_is_found():
    model = unet("separable", width=8, depth=2)
    for train in (False, True):
        work = Workload(model, "1x3x32x32", train=train)
        lever = propose(work, model)
        assert lever is not None
        assert len(lever.chains) == 10
        assert all(bool(out_norm) is not train for *_, out_norm in lever.chains)
        assert why_not(work, model) is None
    assert lever.describe().startswith("10 separable convolutions fused: enter.0.depthwise with enter.0.pointwise, ")
    plain = unet(width=4, depth=1)
    assert propose(Workload(plain, "1x3x32x32"), plain) is None
    assert why_not(Workload(plain, "1x3x32x32"), plain) is None


@pytest.mark.usefixtures("_small_bands")
def test_the_u_net_has_the_same_gradients_and_statistics():
    model = unet("separable", width=4, depth=2)
    lever = propose(Workload(model, "2x3x16x16", train=True), model)
    assert lever is not None
    assert_same_run(model, lever, (2, 3, 16, 16), True)


def test_the_fused_u_net_trains_in_less_than_the_plain_one():
    # The pair of 17.3 and 2.0 million parameters, of which the smaller one takes more memory as it is.
    work = partial(Workload, inputs="1x3x256x256", train=True)
    small = unet("separable")
    lever = propose(work(small), small)
    assert lever is not None
    plain, separable = forecast(work(unet())).peak_bytes, forecast(work(small)).peak_bytes
    fused = forecast(pull(work(small), [lever])).peak_bytes
    lean = forecast(pull(work(small), [dataclasses.replace(lever, lean=True)])).peak_bytes
    assert lean < fused < plain < separable


def test_the_forecast_of_a_fused_u_net_is_what_is_measured():
    model = unet("separable", width=32, depth=1)
    work = Workload(model, "1x3x256x256", train=True)
    lever = propose(work, model)
    assert lever is not None
    fused = pull(work, [lever])
    found, measured = forecast(fused).peak_bytes, measure(fused).peak_bytes
    assert abs(measured - found) <= 0.005 * measured
    assert found < forecast(work).peak_bytes


def test_the_lever_is_plain_data_and_travels():
    model = nn.Sequential(Own(direct))
    lever = propose(Workload(model, "2x4x12x12"), model)
    assert lever is not None
    fields = json.loads(json.dumps(dataclasses.asdict(lever)))
    assert Separable(tuple(map(tuple, fields["chains"])), fields["lean"]) == lever
    fused = cloudpickle.loads(cloudpickle.dumps(cloudpickle.loads(cloudpickle.dumps(lever)).on_model(shared_copy(model))))
    x = torch.randn(2, 4, 12, 12)
    torch.testing.assert_close(fused(x), model(x))
    assert type(model[0].pointwise) is nn.Conv2d


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        (("5", "", "", "1", ""), "another layer at '5', where this one has nothing"),
        (("0", "", "2", "1", ""), "another layer at '2', where this one has Flatten"),
        (("1", "", "", "0", ""), "depthwise convolution at '1' and a 1x1 one at '0'"),
    ],
)
def test_another_model_than_planned_for_is_refused(chain, told):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1), nn.Flatten())
    with pytest.raises(InputError, match=told):
        Separable((chain,)).on_model(model)

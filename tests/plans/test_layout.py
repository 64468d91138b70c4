"""Channels-last: equal up to rounding, and as large as forecast."""

import copy

import cloudpickle
import pytest
import torch
from torch import nn

from sash.cost import Workload, forecast, measure
from sash.plans import Exactness, _layout
from sash.plans._layout import Conv1dAsPlane, Layout, faster_channels_last, propose, why_not
from sash.plans._lever import pull, shared_copy


def planes(kind=nn.Conv2d, norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(*[layer for at in range(3) for layer in (kind(16 if at else 3, 16, 3, padding=1), norm(16), nn.ReLU())])


def lines():
    torch.manual_seed(0)
    layers = [(nn.Conv1d(16 if at else 3, 16, 3, padding=2**at, dilation=2**at), nn.BatchNorm1d(16), nn.ReLU()) for at in range(3)]
    return nn.Sequential(*[layer for three in layers for layer in three], nn.Conv1d(16, 8, 4, stride=2, groups=4, padding_mode="circular"))


CASES = {
    "2-D": (planes(), (2, 3, 12, 12), Layout()),
    "2-D with weights": (planes(), (2, 3, 12, 12), Layout(weights=True)),
    "3-D": (planes(nn.Conv3d, nn.BatchNorm3d), (2, 3, 6, 8, 8), Layout(weights=True)),
    "1-D as planes": (lines(), (2, 3, 40), Layout(lines=True)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("train", [True, False])
def test_outputs_gradients_and_buffers_are_equal_up_to_rounding(case, train):
    model, shape, lever = CASES[case]
    assert lever.exactness is Exactness.ROUNDING
    plain = copy.deepcopy(model).double().train(train)
    changed = lever.on_model(copy.deepcopy(plain))
    assert list(changed.state_dict()) == list(plain.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    for net in (plain, changed):
        net(x).square().mean().backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), changed.named_parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(dict(changed.named_buffers()), dict(plain.named_buffers()), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(changed(x), plain(x), rtol=1e-10, atol=1e-12)


def test_the_layout_carries_on_from_operator_to_operator():
    outputs = Layout().on_model(planes())(torch.randn(2, 3, 12, 12))
    assert outputs.is_contiguous(memory_format=torch.channels_last)
    outputs = Layout(lines=True).on_model(nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU()))(torch.randn(2, 3, 12))
    assert outputs.unsqueeze(2).is_contiguous(memory_format=torch.channels_last)


def test_the_originals_values_stay_and_without_weights_its_strides_too():
    for weights in (False, True):
        model = planes()
        before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
        Layout(weights=weights, lines=True).on_model(shared_copy(model))
        assert all(torch.equal(tensor, before[name][0]) for name, tensor in model.state_dict().items())
        same = all(tensor.stride() == before[name][1] for name, tensor in model.state_dict().items())
        assert same is not weights
        assert not model._forward_pre_hooks


@pytest.mark.parametrize("case", ["2-D with weights", "1-D as planes"])
def test_a_forecast_with_the_lever_is_what_is_measured(case):
    model, _, lever = CASES[case]
    inputs = "4x3x64x64" if case.startswith("2") else "2x3x4096"
    model = model if case.startswith("2") else model[:-1]
    planned = cloudpickle.loads(cloudpickle.dumps(pull(Workload(model, inputs, train=True, optimizer="AdamW"), [lever])))
    assert forecast(planned).peak_bytes == pytest.approx(measure(planned).peak_bytes, rel=5e-4)


@pytest.mark.long
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_forecasts_with_the_lever_are_what_is_measured(case, train):
    model, _, lever = CASES[case]
    inputs = {"2": "4x3x64x64", "3": "2x3x16x24x24", "1": "2x3x4096"}[case[0]]
    planned = pull(Workload(model, inputs, train=train), [lever])
    assert forecast(planned).peak_bytes == pytest.approx(measure(planned).peak_bytes, rel=5e-4)


def test_inference_needs_less_without_the_blocked_copies():
    for model, inputs, lever in ((planes(), "4x3x64x64", Layout()), (lines()[:-1], "2x3x4096", Layout(lines=True))):
        work = Workload(model, inputs)
        assert forecast(pull(work, [lever])).peak_bytes < 0.9 * forecast(work).peak_bytes


def test_it_is_proposed_where_there_are_convolutions():
    assert propose(Workload(planes(), "4x3x8x8", train=True), planes()) == Layout(weights=True)
    assert propose(Workload(lines(), "4x3x20"), lines()) == Layout(lines=True)
    assert propose(Workload(lines(), "4x3x20", train=True), lines()) is None
    assert propose(Workload(nn.Linear(8, 8), "4x8"), nn.Linear(8, 8)) is None


def test_a_view_that_needs_contiguous_rows_is_told():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).view(len(x), -1)

    assert "reshape() in place of view()" in (why_not(Workload(Viewing(), "2x3x8x8")) or "")
    assert why_not(Workload(planes(), "2x3x8x8")) is None


def test_a_convolution_without_a_batch_and_one_padded_by_name_still_run():
    for settings, shape in (({}, (3, 9)), ({"padding": "same"}, (2, 3, 9)), ({"padding": 1, "padding_mode": "reflect"}, (2, 3, 9))):
        model = nn.Conv1d(3, 4, 3, **settings)
        x = torch.randn(shape)
        expected = model(x)
        changed = Layout(lines=True).on_model(model)
        assert type(changed) is Conv1dAsPlane
        torch.testing.assert_close(changed(x), expected)


def test_a_class_of_the_users_own_is_left_alone():
    class Own(nn.Conv1d):
        def forward(self, input):
            return super().forward(input) + 1

    model = nn.Sequential(Own(3, 4, 3))
    assert type(Layout(lines=True).on_model(model)[0]) is Own


def test_the_ratio_is_the_plain_steps_time_over_the_levers(monkeypatch):
    class Timed:
        def __init__(self, work):
            self.wall_s = 3.0 if work.rewrite is None else 2.0

    monkeypatch.setattr(_layout, "measure", Timed)
    assert faster_channels_last(Workload(planes(), "2x3x8x8")) == 1.5


def test_it_says_what_it_does():
    assert Layout(weights=True, lines=True).describe() == "layout: channels-last (inputs, weights, 1-D convolutions as 2-D ones)"

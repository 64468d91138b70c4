"""Activations that write over their input: where they may, with the same bits."""

import copy
import dataclasses
import json

import cloudpickle
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sash.cost import Workload, forecast, measure
from sash.errors import InputError, ModelError
from sash.plans._flow import record_flow
from sash.plans._inplace import InPlace, allowed_in, propose
from sash.plans._lever import Exactness, pull, shared_copy

SHAPE = "2x3x64x64"


class Net(nn.Module):
    """A stem, a middle that a test gives, and an end that keeps it from being the output."""

    def __init__(self, *middle, forward=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.middle = nn.Sequential(*middle)
        self.end = nn.Conv2d(32, 4, 1)
        self.own = forward

    def forward(self, x):
        x = self.stem(x)
        return self.end(self.own(self.middle, x) if self.own else self.middle(x))


def block(activation, dropout=0.0):
    """Depthwise, whose kernels copy nothing: activations are what counts."""
    return nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), activation, nn.Dropout(dropout))


def proposed(model, train=True, **settings):
    work = Workload(model, SHAPE, train=train, **settings)
    before = copy.deepcopy(model.state_dict())
    lever = propose(work, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return work, lever


def assert_same_bits(model, lever, steps=2):
    """The same outputs, gradients and buffers, with the same random numbers."""
    found = []
    for one in (copy.deepcopy(model), lever.on_model(copy.deepcopy(model))):
        one.train()
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        outputs = []
        for _ in range(steps):
            optimizer.zero_grad()
            outputs.append(one(torch.randn(2, 3, 64, 64)))
            outputs[-1].square().mean().backward()
            optimizer.step()
        found.append([*outputs, *(parameter.grad for parameter in one.parameters()), *one.buffers()])
    assert len(found[0]) > steps
    assert all(torch.equal(plain, changed) for plain, changed in zip(*found, strict=True))


def allowed(model, train=True):
    return allowed_in(record_flow(Workload(model, SHAPE, train=train)), train)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Hardswish, nn.GELU])
def test_an_activation_that_alone_reads_its_input_may_write_over_it_and_the_step_has_the_same_bits(activation):
    model = Net(*(block(activation()) for _ in range(3)))
    found = allowed(model)
    assert found == ["middle.0.1", "middle.1.1", "middle.2.1"]
    assert_same_bits(model, InPlace(tuple(found)))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_the_lever_is_proposed_where_the_peak_is_in_forward(activation):
    model = nn.Sequential(nn.Linear(64, 4096), activation(), nn.Linear(4096, 64))
    work = Workload(model, "512x64")
    lever = propose(work, model)
    assert lever == InPlace(("1",))
    assert lever.exactness is Exactness.BITS
    assert forecast(pull(work, [lever])).peak_bytes < 0.6 * forecast(work).peak_bytes
    assert propose(Workload(model, "512x64", train=True), model) is None


def test_dropout_and_batch_norm_keep_their_bits():
    middle = [nn.Sequential(nn.BatchNorm2d(32), nn.LeakyReLU(), nn.Conv2d(32, 32, 1), nn.Dropout(0.3)) for _ in range(3)]
    model = Net(*middle)
    found = allowed(model)
    assert {"middle.0.1", "middle.0.3"} <= set(found)
    assert_same_bits(model, InPlace(tuple(found)))


def test_leaky_relu_keeps_one_map_instead_of_two_and_the_measured_peak_is_the_forecast():
    model = Net(*(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.LeakyReLU()) for _ in range(6)))
    work, lever = proposed(model)
    fitted = pull(work, [lever])
    plain, found, measured = forecast(work).peak_bytes, forecast(fitted).peak_bytes, measure(fitted).peak_bytes
    assert found < 0.7 * plain
    assert 0 <= found - measured <= 0.005 * measured


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish, nn.GELU, nn.Mish])
def test_where_backward_needs_the_input_nothing_is_gained_and_nothing_proposed(activation):
    _, lever = proposed(Net(*(block(activation()) for _ in range(3))))
    assert lever is None or not any(path.endswith(".1") for path in lever.modules)


def test_an_elu_in_place_would_have_gradients_with_other_bits_and_is_not_proposed():
    # Backward from the result is alpha + result, backward from the input alpha * exp(input).
    model = Net(*(block(nn.ELU(alpha=0.7)) for _ in range(3)))
    assert allowed(model) == []
    assert allowed(model, train=False) == ["middle.0.1", "middle.1.1", "middle.2.1"]


def test_a_gelu_may_write_over_its_input_in_inference():
    model = nn.Sequential(nn.Linear(64, 4096), nn.GELU("tanh"), nn.Linear(4096, 64))
    work = Workload(model, "512x64")
    lever = propose(work, model)
    assert lever == InPlace(("1",))
    assert forecast(pull(work, [lever])).peak_bytes < 0.6 * forecast(work).peak_bytes
    x = torch.randn(512, 64)
    with torch.no_grad():
        assert torch.equal(lever.on_model(shared_copy(model))(x), model(x))
    assert type(model[1]) is nn.GELU


def residual(middle, x):
    return x + middle(x)


def sigmoid_first(middle, x):
    return middle(torch.sigmoid(x))


def in_checkpoint(middle, x):
    return checkpoint(middle, x * 2, use_reentrant=False)


class KeepsItsResult(torch.autograd.Function):
    """Holds its result where autograd does not look."""

    @staticmethod
    def forward(ctx, x):
        ctx.result = x.exp()
        return ctx.result

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.result


def own_function(middle, x):
    return middle(KeepsItsResult.apply(x))


def last_of_the_views(middle, x):
    left, right = x.chunk(2, 1)
    return torch.cat([middle(left), right], 1)


@pytest.mark.parametrize("forward", [residual, in_checkpoint, own_function, last_of_the_views])
def test_an_input_that_somebody_else_reads_later_is_left_alone(forward):
    model = Net(nn.LeakyReLU(), forward=forward)
    assert allowed(model) == []
    assert allowed(Net(nn.LeakyReLU())) == ["middle.0"]


@pytest.mark.parametrize("first", [torch.sigmoid, torch.exp, torch.tanh, torch.sqrt, lambda x: x.softmax(1)])
def test_the_result_that_a_producer_needs_for_its_backward_is_left_alone(first):
    model = Net(nn.LeakyReLU(), forward=lambda middle, x: middle(first(x)))
    assert allowed(model) == []
    assert allowed(model, train=False) == ["middle.0"]


def test_a_shared_module_is_left_alone_if_one_of_its_calls_may_not():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.layer = nn.LeakyReLU(), nn.Conv2d(32, 32, 1)

        def forward(self, x):
            x = x + self.act(x)
            return self.act(self.layer(x))

    assert allowed(Net(Twice())) == []


def test_what_a_hook_or_an_attribute_keeps_is_left_alone():
    kept = []
    hooked = Net(*(block(nn.LeakyReLU()) for _ in range(3)))
    hooked.middle[0][0].register_forward_hook(lambda module, args, output: kept.append(output))
    _, lever = proposed(hooked)
    assert "middle.0.1" not in lever.modules
    assert "middle.1.1" in lever.modules


def test_an_input_and_an_output_of_the_model_are_left_alone():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LeakyReLU(), nn.LeakyReLU()
            self.layer = nn.Conv2d(3, 64, 1)

        def forward(self, x):
            features = self.layer(self.first(x))
            return features, self.second(features)

    _, lever = proposed(Both())
    assert lever is None


def test_two_in_a_row_are_told_apart_where_autograd_would_refuse():
    leaky = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.LeakyReLU()) for _ in range(4)]
    model = Net(*leaky, nn.Dropout(0.2))
    assert {"middle.3.1", "middle.4"} <= set(allowed(model))
    with pytest.raises(ModelError, match="modified by an inplace operation"):
        forecast(pull(Workload(model, SHAPE, train=True), [InPlace(tuple(allowed(model)))]))
    _, lever = proposed(model)
    assert {"middle.0.1", "middle.1.1"} <= set(lever.modules)
    assert not {"middle.3.1", "middle.4"} <= set(lever.modules)
    assert_same_bits(model, lever)


def test_one_of_several_views_is_told_apart_where_autograd_would_refuse():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.LeakyReLU()

        def forward(self, x):
            return self.act(x.chunk(2)[0])

    leaky = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.LeakyReLU()) for _ in range(4)]
    model = Net(*leaky, nn.Conv2d(32, 32, 1), Halves())
    assert "middle.5.act" in allowed(model)
    _, lever = proposed(model)
    assert {"middle.0.1", "middle.3.1"} <= set(lever.modules)
    assert "middle.5.act" not in lever.modules
    assert_same_bits(model, lever)


@pytest.mark.parametrize("inplace", [True, None])
def test_nothing_is_proposed_where_there_is_nothing_to_do(inplace):
    middle = nn.ReLU(inplace=True) if inplace else nn.Softmax(1)
    _, lever = proposed(Net(middle))
    assert lever is None


def test_it_is_plain_values_and_says_what_it_does():
    lever = InPlace(("a.b", "c"))
    assert InPlace(**{key: tuple(value) for key, value in json.loads(json.dumps(dataclasses.asdict(lever))).items()}) == lever
    assert cloudpickle.loads(cloudpickle.dumps(lever)) == lever
    assert lever.describe() == "2 activations in place: a.b, c"
    assert InPlace(("a",)).describe() == "1 activation in place: a"


def test_a_model_without_the_module_is_refused_by_name():
    with pytest.raises(InputError, match=r"planned for a model with a module 'net\.3'"):
        InPlace(("net.3",)).on_model(Net())


def test_state_dict_keys_and_the_original_stay():
    model = Net(nn.ReLU(), nn.Sigmoid())
    changed = InPlace(("middle.0", "middle.1")).on_model(shared_copy(model))
    assert list(changed.state_dict()) == list(model.state_dict())
    assert changed.middle[0].inplace
    assert isinstance(changed.middle[1], nn.Sigmoid)
    assert not model.middle[0].inplace
    assert type(model.middle[1]) is nn.Sigmoid

"""Lower precision: never said to be exact, its memory told in full, and its masters kept."""

import copy

import cloudpickle
import pytest
import torch
from torch import nn

from sash.cost import Category, Workload, forecast, measure
from sash.errors import InputError
from sash.plans import Exactness
from sash.plans._lever import pull, shared_copy
from sash.plans._precision import Masters, Precision, propose, why_not


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 8))


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 128))


def train(model, optimizer, x, steps):
    losses = []
    for _ in range(steps):
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_neither_kind_claims_to_be_exact():
    assert {Precision(kind).exactness for kind in ("autocast", "weights")} == {Exactness.CHANGED}
    assert "bfloat16" in Precision().describe()
    assert "masters" in Precision("weights").describe()


def test_autocast_is_the_workloads_own():
    work = pull(Workload(perceptron(), "4x128", train=True), [Precision()])
    assert work.autocast is torch.bfloat16
    assert why_not(work, perceptron()) is not None


def test_weights_are_narrow_but_for_batch_norm_and_the_original_keeps_its_own():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    low = Precision("weights").on_model(shared_copy(model))
    assert list(low.state_dict()) == list(before)
    assert {name: tensor.dtype for name, tensor in low.state_dict().items() if tensor.dtype is not torch.bfloat16} == {
        **{f"1.{name}": torch.float32 for name in ("weight", "bias", "running_mean", "running_var")},
        "1.num_batches_tracked": torch.int64,
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    x = torch.randn(2, 3, 8, 8)
    outputs, expected = low(x), model(x)
    assert outputs.dtype is torch.float32
    assert not torch.equal(outputs, expected)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0.03)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.head = nn.Linear(8, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    low = Precision("weights").on_model(Tied())
    assert low.head.weight is low.embed.weight
    assert low(torch.arange(4)).shape == (4, 10)


def test_masters_follow_float32_training_where_narrow_weights_stand_still():
    # A step far smaller than bfloat16 can add to a weight: without masters nothing would move.
    x = torch.randn(16, 128)
    plain, model = perceptron(), perceptron()
    low = Precision("weights").on_model(shared_copy(model))
    optimizer = Masters(lambda parameters: torch.optim.SGD(parameters, lr=1e-4))(low.parameters())
    expected = train(plain, torch.optim.SGD(plain.parameters(), lr=1e-4), x, 20)
    found = train(low, optimizer, x, 20)
    assert found[-1] == pytest.approx(expected[-1], rel=0.02)
    # The masters are the original's parameters: it is the model that is trained.
    for (name, one), two in zip(plain.named_parameters(), model.parameters(), strict=True):
        moved = (one - dict(perceptron().named_parameters())[name]).norm()
        assert (one - two).norm() < 0.1 * moved, name


def test_a_step_of_the_masters_is_the_inner_optimizers_on_the_rounded_gradient():
    model = nn.Linear(4, 3)
    low = Precision("weights").on_model(shared_copy(model))
    expected = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    inner = torch.optim.Adam(expected, lr=0.1)
    optimizer = Masters(lambda parameters: torch.optim.Adam(parameters, lr=0.1))(low.parameters())
    for _ in range(3):
        low(torch.randn(5, 4)).square().sum().backward()
        for one, two in zip(expected, low.parameters(), strict=True):
            one.grad = two.grad.float()
        inner.step()
        optimizer.step()
        assert all(torch.equal(one, two) for one, two in zip(expected, model.parameters(), strict=True))
        assert all(torch.equal(one.bfloat16(), two) for one, two in zip(expected, low.parameters(), strict=True))
        assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in low.parameters())


def test_a_learning_rate_schedule_reaches_the_masters():
    low = Precision("weights").on_model(nn.Linear(4, 3))
    optimizer = Masters(lambda parameters: torch.optim.SGD(parameters, lr=1.0))(low.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    schedule.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.5


def test_training_goes_on_from_a_saved_state():
    x = torch.randn(8, 128)

    def start():
        low = Precision("weights").on_model(perceptron())
        return low, Masters(torch.optim.AdamW)(low.parameters())

    low, optimizer = start()
    train(low, optimizer, x, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    again, other = start()
    other.load_state_dict(saved)
    train(low, optimizer, x, 2)
    train(again, other, x, 2)
    assert all(torch.equal(one, two) for one, two in zip(low.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="not that of an optimizer with float32 masters"):
        other.load_state_dict(torch.optim.AdamW(low.parameters()).state_dict())


@pytest.mark.parametrize("kind", ["autocast", "weights"])
def test_a_forecast_with_the_lever_is_what_is_measured(kind):
    work = Workload(net(), "32x3x8x8", train=True, optimizer="AdamW")
    planned = cloudpickle.loads(cloudpickle.dumps(pull(work, [Precision(kind)])))
    assert forecast(planned).peak_bytes == pytest.approx(measure(planned).peak_bytes, rel=5e-4)


def test_masters_are_counted_with_the_optimizers_state():
    work = Workload(perceptron(), "4x128", train=True, optimizer="AdamW")
    planned = pull(work, [Precision("weights")])
    assert "AdamW with float32 masters" in planned.setting
    plain, low = forecast(work), forecast(planned)

    def held(found, category):
        return sum(block.bytes for block in found.timeline.blocks if block.born == 0 and block.category is category)

    # Adam's step counters, 4 bytes a parameter tensor, are the same in both.
    assert held(low, Category.PARAMETER) * 2 == held(plain, Category.PARAMETER)
    assert held(low, Category.OPTIMIZER) == held(plain, Category.OPTIMIZER) + held(plain, Category.PARAMETER)


def test_it_is_proposed_only_where_there_is_something_to_lower():
    model = perceptron()
    assert propose(Workload(model, "4x128"), model) == Precision()
    assert propose(Workload(model, "4x128", autocast="bf16"), model) is None
    assert "no float32 parameter" in (why_not(Workload(model.bfloat16(), "4x128:bfloat16"), model) or "")
    with pytest.raises(InputError, match="kind is 'fp8'"):
        Precision("fp8")

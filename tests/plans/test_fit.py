"""Fitting: a budget kept with the same result, or refused with the least that would do; plans as JSON; bad input."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sash
from sash.plans import Exactness
from sash.plans._headroom import needed, usable


class Net(nn.Module):
    """Convolutions, batch norm, dropout and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(4):
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(width, width, 3, padding=1)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.Sequential(*(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(4)))
        self.head = nn.Linear(32, 50)

    def forward(self, tokens):
        return self.head(self.layers(self.embed(tokens)))


def net_work(**changes) -> sash.Workload:
    torch.manual_seed(0)
    return sash.Workload(**{"model": Net(), "inputs": "8x3x48x48", "train": True, "optimizer": "momentum", **changes})


def share_of(work: sash.Workload, share: float) -> int:
    """A budget as a share of the plain peak."""
    return int(share * sash.forecast(work).peak_bytes)


@pytest.fixture(scope="module")
def least() -> int:
    """The least budget for `net_work`, bit for bit."""
    return least_of(net_work(), bit_identical=True)


def least_of(work: sash.Workload, **settings) -> int:
    with pytest.raises(sash.DoesNotFit) as found:
        sash.fit(work, 1, **settings)
    return found.value.least_bytes


@pytest.fixture(scope="module")
def halved() -> sash.Plan:
    work = net_work()
    return sash.fit(work, share_of(work, 0.7), bit_identical=True)


def train(model, plan=None, steps=2, batch=8):
    """What some steps leave behind."""
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        model.train()
        loss = model(torch.rand(batch, 3, 48, 48)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_a_run_that_fits_is_left_alone():
    work = net_work()
    plan = sash.fit(work, "1 GiB")
    assert plan.levers == ()
    assert plan.forecast.peak_bytes == plan.plain_peak_bytes
    assert plan.exactness is Exactness.BITS


def test_a_planned_run_stays_within_its_budget_when_measured(halved):
    measured = sash.measure(halved.planned).peak_bytes
    assert measured <= halved.budget_bytes < halved.plain_peak_bytes
    assert [lever.name for lever in halved.levers] == ["recompute"]


def test_the_least_bytes_of_a_refusal_can_be_kept(least):
    work = net_work()
    plan = sash.fit(work, least, bit_identical=True)
    assert plan.forecast.peak_bytes <= least
    assert sash.measure(plan.planned).peak_bytes <= least
    with pytest.raises(sash.DoesNotFit, match="The least that can be kept"):
        sash.fit(work, int(0.97 * least), bit_identical=True)


def test_a_budget_below_the_weights_names_the_same_least(least):
    work = net_work()
    static = sash.forecast(work).static_bytes
    with pytest.raises(sash.DoesNotFit, match="are there before the step starts") as found:
        sash.fit(work, static // 2, bit_identical=True)
    assert found.value.least_bytes == least


def test_peaks_never_rise_as_the_budget_falls(least):
    work = net_work()
    room = sash.forecast(work).peak_bytes - least
    budgets = [int(least + share * room) for share in (1.0, 0.75, 0.5, 0.25, 0.0)]
    peaks = [sash.fit(work, budget, bit_identical=True).forecast.peak_bytes for budget in budgets]
    assert peaks == sorted(peaks, reverse=True)


def test_a_planned_model_learns_bit_for_bit_what_the_plain_one_learns(halved):
    plain = copy.deepcopy(halved.work.model)
    own = copy.deepcopy(plain)
    planned = halved.apply(own)
    assert_same_state(train(planned), train(plain))
    assert planned.head.weight is own.head.weight  # it is the user's own model that learned


def test_the_comparison_of_states_can_fail(halved):
    plain = copy.deepcopy(halved.work.model).state_dict()
    assert plain["head.bias"].numel()
    with pytest.raises(AssertionError):
        assert_same_state(plain, {**plain, "head.bias": plain["head.bias"] + 1e-7})


def test_steps_of_a_plan_leave_what_a_plain_loop_leaves():
    work = net_work(loss=None)
    plain = copy.deepcopy(work.model)
    plan = sash.fit(work, share_of(work, 0.7), bit_identical=True)
    torch.manual_seed(3)
    batches = [(torch.rand(8, 3, 48, 48), torch.randint(4, (8,))) for _ in range(2)]
    state = torch.get_rng_state()
    losses = [plan.step(images, labels, loss=F.cross_entropy) for images, labels in batches]
    torch.set_rng_state(state)
    optimizer = torch.optim.SGD(plain.parameters(), momentum=0.9)
    plain.train()
    for (images, labels), loss in zip(batches, losses, strict=True):
        expected = F.cross_entropy(plain(images), labels)
        assert torch.equal(loss, expected.detach())
        expected.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_state(work.model.state_dict(), plain.state_dict())


def test_micro_batches_of_a_step_add_up_to_the_whole_batch():
    torch.manual_seed(0)
    work = sash.Workload(Tokens(), {"tokens": torch.randint(50, (8, 64))}, train=True, optimizer="momentum")
    plain = copy.deepcopy(work.model)
    static = sash.forecast(work).static_bytes
    plan = sash.fit(work, static + (sash.forecast(work).peak_bytes - static) // 3)
    batch = torch.randint(50, (8, 64))
    target = torch.randint(50, (8, 64))

    def loss(outputs, wanted):
        return F.cross_entropy(outputs.flatten(0, 1), wanted.flatten())

    found = plan.step({"tokens": batch}, target, loss)
    expected = loss(plain(batch), target)
    torch.testing.assert_close(found, expected.detach())
    expected.backward()
    torch.optim.SGD(plain.parameters(), momentum=0.9).step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(work.model.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_micro_batches_under_batch_norm_need_leave_and_the_refusal_says_why():
    work = net_work()
    tight = share_of(work, 0.25)
    with pytest.raises(sash.DoesNotFit, match=r"Batch norm in training normalises over the whole batch[\s\S]*microbatch"):
        sash.fit(work, tight)
    plan = sash.fit(work, tight, allow="microbatch")
    assert plan.exactness is Exactness.CHANGED
    assert plan.forecast.peak_bytes <= tight


def test_an_image_that_is_too_large_goes_through_in_tiles_with_the_same_result():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 2, 1)
    ).double()
    image = torch.rand(1, 3, 160, 160, dtype=torch.float64)
    work = sash.Workload(model, image)
    plan = sash.fit(work, int(0.4 * sash.forecast(work).peak_bytes))
    assert "tile" in [lever.name for lever in plan.levers]
    with torch.no_grad():
        torch.testing.assert_close(plan.apply(model).eval()(image), model(image), atol=1e-12, rtol=1e-12)
    assert sash.measure(plan.planned).peak_bytes <= plan.budget_bytes


def test_bit_identity_asked_for_keeps_layout_and_sums_as_they_are():
    work = net_work()
    budget = share_of(work, 0.7)
    assert sash.fit(work, budget, bit_identical=True).exactness is Exactness.BITS
    assert any(lever.exactness is Exactness.ROUNDING for lever in sash.fit(work, budget).levers)


class Checkpointed(Net):
    def forward(self, x):
        return self.head(self.body[5:](checkpoint(self.body[:5], x, use_reentrant=False)).mean((2, 3)))


class Shared(Net):
    """One layer object at two places of the tree, called twice as often."""

    def __init__(self) -> None:
        super().__init__()
        self.body[8] = self.body[4]


class Unsteady(Net):
    """Another path in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        return self.head((self.body(x) if self.steps % 2 else self.body[:9](x)).mean((2, 3)))


class Hooked(Net):
    """Hooks that count, and one that changes a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.body[0].register_forward_hook(self.twice)
        self.body[4].register_full_backward_hook(self.counted)

    def twice(self, module, args, output):
        self.count += 1
        return output * 2

    def counted(self, module, into, out):
        self.count += 100


@pytest.mark.parametrize("kind", [Checkpointed, Shared, Unsteady, Hooked])
def test_models_out_of_the_ordinary_learn_the_same_bits(kind):
    torch.manual_seed(0)
    work = net_work(model=kind())
    plan = sash.fit(work, share_of(work, 0.7), bit_identical=True)
    plain, planned = copy.deepcopy(work.model), plan.apply(copy.deepcopy(work.model))
    assert_same_state(train(planned), train(plain))
    assert getattr(planned, "count", 0) == getattr(plain, "count", 0)


def test_a_plan_is_written_and_taken_up_again(halved):
    text = halved.to_json()
    again = sash.Plan.from_json(text, halved.work)
    assert (again.levers, again.budget_bytes, again.forecast.peak_bytes) == (halved.levers, halved.budget_bytes, halved.forecast.peak_bytes)
    assert again.to_json() == text


def test_a_changed_model_is_refused_with_what_changed(halved):
    with pytest.raises(sash.InputError, match=r"planned body.0: Conv2d \(weight 16x3x3x3[\s\S]*found   body.0: Conv2d \(weight 24x3x3x3"):
        sash.Plan.from_json(halved.to_json(), net_work(model=Net(24)))
    with pytest.raises(sash.InputError, match="made for another model"):
        halved.apply(nn.Linear(3, 4))


def test_a_larger_batch_than_planned_for_is_refused(halved):
    with pytest.raises(sash.InputError, match="Fit this step anew"):
        sash.Plan.from_json(halved.to_json(), net_work(inputs="16x3x48x48"))


def broken(text: str, change) -> str:
    found = json.loads(text)
    change(found)
    return json.dumps(found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda plan: plan.update(plan=99), "no plan of version 1"),
        (lambda plan: plan.pop("levers"), "the plan's 'levers' is None"),
        (lambda plan: plan["levers"].append({"lever": "magic"}), "'magic' is no lever"),
        (lambda plan: plan["levers"].append(7), "7 is no lever"),
        (lambda plan: plan["levers"].append({"lever": "fold", "no": 1}), "the lever 'fold' cannot be read"),
        (lambda plan: plan["levers"][0].update(calls="no calls"), "cannot be pulled"),
        (lambda plan: plan["levers"].append({"lever": "offload", "folder": "/etc"}), "names a folder"),
        (lambda plan: plan.update(budget_bytes="all"), "the plan's 'budget_bytes' is 'all'"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(halved, change, told):
    with pytest.raises(sash.InputError, match=told):
        sash.Plan.from_json(broken(halved.to_json(), change), halved.work)


def test_what_is_no_json_is_refused(halved):
    with pytest.raises(sash.InputError, match="this is not JSON"):
        sash.Plan.from_json("levers: all of them", halved.work)


@pytest.mark.parametrize("budget", ["6 gigs", 0, "0 GB", -1, 1.5, None, True])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(sash.InputError, match="write it like '2 GiB'"):
        sash.fit(net_work(), budget)


def test_leave_for_something_unknown_is_refused():
    with pytest.raises(sash.InputError, match="allow names 'micro_batch'; 'microbatch' is the nearest"):
        sash.fit(net_work(), "1 GiB", allow=["micro_batch"])


def test_an_offload_with_leave_lowers_the_least(least):
    work = net_work()
    with_leave = least_of(work, bit_identical=True, allow="offload")
    assert with_leave <= least


@pytest.mark.parametrize("budget", [1, 999, 1000, 1001, 123_456_789])
def test_the_headroom_of_a_needed_budget_holds_its_peak(budget):
    assert usable(needed(budget)) >= budget
    assert usable(needed(budget) - 2) < budget

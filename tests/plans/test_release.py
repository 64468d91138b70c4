"""Values that are freed once read, in inference."""

import copy
import dataclasses
import json
import threading

import cloudpickle
import pytest
import torch
from torch import nn

from sash.cost import Workload, forecast, measure
from sash.errors import InputError
from sash.models import unet
from sash.plans._inplace import InPlace
from sash.plans._lever import Exactness, pull, shared_copy
from sash.plans._release import Release, propose

SHAPE = "2x3x64x64"


class Chain(nn.Module):
    """The caller names what the chain is given; the chain is long done with it when its widest layer runs."""

    def __init__(self, after=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.chain = nn.Sequential(nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 1))
        self.end = nn.Conv2d(32, 4, 1)
        self.after = after

    def forward(self, x):
        x = self.stem(x)
        y = self.chain(x)
        if self.after:
            y = self.after(x, y)
        return self.end(y)


def proposed(model, inputs=SHAPE, **settings):
    work = Workload(model, inputs, **settings)
    return work, propose(work, model)


@torch.no_grad()
def run(model, x=None):
    model.eval()
    return model(torch.ones(2, 3, 64, 64) if x is None else x)


def test_the_input_of_a_chain_goes_once_its_first_layer_has_read_it():
    model = Chain()
    work, lever = proposed(model)
    assert ("chain", 0, "given", 0, "chain.0", 0, "leave") in lever.rows or ("stem", 0, "returned", 0, "chain.0", 0, "leave") in lever.rows
    assert lever.exactness is Exactness.BITS
    fitted = pull(work, [lever])
    found, measured = forecast(fitted).peak_bytes, measure(fitted).peak_bytes
    # One map of 32 channels less; the number that stands in for its values stays.
    assert forecast(work).peak_bytes - found == 2 * 32 * 64 * 64 * 4 - 4
    assert 0 <= found - measured <= 0.005 * measured
    assert torch.equal(run(lever.on_model(shared_copy(model))), run(model))


@pytest.mark.parametrize("kind", ["plain", "separable"])
def test_a_unet_has_the_same_bits_and_needs_less(kind):
    model = unet(kind, width=16, depth=3)
    work, lever = proposed(model, "1x3x128x128")
    found, plain = forecast(pull(work, [lever])), forecast(work)
    assert found.peak_bytes - found.static_bytes < 0.9 * (plain.peak_bytes - plain.static_bytes)
    released, x = lever.on_model(shared_copy(model)), torch.randn(1, 3, 128, 128)
    # More than once, and at another size: what it keeps of a forward ends with that.
    for image in (x, x, torch.randn(3, 3, 64, 96)):
        assert torch.equal(run(released, image), run(model, image))


@pytest.mark.parametrize(
    "after",
    [lambda x, y: x + y, lambda x, y: torch.cat([x, y], 1)[:, 32:], lambda x, y: y * x.view(2, -1).sum()],
    ids=["residual", "joined", "view"],
)
def test_what_is_read_later_stays(after):
    model = Chain(after)
    _, lever = proposed(model)
    if lever is not None:
        assert not any(row[:3] == ("stem", 0, "returned") and row[4].startswith("chain") for row in lever.rows)
        assert torch.equal(run(lever.on_model(shared_copy(model))), run(model))
    assert run(model).isfinite().all()


def test_sizes_can_still_be_asked_for():
    model = Chain(lambda x, y: nn.functional.interpolate(y, size=x.shape[2:]))
    _, lever = proposed(model)
    assert lever is not None
    assert torch.equal(run(lever.on_model(shared_copy(model))), run(model))


def test_inputs_outputs_and_what_a_hook_keeps_stay():
    kept = []

    class Both(Chain):
        def forward(self, x):
            y = self.stem(x)
            return y, self.chain(y)

    both = Both()
    _, lever = proposed(both)
    assert lever is None or not any(row[0] == "stem" for row in lever.rows)
    hooked = Chain()
    hooked.stem.register_forward_hook(lambda module, args, output: kept.append(output))
    _, lever = proposed(hooked)
    assert lever is None or not any(row[0] == "stem" for row in lever.rows)
    x = torch.ones(2, 3, 64, 64)
    model = Chain()
    _, lever = proposed(model)
    run(lever.on_model(shared_copy(model)), x)
    assert torch.equal(x, torch.ones(2, 3, 64, 64))


def test_in_training_nothing_is_proposed_and_nothing_released():
    model = Chain()
    _, none = proposed(model, train=True)
    assert none is None
    _, lever = proposed(model)
    released = lever.on_model(copy.deepcopy(model))
    for one in (model, released):
        one.train()
        one(torch.ones(2, 3, 64, 64)).sum().backward()
    for plain, changed in zip(model.parameters(), released.parameters(), strict=True):
        assert torch.equal(plain.grad, changed.grad)


def test_a_part_called_on_its_own_releases_nothing():
    model = Chain()
    _, lever = proposed(model)
    released = lever.on_model(shared_copy(model))
    run(released)
    x = torch.ones(2, 32, 8, 8)
    run(released.chain, x)
    assert torch.equal(x, torch.ones(2, 32, 8, 8))


def test_it_goes_with_activations_in_place_planned_before_and_after():
    model = Chain()
    work, lever = proposed(model)
    over = InPlace(("chain.2",))
    for levers in ([lever, over], [over, propose(pull(work, [over]), model)]):
        changed = shared_copy(model)
        for one in levers:
            changed = one.on_model(changed)
        assert torch.equal(run(changed), run(model))


def test_a_forward_that_raised_leaves_nothing_to_the_next():
    model = Chain()
    _, lever = proposed(model)
    released = lever.on_model(shared_copy(model))
    with pytest.raises(RuntimeError):
        run(released, torch.ones(2, 4, 64, 64))
    assert torch.equal(run(released), run(model))


def test_threads_do_not_release_for_each_other():
    model = unet(width=8, depth=2)
    _, lever = proposed(model, "1x3x32x32")
    released = lever.on_model(shared_copy(model)).eval()
    images = [torch.randn(1, 3, 32, 32) for _ in range(4)]
    expected = [run(model, image) for image in images]
    same = []

    def work(index):
        same.extend(torch.equal(run(released, images[index]), expected[index]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 80


def test_the_released_model_can_be_copied_and_sent():
    model = Chain()
    _, lever = proposed(model)
    released = lever.on_model(shared_copy(model))
    assert list(released.state_dict()) == list(model.state_dict())
    for again in (copy.deepcopy(released), cloudpickle.loads(cloudpickle.dumps(released))):
        assert torch.equal(run(again), run(model))


def test_it_is_plain_values_and_says_what_it_does():
    lever = Release((("stem", 0, "returned", 0, "chain.0", 0, "leave"), ("chain", 0, "given", 0, "chain.0", 0, "leave")))
    again = json.loads(json.dumps(dataclasses.asdict(lever)))
    assert Release(tuple(tuple(row) for row in again["rows"])) == lever
    assert lever.describe() == "values freed once read, at 1 module: chain.0"


def test_a_model_without_the_module_is_refused_by_name():
    with pytest.raises(InputError, match="planned for a model with a module 'other', and this one has none"):
        Release((("other", 0, "given", 0, "stem", 0, "leave"),)).on_model(Chain())

"""The training loop: it trains, and a run that was broken off ends with the bits of one that was not."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sash.errors import InputError, ModelError
from sash.models import History, train

CLASSES, SIDE = 3, 6


def pictures(count=24, seed=0):
    """Pictures with a bright row, and which row it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    x[torch.arange(count), 0, labels] += 2
    return x, labels


def network(seed=1):
    torch.manual_seed(seed)
    convolve = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(*convolve, nn.Flatten(), nn.Linear(6 * SIDE**2, CLASSES))


def accuracy(outputs, labels):
    return (outputs.argmax(1) == labels).float().mean()


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)


quietly = partial(train, loss=F.cross_entropy, optimizer=momentum, batch=8, progress=False)


class Broken(Exception):  # noqa: N818 (not an error: somebody pulled the plug)
    pass


def breaking(after):
    """A loss that breaks off when it is asked for once more than `after` times."""
    left = [after]

    def loss(outputs, labels):
        if not left[0]:
            raise Broken
        left[0] -= 1
        return F.cross_entropy(outputs, labels)

    return loss


def assert_same_bits(one: nn.Module, other: nn.Module):
    found, expected = one.state_dict(), other.state_dict()
    assert list(found) == list(expected)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_it_learns_and_says_how():
    model = network()
    history = quietly(model, pictures(96), epochs=6, held_out=pictures(100, seed=1), metrics={"accuracy": accuracy})
    assert [epoch.steps for epoch in history.epochs] == [12, 24, 36, 48, 60, 72]
    assert history.epochs[-1].held_out["accuracy"] > 0.9
    assert history.epochs[-1].train["loss"] < history.epochs[0].train["loss"] / 2
    assert history.best == min(range(6), key=lambda index: history.epochs[index].held_out["loss"])
    assert not model.training
    with torch.no_grad():
        x, labels = pictures(100, seed=1)
        assert history.epochs[-1].held_out["loss"] == pytest.approx(F.cross_entropy(model(x), labels).item(), rel=1e-5)


def test_the_training_losses_are_means_over_samples_of_a_loop_written_out():
    data, model, by_hand = pictures(20), network(), network()
    history = quietly(model, data, epochs=1, metrics={"accuracy": accuracy})
    optimizer, sums = momentum(by_hand.parameters()), torch.zeros(2)
    torch.manual_seed(0)
    for part in torch.randperm(20, generator=torch.Generator().manual_seed(0)).split(8):
        outputs = by_hand(data[0][part])
        loss = F.cross_entropy(outputs, data[1][part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sums += len(part) * torch.stack([loss.detach(), accuracy(outputs, data[1][part])])
    assert_same_bits(model, by_hand)
    assert [history.epochs[0].train[name] for name in ("loss", "accuracy")] == pytest.approx((sums / 20).tolist())


def test_the_seed_decides_everything_and_the_callers_random_state_stays():
    runs = []
    for seed, before in ((0, 5), (0, 6), (1, 5)):
        model = network()
        torch.manual_seed(before)
        expected = torch.rand(3)
        torch.manual_seed(before)
        quietly(model, pictures(), epochs=2, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        runs.append(model)
    assert_same_bits(runs[0], runs[1])
    assert not torch.equal(runs[0][0].weight, runs[2][0].weight)


OPTIMIZERS = {
    "momentum": (momentum, 1),
    "adamw": (partial(torch.optim.AdamW, lr=3e-3), 1),
    "asgd": (partial(torch.optim.ASGD, lr=0.02), 1),
    "lbfgs": (partial(torch.optim.LBFGS, lr=0.1, max_iter=3), 3),
}
"""Optimizers, and how often they ask for the loss in a step."""


@pytest.mark.parametrize("schedule", [None, cosine])
@pytest.mark.parametrize(("optimizer", "asks"), OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("breaks", [(4,), (5, 3)])
def test_a_run_taken_up_again_ends_with_the_bits_of_an_unbroken_one(tmp_path, optimizer, asks, schedule, breaks):
    settings = {
        "optimizer": optimizer,
        "schedule": schedule,
        "epochs": 4,
        "held_out": pictures(20, 1),
        "patience": 3,
        "metrics": {"accuracy": accuracy},
    }
    unbroken, path = network(), tmp_path / "run.pt"
    expected = quietly(unbroken, pictures(), **settings)
    for seed, after in enumerate(breaks, 1):
        with pytest.raises(Broken):
            quietly(network(seed), pictures(), checkpoint=path, every=2, **settings, loss=breaking(after * asks))
    # Other weights: all that counts is in the checkpoint.
    model = network(seed=9)
    assert quietly(model, pictures(), checkpoint=path, **settings) == expected
    assert_same_bits(model, unbroken)
    assert [one.name for one in tmp_path.iterdir()] == ["run.pt"]


class Noisy(TensorDataset):
    """Pictures that are changed by chance each time that they are looked at."""

    def __getitem__(self, index):
        x, label = super().__getitem__(index)
        return x + 0.1 * torch.randn_like(x), label


@pytest.mark.parametrize(
    "data",
    [
        Noisy(*pictures()),
        DataLoader(Noisy(*pictures()), 8, shuffle=True),
        [(x, y) for x, y in zip(*(one.split(8) for one in pictures()), strict=True)],
    ],
    ids=["dataset", "loader", "list"],
)
def test_data_that_draw_by_themselves_draw_the_same_after_a_break(tmp_path, data):
    unbroken, model = network(), network()
    expected = quietly(unbroken, data, epochs=3)
    with pytest.raises(Broken):
        quietly(model, data, epochs=3, checkpoint=tmp_path / "run.pt", every=1, loss=breaking(4))
    assert quietly(network(seed=9), data, epochs=3) != expected
    assert quietly(model, data, epochs=3, checkpoint=tmp_path / "run.pt", every=1) == expected
    assert_same_bits(model, unbroken)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from torch.nn import functional as F
from test_train import accuracy, cosine, network, pictures, quietly
left = int(sys.argv[3])
def loss(outputs, labels):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(outputs, labels)
torch.set_num_threads(int(sys.argv[4]))
quietly(network(), pictures(), epochs=4, schedule=cosine, checkpoint=sys.argv[2], every=2, loss=loss, log=sys.argv[2] + ".jsonl")
"""


def test_a_killed_process_leaves_a_run_that_can_be_taken_up_to_the_bit(tmp_path):
    path = tmp_path / "run.pt"
    for steps in (5, 3):
        words = [os.path.dirname(__file__), str(path), str(steps), str(torch.get_num_threads())]
        child = subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
        assert child.returncode == -signal.SIGKILL
    model, unbroken = network(seed=9), network()
    log = tmp_path / "run.pt.jsonl"
    found = quietly(model, pictures(), epochs=4, schedule=cosine, checkpoint=path, every=2, log=log)
    assert found == quietly(unbroken, pictures(), epochs=4, schedule=cosine)
    assert_same_bits(model, unbroken)
    assert [json.loads(line)["train"] for line in log.read_text().splitlines()] == [epoch.train for epoch in found.epochs]


def test_more_epochs_or_steps_go_on_where_the_run_ended(tmp_path):
    path = tmp_path / "run.pt"
    unbroken, model = network(), network()
    expected = quietly(unbroken, pictures(), steps=8)
    assert expected.epochs[-1].steps == 8
    for steps in (2, 3, 5, 8):
        found = quietly(model, pictures(), steps=steps, checkpoint=path)
        assert found.epochs[-1].steps == steps
    assert found == expected
    assert_same_bits(model, unbroken)
    # Once more: it is done already, and only read.
    again = network(seed=9)
    assert quietly(again, pictures(), steps=8, checkpoint=path, loss=breaking(1)).epochs[:2] == expected.epochs[:2]
    assert_same_bits(again, unbroken)


def test_patience_ends_the_run_with_the_weights_of_the_best_epoch(tmp_path):
    # Labels by chance: what is learned of them does not hold elsewhere.
    data, other = (pictures()[0], pictures(seed=3)[1]), (pictures(seed=4)[0], pictures(seed=5)[1])
    settings = {
        "epochs": 40,
        "held_out": other,
        "patience": 3,
        "optimizer": partial(torch.optim.AdamW, lr=0.02),
        "checkpoint": tmp_path / "run.pt",
    }
    model = network()
    history = quietly(model, data, **settings)
    assert history.stopped_early
    assert len(history.epochs) == history.best + 4
    losses = [epoch.held_out["loss"] for epoch in history.epochs]
    assert losses.index(min(losses)) == history.best
    with torch.no_grad():
        assert F.cross_entropy(model(other[0]), other[1]).item() == pytest.approx(losses[history.best], rel=1e-5)
    again = network(seed=9)
    assert quietly(again, data, **settings) == history
    assert_same_bits(again, model)


def test_a_run_can_begin_anew(tmp_path):
    path = tmp_path / "run.pt"
    first, other = network(), network(seed=2)
    quietly(first, pictures(), epochs=2, checkpoint=path)
    quietly(other, pictures(), epochs=1, checkpoint=path, resume=False)
    expected = network(seed=2)
    quietly(expected, pictures(), epochs=1)
    assert_same_bits(other, expected)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    quietly(network(), pictures(), epochs=1, checkpoint=path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        quietly(network(), pictures(), epochs=2, checkpoint=path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": nn.Sequential(*network(), nn.Linear(CLASSES, CLASSES))},
            "weight 6.weight was absent, now 3x3 torch.float32; weight 6.bias",
        ),
        ({"model": network().double()}, "weight 0.weight was 6x1x3x3 torch.float32, now 6x1x3x3 torch.float64; .*; and 5 more"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9)}, "optimizer's lr was 0.02, now 0.1"),
        ({"optimizer": torch.optim.Adam}, "optimizer's class was SGD, now Adam"),
        ({"seed": 3}, "the run's seed was 0, now 3"),
        ({"batch": 4}, "the run's batch was 8, now 4"),
        ({"data": pictures(23)}, "the run's samples was 24, now 23"),
        ({"patience": 2}, "the run's keeps_best was False, now True"),
        ({"schedule": cosine}, "the run's schedule was 'NoneType', now 'CosineAnnealingLR'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_naming_what_changed(tmp_path, change, message):
    path = tmp_path / "run.pt"
    quietly(network(), pictures(), epochs=1, checkpoint=path)
    change = dict(change)
    model, data = change.pop("model", network()), change.pop("data", pictures())
    weights = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(InputError, match=message) as raised:
        quietly(model, data, epochs=2, checkpoint=path, **change)
    assert "give another path, or resume=False to begin anew" in str(raised.value)
    assert all(torch.equal(now, then) for now, then in zip(model.state_dict().values(), weights, strict=True))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "run.pt"
    if content is None:
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.pt (cannot be read as a|is no) checkpoint.*resume=False"):
        quietly(network(), pictures(), epochs=1, checkpoint=path)


def test_a_history_can_be_read_back_from_its_json():
    history = quietly(network(), pictures(), epochs=2, held_out=pictures(seed=1))
    found = json.loads(history.to_json())
    assert [epoch["held_out"]["loss"] for epoch in found["epochs"]] == [epoch.held_out["loss"] for epoch in history.epochs]
    assert (found["best"], found["stopped_early"]) == (history.best, False)
    assert isinstance(history, History)


def test_a_model_of_two_inputs_has_them_in_a_tuple():
    torch.manual_seed(0)
    model = nn.Bilinear(4, 3, 1)
    data = ((torch.randn(30, 4), torch.randn(30, 3)), torch.randn(30, 1))
    history = quietly(model, data, epochs=3, loss=F.mse_loss)
    assert history.epochs[-1].train["loss"] < history.epochs[0].train["loss"]


def test_an_optimizer_may_be_made_already():
    one, other = network(), network()
    quietly(one, pictures(), epochs=1, optimizer=momentum(one.parameters()))
    quietly(other, pictures(), epochs=1)
    assert_same_bits(one, other)


def test_progress_is_shown_on_stderr_and_leaves_stdout_alone(capsys):
    quietly(network(), pictures(), epochs=1, progress=True)
    assert capsys.readouterr().out == ""


class Stream(IterableDataset):
    def __iter__(self):
        yield from [pictures(8)]


def test_a_stream_of_batches_will_do():
    assert quietly(network(), Stream(), epochs=2).epochs[-1].steps == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither epochs nor steps are given"),
        ({"epochs": 0}, "epochs=0: training has at least 1"),
        ({"epochs": 1, "batch": 0}, "batch=0"),
        ({"epochs": 1, "patience": 0}, "patience=0"),
        ({"epochs": 1, "every": 5}, "every=5 steps a checkpoint was asked for, and no path"),
        ({"epochs": 1, "metrics": {"loss": accuracy}}, "metrics has a 'loss'"),
        ({"epochs": 1, "metrics": {"right": lambda scores, _: scores[:, 0]}}, "the metric 'right' is 8; it has to be one number a batch"),
        ({"epochs": 1, "metrics": {"right": lambda scores, _: "all"}}, "the metric 'right' is a str"),
        ({"epochs": 1, "data": pictures(0)}, "data hold 0 samples"),
        ({"epochs": 1, "data": (pictures()[0], pictures(23)[1])}, "hold 24, 23 samples"),
        ({"epochs": 1, "data": (pictures()[0],)}, "a tuple of Tensor; give"),
        ({"epochs": 1, "data": 7}, "data are a int"),
        ({"epochs": 1, "data": [torch.zeros(3)]}, "a batch is a Tensor; it has to be a pair"),
        ({"epochs": 2, "data": iter([pictures()])}, "no batches in epoch 2"),
        ({"epochs": 1, "held_out": []}, "held_out gave no batches after epoch 1"),
        ({"epochs": 1, "loss": lambda outputs, labels: outputs}, "the loss is 8x3; it has to be one number"),
        ({"epochs": 1, "loss": lambda outputs, labels: 1.0}, "the loss is float"),
        ({"epochs": 1, "loss": lambda outputs, labels: accuracy(outputs, labels)}, "the loss is a number without a gradient"),
    ],
)
def test_what_does_not_go_together_is_named(settings, message):
    data = settings.get("data", pictures())
    with pytest.raises(InputError, match=message):
        quietly(network(), data, **{name: value for name, value in settings.items() if name != "data"})


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights_are_spoiled():
    model = network()
    x, labels = pictures()
    x[-1] = float("nan")
    with pytest.raises(ModelError, match=r"the loss became nan at step .*, in epoch 1; try a lower rate"):
        quietly(model, (x, labels), epochs=1)
    assert all(weight.isfinite().all() for weight in model.parameters())

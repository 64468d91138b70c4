"""Micro-batches: the same gradient where they claim it, and a refusal, with its reason, where they cannot have it."""

import copy
import re
from dataclasses import replace

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sash.cost import Workload, forecast, measure, run_step
from sash.errors import InputError
from sash.models import unet
from sash.plans import Exactness
from sash.plans._lever import pull
from sash.plans._microbatch import MicroBatch, parts_of, propose, split, why_not


class Shaped(nn.Module):
    """A linear layer, and a function of its output and input."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x), x)


class WithLabels(nn.Module):
    """A net that computes its own loss."""

    def __init__(self, net, **settings):
        super().__init__()
        self.net = net
        self.settings = settings

    def forward(self, x, labels):
        return F.cross_entropy(self.net(x), labels, **self.settings)


class WithToken(nn.Module):
    """Attention over a sequence that a learned token is put before."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))[:, 0]


class InPlace(nn.Module):
    """Zeros that are filled piece by piece."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        y = torch.zeros(x.shape[0], 16, dtype=x.dtype)
        y[:, :8] = self.layer(x)
        y[:, 8:] = self.layer(x).relu_()
        return y


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def summed(outputs):
    return outputs.square().sum()


def gradients(work):
    """Of the workload's own step, on a copy of its model."""
    model = copy.deepcopy(work.model)
    run_step(model, work.arguments(), work.loss or (lambda y: y.mean()), None, None, 1, True, lambda phase, loss: None)
    return [parameter.grad for parameter in model.parameters()]


def gradients_in_parts(work, lever):
    """Of the step with the lever, over every part of the real batch in turn."""
    planned = pull(work, [lever])
    model = copy.deepcopy(work.model)
    for arguments in split(work.arguments(), lever.parts):
        scalar = (planned.loss or (lambda y: y.mean()))(model(*arguments[0], **arguments[1]))
        (scalar / planned.accumulate).backward()
    return [parameter.grad for parameter in model.parameters()]


EXACT = {
    "layers": (nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), torch.randn(6, 8), None),
    "a loss that is a sum": (nn.Sequential(nn.Linear(8, 16), nn.Tanh()), torch.randn(6, 8), summed),
    "a sum divided by the batch": (Shaped(lambda y, x: y.square().sum() / x.shape[0]), torch.randn(6, 8), None),
    "convolutions and group norm": (
        nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        torch.randn(6, 4, 20),
        None,
    ),
    "instance norm": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True)), torch.randn(6, 3, 8, 8), summed),
    "attention and a learned token": (WithToken(), torch.randn(6, 5, 16), None),
    "a recurrent layer": (Shaped(lambda y, x: y.cumsum(1)), torch.randn(6, 4, 8), summed),
    "writes in place": (InPlace(), torch.randn(6, 8), summed),
    "labels, one a sample": (WithLabels(nn.Linear(8, 4)), (torch.randn(6, 8), torch.arange(6) % 4), None),
    "labels that are all counted": (WithLabels(nn.Conv1d(3, 4, 3, padding=1)), (torch.randn(6, 3, 9), torch.ones(6, 9).long()), None),
}


@pytest.mark.parametrize("case", EXACT)
def test_gradients_of_the_parts_add_up_to_the_batchs(case):
    model, inputs, loss = copy.deepcopy(EXACT[case])
    inputs = tuple(x.double() if x.is_floating_point() else x for x in (inputs if isinstance(inputs, tuple) else (inputs,)))
    work = Workload(model.double(), inputs, train=True, loss=loss)
    lever = propose(work)
    assert lever is not None, why_not(work)
    assert lever.exactness is Exactness.ROUNDING
    for parts in (2, 3):
        torch.testing.assert_close(gradients_in_parts(work, replace(lever, parts=parts)), gradients(work), rtol=1e-11, atol=1e-13)


REFUSED = {
    "batch norm": (unet(width=4, depth=2), "4x3x16x16", "Batch norm in training normalises over the whole batch: enter.1, .*group norm"),
    "dropout": (
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)),
        "4x8",
        r"Random numbers \(dropout\) are drawn by 1: .*Exact with dropout 0",
    ),
    "noise": (Shaped(lambda y, x: y + torch.randn_like(x)), "4x8", "Random numbers"),
    "a contrastive loss": (Shaped(lambda y, x: y @ y.t()), "4x8", "mm multiplies the batch with itself"),
    "pairs": (Shaped(lambda y, x: (y[:, None] - y[None]).square()), "4x8", "pairs samples with each other|sub"),
    "a batch statistic": (Shaped(lambda y, x: y - y.mean(0)), "4x8", "back to its samples"),
    "a batch maximum": (Shaped(lambda y, x: y.amax(0)), "4x8", "amax is taken over the samples"),
    "the deviation of groups": (Shaped(lambda y, x: y.view(2, -1, 8).std(0)), "4x8", "takes the batch apart"),
    "samples in another order": (Shaped(lambda y, x: y * y.roll(1, 0)), "4x8", "roll runs along the samples"),
    "some samples": (Shaped(lambda y, x: y[1:] - y[:-1]), "4x8", "slice picks samples"),
    "softmax over samples": (Shaped(lambda y, x: y.softmax(0)), "4x8", "_softmax runs along the samples"),
    "a root of a mean": (Shaped(lambda y, x: y.square().mean().sqrt()), "4x8", "sqrt is no linear function of a mean"),
    "a number for every sample": (Shaped(lambda y, x: y * torch.arange(len(x))[:, None]), "4x8", "whose size depends on the batch"),
    "a number from the batch": (Shaped(lambda y, x: y * len(x)), "4x8", "uses a number that depends on the batch size"),
    "an operator without a rule": (
        Shaped(lambda y, x: torch.linalg.inv(y.reshape(-1, 2, 2))),
        "4x8",
        "linalg_inv_ex is an operator of which",
    ),
    "a backward of its own": (Shaped(lambda y, x: Doubled.apply(y)), "4x8", "the backward of Doubled is its own"),
    "spectral norm": (nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), "4x8", "writes into .*_u.* once for every micro-batch"),
    "running statistics": (
        nn.Sequential(nn.Conv1d(4, 4, 1), nn.InstanceNorm1d(4, track_running_stats=True)),
        "4x4x9",
        "1 writes into 1.running_mean, 1.running_var",
    ),
    "time first": (nn.LSTM(8, 8), "20x4x8", "mkldnn_rnn_layer runs along the samples"),
    "ignored labels": (WithLabels(nn.Conv1d(3, 4, 1)), ("4x3x9", "4x9:int64"), "mean over the labels that are not -100"),
    "class weights": (WithLabels(nn.Linear(8, 3), weight=torch.ones(3)), ("4x8", "4:int64<3"), "weighted by class"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_what_mixes_samples_is_refused_with_its_reason(case):
    model, inputs, told = REFUSED[case]
    work = Workload(model, inputs, train=True)
    assert propose(work) is None
    found = why_not(work)
    assert found is not None
    assert re.search(told, found), found


def test_labels_that_hold_an_ignored_one_are_refused():
    labels = torch.zeros(4, dtype=torch.int64)
    work = Workload(WithLabels(nn.Linear(8, 3)), (torch.randn(4, 8), labels), train=True)
    assert why_not(work) is None
    labels[2] = -100
    assert "the labels hold it" in (why_not(work) or "")


def test_labels_inside_the_loss_are_refused():
    labels = torch.arange(8) % 4
    work = Workload(nn.Linear(8, 4), "8x8", train=True, loss=lambda y: F.cross_entropy(y, labels))
    assert "does not run on a part of its batch, 4 of 8" in (why_not(work) or "")


def test_frozen_batch_norm_is_exact():
    class Frozen(nn.BatchNorm2d):
        def forward(self, input):
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias)

    assert why_not(Workload(nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(4)), "4x3x8x8", train=True)) is None


def test_what_is_allowed_by_name_says_that_it_changes_the_result():
    work = Workload(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "4x3x8x8", train=True)
    lever = propose(work, allow=True)
    assert lever == MicroBatch(2, allowed=True)
    assert lever.exactness is Exactness.CHANGED
    assert "changes the result" in lever.describe()
    assert propose(Workload(nn.Linear(8, 8), "4x8", train=True), allow=True) == MicroBatch(2)


def test_the_whole_batch_stays_in_memory_and_is_counted():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    for inputs in ("2048x64", torch.randn(2048, 64)):
        work = Workload(model, inputs, train=True, optimizer="SGD")
        planned = pull(work, [MicroBatch(4)])
        assert planned.accumulate == 4
        assert planned.inputs[0].shape == (512, 64)
        plain, less = forecast(work), forecast(planned)
        assert less.static_bytes == plain.static_bytes
        assert less.peak_bytes < plain.peak_bytes


def test_a_forecast_with_micro_batches_is_what_is_measured():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
    planned = pull(Workload(model, "8x3x48x48", train=True, optimizer="AdamW", loss=summed), [MicroBatch(4, loss="sum")])
    planned = cloudpickle.loads(cloudpickle.dumps(planned))
    assert forecast(planned).peak_bytes == pytest.approx(measure(planned).peak_bytes, rel=5e-4)


def test_a_batch_in_a_dict_is_split_where_it_is_batched():
    mask = torch.ones(3, 3)
    batch = ((torch.arange(6),), {"x": torch.randn(6, 3), "mask": mask, "more": [torch.zeros(6), torch.tensor(1.0)]})
    parts = split(batch, 3)
    assert [part[0][0].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert all(part[1]["mask"] is mask and part[1]["more"][0].shape == (2,) and part[1]["more"][1].dim() == 0 for part in parts)
    assert torch.equal(torch.cat([part[1]["x"] for part in parts]), batch[1]["x"])
    assert parts[1][1]["x"].untyped_storage()._cdata == batch[1]["x"].untyped_storage()._cdata


def test_only_divisors_are_offered():
    assert parts_of(Workload(nn.Linear(8, 8), "12x8", train=True)) == (2, 3, 4, 6, 12)
    with pytest.raises(InputError, match=r"a batch of 12 was to be split in 5.* 4 parts, or a batch of 10, would"):
        split(((torch.zeros(12, 8),), {}), 5)


def test_bad_numbers_are_refused():
    for parts in (0, -1, 1.5, True, "2"):
        with pytest.raises(InputError, match="parts is"):
            MicroBatch(parts)
    with pytest.raises(InputError, match="loss is 'median'"):
        MicroBatch(2, loss="median")
    with pytest.raises(InputError, match="without train=True"):
        pull(Workload(nn.Linear(8, 8), "4x8"), [MicroBatch(2)])


def test_inference_and_a_batch_of_one_have_nothing_to_split():
    for work in (Workload(nn.Linear(8, 8), "4x8"), Workload(nn.Linear(8, 8), "1x8", train=True)):
        assert propose(work) is None
        assert why_not(work) is not None


def test_looking_leaves_the_model_as_it_was():
    model = unet(width=4, depth=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    why_not(Workload(model, "4x3x16x16", train=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks

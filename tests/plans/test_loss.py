"""The lever that computes cross-entropy in chunks."""

import copy
import pickle

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sash
from sash.cost import FunctionSource, Workload, forecast, measure
from sash.errors import InputError
from sash.plans._lever import Exactness, pull
from sash.plans._loss import ChunkedLoss, InChunks, LossInChunks, cross_entropy, propose


class Segmenter(nn.Module):
    """Logits of 40 classes a pixel."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 40, 1)

    def forward(self, x):
        return self.head(x)


class WithItsOwnLoss(nn.Module):
    """Takes the labels and returns the loss, as Hugging Face's models do."""

    def __init__(self):
        super().__init__()
        self.body = Segmenter()

    def forward(self, x, labels=None):
        logits = self.body(x)
        return {"loss": nn.functional.cross_entropy(logits, labels, ignore_index=255), "logits": logits}


def labelled(outputs):
    return F.cross_entropy(outputs, outputs.detach().argmax(1), label_smoothing=0.1)


def work_with_a_loss():
    return Workload(Segmenter(), "2x3x96x96", train=True, optimizer="sgd", loss=labelled)


def work_with_its_own_loss():
    inputs = {"x": torch.randn(2, 3, 96, 96), "labels": torch.randint(40, (2, 96, 96))}
    return Workload(WithItsOwnLoss(), inputs, train=True, loss=lambda outputs: outputs["loss"])


def test_it_is_proposed_where_the_loss_calls_cross_entropy():
    work = work_with_a_loss()
    lever = propose(work, work.model)
    assert lever == ChunkedLoss(modules=(), in_loss=True)
    assert lever.exactness is Exactness.ROUNDING
    assert lever.describe() == "cross-entropy in chunks, called by the loss"


def test_it_is_proposed_for_the_module_whose_forward_calls_it():
    work = work_with_its_own_loss()
    lever = propose(work, work.model)
    assert lever == ChunkedLoss(modules=("",), in_loss=False)
    assert lever.describe() == "cross-entropy in chunks, called by the model"
    assert not work.model._forward_hooks


def test_a_loss_module_within_the_model_is_found_by_its_path():
    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.criterion = Segmenter(), nn.CrossEntropyLoss(torch.ones(40))

        def forward(self, x, labels):
            return self.criterion(self.body(x), labels)

    work = Workload(Trainer(), (torch.randn(2, 3, 96, 96), torch.randint(40, (2, 96, 96))), train=True)
    assert propose(work, work.model) == ChunkedLoss(modules=("criterion",), in_loss=False)


@pytest.mark.parametrize(
    "loss",
    [None, lambda outputs: outputs.square().mean(), lambda outputs: F.nll_loss(F.log_softmax(outputs, 1), outputs.detach().argmax(1))],
)
def test_it_is_not_proposed_where_nothing_calls_it(loss):
    work = Workload(Segmenter(), "2x3x96x96", train=True, loss=loss)
    assert propose(work, work.model) is None


def test_it_is_not_proposed_for_small_logits_or_for_probabilities():
    small = Workload(Segmenter(), "1x3x32x32", train=True, loss=labelled)
    soft = Workload(Segmenter(), "2x3x96x96", train=True, loss=lambda outputs: F.cross_entropy(outputs, outputs.detach().softmax(1)))
    assert propose(small, small.model) is None
    assert propose(soft, soft.model) is None


@pytest.mark.parametrize("make", [work_with_a_loss, work_with_its_own_loss])
def test_the_peak_falls_as_forecast(make):
    work = make()
    fitted = pull(work, [propose(work, work.model)])
    plain, found, measured = forecast(work), forecast(fitted), measure(fitted)
    # Four maps as large as the logits become two; the convolution's own copies are then the peak.
    assert found.peak_bytes < 0.92 * plain.peak_bytes
    assert 0 <= found.peak_bytes - measured.peak_bytes <= 0.01 * measured.peak_bytes


def test_gradients_are_torchs_up_to_rounding():
    torch.manual_seed(0)
    model = WithItsOwnLoss()
    x, labels = torch.randn(2, 3, 96, 96), torch.randint(40, (2, 96, 96))
    labels[0, :9] = 255
    model(x, labels=labels)["loss"].backward()
    changed = ChunkedLoss(modules=("",), in_loss=False).on_model(copy.deepcopy(model))
    changed.zero_grad()
    loss = changed(x, labels=labels)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, model(x, labels=labels)["loss"], rtol=1e-6, atol=0)
    for (name, one), (other_name, other) in zip(model.named_parameters(), changed.named_parameters(), strict=True):
        assert name == other_name
        # Sums over 18 432 pixels in float.
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (5,), (2, 5, 3, 4)])
def test_every_argument_of_torchs_function_means_the_same(shape, weighted, reduction):
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = torch.randint(5, [*shape[:1], *shape[2:]] if len(shape) > 1 else [])
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    if target.dim():
        target.view(-1)[1] = 7
    settings = {"ignore_index": 7, "reduction": reduction, "label_smoothing": 0.2}
    expected = F.cross_entropy(logits, target, weight, **settings)
    with InChunks(least_bytes=0):
        found = F.cross_entropy(logits, target, weight, **settings)
        module = nn.CrossEntropyLoss(weight, **settings)(logits, target)
    assert torch.equal(found, module)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits, towards)[0] for loss in (found, expected)))


def test_nothing_but_ignored_labels_gives_torchs_nan():
    assert cross_entropy(0, torch.randn(2, 5), torch.full((2,), -100)).isnan()


@pytest.mark.parametrize(
    "arguments",
    [
        {"target": torch.rand(4, 5)},
        {"target": torch.zeros(4, dtype=torch.uint8)},
        {"target": torch.zeros(4, dtype=torch.int64), "size_average": False, "reduction": "none"},
        {"target": torch.zeros(4, dtype=torch.int64), "reduce": False},
    ],
)
@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
def test_what_chunks_cannot_do_is_torchs(arguments):
    logits = torch.randn(4, 5)
    assert torch.equal(cross_entropy(0, logits, **arguments), F.cross_entropy(logits, **arguments))


def test_bad_arguments_are_refused():
    logits = torch.randn(4, 5)
    with pytest.raises(ValueError, match="batch_size"):
        cross_entropy(0, logits, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="average is not a valid value for reduction"):
        cross_entropy(0, logits, torch.zeros(4, dtype=torch.int64), reduction="average")
    with pytest.raises(InputError, match=r"the label at \(0,\) is 9"):
        cross_entropy(0, logits, torch.full((4,), 9))


def test_a_forward_that_raises_leaves_no_mode_behind():
    model = ChunkedLoss(modules=("body",), in_loss=False).on_model(WithItsOwnLoss())
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 4, 8, 8), labels=torch.zeros(1, 8, 8, dtype=torch.int64))
    assert torch.overrides._get_current_function_mode() is None


def test_state_dict_keys_stay_and_the_changed_model_and_loss_can_be_sent(tmp_path):
    model = ChunkedLoss(modules=("",), in_loss=False).on_model(WithItsOwnLoss())
    assert list(model.state_dict()) == list(WithItsOwnLoss().state_dict())
    assert isinstance(pickle.loads(pickle.dumps(ChunkedLoss())), ChunkedLoss)
    again = cloudpickle.loads(cloudpickle.dumps(model))
    x, labels = torch.randn(2, 3, 96, 96), torch.randint(40, (2, 96, 96))
    assert torch.equal(again(x, labels)["loss"], model(x, labels)["loss"])


def test_a_loss_named_by_its_source_and_a_loss_module_are_wrapped(tmp_path):
    file = tmp_path / "own_loss.py"
    file.write_text(
        "from torch.nn.functional import cross_entropy\n\ndef loss(outputs):\n    return cross_entropy(outputs, outputs.argmax(1))\n"
    )
    work = Workload(Segmenter(), "2x3x96x96", train=True, loss=FunctionSource(f"{file}:loss"))
    lever = propose(work, work.model)
    assert lever == ChunkedLoss()
    fitted = pull(work, [lever])
    assert isinstance(fitted.loss, LossInChunks)
    assert forecast(fitted).peak_bytes < forecast(work).peak_bytes
    assert sash.measure(fitted).peak_bytes <= forecast(fitted).peak_bytes

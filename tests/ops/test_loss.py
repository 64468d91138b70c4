"""Softmax cross-entropy in chunks, held to torch's own and to float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import sash
from sash.errors import InputError
from sash.ops import SoftmaxLoss, _loss, softmax_loss, softmax_losses

CASES = [
    ((3, 5, 7, 6), 1),
    ((4, 9), 1),
    ((9, 4), 0),
    ((2, 3, 4), 2),
    ((2, 3, 4), -1),
    ((5,), 0),
    ((2, 7, 0), 1),
    ((0, 7), 1),
    ((30, 10, 2, 2), 1),
]


@pytest.fixture(autouse=True)
def _chunks(monkeypatch):
    # Chunks of a few positions, also where they do not pay.
    monkeypatch.setattr(_loss, "CHUNK_BYTES", 512)
    monkeypatch.setattr(_loss, "MOST_CHUNKS", 1 << 20)
    monkeypatch.setattr(_loss, "LEAST_BYTES", 0)
    monkeypatch.setattr(_loss, "LEAST_CLASSES", 0)


def problem(shape, axis, dtype=torch.float64, ignore=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    positions = [*shape]
    classes = positions.pop(axis)
    labels = torch.randint(classes, positions, generator=generator)
    if ignore is not None:
        labels = torch.where(torch.rand(positions, generator=generator) < 0.3, ignore, labels)
    return logits, labels


def torchs(logits, labels, axis=1, ignore=-100, weight=None, smoothing=0.0, reduction="none"):
    moved = logits.movedim(axis, 1) if logits.dim() > 1 else logits
    return F.cross_entropy(moved, labels, weight, ignore_index=ignore, label_smoothing=smoothing, reduction=reduction)


def assert_same_loss_and_gradient(logits, labels, axis, ignore, weight, smoothing):
    logits.requires_grad_()
    expected = torchs(logits, labels, axis, ignore, weight, smoothing)
    found = softmax_losses(logits, labels, axis, ignore, weight=weight, smoothing=smoothing)
    towards = torch.randn_like(found)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (expected_gradient,) = torch.autograd.grad(expected, logits, towards)
    (gradient,) = torch.autograd.grad(found, logits, towards)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    return gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_every_position_has_torchs_loss_and_gradient(shape, axis, weighted, smoothing):
    logits, labels = problem(shape, axis, ignore=255)
    weight = torch.rand(shape[axis], dtype=torch.float64) if weighted else None
    assert_same_loss_and_gradient(logits, labels, axis, 255, weight, smoothing)


@pytest.mark.parametrize("layout", ["channels last", "every second", "transposed", "expanded", "columns", "mixed"])
def test_any_layout_of_the_logits_will_do(layout):
    logits, labels = problem((4, 5, 6, 8), 1, ignore=-1)
    laid = {
        "channels last": lambda: logits.contiguous(memory_format=torch.channels_last),
        "every second": lambda: logits.repeat_interleave(2, 3)[..., ::2],
        "transposed": lambda: logits.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda: logits[:1, :, :1, :1].expand(4, 5, 6, 8),
        "columns": lambda: torch.cat([logits, logits], 1).contiguous(memory_format=torch.channels_last)[:, :5],
        "mixed": lambda: logits.permute(2, 1, 3, 0).contiguous().permute(3, 1, 0, 2),
    }[layout]().detach()
    assert_same_loss_and_gradient(laid, labels, 1, -1, None, 0.1)


def test_the_gradient_lies_in_memory_as_the_logits_do():
    logits, labels = problem((4, 5, 6, 8), 1)
    last = logits.contiguous(memory_format=torch.channels_last)
    assert assert_same_loss_and_gradient(last, labels, 1, -100, None, 0.0).stride() == last.stride()


def test_the_first_and_the_second_derivative_are_right():
    logits, labels = problem((3, 5, 2), 1, ignore=-1)
    logits.requires_grad_()
    weight = torch.rand(5, dtype=torch.float64)

    def losses(logits):
        return softmax_losses(logits, labels, 1, -1, weight=weight, smoothing=0.1)

    assert torch.autograd.gradcheck(losses, logits)
    assert torch.autograd.gradgradcheck(losses, logits)


@pytest.mark.parametrize(("normalization", "count"), [("full", 12), ("valid", 9), ("batch_size", 3), ("none", 1)])
def test_caffes_four_normalisations_divide_by_their_counts(normalization, count):
    logits, labels = problem((3, 5, 4), 1)
    labels.view(-1)[[1, 6, 7]] = 9
    sum_of_losses = torchs(logits, labels, ignore=9, reduction="sum")
    torch.testing.assert_close(softmax_loss(logits, labels, ignore=9, normalization=normalization), sum_of_losses / count)


def test_batch_size_counts_the_axes_before_the_classes():
    logits, labels = problem((3, 5, 4), 2)
    expected = torchs(logits, labels, 2, reduction="sum") / 15
    torch.testing.assert_close(softmax_loss(logits, labels, axis=2, normalization="batch_size"), expected)
    torch.testing.assert_close(SoftmaxLoss(axis=-1, normalization="batch_size")(logits, labels), expected)


@pytest.mark.parametrize("normalization", ["full", "valid", "batch_size", "none"])
def test_with_every_label_ignored_the_loss_and_its_gradient_are_zero(normalization):
    logits, labels = problem((3, 5, 4), 1)
    logits.requires_grad_()
    loss = softmax_loss(logits, torch.full_like(labels, 255), ignore=255, normalization=normalization)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 5, 0)])
def test_an_empty_batch_has_the_loss_zero(shape):
    logits = torch.zeros(shape, requires_grad=True)
    loss = softmax_loss(logits, torch.zeros(shape[0], shape[2], dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == shape


@given(st.integers(1, 300), st.floats(0, 300), st.sampled_from([0.0, 1e6, -1e6]), st.integers(0, 99))
def test_a_float_loss_stays_within_its_error_bound_however_large_the_logits(classes, scale, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(8, classes, generator=generator) + offset
    labels = torch.randint(classes, (8,), generator=generator)
    exact = torchs(logits.double(), labels)
    spread = logits.double().amax(1) - logits.double().gather(1, labels[:, None])[:, 0]
    bound = 2**-24 * (16 + 4 * math.log(classes) + 4 * spread)
    error = (softmax_losses(logits, labels).double() - exact).abs()
    assert (error <= bound).all()


def test_a_logit_of_minus_infinity_has_probability_zero():
    logits = torch.tensor([[0.0, -math.inf, 1.0], [0.0, -math.inf, 1.0]], requires_grad=True)
    losses = softmax_losses(logits, torch.tensor([2, 1]))
    torch.testing.assert_close(losses, torchs(logits, torch.tensor([2, 1])))
    assert losses[1] == math.inf
    losses[0].backward()
    assert logits.grad[0, 1] == 0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float_and_rounded_once(dtype):
    logits, labels = problem((4, 50, 6), 1, dtype, ignore=0)
    logits.requires_grad_()
    loss = softmax_loss(logits, labels, ignore=0)
    loss.backward()
    wide = logits.detach().float().requires_grad_()
    exact = softmax_loss(wide, labels, ignore=0)
    exact.backward()
    assert loss.dtype == logits.grad.dtype == dtype
    assert torch.equal(loss, exact.to(dtype))
    assert torch.equal(logits.grad, wide.grad.to(dtype))


def test_under_autocast_the_loss_is_float_as_torchs_is():
    logits, labels = problem((4, 50), 1, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = softmax_loss(logits, labels), F.cross_entropy(logits, labels)
    assert loss.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_weights_and_smoothing_leave_the_divisor_a_number_of_positions():
    logits, labels = problem((4, 5), 1)
    weight = torch.rand(5, dtype=torch.float64)
    expected = torchs(logits, labels, weight=weight, smoothing=0.2).sum() / 4
    torch.testing.assert_close(softmax_loss(logits, labels, weight=weight, smoothing=0.2), expected)
    torch.testing.assert_close(SoftmaxLoss(weight=weight, smoothing=0.2)(logits, labels), expected)


def test_small_logits_and_few_classes_go_to_torchs_kernels_with_the_same_result(monkeypatch):
    for shape in ((4, 50, 6), (4, 3, 600)):
        logits, labels = problem(shape, 1, ignore=-1)
        chunked = softmax_losses(logits, labels, ignore=-1, smoothing=0.1)
        monkeypatch.setattr(_loss, "LEAST_BYTES", 1 << 14)
        monkeypatch.setattr(_loss, "LEAST_CLASSES", 4)
        torch.testing.assert_close(softmax_losses(logits, labels, ignore=-1, smoothing=0.1), chunked)
        monkeypatch.undo()


def test_chunks_cover_every_position_once_and_are_no_larger_than_the_first():
    for shape in ((4, 5, 600), (1, 5, 7), (3000, 5, 2), (4, 5, 1), (3, 1000, 4)):
        rows = torch.zeros(shape).movedim(1, -1)
        parts = list(_loss._chunks(rows))
        for part in parts:
            rows[part] += 1
            assert rows[part].numel() <= rows[parts[0]].numel() <= max(512 // 4, shape[1])
        assert torch.equal(rows, torch.ones_like(rows))


def test_large_logits_have_a_bounded_number_of_chunks(monkeypatch):
    monkeypatch.setattr(_loss, "MOST_CHUNKS", 16)
    assert len(list(_loss._chunks(torch.zeros(1, 4096, 64)))) == 16


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_step_needs_half_of_what_torchs_loss_does_and_its_forecast_is_right(monkeypatch, smoothing):
    monkeypatch.undo()
    logits = torch.randn(2, 40, 128, 128, requires_grad=True)
    labels = torch.randint(40, (2, 128, 128))
    beside = logits.numel() * 4 + labels.numel() * 8

    def ours(logits, labels):
        return softmax_loss(logits, labels, ignore=255, smoothing=smoothing)

    def plain(logits, labels):
        return F.cross_entropy(logits, labels, ignore_index=255, label_smoothing=smoothing)

    ours, plain = (sash.Workload(loss, (logits, labels), train=True, loss=torch.sum) for loss in (ours, plain))
    found, measured = sash.forecast(ours).peak_bytes, sash.measure(ours).peak_bytes
    assert 0 <= found - measured <= 0.005 * measured
    assert measured - beside <= 0.5 * (sash.forecast(plain).peak_bytes - beside)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x, y: softmax_loss(x, y[:1]), "the labels are 1x4, and the logits 2x3x4 with classes on axis 1 want labels 2x4"),
        (lambda x, y: softmax_loss(x, y, axis=3), "axis 3 was asked for, and the logits are 2x3x4: it may be 0 to 2"),
        (lambda x, y: softmax_loss(x[0, :, 0], y[0, 0]), "axis 1 was asked for, and the logits are 3: it may be 0"),
        (lambda x, y: softmax_loss(x[0, 0, 0], y[0, 0]), "the logits are a single number: give logits with an axis of classes"),
        (lambda x, y: softmax_loss(x.long(), y), "the logits are of type torch.int64; they have to be floating"),
        (lambda x, y: softmax_loss(x, y.float()), "the labels are of type torch.float32; they have to be class numbers"),
        (lambda x, y: softmax_loss(x, y + 2), r"the label at \(0, 1\) is 3, and there are 3 classes, 0 to 2 \(5 such labels\)"),
        (lambda x, y: softmax_loss(x, y - 1), r"the label at \(0, 0\) is -1, and there are 3 classes.*give ignore="),
        (lambda x, y: softmax_loss(x, y - 1, ignore=255), "only 255 is left out"),
        (lambda x, y: softmax_loss(x[:, :0], y), "the logits are 2x0x4: no class on axis 1"),
        (lambda x, y: softmax_loss(x, y, normalization="mean"), "normalization is 'mean'; it may be 'full', 'valid'"),
        (lambda x, y: softmax_loss(x, y, ignore=0.5), "ignore is 0.5"),
        (lambda x, y: softmax_losses(x, y, smoothing=1.5), "smoothing is 1.5; it is a share from 0 to 1"),
        (lambda x, y: softmax_losses(x, y, weight=torch.ones(4)), "weight is 4 of type torch.float32; it has to be 3 floating"),
        (lambda x, y: softmax_losses(x, y, weight=torch.ones(3, requires_grad=True)), "with a gradient"),
        (lambda x, y: softmax_losses(x, y.to("meta")), "the logits are on cpu and the labels on meta"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, told):
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    with pytest.raises(InputError, match=told):
        call(logits, labels)

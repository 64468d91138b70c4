"""Front ends for long signals: their sizes, and that nothing behind a signal's end is ever read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.errors import InputError
from sash.models import front_end


def test_sixty_thousand_steps_become_sixty():
    model = front_end(1, 16).eval()
    assert model(torch.randn(2, 60_000, 1)).shape == (2, 60, 16)
    assert model.outputs(60_000) == 60
    assert model.outputs(torch.tensor([60_000, 59_999, 0])).tolist() == [60, 59, 0]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 60), st.integers(0, 99))
def test_every_length_gives_its_quotient_by_the_strides(strides, more, seed):
    model = front_end(2, 4, strides=tuple(strides), out_channels=3).eval()
    shortest = 1
    for stride in strides:
        shortest *= stride
    length = shortest + more
    assert model(torch.zeros(1, length, 2)).shape == (1, model.outputs(length), 3)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 150), min_size=1, max_size=4), st.integers(0, 99), st.sampled_from([0.0, 1e30, float("nan"), float("inf")]))
def test_each_signal_comes_out_as_it_would_alone_whatever_lies_behind_its_end(lengths, seed, filling):
    torch.manual_seed(seed)
    model = front_end(2, 6, strides=(3, 2, 5), out_channels=4).double()
    x = torch.full((len(lengths), 150, 2), filling, dtype=torch.float64)
    for signal, length in zip(x, lengths, strict=True):
        signal[:length] = torch.randn(length, 2, dtype=torch.float64)
    x.requires_grad_()
    y = model(x, torch.tensor(lengths))
    for signal, found, length in zip(x.detach(), y, lengths, strict=True):
        steps = model.outputs(length)
        assert not found[steps:].any()
        if steps:
            torch.testing.assert_close(found[:steps], model(signal[None, :length])[0], rtol=1e-12, atol=1e-12)
    y.square().sum().backward()
    for gradient, length in zip(x.grad, lengths, strict=True):
        assert gradient.isfinite().all()
        assert not gradient[length:].any()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_empty_batch_passes_through():
    model = front_end(3, 4, strides=(2, 3))
    assert model(torch.randn(0, 12, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 2, 4)


def test_it_can_be_exported_with_lengths():
    torch.manual_seed(0)
    model = front_end(2, 4, strides=(2, 3)).eval()
    x, lengths = torch.randn(3, 30, 2), torch.tensor([30, 12, 7])
    exported = torch.export.export(model, (x, lengths)).module()
    torch.testing.assert_close(exported(x, lengths), model(x, lengths))


def test_under_autocast_steps_are_those_of_single_precision_up_to_its_rounding():
    torch.manual_seed(0)
    model, x, lengths = front_end(2, 8, strides=(2, 3)), torch.randn(3, 30, 2), torch.tensor([30, 12, 7])
    expected = model(x, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x, lengths)
    # Two layers of 2⁻⁸ each, on maps that are normalised.
    assert (found.float() - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: front_end(1, strides=()), r"strides=\(\): a front end has at least one"),
        (lambda: front_end(1, strides=(10, 0)), r"strides\[1\]=0: each stride"),
        (lambda: front_end(0), "in_channels=0: a front end"),
        (lambda: front_end(2)(torch.zeros(1, 60_000, 1)), "the signals are 1x60000x1 of torch.float32; they have to be batch x length x 2"),
        (lambda: front_end(1)(torch.zeros(60_000, 1)), "the signals are 60000x1"),
        (lambda: front_end(1)(torch.zeros(1, 999, 1)), r"999 steps long; strides \(10, 10, 10\) make one output of 1000"),
        (lambda: front_end(1)(torch.zeros(2, 1000, 1), torch.tensor([3])), "lengths are 1 of torch.int64; .* 2 whole numbers"),
        (lambda: front_end(1)(torch.zeros(1, 1000, 1), torch.tensor([3.0])), "lengths are 1 of torch.float32"),
        (lambda: front_end(1)(torch.zeros(2, 1000, 1), torch.tensor([3, 1001])), "lengths go from 3 to 1001; .* from 0 to 1000"),
        (lambda: front_end(1)(torch.zeros(2, 1000, 1), torch.tensor([-1, 7])), "lengths go from -1 to 7"),
    ],
)
def test_what_does_not_go_together_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()

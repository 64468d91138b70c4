"""The gated activation, held to the two functions it is made of."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sash
from sash.errors import InputError
from sash.ops import Gated, gated


def written_out(a, b):
    return torch.sigmoid(a) * torch.tanh(b)


def made(*shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(call, *inputs):
    inputs = [one.detach().clone().requires_grad_() for one in inputs]
    y = call(*inputs)
    return y.detach(), torch.autograd.grad(y, inputs, made(*y.shape, seed=7).to(y.dtype))


@given(st.lists(st.integers(0, 4), max_size=4), st.integers(0, 99))
def test_a_pair_has_the_value_and_the_gradients_of_the_two_functions(shape, seed):
    a, b = made(*shape, seed=seed), made(*shape, seed=seed + 100)
    torch.testing.assert_close(gradients(gated, a, b), gradients(written_out, a, b), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_tensor_is_halved_along_the_axis_and_its_gradient_lies_as_it_does(axis, layout):
    x = made(2, 4, 6, 8).to(memory_format=layout)
    found, expected = (gradients(call, x) for call in (Gated(axis), lambda x: written_out(*x.chunk(2, axis))))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert found[1][0].stride() == x.stride()


def test_first_and_second_derivatives_pass_torchs_own_check():
    a, b = made(2, 3).requires_grad_(), made(2, 3, seed=1).requires_grad_()
    x = made(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(gated, (a, b))
    assert torch.autograd.gradgradcheck(gated, (a, b))
    assert torch.autograd.gradcheck(gated, x)
    assert torch.autograd.gradgradcheck(gated, x)


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_the_two_alone_gets_its_gradient(which):
    pair = [made(3, 4), made(3, 4, seed=1)]
    pair[which].requires_grad_()
    (found,) = torch.autograd.grad(gated(*pair).sum(), pair[which])
    (expected,) = torch.autograd.grad(written_out(*pair).sum(), pair[which])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_stay_within_eight_roundings(dtype):
    a, b = (made(4, 5000, seed=seed).clamp(-8, 8).to(dtype) for seed in (0, 1))
    (y, (of_a, of_b)), (exact, (exact_a, exact_b)) = gradients(gated, a, b), gradients(written_out, a.double(), b.double())
    towards = made(4, 5000, seed=7).to(dtype).double()
    # The second reference takes the gradient that the first one rounded.
    scale = (towards / made(4, 5000, seed=7)).nan_to_num(1)
    rounding, normal = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
    gate = torch.sigmoid(a.double())
    assert y.dtype is of_a.dtype is dtype
    assert ((of_b - exact_b * scale).abs() <= 8 * rounding * (towards * gate).abs() + 4 * normal).all()
    assert ((of_a - exact_a * scale).abs() <= 8 * rounding * (towards * exact).abs() + 4 * normal).all()


def test_a_closed_gate_has_finite_gradients_near_zero():
    a = torch.tensor([-80.0, -88.0, -95.0, -104.0, -1e4, -torch.inf]).requires_grad_()
    b = torch.tensor([0.5, 2.0, -3.0, 1.0, -1.0, 0.1]).requires_grad_()
    gated(a, b).sum().backward()
    exact = [one.detach().double().requires_grad_() for one in (a, b)]
    written_out(*exact).sum().backward()
    for one, other in zip((a, b), exact, strict=True):
        assert (one.grad - other.grad).abs().max() <= 2**-126
        torch.testing.assert_close(one.grad[0].double(), other.grad[0], rtol=1e-5, atol=0)


def test_nan_is_handed_on_in_value_and_gradient():
    a, b = torch.tensor([0.0, torch.nan], requires_grad=True), torch.tensor([torch.nan, 0.0], requires_grad=True)
    y = gated(a, b)
    y.sum().backward()
    assert y.isnan().all()
    assert a.grad.isnan().all()
    assert b.grad.isnan().all()


def test_backward_keeps_the_gate_and_the_result_only():
    saved = []
    a, b = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        y = gated(a, b)
    assert len(saved) == 2
    assert any(torch.equal(one, y) for one in saved)
    assert any(torch.equal(one, torch.sigmoid(a)) for one in saved)


def test_a_result_changed_in_place_is_refused_by_autograd():
    x = torch.randn(2, 4, requires_grad=True)
    y = gated(x)
    y.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_without_gradients_the_value_is_the_same():
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(gated(x), written_out(*x.chunk(2, 1)))
    assert torch.equal(gated(x), gated(x.clone().requires_grad_()))


def test_functional_transforms_go_through_it():
    x = made(3, 4)
    total = lambda x: gated(x, axis=0).sum()  # noqa: E731
    expected = torch.stack([torch.autograd.functional.jacobian(total, one) for one in x])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(x), expected)


def test_empty_batches_and_tensors_without_values_pass_through():
    x = torch.zeros(0, 4, requires_grad=True)
    gated(x).sum().backward()
    assert x.grad.shape == (0, 4)
    for context in (FakeTensorMode(), torch.device("meta")):
        with context:
            x = torch.empty(2, 4, 5, requires_grad=True)
            y = gated(x)
            y.sum().backward()
            assert (y.shape, x.grad.shape) == ((2, 2, 5), (2, 4, 5))


def test_under_autocast_it_takes_what_the_convolution_makes():
    model, x = nn.Sequential(nn.Conv1d(2, 8, 3), Gated()), torch.randn(1, 2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16
    assert model[0].weight.grad.dtype is torch.float32


def test_export_writes_it_out_with_free_sides():
    model, x = nn.Sequential(nn.Conv1d(2, 8, 3), Gated()), torch.randn(1, 2, 9)
    graph = torch.export.export(model, (torch.randn(1, 2, 30),), dynamic_shapes=({2: torch.export.Dim("length", min=5)},)).module()
    torch.testing.assert_close(graph(x), model(x))


class Block(nn.Module):
    """Convolutions with a gate after each."""

    def __init__(self, gate, layers=4):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(16, 32, 1) for _ in range(layers))
        self.gate = gate

    def forward(self, x):
        for layer in self.layers:
            x = self.gate(layer(x))
        return x


class WrittenOut(nn.Module):
    """The gate as two functions and a product."""

    def forward(self, x):
        return written_out(*x.chunk(2, 1))


def test_each_gate_of_a_training_step_keeps_one_map_less():
    def peak(gate, layers):
        return sash.forecast(sash.Workload(Block(gate, layers), "4x16x20000", train=True)).peak_bytes

    one_map = 4 * 16 * 20_000 * 4
    kept, kept_plainly = (peak(gate, 10) - peak(gate, 6) for gate in (Gated(), WrittenOut()))
    assert 8 * one_map <= kept <= 8.1 * one_map
    assert 12 * one_map <= kept_plainly <= 12.1 * one_map


def test_the_forecast_of_a_training_step_is_what_is_measured():
    work = sash.Workload(Block(Gated()), "4x16x20000", train=True)
    forecast, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert abs(forecast - measured) <= 0.005 * measured


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: gated(torch.zeros(2, 3)), r"the input is 2x3, and its axis 1 of 3 cannot be halved .* make it 4, or give the two apart"),
        (lambda: gated(torch.zeros(2, 3), axis=2), "axis 2 was asked for, and the input is 2x3: it has 2 axes"),
        (lambda: gated(torch.zeros(())), "axis 1 was asked for, and the input is a single number"),
        (lambda: gated(torch.zeros(2, 4), torch.zeros(2, 3)), "a is 2x4 and b is 2x3"),
        (lambda: gated(torch.zeros(2), torch.zeros(2, dtype=torch.float64)), "a is torch.float32 on cpu and b is torch.float64"),
        (lambda: gated(torch.zeros(2), torch.zeros(2, device="meta")), "on cpu and b is torch.float32 on meta"),
        (lambda: gated(torch.zeros(2, 4, dtype=torch.int64)), r"a is of type torch.int64.*a.float\(\) would be"),
    ],
)
def test_what_does_not_go_together_is_named(call, told):
    with pytest.raises(InputError, match=told):
        call()

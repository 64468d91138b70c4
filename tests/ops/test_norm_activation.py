"""Norm and activation that save their output only, held to the two layers of torch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sash
from sash.errors import InputError
from sash.ops import BatchNormAct, GroupNormAct, _norm_activation, batch_norm_act, group_norm_act

INVERTIBLE = [
    None,
    nn.Identity(),
    nn.LeakyReLU(0.01),
    nn.LeakyReLU(3.0),
    nn.ELU(),
    nn.ELU(0.5),
    nn.CELU(2.0),
    nn.SELU(),
    nn.Softplus(),
    nn.Softplus(2.0),
    nn.Sigmoid(),
    nn.Tanh(),
]
CUTTING = [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7)]
SHAPES = [(6, 4), (5, 4, 7), (4, 4, 5, 6), (1, 4, 9, 3), (3, 4, 2, 3, 4)]


@pytest.fixture(autouse=True)
def _chunks(monkeypatch):
    # Chunks of a sample or two, also where they do not pay.
    monkeypatch.setattr(_norm_activation, "CHUNK_BYTES", 2000)


def problem(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, towards = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=generator, dtype=torch.float64) for _ in range(2))
    weight = weight.sign() * (0.5 + weight.abs())
    return (2 * x + 3).to(dtype).requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), towards.to(dtype)


def gradients(y, towards, *wanted):
    return torch.autograd.grad(y, [one for one in wanted if one is not None], towards)


def after(activation, x):
    return x if activation is None else copy.deepcopy(activation)(x)


def assert_same(found, expected, towards, *wanted, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for one, other in zip(gradients(found, towards, *wanted), gradients(expected, towards, *wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", INVERTIBLE, ids=str)
def test_output_gradients_and_running_statistics_are_those_of_batch_norm_then_activation(activation, shape):
    x, weight, bias, towards = problem(shape)
    ours, theirs = ([torch.zeros(4).double(), torch.ones(4).double()] for _ in range(2))
    found = batch_norm_act(x, activation, *ours, weight, bias)
    expected = after(activation, F.batch_norm(x, *theirs, weight, bias, True))
    assert_same(found, expected, towards, x, weight, bias)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("trained", ["nothing", "weight and bias"])
@pytest.mark.parametrize("activation", INVERTIBLE + CUTTING, ids=str)
def test_with_fixed_statistics_activations_that_cut_will_do_as_well(activation, trained):
    x, weight, bias, towards = problem((5, 4, 6, 3))
    mean, var = torch.rand(4).double() + 2, torch.rand(4).double() + 3
    affine = (weight, bias) if trained == "weight and bias" else (weight.detach(), bias.detach())
    found = batch_norm_act(x, activation, mean, var, *affine, training=False)
    expected = after(activation, F.batch_norm(x, mean, var, *affine, False))
    assert_same(found, expected, towards, x, *(affine if trained == "weight and bias" else ()))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(6, 4, 7), (4, 4, 5, 6), (3, 4, 2, 3, 4)])
@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.1), nn.ELU(), nn.Tanh()], ids=str)
def test_group_layer_and_instance_norm_have_torchs_output_and_gradients(activation, shape, groups):
    x, weight, bias, towards = problem(shape)
    found = group_norm_act(x, groups, activation, weight, bias)
    assert_same(found, after(activation, F.group_norm(x, groups, weight, bias)), towards, x, weight, bias)


def test_without_weight_and_bias_the_norm_is_plain():
    x, _, _, towards = problem((5, 4, 6))
    activation = nn.LeakyReLU(0.1)
    assert_same(batch_norm_act(x, activation), activation(F.batch_norm(x, None, None, training=True)), towards, x)
    assert_same(group_norm_act(x, 2, activation), activation(F.group_norm(x, 2)), towards, x)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format, "strided", "transposed"])
def test_any_layout_of_the_input_will_do(layout):
    x, weight, bias, towards = problem((4, 8, 5, 6))
    x = x.detach()
    if layout == "strided":
        x = x.repeat_interleave(2, 3)[..., ::2]
    elif layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    else:
        x, towards = x.contiguous(memory_format=layout), towards.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    activation = nn.ELU()
    found = batch_norm_act(x, activation, weight=weight, bias=bias)
    expected = activation(F.batch_norm(x, None, None, weight, bias, True))
    assert found.stride() == expected.stride()
    assert_same(found, expected, towards, x, weight, bias)
    assert_same(group_norm_act(x, 2, activation, weight, bias), activation(F.group_norm(x, 2, weight, bias)), towards, x, weight, bias)


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.3), nn.CELU(0.7), nn.Softplus(1.5), nn.Sigmoid()], ids=str)
def test_gradients_are_those_of_finite_differences(activation):
    x, weight, bias, _ = problem((3, 2, 4))
    assert torch.autograd.gradcheck(lambda x, w, b: batch_norm_act(x, activation, weight=w, bias=b), (x, weight, bias))
    assert torch.autograd.gradcheck(lambda x, w, b: group_norm_act(x, 1, activation, w, b), (x, weight, bias))


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.01), nn.ELU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus()], ids=str)
def test_channels_whose_input_is_lost_are_saved_and_their_gradients_stay_right(activation):
    # A weight of 0, one too small for its bias, one that drives the activation flat, one that underflows; the last is as usual.
    x, _, _, towards = problem((40, 5, 6), torch.float32)
    weight = torch.tensor([0.0, 1e-6, 40.0, 1e-34, 1.0], requires_grad=True)
    bias = torch.tensor([0.5, 1.0, 0.0, 0.0, 0.1], requires_grad=True)
    wide = [one.detach().double().requires_grad_() for one in (x, weight, bias)]
    for ours, theirs in (
        (lambda x, w, b: batch_norm_act(x, activation, weight=w, bias=b), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
        (lambda x, w, b: group_norm_act(x, 5, activation, w, b), lambda x, w, b: F.group_norm(x, 5, w, b)),
    ):
        found = ours(x, weight, bias)
        exact = activation(theirs(*wide))
        for one, other in zip(gradients(found, towards, x, weight, bias), gradients(exact, towards.double(), *wide), strict=True):
            assert one.isfinite().all()
            # Rounding of fp32, over sums of 240 terms of size 1 to 40.
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("weight", "saved"), [(1.0, 0), (0.0, 1)])
def test_only_channels_whose_input_is_lost_are_saved(weight, saved):
    weight = torch.tensor([1.0, weight, 1.0, 1.0], requires_grad=True)
    x = torch.randn(8, 4, 5, requires_grad=True)
    y = batch_norm_act(x, nn.LeakyReLU(0.01), weight=weight, bias=torch.zeros(4))
    held = [one for one in y.grad_fn.saved_tensors if one is not None and one.numel() > 4]
    assert sorted(one.numel() for one in held) == ([] if not saved else [8 * saved * 5]) + [y.numel()]
    assert any(one.data_ptr() == y.data_ptr() for one in held)


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.01), nn.Softplus()], ids=str)
@pytest.mark.parametrize("affine", [torch.float32, torch.bfloat16])
def test_half_precision_keeps_statistics_in_float_and_gradients_within_its_rounding(activation, affine):
    x, weight, bias, towards = problem((16, 4, 10, 10), torch.bfloat16)
    weight, bias = (one.detach().to(affine).requires_grad_() for one in (weight, bias))
    wide = [one.detach().double().requires_grad_() for one in (x, weight, bias)]
    for ours, theirs in (
        (lambda x, w, b: batch_norm_act(x, activation, weight=w, bias=b), lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),
        (lambda x, w, b: group_norm_act(x, 2, activation, w, b), lambda x, w, b: F.group_norm(x, 2, w, b)),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            found = ours(x, weight, bias)
        exact = activation(theirs(*wide))
        pair = activation(theirs(x, weight, bias))
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, pair)
        three = (
            gradients(found, towards, x, weight, bias),
            gradients(pair, towards, x, weight, bias),
            gradients(exact, towards.double(), *wide),
        )
        for one, other, right in zip(*three, strict=True):
            # The input comes back with the roundings of output and undoing beside those that the pair has. A weight's gradient sums 1,600
            # terms of either sign: roundings add up like their norm, which is larger than the sum.
            size = right.norm() if right.dim() > 1 else towards.double().norm()
            assert (one.double() - right).norm() <= (other.double() - right).norm() + 2**-8 * size


def test_layers_load_and_run_as_torchs_in_training_and_in_evaluation():
    torch.manual_seed(0)
    x = torch.randn(6, 4, 5, 5)
    ours, theirs = BatchNormAct(4, nn.LeakyReLU(0.1), momentum=None), nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.LeakyReLU(0.1))
    for _ in range(3):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs[0].state_dict())
    ours.load_state_dict(theirs[0].state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    grouped = GroupNormAct(2, 4, nn.ELU())
    torch.testing.assert_close(grouped(x), F.elu(F.group_norm(x, 2)))
    grouped.load_state_dict(nn.GroupNorm(2, 4).state_dict())


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 4, 0)])
def test_an_empty_batch_passes_through_and_leaves_the_statistics(shape):
    layer = BatchNormAct(4, nn.LeakyReLU(0.1))
    for norm in (layer, GroupNormAct(2, 4, nn.LeakyReLU(0.1))):
        y = norm(torch.zeros(shape, requires_grad=True))
        y.sum().backward()
        assert y.shape == shape
        assert torch.equal(norm.weight.grad, torch.zeros(4))
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_var, torch.ones(4))


def test_without_gradients_the_result_is_the_same_and_nothing_is_saved():
    x, weight, bias, _ = problem((5, 4, 6))
    trained = batch_norm_act(x, nn.ELU(), weight=weight, bias=bias)
    with torch.no_grad():
        assert torch.equal(batch_norm_act(x, nn.ELU(), weight=weight, bias=bias), trained)


@pytest.mark.parametrize("layer", [BatchNormAct(4, nn.LeakyReLU(0.1)), GroupNormAct(2, 4, nn.ELU())], ids=str)
def test_layers_can_be_exported(layer):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer.eval())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_the_result_written_over_is_noticed_in_backward():
    y = batch_norm_act(torch.randn(4, 3, 5, requires_grad=True), nn.LeakyReLU(0.1))
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def two_norms(first, second):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), first, nn.Conv2d(32, 32, 3), second, nn.Conv2d(32, 8, 3))


def test_a_network_holds_a_map_less_for_each_norm_and_its_forecast_is_right(monkeypatch):
    # The measuring process has chunks of their own size.
    monkeypatch.undo()
    lean = two_norms(*(BatchNormAct(32, nn.LeakyReLU(0.01)) for _ in range(2)))
    plain = two_norms(*(nn.Sequential(nn.BatchNorm2d(32), nn.LeakyReLU(0.01)) for _ in range(2)))
    ours, theirs = (sash.Workload(model, "8x3x128x128", train=True) for model in (lean, plain))
    found, measured = sash.forecast(ours).peak_bytes, sash.measure(ours).peak_bytes
    assert 0 <= found - measured <= 0.001 * measured
    maps = [8 * 32 * side**2 * 4 for side in (126, 124)]
    # Each norm then saves its output, which the convolution after it saves too; in torch's pair also its input.
    assert sash.forecast(theirs).peak_bytes - measured >= 0.85 * sum(maps)


def test_a_step_of_group_norm_and_activation_is_forecast_as_it_is_measured(monkeypatch):
    monkeypatch.undo()
    model = two_norms(*(GroupNormAct(4, 32, nn.LeakyReLU(0.01)) for _ in range(2)))
    work = sash.Workload(model, "4x3x64x64", train=True)
    found, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert 0 <= found - measured <= 0.001 * measured


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda x: batch_norm_act(x, nn.ReLU()),
            r"the activation is ReLU\(\), and backward .* needs the values that it cuts: take nn.Leaky",
        ),
        (lambda x: group_norm_act(x, 2, nn.ReLU6()), r"the activation is ReLU6\(\), and backward"),
        (lambda x: batch_norm_act(x, nn.GELU()), r"the activation is GELU\(.*\), whose input cannot be found from its output"),
        (lambda x: batch_norm_act(x, nn.LeakyReLU(0.0)), "whose input cannot be found"),
        (lambda x: batch_norm_act(x, nn.ELU(-1.0)), "whose input cannot be found"),
        (lambda x: batch_norm_act(x, nn.Softplus(threshold=5)), "whose input cannot be found"),
        (lambda x: batch_norm_act(x, None, training=False), "statistics are to be fixed, and there are none"),
        (lambda x: batch_norm_act(x[:1, :, :1], None), "the input 1x6x1 has one value a channel"),
        (lambda x: batch_norm_act(x[0, 0], None), "the input is 5; it has to be batch x channels"),
        (lambda x: batch_norm_act(x.long(), None), "of type torch.int64; it has to be floating"),
        (lambda x: batch_norm_act(x, None, weight=torch.ones(5)), "weight is 5, and the input 4x6x5 has 6 channels"),
        (lambda x: batch_norm_act(x, None, weight=torch.ones(6, device="meta")), "the input is on cpu and weight on meta"),
        (lambda x: group_norm_act(x, 4, None), "the input has 6 channels, which 4 groups do not divide; 3 or 6 would"),
        (lambda x: group_norm_act(x, 0, None), "which 0 groups do not divide; 1 would"),
        (lambda x: group_norm_act(x[:, :, :1], 6, None), "each of 6 groups has one value"),
        (lambda x: GroupNormAct(4, 6, None), "the layer has 6 channels, which 4 groups do not divide"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_could(call, told):
    with pytest.raises(InputError, match=told):
        call(torch.randn(4, 6, 5))


def test_a_second_derivative_is_refused():
    x = torch.randn(4, 3, 5, requires_grad=True)
    for y in (batch_norm_act(x, nn.ELU()), group_norm_act(x, 1, nn.ELU())):
        with pytest.raises(InputError, match="a second derivative was asked for"):
            torch.autograd.grad(y.sum(), x, create_graph=True)

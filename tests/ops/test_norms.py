"""Frozen, ghost and accumulated batch norm, and norms swapped through a model, held to torch's batch norm."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import sash
from sash.errors import InputError
from sash.ops import (
    AccumulatedBatchNorm,
    BatchNormAct,
    FrozenBatchNorm,
    GhostBatchNorm,
    accumulate_batch_norm,
    batch_norm_over,
    frozen_norm,
    ghost_norm,
    swap_norms,
    to_accumulated,
    to_batch,
    to_frozen,
    to_ghost,
    to_group,
    to_instance,
    to_layer,
)

SHAPES = [(6, 4), (5, 4, 7), (4, 4, 5, 6), (3, 4, 2, 3, 4)]


def problem(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, towards = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    vectors = [torch.rand(shape[1], generator=generator, dtype=torch.float64) + 0.5 for _ in range(4)]
    return (2 * x + 3).requires_grad_(), towards, vectors


def assert_same_gradients(found, expected, towards, wanted, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    pairs = zip(torch.autograd.grad(found, wanted, towards), torch.autograd.grad(expected, wanted, towards), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# Frozen


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_norm_is_batch_norm_in_evaluation(shape, trained, layout):
    x, towards, (mean, var, weight, bias) = problem(shape)
    if len(shape) == 4:
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
    weight.requires_grad_(trained), bias.requires_grad_(trained)
    found, expected = frozen_norm(x, mean, var, weight, bias), F.batch_norm(x, mean, var, weight, bias, False)
    assert found.stride() == expected.stride()
    assert_same_gradients(found, expected, towards, [x, weight, bias] if trained else [x])


def test_a_frozen_norm_can_be_differentiated_twice():
    x, _, (mean, var, weight, _) = problem((3, 2, 4))
    for trained in (False, True):
        weight.requires_grad_(trained)
        arguments = (x, weight) if trained else (x,)
        assert torch.autograd.gradcheck(lambda x, w=weight: frozen_norm(x, mean, var, w).square(), arguments)
        assert torch.autograd.gradgradcheck(lambda x, w=weight: frozen_norm(x, mean, var, w).square(), arguments)


def test_a_frozen_layer_loads_what_a_batch_norm_saved_and_nothing_changes_it():
    x = torch.randn(6, 4, 5)
    norm = nn.BatchNorm1d(4, eps=1e-3)
    norm(x), norm(3 * x)
    nn.init.uniform_(norm.weight)
    frozen = FrozenBatchNorm(4, eps=1e-3)
    assert frozen.load_state_dict(norm.state_dict()).missing_keys == []
    frozen(x), frozen(5 * x)
    torch.testing.assert_close(frozen.train()(x), norm.eval()(x))
    assert [*frozen.parameters()] == []
    assert {name for name, _ in FrozenBatchNorm(4, affine_trains=True).named_parameters()} == {"weight", "bias"}


def test_a_frozen_norm_saves_no_map_and_its_forecast_is_right():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), FrozenBatchNorm(8), nn.Tanh(), FrozenBatchNorm(8), nn.Tanh()
    frozen = sash.Workload(nn.Sequential(*layers), "4x3x64x64", train=True)
    found, measured = sash.forecast(frozen).peak_bytes, sash.measure(frozen).peak_bytes
    assert 0 <= found - measured <= 0.001 * measured
    x = torch.randn(4, 8, 6, requires_grad=True)
    assert [one.numel() for one in FrozenBatchNorm(8)(x).grad_fn.saved_tensors] == [8]


# Ghost


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ghost_norm_is_batch_norm_of_each_virtual_batch(shape):
    x, towards, (mean, var, weight, bias) = problem((7, *shape[1:]))
    weight.requires_grad_(), bias.requires_grad_()
    ours, theirs = (mean.clone(), var.clone()), (mean.clone(), var.clone())
    found = ghost_norm(x, 3, *ours, weight, bias, momentum=0.3)
    expected = torch.cat([F.batch_norm(part, *theirs, weight, bias, True, 0.3) for part in (x[:4], x[4:])])
    assert_same_gradients(found, expected, towards, [x, weight, bias])
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@given(st.integers(1, 40), st.integers(1, 50))
def test_no_virtual_batch_is_smaller_than_asked_nor_twice_as_large(batch, size):
    # In each channel a virtual batch has a mean of 0; so what sums to 0 from one cut to the next is a virtual batch.
    x = torch.randn(batch, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
    sums = ghost_norm(x, size).sum((1, 2)).cumsum(0)
    sizes = torch.tensor([0, *(sums.abs() < 1e-9).nonzero()[:, 0] + 1]).diff()
    assert sizes.sum() == batch
    assert sizes.max() - sizes.min() <= 1
    assert min(size, batch) <= sizes.min() <= sizes.max() < 2 * max(size, 1) or batch < 2 * size


def test_a_ghost_layer_uses_running_statistics_in_evaluation():
    x = torch.randn(6, 4, 5)
    ghost, norm = GhostBatchNorm(4, size=6), nn.BatchNorm1d(4)
    torch.testing.assert_close(ghost(x), norm(x))
    torch.testing.assert_close(ghost.state_dict(), norm.state_dict())
    torch.testing.assert_close(ghost.eval()(x), norm.eval()(x))
    assert "size=6" in repr(ghost)


# Accumulated


def parts_of(x, sizes=(1, 4, 3)):
    return [part.detach().clone().requires_grad_() for part in x.split(sizes)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_normalised_together_are_the_whole_batch_normalised(shape, layout):
    x, towards, (mean, var, weight, bias) = problem((8, *shape[1:]))
    if len(shape) == 4:
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
    weight.requires_grad_(), bias.requires_grad_()
    ours, theirs = (mean.clone(), var.clone()), (mean.clone(), var.clone())
    parts = parts_of(x)
    found = torch.cat(batch_norm_over(parts, *ours, weight, bias, momentum=0.3))
    expected = F.batch_norm(x, *theirs, weight, bias, True, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    of_x, *of_affine = torch.autograd.grad(expected, [x, weight, bias], towards)
    *of_parts, weight_found, bias_found = torch.autograd.grad(found, [*parts, weight, bias], towards)
    torch.testing.assert_close([torch.cat(of_parts), weight_found, bias_found], [of_x, *of_affine], rtol=1e-12, atol=1e-12)


def test_pictures_of_several_sizes_are_normalised_together():
    x, _, (_, _, weight, bias) = problem((1, 3, 30))
    shapes = [(1, 3, 2, 5), (2, 3, 4, 2), (0, 3, 7, 7), (1, 3, 4, 1)]
    sizes = [5 * 2, 2 * 4 * 2, 0, 4]
    pieces = x.split(sizes, 2)
    parts = [piece.reshape(3, shape[0], *shape[2:]).transpose(0, 1) for piece, shape in zip(pieces, shapes, strict=True)]
    found = batch_norm_over(parts, weight=weight, bias=bias)
    assert [part.shape for part in found] == [torch.Size(shape) for shape in shapes]
    expected = F.batch_norm(x, None, None, weight, bias, True)
    torch.testing.assert_close(torch.cat([part.transpose(0, 1).reshape(1, 3, -1) for part in found], 2), expected)


def test_parts_can_be_differentiated_once_and_twice():
    x, _, (_, _, weight, bias) = problem((5, 2, 2))
    parts = parts_of(x, (2, 3))
    weight, bias = weight[:2].requires_grad_(), bias[:2].requires_grad_()

    def normal(weight, bias, *parts):
        return tuple(batch_norm_over(parts, weight=weight, bias=bias))

    assert torch.autograd.gradcheck(normal, (weight, bias, *parts))
    assert torch.autograd.gradgradcheck(normal, (weight, bias, *parts))


def test_parts_far_from_zero_keep_their_variance():
    # Sums of squares would lose it: 1e4 is 1e4 standard deviations from zero, and fp32 knows squares of that to within 8.
    x = (1e4 + torch.randn(8, 2, 1000, dtype=torch.float64)).float()
    found = torch.cat(batch_norm_over(parts_of(x, (3, 5))))
    expected = F.batch_norm(x.double(), None, None, training=True)
    # The input's own rounding is 5e-4.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)


def test_an_accumulated_layer_takes_one_batch_or_parts_of_it():
    x = torch.randn(8, 4, 5)
    over, norm = AccumulatedBatchNorm(4, momentum=None), nn.BatchNorm1d(4, momentum=None)
    for scale in (1, 2):
        expected = norm(scale * x)
        torch.testing.assert_close(torch.cat(over([scale * x[:3], scale * x[3:]])), expected)
    torch.testing.assert_close(over.state_dict(), norm.state_dict())
    torch.testing.assert_close(over(x), norm(x))
    torch.testing.assert_close(over.eval()([x[:3], x[3:]])[1], norm.eval()(x[3:]))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.left, self.right = nn.BatchNorm2d(4, affine=False), nn.SyncBatchNorm(4, track_running_stats=False)

    def forward(self, x):
        return torch.relu(self.left(self.conv(x)) + self.right(x))


def network():
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(4)
    layers = [nn.Conv2d(3, 4, 3), shared, nn.ELU(), Branches(), nn.Conv2d(4, 4, 3), shared, nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 3)).double()


def assert_same_state(one, other, tolerance):
    for (name, mine), (_, whole) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, whole.grad, rtol=tolerance, atol=tolerance, msg=name)
    for (name, mine), (_, whole) in zip(one.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(mine, whole, rtol=tolerance, atol=tolerance, msg=name)


def test_a_whole_network_has_the_gradients_and_statistics_of_the_whole_batch(monkeypatch):
    # torch has no synchronised norm without a GPU; beside statistics of one process it is a batch norm.
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)
    monkeypatch.setattr(nn.SyncBatchNorm, "_check_input_dim", nn.BatchNorm2d._check_input_dim)
    ours, theirs = network(), network()
    x, labels = torch.randn(10, 3, 8, 8).double(), torch.randint(3, (10,))
    expected = F.cross_entropy(theirs(x), labels)
    expected.backward()
    state = torch.get_rng_state()

    def share(part):
        return F.cross_entropy(ours(x[part]), labels[part], reduction="sum") / 10

    # The last part has a single value a channel in the last norm, which could not normalise it alone.
    found = accumulate_batch_norm(ours, [slice(0, 4), slice(4, 9), slice(9, 10)], share)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
    assert_same_state(ours, theirs, 1e-12)
    assert "forward" not in vars(ours[1])
    assert torch.is_grad_enabled()
    assert not torch.equal(torch.get_rng_state(), state)  # seeds of the parts are drawn


def test_a_network_draws_the_same_random_numbers_in_every_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    x, seen = torch.randn(6, 3).double(), {}

    def share(part):
        def keep(module, _, y):
            noise = (y != 0).detach()
            assert torch.equal(seen.setdefault((part.start, id(module)), noise), noise)

        handles = [layer.register_forward_hook(keep) for layer in model if isinstance(layer, nn.Dropout)]
        try:
            return model(x[part]).square().sum()
        finally:
            for handle in handles:
                handle.remove()

    accumulate_batch_norm(model, [slice(0, 3), slice(3, 6)], share)
    assert len(seen) == 4
    assert not all(bool(noise.all()) for noise in seen.values())


def test_without_batch_norm_in_training_gradients_are_added_up_in_one_pass():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.GroupNorm(2, 4))
    x, calls = torch.randn(6, 3), []

    def share(part):
        calls.append(part)
        return model(x[part]).square().sum()

    accumulate_batch_norm(model, [slice(0, 3), slice(3, 6)], share)
    gradient = model[0].weight.grad.clone()
    model.zero_grad()
    model(x).square().sum().backward()
    torch.testing.assert_close(gradient, model[0].weight.grad)
    assert len(calls) == 3  # one to see that no norm counts


def test_other_buffers_change_as_in_one_pass():
    torch.manual_seed(0)
    x = torch.randn(8, 3).double()
    ours = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), GhostBatchNorm(4, 2), nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    theirs = copy.deepcopy(ours)
    accumulate_batch_norm(ours, [slice(0, 4), slice(4, 8)], lambda part: ours(x[part]).square().sum())
    # Virtual batches of 2 are the same ones in the whole batch as in parts of 4.
    theirs(x).square().sum().backward()
    theirs[2].num_batches_tracked += 1  # parts are counted, there is one batch
    assert_same_state(ours, theirs, 1e-12)


def test_a_norm_with_a_forward_of_its_own_and_parts_of_different_ways_are_refused():
    x = torch.randn(6, 4)
    model = nn.Sequential(nn.Linear(4, 4), BatchNormAct(4, nn.ELU()))
    with pytest.raises(InputError, match="1 is a BatchNormAct, whose forward is more than a batch norm"):
        accumulate_batch_norm(model, [x], lambda part: model(part).sum())
    norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))
    for turns in ((1, 2), (2, 1)):
        steps = dict(enumerate(turns))
        with pytest.raises(InputError, match="all"):
            accumulate_batch_norm(norms, [0, 1], lambda part, s=steps: sum(norms[n](x).sum() for n in range(s[part])))
        assert not any("forward" in vars(norm) for norm in norms)
    with pytest.raises(InputError, match="no parts were given"):
        accumulate_batch_norm(norms, [], lambda part: part)


# Swapped


class Twice(nn.Module):
    """A norm that stands in two places, one in a list, and one beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.again = self.first[1]
        self.norms = nn.ModuleDict({"a": nn.BatchNorm2d(8, affine=False), "b": nn.BatchNorm1d(8)})

    def forward(self, x):
        return self.norms["b"](self.norms["a"](self.again(self.first(x))).mean((2, 3)))


SWAPS = {
    "frozen": (to_frozen, FrozenBatchNorm),
    "group": (to_group(4), nn.GroupNorm),
    "layer": (to_layer, nn.GroupNorm),
    "instance": (to_instance, nn.GroupNorm),
    "ghost": (to_ghost(2), GhostBatchNorm),
    "accumulated": (to_accumulated, AccumulatedBatchNorm),
}


def gathered():
    torch.manual_seed(0)
    model = Twice()
    model(torch.randn(6, 3, 9, 9))
    nn.init.uniform_(model.again.weight)
    return model


@pytest.mark.parametrize("name", SWAPS)
def test_every_batch_norm_is_swapped_once_with_its_weights_and_its_name(name):
    to, kind = SWAPS[name]
    model = gathered().to(memory_format=torch.channels_last)
    before = copy.deepcopy(model.state_dict())
    found = swap_norms(model, to)
    assert found.again is found.first[1]
    assert all(isinstance(norm, kind) for norm in (found.again, *found.norms.values()))
    torch.testing.assert_close(model.state_dict(), before)
    for path in ("first.1.weight", "norms.b.bias"):
        assert torch.equal(found.state_dict()[path], before[path])
        assert isinstance(found.get_parameter(path), nn.Parameter) if name != "frozen" else True
    assert found(torch.randn(6, 3, 9, 9).contiguous(memory_format=torch.channels_last)).shape == (6, 8) if name != "instance" else True


@pytest.mark.parametrize("name", ["frozen", "ghost", "accumulated"])
def test_norms_with_statistics_keep_them_and_evaluate_alike(name):
    model = gathered().eval()
    found = swap_norms(model, SWAPS[name][0])
    x = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(found(x), model(x))
    assert not found.again.training
    back = swap_norms(found, to_batch(0), only=lambda path, _: path == "norms.b")
    back = swap_norms(back, to_batch(2), only=lambda path, _: path != "norms.b")
    assert isinstance(back.again, nn.BatchNorm2d)
    torch.testing.assert_close(back(x), model(x))
    assert isinstance(back.again.weight, nn.Parameter)


def test_group_layer_and_instance_norms_are_torchs():
    norm = nn.Sequential(nn.BatchNorm2d(8).double())
    nn.init.uniform_(norm[0].weight)
    x = torch.randn(3, 8, 4, 5).double()
    for to, expected in (
        (to_group(2), F.group_norm(x, 2, norm[0].weight)),
        (to_layer, F.layer_norm(x, x.shape[1:]) * norm[0].weight[:, None, None]),
        (to_instance, F.instance_norm(x, weight=norm[0].weight)),
    ):
        torch.testing.assert_close(swap_norms(norm, to)(x), expected)


def test_the_copy_keeps_type_and_what_does_not_train():
    model = nn.Sequential(nn.BatchNorm2d(4, eps=1e-2, momentum=0.3).bfloat16())
    model[0].weight.requires_grad_(False)
    for to in (to_group(2), to_ghost(2)):
        found = swap_norms(model, to)[0]
        assert found.weight.dtype == torch.bfloat16
        assert (found.weight.requires_grad, found.bias.requires_grad, found.eps) == (False, True, 1e-2)
    assert found.momentum == 0.3


def test_a_model_that_is_a_norm_becomes_the_other():
    assert isinstance(swap_norms(nn.BatchNorm2d(4), to_layer), nn.GroupNorm)
    assert isinstance(swap_norms(nn.SyncBatchNorm(4), to_batch(2)), nn.BatchNorm2d)


class Activated(nn.BatchNorm2d):
    def forward(self, input):
        return torch.relu(super().forward(input))


class Renamed(nn.BatchNorm2d):
    """A batch norm with a name of its own and torch's forward."""


@pytest.mark.parametrize(
    ("layer", "to", "told"),
    [
        (nn.BatchNorm2d(24), to_group(32), "0.body has 24 channels, which 32 groups do not divide; 24 would"),
        (nn.BatchNorm2d(24), to_group(5), "0.body has 24 channels, which 5 groups do not divide; 4 or 6 would"),
        (Activated(4), to_layer, "0.body is a Activated, whose forward is its own and may do more than normalise"),
        (BatchNormAct(4, nn.ELU()), to_layer, "0.body is a BatchNormAct, whose forward is its own"),
        (nn.LazyBatchNorm2d(), to_layer, "0.body is a LazyBatchNorm2d, which has no channels yet; run the model once"),
        (nn.BatchNorm2d(4, track_running_stats=False), to_frozen, "0.body has no running statistics to freeze"),
    ],
)
def test_what_cannot_be_swapped_is_refused_by_its_path(layer, to, told):
    model = nn.Sequential(nn.ModuleDict({"body": layer}))
    with pytest.raises(InputError, match=told):
        swap_norms(model, to)
    assert not any(isinstance(norm, nn.GroupNorm) for norm in model.modules())


def test_a_subclass_with_torchs_forward_is_swapped():
    assert isinstance(swap_norms(nn.Sequential(Renamed(4)), to_layer)[0], nn.GroupNorm)


# All


LAYERS = [FrozenBatchNorm(4), GhostBatchNorm(4, 2), AccumulatedBatchNorm(4)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_an_empty_batch_passes_through_with_gradients_of_zero(layer):
    layer = copy.deepcopy(layer)
    y = layer(torch.zeros(0, 4, 5, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 4, 5)
    assert all(torch.equal(one.grad, torch.zeros(4)) for one in layer.parameters())
    assert all(bool(one.isfinite().all()) for one in layer.buffers())


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_under_autocast_the_input_keeps_its_type_and_statistics_stay_in_float(layer):
    layer = copy.deepcopy(layer)
    x, towards, _ = problem((8, 4, 20), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    (found,) = torch.autograd.grad(y, x, towards)
    wide = x.detach().double().requires_grad_()
    exact = copy.deepcopy(layer).double()(wide)
    (expected,) = torch.autograd.grad(exact, wide, towards.double())
    assert y.dtype == found.dtype == torch.bfloat16
    # One rounding of the result (2^-9), and for the frozen layer that of its running statistics, which the other two do not use.
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=2**-8)
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("training", [False, True])
def test_layers_can_be_exported(layer, training):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), copy.deepcopy(layer)).train(training)
    x = torch.randn(4, 3, 8, 8)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), copy.deepcopy(model)(x))


@pytest.mark.parametrize("layer", LAYERS[1:], ids=lambda layer: type(layer).__name__)
def test_a_step_is_forecast_as_it_is_measured(layer):
    work = sash.Workload(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Tanh()), "8x3x64x64", train=True)
    found, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert 0 <= found - measured <= 0.01 * measured


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x, v: frozen_norm(x, v[:2], v), "mean is 2, and the input 4x3x5 has 3 channels; give one number a channel"),
        (lambda x, v: frozen_norm(x[0, 0], v, v), "the input is 5; it has to be batch x channels, then any number of axes"),
        (lambda x, v: frozen_norm(x.int(), v, v), r"of type torch.int32; it has to be floating: x.float\(\) would be"),
        (lambda x, v: frozen_norm(x, v.to("meta"), v), "the input is on cpu and mean on meta"),
        (lambda x, v: GhostBatchNorm(3).eval()(x[:, :2]), "running_mean is 3, and the input 4x2x5 has 2 channels"),
        (lambda x, v: ghost_norm(x, 0), "virtual batches of 0 samples were asked for"),
        (lambda x, v: ghost_norm(x[:, :, :1], 1), "a virtual batch of 1 of the batch 4x3x1 has one value a channel"),
        (lambda x, v: batch_norm_over([]), "no parts were given; give one at least"),
        (lambda x, v: batch_norm_over([x, x[:, :2]]), "part 1 is 4x2x5 of torch.float32 on cpu, and part 0 4x3x5"),
        (lambda x, v: batch_norm_over([x, x.double()]), "part 1 is 4x3x5 of torch.float64 on cpu, and part 0"),
        (lambda x, v: batch_norm_over([x[:1, :, :1], x[:0]]), "the only part that is not empty, 1x3x1, has one value a channel"),
        (lambda x, v: batch_norm_over([x], weight=v[:1]), "weight is 1, and the input 4x3x5 has 3 channels"),
        (lambda x, v: to_batch(4), "batch norms for 4 spatial axes were asked for; torch has them for 0 to 3"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_was_found(call, told):
    with pytest.raises(InputError, match=told):
        call(torch.randn(4, 3, 5), torch.ones(3))

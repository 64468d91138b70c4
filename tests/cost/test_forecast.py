"""Forecasts of many kinds of model, held to the allocator's own record, and what a forecast must leave alone."""

import copy
import functools
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sash
from sash.cost import Category, ModelSource, Phase, Workload, forecast

WITHIN = 0.005


class Reused(nn.Module):
    """One layer, called three times."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 256)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return x


class Slices(nn.Module):
    """Parts of one tensor, whose gradients autograd's engine adds up: each is as large as the whole."""

    def __init__(self, parts):
        super().__init__()
        self.scale, self.parts = nn.Parameter(torch.ones(1)), parts

    def forward(self, x):
        x = x * self.scale
        return torch.cat([torch.tanh(x[:, part :: self.parts]) for part in range(self.parts)], 1)


class Picked(nn.Module):
    """Operators whose gradients are written into zeros."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = x * self.scale
        largest = x.sort(0).values[:3].sum() + x.max(1).values.sum() + x.gather(1, torch.zeros(len(x), 2, dtype=torch.int64)).sum()
        return largest + x.index_select(1, torch.arange(3)).sum() + x.topk(2, 1).values.sum()


class Tied(nn.Module):
    """An embedding whose weight is the head's as well."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(1000, 128)
        self.head = nn.Linear(128, 1000, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


class SharedStorage(nn.Module):
    """Two parameters that are halves of one storage."""

    def __init__(self):
        super().__init__()
        whole = torch.randn(2, 256, 256) / 16
        self.first, self.second = nn.Parameter(whole[0]), nn.Parameter(whole[1])

    def forward(self, x):
        return torch.relu(x @ self.first) @ self.second


class InPlace(nn.Module):
    """Views and in-place operators of every kind."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 512)

    def forward(self, x):
        x = self.layer(x)
        x.mul_(2).add_(1)
        left, right = x[:, :256], x[:, 256:]
        right.relu_()
        y = torch.empty_like(x)
        y[:, :256] = left
        y[:, 256:] = right
        return y.view(-1, 2, 256).transpose(1, 2)[..., 0].reshape(-1).view(x.shape[0], -1)


class Frozen(nn.Module):
    """Only the head is trained."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()).requires_grad_(False)
        self.head = nn.Linear(256, 64)

    def forward(self, x):
        return self.head(self.body(x))


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class Returning(nn.Module):
    """Two linear layers, and their outputs in the container asked for."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(256, 512), nn.Linear(512, 128)

    def forward(self, x):
        hidden = self.first(x)
        logits = self.second(hidden)
        return {"tuple": (logits, hidden), "dict": {"logits": logits, "hidden": hidden}, "dataclass": Answer(logits, hidden)}[self.kind]


class OwnInference(nn.Module):
    """A teacher that runs in inference mode, beside a student that is trained."""

    def __init__(self):
        super().__init__()
        self.teacher, self.student = nn.Linear(256, 512), nn.Linear(256, 512)

    def forward(self, x):
        with torch.inference_mode():
            target = self.teacher(x).relu()
        return (self.student(x) - target.clone()).square()


class OwnNoGrad(OwnInference):
    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x).relu()
        return (self.student(x) - target).square()


class Checkpointed(nn.Module):
    """Two blocks whose activations are computed again in backward."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(128, 1024), nn.GELU(), nn.Linear(1024, 128)) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        square = x * x
        ctx.save_for_backward(square)
        return square * x

    @staticmethod
    def backward(ctx, *gradients):
        (square,) = ctx.saved_tensors
        return 3 * square * gradients[0]


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 256)

    def forward(self, x):
        return Cubed.apply(self.layer(x))


class Counting(nn.Module):
    """Batch norm's statistics, and a buffer of its own that is updated in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)
        self.register_buffer("mean", torch.zeros(16, 32, 32))

    def forward(self, x):
        y = self.norm(self.conv(x))
        with torch.no_grad():
            self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return y + self.mean


class Listed(nn.Module):
    """Tensors in a Python list and a dict, which no `state_dict` knows of."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 256)
        self.masks = [torch.rand(256, 256) for _ in range(3)]
        self.named = {"shift": torch.rand(64, 256)}

    def forward(self, x):
        for mask in self.masks:
            x = self.layer(x) @ mask
        return x + self.named["shift"]


class Keeping(nn.Module):
    """Keeps its last output."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 512)

    def forward(self, x):
        self.last = self.layer(x)
        return self.last.relu()


def normed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(256, 512)), nn.ReLU(), nn.Linear(512, 256))


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(500, 256), nn.Linear(256, 256)

    def forward(self, ids, mask=None, scale=1.0):
        x = self.head(self.embed(ids)) * scale
        return x if mask is None else x.masked_fill(mask[..., None], 0.0)


class Signs(torch.optim.Optimizer):
    """A user's own optimizer, with one state tensor and a temporary."""

    def __init__(self, parameters, lr=1e-3):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["trace"] = torch.zeros_like(parameter)
                state["trace"].lerp_(parameter.grad, 0.1)
                parameter.sub_(state["trace"].sign(), alpha=group["lr"])


def perceptron():
    return nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256))


def rows(batch=64, features=256):
    return (torch.randn(batch, features),)


def ids(batch=16, length=32, below=500):
    return (torch.randint(below, (batch, length)),)


TRAINED = {
    "a layer called three times": (Reused, rows, {}),
    "sorted and picked": (Picked, lambda: rows(512), {}),
    "two slices of a tensor": (lambda: Slices(2), lambda: rows(512), {}),
    "four slices of a tensor": (lambda: Slices(4), lambda: rows(512), {}),
    # Its input needs no gradient, so its kernel makes none.
    "a batch norm first": (lambda: nn.Sequential(nn.BatchNorm1d(256), nn.Linear(256, 8)), lambda: rows(4096), {}),
    "tied weights": (Tied, ids, {"optimizer": torch.optim.AdamW}),
    "parameters that share a storage": (SharedStorage, rows, {}),
    "views and in-place operators": (InPlace, rows, {}),
    "frozen layers": (Frozen, lambda: rows(512), {"optimizer": torch.optim.Adam}),
    "a tuple": (lambda: Returning("tuple"), rows, {}),
    "a dict": (lambda: Returning("dict"), rows, {}),
    "a dataclass": (lambda: Returning("dataclass"), rows, {}),
    "its own inference mode": (OwnInference, lambda: rows(512), {}),
    "its own no_grad": (OwnNoGrad, lambda: rows(512), {}),
    "a checkpoint": (lambda: Checkpointed(False), lambda: rows(512, 128), {}),
    "a reentrant checkpoint": (lambda: Checkpointed(True), lambda: (torch.randn(512, 128, requires_grad=True),), {}),
    "an autograd function": (OwnFunction, lambda: rows(512), {}),
    "buffers updated in place": (Counting, lambda: (torch.randn(8, 8, 32, 32),), {}),
    "tensors in a Python list": (Listed, rows, {}),
    "a weight computed in every forward": (normed, rows, {}),
    "activations kept in an attribute": (Keeping, rows, {}),
    "keyword inputs": (Keyword, lambda: {"ids": ids()[0], "mask": torch.rand(16, 32) > 0.5}, {"optimizer": torch.optim.SGD}),
    "a user's optimizer": (perceptron, rows, {"optimizer": Signs}),
    "an optimizer over lists of tensors": (perceptron, rows, {"optimizer": functools.partial(torch.optim.Adam, foreach=True)}),
    "micro-batches": (perceptron, lambda: rows(512), {"optimizer": torch.optim.SGD, "accumulate": 3}),
    "a loss of its own": (perceptron, rows, {"loss": lambda y: F.mse_loss(y, torch.zeros_like(y))}),
    "autocast": (perceptron, lambda: rows(512), {"autocast": torch.bfloat16}),
}
RUN = {
    "a layer called three times": (Reused, lambda: rows(512), {}),
    "views and in-place operators": (InPlace, lambda: rows(512), {}),
    "its own inference mode": (OwnInference, lambda: rows(512), {}),
    "integer inputs": (Tied, ids, {}),
    "tensors in shared storage": (SharedStorage, rows, {}),
    # Inference mode does not fill autocast's cache of cast weights.
    "autocast": (Reused, rows, {"autocast": torch.bfloat16}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_step_peaks_where_the_allocator_says(name, truth):
    make, inputs, setting = TRAINED[name]
    assert_forecast_holds(make(), inputs(), truth, train=True, **setting)


@pytest.mark.parametrize("name", RUN)
def test_an_inference_peaks_where_the_allocator_says(name, truth):
    make, inputs, setting = RUN[name]
    assert_forecast_holds(make(), inputs(), truth, **setting)


def assert_forecast_holds(model, inputs, truth, **setting):
    torch.manual_seed(0)
    before = state_of(model)
    found = forecast(Workload(model, inputs, **setting))
    assert_untouched(model, before)
    measured = truth(model, inputs, **setting)
    assert found.peak_bytes == pytest.approx(measured, rel=WITHIN), found.peak_bytes / measured


def state_of(model):
    modules = dict(model.named_modules())
    return {
        "training": {path: module.training for path, module in modules.items()},
        "hooks": {path: (len(module._forward_hooks), len(module._forward_pre_hooks)) for path, module in modules.items()},
        "tensors": {name: (tensor, tensor.detach().clone()) for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
    }


def assert_untouched(model, before):
    after = state_of(model)
    assert after["training"] == before["training"]
    assert after["hooks"] == before["hooks"]
    assert list(after["tensors"]) == list(before["tensors"])
    for name, (tensor, values) in before["tensors"].items():
        assert after["tensors"][name][0] is tensor
        assert torch.equal(tensor, values)
        assert tensor.grad is None


def holding_module():
    """A function that closes over a module."""
    layer = perceptron()
    return lambda x: layer(x).tanh(), [*layer.parameters()]


def holding_parts():
    """A callable object with modules in a list, tensors and a bound method."""
    layers, shift = [nn.Linear(256, 512), nn.Linear(512, 256)], torch.rand(64, 256)

    class Pipeline:
        def __init__(self):
            self.layers, self.shift = layers, shift

        def run(self, x):
            for layer in self.layers:
                x = layer(x).relu()
            return x + self.shift

    return Pipeline().run, [*layers[0].parameters(), *layers[1].parameters(), shift]


def holding_weights():
    """A partial of a function of tensors."""
    weight = torch.rand(256, 512, requires_grad=True)
    return functools.partial(torch.matmul, other=weight), [weight]


GLOBAL_LAYER = nn.Linear(256, 512)


def named_global():
    return lambda x: helper(x).relu(), [*GLOBAL_LAYER.parameters()]


def helper(x):
    return GLOBAL_LAYER(x)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("make", [holding_module, holding_parts, holding_weights, named_global])
def test_a_plain_callable_peaks_where_the_allocator_says(make, train, truth):
    function, held = make()
    before = [tensor.detach().clone() for tensor in held]
    inputs = rows()
    found = forecast(Workload(function, inputs, train=train))
    for tensor, values in zip(held, before, strict=True):
        assert tensor.grad is None
        assert torch.equal(tensor, values)
    assert found.peak_bytes == pytest.approx(truth(function, inputs, train=train, held=held), rel=WITHIN)


def test_a_plain_callables_modules_have_layers_and_can_be_trained():
    function, held = holding_module()
    found = forecast(Workload(function, "64x256", train=True, optimizer="adam"))
    assert found.params == sum(tensor.numel() for tensor in held)
    assert "layer.0" in {layer.path for layer in found.layers}
    assert any(block.category is Category.OPTIMIZER for block in found.timeline.blocks)


def test_a_model_on_the_meta_device_is_forecast_like_one_with_values():
    model = perceptron()
    real, meta = (forecast(Workload(one, "64x256", train=True)) for one in (model, copy.deepcopy(model).to("meta")))
    partly = copy.deepcopy(model)
    partly[0].to("meta")
    assert meta.peak_bytes == real.peak_bytes == forecast(Workload(partly, rows(), train=True)).peak_bytes


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_part_is_forecast():
    whole = nn.Sequential(nn.Linear(256, 1024), torch.jit.script(nn.ReLU()), nn.Linear(1024, 256))
    assert forecast(Workload(whole, "64x256", train=True)).peak_bytes == forecast(Workload(perceptron(), "64x256", train=True)).peak_bytes


def test_a_model_named_by_text_is_forecast_like_the_model():
    named = forecast(Workload(ModelSource("torch.nn:Linear(256, 512)"), "64x256", train=True))
    assert named.peak_bytes == forecast(Workload(nn.Linear(256, 512), "64x256", train=True)).peak_bytes


def test_a_model_that_cannot_be_copied_is_forecast_all_the_same():
    model = perceptron()
    model.lock = threading.Lock()
    assert forecast(Workload(model, "64x256")).peak_bytes == forecast(Workload(perceptron(), "64x256")).peak_bytes


def test_parameters_count_once_and_activations_for_every_call():
    found = forecast(Workload(Reused(), "64x256", train=True))
    assert found.params == 256 * 256 + 256
    assert {layer.path: layer.calls for layer in found.layers} == {"": 1, "layer": 3}
    assert sum(block.category is Category.PARAMETER for block in found.timeline.blocks) == 2
    saved = [block for block in found.timeline.blocks if block.category is Category.SAVED and block.bytes == 64 * 256 * 4]
    assert len(saved) == 3


def test_shared_storages_count_once():
    assert forecast(Workload(Tied(), "16x32:int64<500")).static_bytes == 1000 * 128 * 4 + 16 * 32 * 8
    found = forecast(Workload(SharedStorage(), "64x256"))
    assert found.static_bytes == 2 * 256 * 256 * 4 + 64 * 256 * 4


def test_frozen_layers_have_no_gradients():
    found = forecast(Workload(Frozen(), "64x256", train=True))
    gradients = {block.module for block in found.timeline.blocks if block.category is Category.GRADIENT}
    assert gradients == {"head"}


def test_the_state_of_a_users_optimizer_counts_from_the_start_of_a_step():
    found = forecast(Workload(perceptron(), "64x256", train=True, optimizer=Signs))
    state = [block for block in found.timeline.blocks if block.category is Category.OPTIMIZER]
    assert sum(block.bytes for block in state) == found.params * 4
    assert {block.born for block in state} == {0}
    assert found.timeline.moments[-1].phase is Phase.OPTIMIZER


def test_a_forecasts_repr_fits_on_a_page():
    assert len(repr(sash.forecast(Workload(perceptron(), "64x256")))) < 1000

"""Shape errors of real torch modules, on real and on fake tensors: the same words."""

import logging

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sash.cost._shapes import Call, explain_shape_failure
from sash.cost._windows import spell, windows_of
from sash.errors import ShapeError


def explain(model, *shapes, fake=False):
    """The explanation of the failure of `model` on zeros."""
    calls, stack = [], []

    def enter(path):
        def hook(module, inputs):
            stack.append(len(calls))
            calls.append(Call(path, module, tuple(tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)), None))

        return hook

    def leave(module, inputs, outputs):
        index = stack.pop()
        made = outputs if isinstance(outputs, tuple) else (outputs,)
        shapes = tuple(tuple(x.shape) for x in made if isinstance(x, torch.Tensor))
        calls[index] = Call(calls[index].path, calls[index].module, calls[index].inputs, shapes)

    for path, module in model.named_modules():
        module.register_forward_pre_hook(enter(path))
        module.register_forward_hook(leave)
    with pytest.raises((RuntimeError, IndexError, ValueError)) as caught:  # noqa: PT012
        if fake:
            with FakeTensorMode(allow_non_fake_inputs=True):
                model(*(torch.zeros(shape) for shape in shapes))
        else:
            model(*(torch.zeros(shape) for shape in shapes))
    return explain_shape_failure(calls, caught.value)


@pytest.fixture(params=["real", "fake"])
def fake(request):
    # torch logs a traceback whenever a fake kernel refuses; these refuse on purpose.
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield request.param == "fake"
    logger.setLevel(level)


def speech(width):
    return nn.Sequential(nn.Conv1d(1, 150, 8), nn.ReLU(), nn.MaxPool1d(6, 2), nn.Flatten(), nn.Linear(width, 1000))


class Residual(nn.Module):
    def __init__(self, made, stride=1, padding=1, project=None):
        super().__init__()
        self.conv1 = nn.Conv2d(16, made, 3, stride, padding)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(made, made, 3, padding=padding)
        self.project = project

    def forward(self, x):
        y = self.conv2(self.relu(self.conv1(x)))
        return y + (x if self.project is None else self.project(x))


class Cat(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x):
        return torch.cat([x, self.up(self.down(x))], 1)


class View(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.conv(x).view(2, 100)


def test_flatten_into_a_linear_of_the_wrong_width_names_the_width_that_works(fake):
    found = explain(speech(150), (8, 1, 40), fake=fake)
    assert isinstance(found, ShapeError)
    assert str(found).splitlines() == [
        "4: 8x2100 came, 150 values in the last axis expected.",
        "  input                      8x1x40",
        "  0      conv 8              8x150x33",
        "  2      pool 6/2            8x150x14",
        "  3      flatten             8x2100",
        "  4      linear 150 to 1000  got 8x2100",
        "Linear(in_features=2100) works here. "
        "To keep the layer, nn.AdaptiveAvgPool1d(1) before the flatten makes 150 values of 150 channels.",
    ]
    assert speech(2100)(torch.zeros(8, 1, 40)).shape == (8, 1000)


def test_a_map_that_was_never_flattened_is_told_to_flatten(fake):
    model = nn.Sequential(nn.Conv1d(1, 150, 8), nn.Linear(4950, 10))
    assert (
        explain(model, (8, 1, 40), fake=fake).fix
        == "Flatten first: x.flatten(1) or nn.Flatten() makes the 4950 values of each sample one row."
    )
    model = nn.Sequential(nn.Conv1d(1, 150, 8), nn.Linear(7, 10))
    found = explain(model, (8, 1, 40), fake=fake)
    assert found.fix == "Flatten first (x.flatten(1) or nn.Flatten()), then Linear(in_features=4950) works."


def test_a_pretrained_head_is_kept_by_pooling_to_its_side(fake):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 7 * 7, 10))
    assert (
        "To keep the layer, nn.AdaptiveAvgPool2d(7) before the flatten makes 392 values of 8 channels."
        in explain(model, (1, 3, 9, 9), fake=fake).fix
    )
    kept = nn.Sequential(model[0], nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(8 * 7 * 7, 10))
    assert kept(torch.zeros(1, 3, 9, 9)).shape == (1, 10)


def test_a_flattened_batch_is_noticed(fake):
    model = nn.Sequential(nn.Flatten(0), nn.Linear(6, 2))
    assert explain(model, (4, 6), fake=fake).fix == "The batch was flattened too: x.flatten(1) keeps it."


def test_a_residual_sum_across_a_stride_names_the_projection(fake):
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Residual(32, stride=2))
    found = explain(model, (2, 3, 32, 32), fake=fake)
    assert found.path == "1"
    assert found.came == "2x16x32x32 + 2x32x16x16"
    assert found.expected == "two equal shapes"
    assert found.fix == "Project the shortcut: nn.Conv2d(16, 32, kernel_size=1, stride=2) turns 2x16x32x32 into 2x32x16x16."
    assert "  1.conv1  conv 3x3/2 p1  2x32x16x16" in found.walk
    projected = nn.Sequential(model[0], Residual(32, stride=2, project=nn.Conv2d(16, 32, kernel_size=1, stride=2)))
    assert projected(torch.zeros(2, 3, 32, 32)).shape == (2, 32, 16, 16)


def test_a_projection_that_forgot_its_stride_is_compared_with_the_main_path(fake):
    found = explain(Residual(32, stride=2, project=nn.Conv2d(16, 32, 1)), (2, 16, 32, 32), fake=fake)
    assert found.came == "2x32x32x32 + 2x32x16x16"
    assert str(found).startswith("the model: ")


def test_a_residual_sum_without_padding_names_what_the_windows_cut_off(fake):
    found = explain(Residual(16, padding=0), (2, 16, 32, 32), fake=fake)
    assert found.fix == "The windows between them cut 4, 4 off: pad them by that much in all, or crop the shortcut to 28x28."


def test_maps_that_cannot_be_joined_are_both_named(fake):
    found = explain(Cat(), (2, 4, 25, 25), fake=fake)
    assert found.came == "2x4x25x25 joined with 2x4x24x24"
    assert found.expected == "equal lengths in every axis but 1"
    assert found.fix.startswith("Pad or crop one of them (by 1, 1 along its axes)")


@pytest.mark.parametrize(
    ("layer", "shape", "expected", "fix"),
    [
        (nn.Conv1d(4, 4, 9), (2, 4, 6), "a length of at least 9 for conv 9", "A kernel of 6 fits, or 2 more of padding on both sides."),
        (
            nn.MaxPool1d(6, 2),
            (2, 4, 5),
            "a length of at least 6 for pool 6/2",
            "A kernel of 5 fits, or 1 more of padding on both sides.",
        ),
        (
            nn.MaxPool2d(3),
            (2, 4, 8, 2),
            "a width of at least 3 for pool 3x3/3",
            "A kernel of 2 fits, or 1 more of padding on both sides.",
        ),
        (nn.AvgPool2d(3), (2, 4, 2, 8), "a height of at least 3 for pool 3x3/3", "A kernel of 2 fits"),
        (nn.Conv2d(4, 4, 3, dilation=4, padding=1), (2, 4, 6, 12), "a height of at least 7 for conv 3x3 p1 d4", "A kernel of 2 fits"),
    ],
)
def test_a_map_smaller_than_its_window_is_told_what_fits(fake, layer, shape, expected, fix):
    found = explain(nn.Sequential(layer), shape, fake=fake)
    assert (found.path, found.expected) == ("0", expected)
    assert found.fix.startswith(fix)


def test_a_map_that_shrank_names_the_least_input_that_works(fake):
    def network():
        blocks = [nn.Sequential(nn.Conv2d(channels, 8, 3), nn.MaxPool2d(2)) for channels in (1, 8, 8)]
        return nn.Sequential(*blocks)

    found = explain(network(), (1, 1, 20, 20), fake=fake)
    assert found.path == "2.1"
    assert found.fix.endswith("So does an input with a height of at least 22 (it is 20): the windows before shrink it.")
    assert network()(torch.zeros(1, 1, 22, 22)).shape == (1, 8, 1, 1)


@pytest.mark.parametrize(
    ("layer", "shape", "came", "fix"),
    [
        (
            nn.Conv2d(3, 8, 3),
            (2, 4, 9, 9),
            "2x4x9x9 (4 channels)",
            "Conv2d(in_channels=4) works here, or a layer before it that makes 3",
        ),
        (
            nn.Conv2d(3, 8, 3),
            (2, 9, 9, 3),
            "2x9x9x3 (9 channels)",
            "The 3 channels are the last axis: x.permute(0, 3, 1, 2)",
        ),
        (nn.Conv1d(1, 8, 3), (5, 40), "5x40 (5 channels)", "Without a batch, 5 is read as the channels; x.unsqueeze(1) is 5x1x40."),
        (nn.Conv2d(1, 8, 3), (9, 9), "9x9 (2 axes)", "Add the two missing axes: x[None, None] is 1x1x9x9."),
        (nn.Conv2d(3, 8, 3), (2, 2, 3, 9, 9), "2x2x3x9x9 (5 axes)", "Join the leading axes: x.flatten(0, 1) has 4."),
        (nn.ConvTranspose2d(3, 8, 3), (2, 4, 9, 9), "2x4x9x9 (4 channels)", "ConvTranspose2d(in_channels=4) works here"),
        (nn.BatchNorm2d(3), (2, 4, 9, 9), "2x4x9x9 (4 channels)", "BatchNorm2d(4) works here."),
        (nn.GroupNorm(2, 4), (2, 6, 9), "2x6x9 (6 channels)", "A GroupNorm of 6 channels works here."),
        (nn.LayerNorm(8), (2, 4), "2x4", "LayerNorm([4]) works here."),
        (nn.LSTM(4, 4), (3, 2, 5), "3x2x5", "LSTM(input_size=5) works here."),
        (nn.MaxPool2d(2), (4,), "4 (1 axis)", "The layer slides along 2 axes; the signal has 1."),
    ],
)
def test_wrong_channels_and_ranks_name_the_nearest_change(fake, layer, shape, came, fix):
    found = explain(layer, shape, fake=fake)
    assert found.came == came
    assert found.fix.startswith(fix)


def test_a_view_that_does_not_fit_counts_the_values(fake):
    found = explain(View(), (2, 1, 9, 9), fake=fake)
    assert found.came == "392 values (2x4x7x7)"
    assert found.expected == "as many as fit the shape [2, 100] of a view or reshape"
    assert found.fix == "x.flatten(1) keeps the batch and makes 196 values of each sample."


def test_long_walks_keep_the_input_and_the_last_layers():
    layers = [layer for _ in range(12) for layer in (nn.ConstantPad1d(1, 0.0), nn.Conv1d(1, 1, 4))]
    found = explain(nn.Sequential(*layers, nn.Linear(5, 5)), (1, 1, 60))
    lines = found.walk.splitlines()
    assert len(lines) == 10
    assert lines[0].split() == ["input", "1x1x60"]
    assert lines[1].split() == ["…", "17", "more", "layers"]
    assert lines[-1].split()[-2:] == ["got", "1x1x48"]


def test_other_errors_are_left_alone():
    call = Call("", nn.Identity(), ((2, 3),), None)
    assert explain_shape_failure([call], RuntimeError("Expected all tensors to be on the same device, cuda:0 and cpu, input")) is None
    assert explain_shape_failure([call], KeyError("size of tensor")) is None
    assert explain_shape_failure([], RuntimeError("size of tensor a")) is None
    assert explain_shape_failure([Call("", nn.Identity(), ((2,),), ((2,),))], RuntimeError("size of tensor a")) is None


@pytest.mark.parametrize(
    ("layer", "shape", "text"),
    [
        (nn.Conv2d(1, 1, (3, 5), (1, 2), (1, 2)), (12, 13), "conv 3x5/1x2 p1x2"),
        (nn.Conv1d(1, 1, 4, dilation=3, padding="same"), (20,), "conv 4 p4:5 d3"),
        (nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), (20,), "conv 3 p1"),
        (nn.Conv3d(1, 1, 3, padding="valid"), (9, 8, 7), "conv 3x3x3"),
        (nn.ConvTranspose2d(1, 1, 4, 2, 1, 1), (9, 8), "transposed 4x4/2 p1"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), (12, 13), "pool 3x3/2 ceil"),
        (nn.AvgPool3d(2), (12, 13, 9), "pool 2x2x2/2"),
        (nn.LPPool1d(2, 3), (12,), "pool 3/3"),
        (nn.AdaptiveAvgPool2d((3, 5)), (12, 13), "adaptive 3x5"),
        (nn.AdaptiveMaxPool2d((3, None)), (12, 13), None),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_a_torch_layer_becomes_its_windows(layer, shape, text):
    outputs = tuple(window.outputs(length) for window, length in zip(windows_of(layer), shape, strict=True))
    assert layer(torch.zeros(1, 1, *shape)).shape[2:] == outputs
    assert text is None or spell(layer) == text

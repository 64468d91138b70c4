"""Heads as convolutions, held to the head itself on every crop."""

from itertools import product

import pytest
import torch
from torch import nn

import sash
from sash.errors import InputError
from sash.ops import convolutional_classifier, convolutional_head


def randomised(model):
    """In double precision, and with statistics and weights such that no layer is the identity."""
    torch.manual_seed(0)
    for buffer in (*model.parameters(), *model.buffers()):
        if buffer.is_floating_point():
            nn.init.uniform_(buffer.requires_grad_(False), 0.1, 1)
    for parameter in model.parameters():
        nn.init.normal_(parameter.requires_grad_(True))
    return model.double().eval()


def assert_scores_of_every_crop(converted, head, channels, size, spare):
    x = torch.randn(2, channels, *(side + more for side, more in zip(size, spare, strict=True)), dtype=torch.float64)
    scores = converted(x)
    assert scores.shape[2:] == tuple(more + 1 for more in spare)
    for place in product(*(range(more + 1) for more in spare)):
        crop = x[(..., *(slice(first, first + side) for first, side in zip(place, size, strict=True)))]
        torch.testing.assert_close(scores[(..., *place)], head(crop).flatten(1), rtol=1e-11, atol=1e-11)


FEATURES = 3 * 4 * 2
HEADS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 5)),
    "as in AlexNet": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d((4, 2)),
        nn.Flatten(1),
        nn.Sequential(
            nn.Dropout(), nn.Linear(FEATURES, 7), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(7, 6, bias=False), nn.Softmax(1)
        ),
    ),
    "global average": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)),
    "global maximum": lambda: nn.Sequential(nn.AdaptiveMaxPool2d((1, None)), nn.Flatten(), nn.Linear(6, 5), nn.LogSoftmax(-1)),
    "bins of two": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)),
    "norms": lambda: nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(FEATURES, 5),
        nn.BatchNorm1d(5),
        nn.GELU(),
        nn.Linear(5, 2),
        nn.BatchNorm1d(2, affine=False),
    ),
    "as in SqueezeNet": lambda: nn.Sequential(
        nn.Dropout(), nn.Conv2d(3, 9, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity()
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_position_has_the_scores_of_its_crop(name):
    head = randomised(HEADS[name]())
    assert_scores_of_every_crop(convolutional_head(head, 3, (4, 2)), head, 3, (4, 2), (3, 2))


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes_are_alike(axes):
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1]
    size = (4, 2, 6)[:axes]
    head = randomised(nn.Sequential(pool(2), nn.Flatten(), nn.Linear(3 * 2**axes, 5), nn.BatchNorm1d(5)))
    assert_scores_of_every_crop(convolutional_head(head, 3, size), head, 3, size, (2, 1, 2)[:axes])


def test_on_the_size_it_was_trained_on_the_scores_are_the_heads():
    head = nn.Sequential(nn.Flatten(), nn.Linear(2 * 9, 7), nn.ReLU(), nn.Linear(7, 3))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randint(-5, 6, parameter.shape))
    # Of small whole numbers every sum is exact, in whatever order the kernels add.
    x = torch.randint(-5, 6, (4, 2, 3, 3)).float()
    assert torch.equal(convolutional_head(head, 2, 3)(x).flatten(1), head(x))


def test_names_modes_and_settings_stay_and_nothing_is_shared():
    head = nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(FEATURES, 7), nn.BatchNorm1d(7), nn.ReLU(inplace=True), nn.Linear(7, 3))
    ).eval()
    head[1][0].weight.requires_grad_(False)
    head[1][1].train()
    found = convolutional_head(head, 3, (4, 2))
    assert list(found.state_dict()) == list(head.state_dict())
    assert not found[1][0].weight.requires_grad
    assert [one.training for one in found.modules()] == [one.training for one in head.modules()]
    assert type(found[1][1]) is nn.BatchNorm2d
    mine, other = ({one.data_ptr() for one in model.state_dict().values()} for model in (found, head))
    assert not mine & other


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)),
    )


def test_a_classifier_slides_over_a_larger_image_in_steps_of_its_stride():
    model = randomised(classifier())
    wide = convolutional_classifier(model, (1, 14, 14))
    image = torch.randn(2, 1, 19, 16, dtype=torch.float64)
    scores = wide(image)
    assert scores.shape == (2, 5, 3, 2)
    for row, column in product(range(3), range(2)):
        crop = image[..., 2 * row : 2 * row + 14, 2 * column : 2 * column + 14]
        torch.testing.assert_close(scores[..., row, column], model(crop), rtol=1e-11, atol=1e-11)


def test_finding_the_shape_changes_nothing_in_the_model():
    model = classifier().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wide = convolutional_classifier(model, (1, 14, 14))
    assert list(wide.state_dict()) == list(model.state_dict())
    assert wide.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_head_alone_is_a_classifier_too():
    head = randomised(nn.Sequential(nn.Flatten(), nn.Linear(18, 5)))
    assert_scores_of_every_crop(convolutional_classifier(head, (2, 3, 3)), head, 2, (3, 3), (1, 2))


def test_empty_batches_autocast_and_export_with_free_sides():
    wide = convolutional_classifier(classifier(), (1, 14, 14)).eval()
    assert wide(torch.zeros(0, 1, 20, 14)).shape == (0, 5, 4, 1)
    x = torch.randn(1, 1, 20, 18)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(x).dtype is torch.bfloat16
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(wide, (torch.randn(1, 1, 32, 30),), dynamic_shapes=(sides,)).module()
    torch.testing.assert_close(graph(x), wide(x))


def test_the_forecast_on_a_larger_image_is_what_is_measured():
    work = sash.Workload(convolutional_classifier(classifier(), (1, 14, 14)).eval(), "1x1x300x400")
    forecast, measured = sash.forecast(work).peak_bytes, sash.measure(work).peak_bytes
    assert abs(forecast - measured) <= 0.005 * measured


FLAT = nn.Flatten()


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ((FLAT, nn.Linear(25, 5)), r"1 \(Linear\) takes 25 features, and 3 channels of 4x2 are 24; give the channels and the size"),
        ((nn.Linear(2, 5), FLAT), r"0 \(Linear\) comes before any nn.Flatten"),
        ((nn.Conv2d(3, 4, 3), FLAT, nn.Linear(8, 5)), r"0 \(Conv2d\) cannot be moved over a map. A head is made of pooling"),
        (
            (nn.Sequential(FLAT, nn.LayerNorm(24)), nn.Linear(24, 5)),
            r"0.1 \(LayerNorm\) stands between the flattening and the first linear",
        ),
        ((FLAT, nn.Linear(24, 5), nn.LayerNorm(5)), r"2 \(LayerNorm\) cannot be moved"),
        ((FLAT, nn.BatchNorm1d(24), nn.Linear(24, 5)), r"1 \(BatchNorm1d\) stands between"),
        ((nn.AdaptiveAvgPool2d(3), FLAT, nn.Linear(27, 5)), "makes 3x3 of 4x2, in bins of unequal size"),
        ((nn.AdaptiveAvgPool2d((2, 2)), nn.AdaptiveAvgPool2d(1), FLAT), r"1 \(AdaptiveAvgPool2d\) makes 1x1 of 2x2 after another pooling"),
        ((FLAT, nn.AdaptiveAvgPool1d(1)), "makes 1x1 of 4x2 after the flattening; put it before"),
        ((nn.Flatten(2), nn.Linear(8, 5)), r"0 \(Flatten\) flattens axes 2 to -1"),
        ((nn.AdaptiveAvgPool2d((2, 1)), FLAT), "ends in 3x2x1 features without a linear layer"),
        ((nn.Softmax(-1), FLAT, nn.Linear(24, 5)), r"0 \(Softmax\) cannot be moved"),
    ],
)
def test_what_cannot_be_moved_over_a_map_is_named(layers, told):
    with pytest.raises(InputError, match=told):
        convolutional_head(nn.Sequential(*layers), 3, (4, 2))


def test_a_model_without_a_head_and_a_size_of_nothing_are_refused():
    with pytest.raises(InputError, match=r"no head to convert; give the parts as one nn.Sequential"):
        convolutional_classifier(nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 8, 8))
    with pytest.raises(InputError, match=r"size is \(0, 2\); give 1 to 3 sides"):
        convolutional_head(nn.Sequential(FLAT), 3, (0, 2))

"""The speech CNN: the shapes of the paper, and that limited sharing with tied weights is full sharing."""

from functools import partial

import pytest
import torch
from torch import nn

import sash
from sash.errors import InputError
from sash.models import speech_cnn, train

SMALL = {"classes": 5, "in_channels": 3, "bands": 20, "maps": 4, "size": 5, "pool": 4, "shift": 2, "hidden": (8,)}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_forty_bands_become_thirty_three_and_fourteen_and_the_parameters_follow():
    with torch.device("meta"):
        full, limited = speech_cnn(), speech_cnn("limited")
    ply = 45 * 8 * 150 + 150
    head = (14 * 150 + 1) * 1000 + 1001 * 1000 + 1001 * 183
    assert count(full) == ply + head == 3_339_333
    assert count(limited) == 14 * ply + head == 4_043_283
    steps = sash.walk("45x40 | conv 8 150 | pool 6/2 | flatten").steps
    assert steps[-1].values == full.head[1].in_features == 2100


@pytest.mark.parametrize("hidden", [(1000, 1000), ()])
def test_every_spectrum_gets_its_scores(hidden):
    for sharing in ("full", "limited"):
        assert speech_cnn(sharing, maps=6, hidden=hidden)(torch.randn(2, 45, 40)).shape == (2, 183)


def test_limited_sharing_with_tied_weights_is_full_sharing():
    torch.manual_seed(0)
    full, limited = (speech_cnn(sharing, **SMALL).double() for sharing in ("full", "limited"))
    sections = limited.plies[0].weight.shape[0]
    weights = full.state_dict()
    for name in ("weight", "bias"):
        weights[f"plies.0.{name}"] = torch.stack([weights[f"plies.0.{name}"]] * sections)
    limited.load_state_dict(weights)
    x = torch.randn(3, 3, 20, dtype=torch.float64)
    torch.testing.assert_close(limited(x), full(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", ["full", "limited"])
def test_it_learns_where_along_frequency_a_peak_is(sharing):
    torch.manual_seed(0)
    x, labels = 0.1 * torch.randn(60, 3, 20), torch.arange(60) % 2
    x[torch.arange(60), 0, 3 + 12 * labels] += 2
    model = speech_cnn(sharing, **SMALL | {"classes": 2})
    settings = {
        "loss": nn.functional.cross_entropy,
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "epochs": 25,
        "batch": 10,
        "progress": False,
    }
    history = train(model, (x, labels), **settings)
    assert history.epochs[-1].train["loss"] < 0.1


@pytest.mark.parametrize("sharing", ["full", "limited"])
def test_batches_may_be_empty_free_and_of_half_precision(sharing):
    torch.manual_seed(0)
    model, x = speech_cnn(sharing, **SMALL).eval(), torch.randn(4, 3, 20)
    assert model(x[:0]).shape == (0, 5)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)).module()
    torch.testing.assert_close(exported(x[:3]), model(x[:3]))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    assert (found.float() - model(x)).norm() <= 0.05 * model(x).norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: speech_cnn("tied"), "sharing='tied'; weights are shared in one of the ways 'full', 'limited'"),
        (lambda: speech_cnn(bands=12), "bands=12; a pool of 6 filters over 8 bands reads 13"),
        (lambda: speech_cnn(hidden=(10, 0)), r"hidden\[1\]=0: a speech CNN"),
        (lambda: speech_cnn(**SMALL)(torch.zeros(2, 3, 21)), "the spectra are 2x3x21; they have to be batch x 3 channels x 20 bands"),
        (lambda: speech_cnn(**SMALL)(torch.zeros(3, 20)), "the spectra are 3x20"),
    ],
)
def test_what_does_not_go_together_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()

"""The convolutional network for speech: filters that slide along frequency, with full or limited weight sharing.

Source: O. Abdel-Hamid, A. Mohamed, H. Jiang, L. Deng, G. Penn, D. Yu, "Convolutional Neural Networks for Speech Recognition", 2014,
sections III and V. ReLU where the paper has the logistic function, and without the energy of each frame, which has no place on the axis.
"""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from sash.errors import InputError
from sash.models._pictures import check_counts, start_for_relu
from sash.ops import LimitedSharingConv
from sash.units import format_shape
from sash.window import Chain, Window

Sharing = Literal["full", "limited"]


def speech_cnn(
    sharing: Sharing = "full",
    *,
    classes: int = 183,
    in_channels: int = 45,
    bands: int = 40,
    maps: int = 150,
    size: int = 8,
    pool: int = 6,
    shift: int = 2,
    hidden: tuple[int, ...] = (1000, 1000),
) -> SpeechCNN:
    """A speech CNN: (batch, in_channels, bands) → (batch, classes); 3 339 333 parameters by default.

    One convolution of filters over `size` bands, a max-pool of `pool` outputs every `shift`, and `hidden` layers: 40 bands become 33, then
    14. `in_channels` are the values of one band, by default 15 frames of the spectrum and its first and second differences; the classes
    three states of 61 phones. With `sharing="limited"` each of the pooled units has filters of its own, 14 times as many: 4 043 283
    parameters. Raises `InputError` for another sharing, counts below 1, and fewer bands than a pooled unit reads.
    """
    if sharing not in get_args(Sharing):
        raise InputError(f"sharing={sharing!r}; weights are shared in one of the ways {', '.join(map(repr, get_args(Sharing)))}.")
    counts = {"classes": classes, "in_channels": in_channels, "bands": bands, "maps": maps, "size": size, "pool": pool, "shift": shift}
    check_counts("a speech CNN", **counts, **{f"hidden[{index}]": width for index, width in enumerate(hidden)})
    least = Chain([Window(size), Window(pool, shift)]).receptive_field
    if bands < least:
        raise InputError(f"bands={bands}; a pool of {pool} filters over {size} bands reads {least}.")
    return SpeechCNN(sharing, classes, in_channels, bands, maps, Window(size), Window(pool, shift), hidden)


class SpeechCNN(nn.Module):
    """`speech_cnn` as a module: `plies`, the convolution and its pool, and the `head` of linear layers."""

    def __init__(
        self,
        sharing: Sharing,
        classes: int,
        in_channels: int,
        bands: int,
        maps: int,
        filters: Window,
        pool: Window,
        hidden: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.in_channels, self.bands = in_channels, bands
        # Pooled before the activation, which passes through a maximum: less is computed, and less saved.
        if sharing == "full":
            self.plies = nn.Sequential(nn.Conv1d(in_channels, maps, filters.size), nn.MaxPool1d(pool.size, pool.stride), nn.ReLU())
        else:
            limited = LimitedSharingConv(in_channels, maps, filters.size, bands=bands, pool=pool.size, shift=pool.stride)
            self.plies = nn.Sequential(limited, nn.ReLU())
        widths = [maps * pool.outputs(filters.outputs(bands)), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], classes))
        start_for_relu(self)

    def forward(self, spectra: Float[Tensor, "batch channel band"]) -> Float[Tensor, "batch class"]:
        """Scores of the classes. Raises `InputError` for other channels or bands."""
        if spectra.shape[1:] != (self.in_channels, self.bands):
            found = format_shape(spectra.shape)
            raise InputError(f"the spectra are {found}; they have to be batch x {self.in_channels} channels x {self.bands} bands.")
        return self.head(self.plies(spectra))

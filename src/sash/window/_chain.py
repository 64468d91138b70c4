"""Windows one after another along one axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, lcm

from sash.errors import InputError
from sash.window._adaptive import Adaptive
from sash.window._circular import Circular
from sash.window._interval import Interval
from sash.window._transposed import Transposed
from sash.window._window import Window

Link = Window | Circular | Transposed | Adaptive


@dataclass(frozen=True, slots=True)
class Tile:
    """A stretch of a chain's outputs and what it needs of every signal on the way."""

    levels: tuple[Interval, ...]
    """Samples of each signal, clipped to it: the chain's input first, its outputs last."""

    @property
    def inputs(self) -> Interval:
        """Samples of the chain's input that it reads."""
        return self.levels[0]

    @property
    def outputs(self) -> Interval:
        """Outputs of the chain that it makes."""
        return self.levels[-1]


@dataclass(frozen=True, slots=True, init=False)
class Chain:
    """Windows applied in turn; every length is in samples of the axis. Chains among them are joined in.

    Raises `InputError` for a link that is no window. Where an `Adaptive` window is among the links, what is asked without a
    length (`receptive_field`, `jump`, `offset`, `halo()`) raises `InputError` too: it depends on the length.
    """

    links: tuple[Link, ...]
    """First applied, first."""

    def __init__(self, links: Iterable[Link | Chain] = ()) -> None:
        flat: list[Link] = []
        for link in links:
            if isinstance(link, Chain):
                flat.extend(link.links)
            elif isinstance(link, Link):
                flat.append(link)
            else:
                raise InputError(
                    f"A chain is made of Window, Circular, Transposed, Adaptive and Chain, not {link!r}; Window({link!r}) may be meant."
                )
        object.__setattr__(self, "links", tuple(flat))

    def then(self, second: Link | Chain) -> Chain:
        """The chain with `second` after it."""
        return Chain((self, second))

    def lengths(self, length: int) -> tuple[int, ...]:
        """Length of every signal on the way, `length` first; an empty signal stays empty."""
        found = [length]
        for link in self.links:
            found.append(link.outputs(found[-1]) if found[-1] > 0 else 0)
        return tuple(found)

    def outputs(self, length: int) -> int:
        """Outputs on `length` samples; 0 where any signal on the way is empty."""
        return self.lengths(length)[-1]

    @property
    def jump(self) -> int | Fraction:
        """Input samples from one output to the next; below 1 where transposed windows outweigh strides."""
        return _plain(self._jumps()[0])

    @property
    def offset(self) -> int | Fraction:
        """Centre of the first output's receptive field, in input samples: 0 is the first sample's own centre."""
        centre = Fraction(0)
        for link in reversed(self.links):
            regular = _regular(link)
            centre = regular.offset + centre * _stride(regular)
        return _plain(centre)

    def centre(self, output: int) -> int | Fraction:
        """Centre of an output's receptive field, in input samples."""
        return _plain(Fraction(self.offset + output * self.jump))

    @property
    def receptive_field(self) -> int:
        """The most input samples, gaps and padding included, that lie under one output.

        Attained by gradients, except where a transposed window leaves gaps (dilation above 1, or stride above span): a bound there.
        """
        return max(self.reads(output, output + 1).length for output in range(self._period()))

    def field(self, length: int) -> int:
        """The most of `length` samples that lie under one output, padding not counted."""
        return max((self.reads(output, output + 1, length).length for output in range(self.outputs(length))), default=0)

    def levels(self, start: int, stop: int, length: int | None = None) -> tuple[Interval, ...]:
        """What the outputs [start, stop) need of every signal, the input first; clipped to each signal where `length` is given."""
        lengths = [None] * len(self.links) if length is None else self.lengths(length)
        found = [Interval(start, stop)]
        for link, signal in zip(reversed(self.links), reversed(lengths[: len(self.links)]), strict=True):
            found.append(link.reads(*found[-1], signal))
        return tuple(reversed(found))

    def reads(self, start: int, stop: int, length: int | None = None) -> Interval:
        """Input samples under the outputs [start, stop), gaps included: the interval projected back.

        Without `length` the signals have no ends; with it, the interval is clipped to every signal on the way.
        """
        return self.levels(start, stop, length)[0]

    def project(self, interval: tuple[int, int], length: int | None = None) -> Interval:
        """Outputs that lie over any of the input samples [start, stop), gaps included: the interval projected forward.

        Without `length` the signals have no ends; with it, only outputs that exist are returned.
        """
        found = Interval(*interval)
        lengths = [None] * len(self.links) if length is None else self.lengths(length)
        for link, signal in zip(self.links, lengths[: len(self.links)], strict=True):
            found = link.writes(*found, signal)
        return found

    def halo(self, tile: tuple[int, int] | None = None, length: int | None = None) -> tuple[int, int]:
        """Samples before and after a tile's own share of the input, [start·jump, stop·jump), that its outputs read too.

        Without a tile, the halo that is enough for every tile. With `length`, the halo is clipped at the signal's ends.
        """
        jump = self.jump
        tiles = [(output, output + 1) for output in range(self._period())] if tile is None else [tile]
        before = after = 0
        for start, stop in tiles:
            needed = self.reads(start, stop, length)
            if needed.length:
                before = max(before, floor(start * jump) - needed.start)
                after = max(after, needed.stop - ceil(stop * jump))
        return before, after

    def tiles(self, length: int, tile: int) -> tuple[Tile, ...]:
        """The outputs on `length` samples cut into tiles of `tile` outputs (the last may be shorter), with the input each needs."""
        if tile < 1:
            raise InputError(f"A tile has at least 1 output, not {tile}.")
        count = self.outputs(length)
        return tuple(Tile(self.levels(start, min(start + tile, count), length)) for start in range(0, count, tile))

    def coverage(self, length: int) -> tuple[int, ...]:
        """How often each of `length` samples is read on the way to the outputs, every path counted."""
        lengths = self.lengths(length)
        weights = (1,) * lengths[-1]
        for link, signal in zip(reversed(self.links), reversed(lengths[:-1]), strict=True):
            weights = link.spread(weights, signal)
        return weights

    def _jumps(self) -> list[Fraction]:
        """Samples of every signal that one output's step is long, the input first."""
        found = [Fraction(1)]
        for link in reversed(self.links):
            found.append(found[-1] * _stride(_regular(link)))
        return found[::-1]

    def _period(self) -> int:
        """Outputs after which the pattern of what is read repeats: a step of that many is whole in every signal."""
        return lcm(*(jump.denominator for jump in self._jumps()))


def _regular(link: Link) -> Window | Circular | Transposed:
    if isinstance(link, Adaptive):
        raise InputError(f"What {link} reads depends on the signal's length; ask field(length), reads(start, stop, length) or levels.")
    return link


def _stride(link: Window | Circular | Transposed) -> int | Fraction:
    return link.jump if isinstance(link, Transposed) else link.stride


def _plain(number: Fraction) -> int | Fraction:
    return int(number) if number.denominator == 1 else number

"""Where the samples of a batch lie in a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isclose, prod
from typing import Any, Protocol

from sash.plans._recorded import Call, Record, Ref


@dataclass(frozen=True, slots=True)
class Const:
    """Depends on no sample."""

    flat: bool = False
    """Every element is the same, so that it may have any size."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Every element belongs to one sample."""

    step: int
    """Elements, in row-major order, from a sample to the next."""
    source: int | None = None
    """The input whose values these are, moved at most."""


@dataclass(frozen=True, slots=True)
class Total:
    """A sum or a mean over the samples."""

    kind: str
    """`"sum"` or `"mean"`."""


State = Const | Rows | Total


class Mixes(Exception):  # noqa: N818 (caught, and told as a reason)
    """An operator mixes samples, or it is not known that it does not."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where among a tensor's sizes the samples are."""

    dim: int
    inner: int
    """Elements of that dimension that belong to one sample, side by side."""
    outer: int
    """Times the whole batch occurs along that dimension."""


def place(shape: Sequence[int], step: int, batch: int) -> Place:
    """The dimension that runs over the samples. Raises `Mixes` where they are spread over more than one."""
    after = 1
    for dim in reversed(range(len(shape))):
        if step < after * shape[dim]:
            inner, rest = divmod(step, after)
            outer, odd = divmod(shape[dim], inner * batch) if inner else (0, 1)
            if rest or odd:
                break
            return Place(dim, inner, outer)
        after *= shape[dim]
    raise Mixes("takes the batch apart, so that its samples no longer lie along one axis")


def step_along(shape: Sequence[int], dim: int, inner: int) -> int:
    """Row-major elements from sample to sample where `dim` runs over them, with `inner` elements of it each."""
    return inner * prod(shape[dim + 1 :])


def same_number(one: Any, two: Any) -> bool:
    """Whether two plain arguments are the same in both records."""
    if isinstance(one, (int, float)) and isinstance(two, (int, float)):
        return one == two or isclose(one, two, rel_tol=1e-12)
    return one == two


def same_scalars(call: Call, twin: Call, name: str) -> None:
    """Nothing, where no plain number that an operator is given depends on the batch; sizes of a result may. Raises `Mixes`."""
    if name in _TAKES_SIZES:
        return
    for key, value in call.args.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not same_number(value, twin.args[key]):
            raise Mixes(f"uses a number that depends on the batch size ({value:g} and {twin.args[key]:g})")


class Reader(Protocol):
    """Who follows the samples through a record."""

    full: Record
    batch: int
    parts: int
    ignored: Callable[[int, int], bool | None]
    normed: dict[str, None]

    def state(self, ref: Ref) -> State:
        """What a tensor holds."""
        ...

    def grows(self, ref: Ref) -> bool:
        """Whether a tensor's size depends on the batch."""
        ...

    def place(self, ref: Ref) -> Place:
        """Where the samples are in a tensor that holds them."""
        ...

    def rows_along(self, ref: Ref, dim: int, inner: int, source: int | None = None) -> Rows:
        """The samples of an output that lie along `dim`."""
        ...

    def rows_by_shape(self, ref: Ref) -> Rows:
        """The samples of a tensor of which only one size depends on the batch, and is the batch."""
        ...

    def given(self, call: Call) -> list[tuple[Ref, Rows]]:
        """The arguments that hold samples."""
        ...

    def one_place(self, call: Call) -> Place:
        """Where the samples are in all of the arguments that hold any."""
        ...


SAME_ORDER = frozenset(
    {"clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze"}
    | {"reshape", "lift_fresh_copy", "_conj", "resolve_conj", "prims.convert_element_type", "convert_element_type"}
)
"""Views that keep the order of the elements, and copies."""
_TAKES_SIZES = frozenset({"view", "_unsafe_view", "_reshape_alias", "expand", "repeat", "slice", "reshape", "native_group_norm"})

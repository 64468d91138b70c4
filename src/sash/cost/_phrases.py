"""Blocks in words: whose they are, how many, how large."""

from __future__ import annotations

from collections.abc import Sequence

from sash.cost._kept import keeper
from sash.cost._results import Block
from sash.units import format_bytes


def saved_text(blocks: Sequence[Block], kinds: dict[str, str]) -> str:
    """Whose outputs are saved for which backward, and why; `blocks` are the largest first and of one keeper."""
    by = keeper(blocks[0].kept_for)
    many = len(blocks) > 1
    text = f"{'Outputs' if many else 'The output'} of {makers(blocks, kinds)}, {format_bytes(total(blocks))}"
    text += f", {'are' if many else 'is'} saved for {by.name}, {by.why}"
    return f"{text}; {largest_of(blocks)}" if many else text


def times(ratio: float) -> str:
    """`"twice"`, `"2.4 times"`, `"31 times"`; `"as much as"` for 1."""
    if abs(ratio - 1) < 0.02:
        return "as much as"
    if abs(ratio - 2) < 0.02:
        return "twice"
    return f"{ratio:.{2 if ratio < 1 else 1 if ratio < 9.95 else 0}f} times"


def total(blocks: Sequence[Block]) -> int:
    """Bytes of all."""
    return sum(block.bytes for block in blocks)


def makers(blocks: Sequence[Block], kinds: dict[str, str], of: str = "") -> str:
    """`"blocks.0.fc1 and 11 more like it (blocks.*.fc1)"`, `"conv1 and 42 more Conv2d layers"`, the largest named."""
    modules = list(dict.fromkeys(block.module for block in blocks))
    first = f"{of} {named(modules[0])}".strip()
    if len(modules) == 1:
        return first
    if len(modules) == 2:
        return f"{first} and {named(modules[1])}"
    alike = _pattern(modules)
    if alike:
        return f"{first} and {len(modules) - 1} more like it ({alike})"
    found = {kinds.get(path, "") for path in modules}
    return f"{first} and {len(modules) - 1} more {found.pop() if len(found) == 1 else ''}".rstrip() + " layers"


def _pattern(modules: Sequence[str]) -> str:
    """`"blocks.*.fc1"` for paths that differ in numbers alone, `"*.fc1"` for those with the last name in common; empty for others."""
    split = [path.split(".") for path in modules]
    if len({len(parts) for parts in split}) == 1 and len(split[0]) > 1:
        columns = [set(column) for column in zip(*split, strict=True)]
        if all(len(column) == 1 or all(part.isdigit() for part in column) for column in columns):
            return ".".join("*" if len(column) > 1 else column.pop() for column in columns)
    last = split[0][-1]
    return f"*.{last}" if not last.isdigit() and all(parts[-1] == last for parts in split) else ""


def named(path: str) -> str:
    """A module in a sentence."""
    # A number alone, as in a Sequential, would read as a count.
    return f"layer {path}" if path.isdigit() else path or "the model itself"


def paths(blocks: Sequence[Block]) -> str:
    """The first three modules that made them."""
    found = list(dict.fromkeys(named(block.module) for block in blocks))
    return joined(found[:3], len(found) > 3)


def largest_of(blocks: Sequence[Block]) -> str:
    """The first block, as a clause."""
    return f"the largest is {shown(blocks[0])}"


def sizes(blocks: Sequence[Block]) -> str:
    """Bytes and shapes of the first two."""
    return joined([f"{format_bytes(block.bytes)} ({shape(block)})" for block in blocks[:2]], len(blocks) > 2)


def shown(block: Block) -> str:
    """`"1 x 64 x 128 x 128 (4.00 MiB, enter.0)"`."""
    return f"{shape(block)} ({format_bytes(block.bytes)}, {named(block.module)})"


def shape(block: Block) -> str:
    """`"1 x 64 x 128 x 128"`."""
    return " x ".join(map(str, block.shape)) or "one number"


def count(blocks: Sequence[Block], one: str, many: str = "") -> str:
    """`"1 tensor"`, `"3 tensors"`."""
    return f"{len(blocks)} {one if len(blocks) == 1 else many or one + 's'}"


def joined(items: Sequence[str], more: bool = False) -> str:
    """`"a, b and c"`; `"a, b and others"` where there are more."""
    items = [*items, "others"] if more else list(items)
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)

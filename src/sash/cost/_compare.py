"""Two forecasts in words: what grew, what shrank, and which tensors made the difference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from sash.cost._kept import is_loss, keeper
from sash.cost._phrases import makers, named, total
from sash.cost._results import Block, Category, Forecast, Reason
from sash.units import format_bytes, format_count

_LEAST_SHARE = 0.02
"""Of the larger peak: a difference of less makes no sentence of its own."""
_LEAST_PART = 0.1
"""Of what came or went among the saved tensors: less is not named."""


def compare(a: Forecast, b: Forecast) -> tuple[Reason, ...]:
    """What changed from `a` to `b`, in sentences: the peak first, then by the bytes that each explains.

    What is saved for backward is compared where each step saves most, everything else at each one's peak. Saved tensors are matched by the
    module that made them (the nearest one around it that both models have) and by what they are saved for, first those of the same shape;
    tensors without a match are named.
    """
    sentences = [sentence for sentence in (_parameters(a, b), _saved(a, b), _working(a, b)) if sentence is not None]
    return (_peak(a, b), *sorted(sentences, key=lambda sentence: -sentence.bytes))


def _changed(before: int, after: int) -> str:
    """`"shrank 8.7 times, from 65.9 MiB to 7.57 MiB"`, `"stayed at 65.9 MiB"`, `"went from 0 B to 132 MiB"`."""
    first, then = format_bytes(before), format_bytes(after)
    if first == then:
        return f"stayed at {first}"
    smaller, larger = sorted((before, after))
    if larger < 1.05 * smaller or larger > 1000 * smaller:
        return f"went from {first} to {then}"
    return f"{'shrank' if after < before else 'grew'} {larger / smaller:.1f} times, from {first} to {then}"


def _peak(a: Forecast, b: Forecast) -> Reason:
    text = f"The peak {_changed(a.peak_bytes, b.peak_bytes)}"
    before, after = (found.timeline.moments[found.timeline.peak_moment] for found in (a, b))
    if (before.phase, before.module) != (after.phase, after.module):
        text += f"; it moved from {before.phase} ({named(before.module)}) to {after.phase} ({named(after.module)})"
    return Reason(f"{text}.", abs(a.peak_bytes - b.peak_bytes))


def _parameters(a: Forecast, b: Forecast) -> Reason | None:
    categories = {
        Category.PARAMETER: "parameters",
        Category.OPTIMIZER: "the optimizer's state",
        Category.GRADIENT: "the gradients at the peak",
    }
    spans = {category: (_at_peak(a, (category,)), _at_peak(b, (category,))) for category in categories}
    difference = sum(after - before for before, after in spans.values())
    if all(before == after for before, after in spans.values()):
        return None
    before, after = spans.pop(Category.PARAMETER)
    numbers = f"{format_count(a.params)} to {format_count(b.params)}" if a.params != b.params else format_count(a.params)
    text = f"Parameters {_changed(before, after)} ({numbers})"
    others = [f"{categories[category]} {_changed(*span)}" for category, span in spans.items() if span[0] != span[1]]
    return Reason(f"{'; '.join([text, *others])}.", abs(difference))


def _saved(a: Forecast, b: Forecast) -> Reason | None:
    before, after = _most_saved(a), _most_saved(b)
    least = _LEAST_SHARE * max(total(before), total(after))
    shared = {layer.path for layer in a.layers} & {layer.path for layer in b.layers}
    gone, new, _ = _matched(before, after, lambda block: (*_place(block, shared), block.shape, block.bytes))
    gone, new, resized = _matched(gone, new, lambda block: _place(block, shared))
    parts = []
    if resized:
        sizes = [sum(pair[side].bytes for pair in resized) for side in (0, 1)]
        parts.append(f"{len(resized)} that both keep {_changed(*sizes)}")
    parts += [f"{word}: {_told(blocks, found)}" for word, blocks, found in (("new", new, b), ("gone", gone, a)) if total(blocks) > least]
    if not parts:
        return None
    text = f"What is saved for backward {_changed(total(before), total(after))}, "
    text += f"in {len(before)} and {len(after)} tensors" if len(before) != len(after) else f"in {len(after)} tensors"
    modules = tuple(dict.fromkeys(block.module for block in (*new, *gone) if block.module))
    return Reason(f"{'; '.join([text, *parts])}.", abs(total(after) - total(before)), modules)


def _working(a: Forecast, b: Forecast) -> Reason | None:
    before, after = (_at_peak(found, (Category.TEMPORARY, Category.SCRATCH)) for found in (a, b))
    if abs(after - before) < _LEAST_SHARE * max(a.peak_bytes, b.peak_bytes):
        return None
    inside = [_at_peak(found, (Category.SCRATCH,)) for found in (a, b)]
    text = f"Temporaries at the peak {_changed(before, after)}"
    if any(inside):
        text += f"; what the kernel takes inside {_changed(*inside)}"
    return Reason(f"{text}.", abs(after - before))


def _at_peak(found: Forecast, categories: Sequence[Category]) -> int:
    return sum(found.timeline.levels_of(category)[found.timeline.peak_moment] for category in categories)


def _most_saved(found: Forecast) -> list[Block]:
    """Blocks that are saved for backward when the most bytes are, the largest first."""
    levels = found.timeline.levels_of(Category.SAVED)
    moment = max(range(len(levels)), key=levels.__getitem__, default=0)
    return [block for block in found.timeline.alive(moment) if block.category is Category.SAVED]


def _matched(
    before: Iterable[Block], after: Iterable[Block], key: Callable[[Block], Hashable]
) -> tuple[list[Block], list[Block], list[tuple[Block, Block]]]:
    """Blocks of each that the other has none like, and the pairs that are alike."""
    waiting: dict[Hashable, list[Block]] = defaultdict(list)
    for block in before:
        waiting[key(block)].append(block)
    new, pairs = [], []
    for block in after:
        alike = waiting[key(block)]
        if alike:
            pairs.append((alike.pop(0), block))
        else:
            new.append(block)
    gone = sorted((block for blocks in waiting.values() for block in blocks), key=lambda block: -block.bytes)
    return gone, new, pairs


def _place(block: Block, shared: set[str]) -> tuple[str, str]:
    path = block.module
    while path not in shared and path:
        path = path.rpartition(".")[0]
    return path, keeper(block.kept_for).name


def _told(blocks: Sequence[Block], found: Forecast) -> str:
    """What backward keeps the blocks for, one clause for each of the two largest keepers."""
    kinds = {layer.path: layer.kind for layer in found.layers}
    by_keeper: dict[str, list[Block]] = defaultdict(list)
    for block in blocks:
        by_keeper["the loss" if is_loss(block.kept_for) else keeper(block.kept_for).name].append(block)
    ranked = sorted(by_keeper.items(), key=lambda item: -total(item[1]))
    ranked = [item for item in ranked if total(item[1]) >= _LEAST_PART * total(blocks)][:2]
    clauses = []
    for name, group in ranked:
        clause = f"{format_bytes(total(group))} made by {makers(group, kinds)} and saved for {name}"
        clauses.append(clause if name == "the loss" else f"{clause}, {keeper(group[0].kept_for).why}")
    return ", and ".join(clauses)

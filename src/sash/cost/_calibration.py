"""The calibrating process: `python -m sash.cost._calibration THREADS` prints this machine's rates as JSON.

Each probe is a small operator call; what it computes and moves is told by the very functions that a forecast uses, and the rates are those
under which the laws come closest to the seconds that were measured.
"""

from __future__ import annotations

import json
import mmap
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from sash.cost._laws import KINDS, MAPPED, NAMES, OWN, SHARED, STREAMS, SUMMED
from sash.cost._piece import Piece, tensors_of
from sash.cost._probes import Probe, groups, probe
from sash.cost._time import pieces, slowness
from sash.cost._time_maps import GRAIN

_SWEEPS, _ROUNDS = 2, 4
"""Through all probes, and in each sweep through those of a group: what else the machine does comes and goes within seconds."""
_ENOUGH_S = 6.0
"""No sweep begins later than this: the machine is busy, and another one would not better what was seen."""
_LONG_S = 0.002
"""A probe that takes longer than this is called once in a sweep."""
_CACHE = 1 << 26
"""Bytes that no cache holds."""
_CALLS = 32
_ADAM = 12
"""Operators of Adam's step for one parameter."""
_FITS = 5
_CLOSE = 0.15
"""Relative distance from which on a probe counts for less."""
_LEAST = 1e-15
"""Every rate is above zero: a law's part that no probe shows is this small."""
_SMALL = 1 << 12
"""Elements up to which a probe shows what starting an operator takes."""


def rates() -> dict[str, float]:
    """Every rate of this machine, by name."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _basics()
        seen: dict[str, list[tuple[Piece, float]]] = defaultdict(list)
        best: dict[str, float] = defaultdict(float)
        for piece, taken in _swept().values():
            seen[piece.law].append((piece, statistics.median(taken)))
            for kind in KINDS:
                if piece.law.endswith(f".{kind}") and piece.macs:
                    best[kind] = max(best[kind], piece.macs / min(taken))
    found.update({f"best.{kind}.macs_per_s": best[kind] for kind in KINDS})
    for family in _families(law for law in SUMMED if seen[law]).values():
        found.update(_summed({law: seen[law] for law in family}, found))
    for law in MAPPED:
        found.update(_mapped(law, seen[law], found) if seen[law] else {})
    return {name: max(_nearest(name, found), _LEAST) for name in NAMES}


def _swept() -> dict[tuple[int, int], tuple[Piece, list[float]]]:
    """What each probe does, and the seconds that its calls took; by the places of its group and of the probe in it."""
    found: dict[tuple[int, int], tuple[Piece, list[float]]] = {}
    others, started = torch.zeros(_CACHE // 4), time.perf_counter()
    for sweep in range(_SWEEPS):
        if sweep and time.perf_counter() - started > _ENOUGH_S:
            break
        for at, (group, cold) in enumerate(groups()):
            probes = list(group())
            for place, taken in enumerate(in_turn(probes, others if cold else None)):
                if sweep == 0:
                    func, args, kwargs = probes[place]
                    parts = pieces(func, args, kwargs, func(*args, **kwargs))
                    if len(parts) == 1:
                        found[at, place] = parts[0], []
                if (at, place) in found:
                    found[at, place][1].extend(taken)
    return found


def in_turn(probes: Sequence[Probe], others: Tensor | None = None) -> list[list[float]]:
    """Seconds of the calls of each.

    They are called in turn, one after the other, and not each many times in a row: a call in a step finds its code and most of its operands
    out of the caches as well. Only its first operand was written a moment ago, as the operator before it does in a step. `others` is gone
    through before each round where the probes' own operands are too few to drive each other out of the caches.
    """
    taken: list[list[float]] = [[] for _ in probes]
    for _ in range(_ROUNDS + 1):
        if others is not None:
            others.add_(1.0)
            others[0].neg()  # the first operator after it would pay for all
        for place, (func, args, kwargs) in enumerate(probes):
            if len(taken[place]) > 1 and taken[place][-1] > _LONG_S:
                continue
            first = next((tensor for tensor in tensors_of(args) if tensor.is_floating_point()), None)
            if first is not None:
                first.mul_(1.0)
            started = time.perf_counter()
            result = func(*args, **kwargs)
            taken[place].append(time.perf_counter() - started)
            del result
    return [found[1:] for found in taken]  # the first round makes code


def _each(work: Sequence[Callable[[], object]]) -> list[float]:
    return _usual([Probe(one, (), {}) for one in work])


def _usual(probes: Sequence[Probe], sweeps: int = _SWEEPS, usual: Callable[[list[float]], float] = statistics.median) -> list[float]:
    found = [in_turn(probes) for _ in range(sweeps)]
    return [usual([taken for sweep in found for taken in sweep[place]]) for place in range(len(probes))]


def _basics() -> dict[str, float]:
    small = torch.ones(16)
    below, above = torch.ones(GRAIN - 1), torch.ones(2 * GRAIN)
    held = torch.empty_like(above)
    add, view = torch.ops.aten.add.Tensor, torch.ops.aten.view.default
    # Twice the elements for two threads take as long, and the start of the threads beside it.
    call_s, again_s, view_s, one_s, both_s = _each(
        [
            lambda: add(small, small),
            lambda: [add(small, small) for _ in range(_CALLS)],
            lambda: view(small, [4, 4]),
            lambda: [torch.add(below, below, out=held[: GRAIN - 1]) for _ in range(_CALLS)],
            lambda: [torch.add(above, above, out=held) for _ in range(_CALLS)],
        ]
    )
    found = {"operator.s": call_s, "view.s": view_s, "region.s": max((both_s - one_s * 2 / min(torch.get_num_threads(), 2)) / _CALLS, 1e-7)}
    found.update(_python(again_s / _CALLS))
    maps = [torch.ones(size // 8) for size in STREAMS]
    start = call_s + found["region.s"]
    for way, mul in (("stream", torch.ops.aten.mul.Tensor), ("kept", torch.ops.aten.mul_.Tensor)):
        for size, one_s in zip(STREAMS, _usual([probe(mul, one, 2.0) for one in maps]), strict=True):
            moved = size if way == "stream" else size // 2
            found[f"{way}.{size}.bytes_per_s"] = moved / max(one_s - start, one_s / 4)
    found["fresh.s_per_byte"] = _fresh()
    return found


def _fresh() -> float:
    """Seconds of a byte in a page that the system hands over, clears and takes back."""
    source = torch.ones(8 << 20)
    out = torch.empty_like(source)

    def on_new_pages() -> None:
        with mmap.mmap(-1, source.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
            # Not through the allocator: it may hold pages back from a block that was freed.
            made = torch.frombuffer(pages, dtype=torch.float32)
            torch.mul(source, 2.0, out=made)
            del made

    # The least of each, not the usual: a virtual machine's host may have to find the pages first, which a step's own, handed over again
    # and again, are spared.
    probes = [Probe(on_new_pages, (), {}), Probe(lambda: torch.mul(source, 2.0, out=out), (), {})]
    new_s, old_s = _usual(probes, 2 * _SWEEPS, min)
    return max(new_s - old_s, 1e-6) / source.nbytes


def _python(operator_s: float) -> dict[str, float]:
    """What an operator costs beside itself: its module in forward, its node in backward; in an optimizer, all that it costs."""
    layers = torch.nn.Sequential(*(torch.nn.ReLU() for _ in range(_CALLS)))
    parameters = [torch.nn.Parameter(torch.ones(16)) for _ in range(_CALLS)]
    for parameter in parameters:
        parameter.grad = torch.ones(16)
    optimizer = torch.optim.Adam(parameters)
    x, trained = torch.ones(16), torch.ones(16, requires_grad=True)

    def backward() -> None:
        with torch.enable_grad():
            y = trained
            for _ in range(_CALLS):
                y = y * 2.0
            y.sum().backward()

    module_s, backward_s, optimizer_s = _each([lambda: layers(x), backward, optimizer.step])
    return {
        "module.s": max(module_s / _CALLS - operator_s, 1e-8),
        "backward.s": max(backward_s / _CALLS - 2 * operator_s, 1e-8),
        "optimizer.s": max(optimizer_s / _CALLS / _ADAM, 1e-8),
    }


def _families(laws: Iterable[str]) -> dict[str, list[str]]:
    """Laws by what they share: convolutions of one form, layout and type are started, and lay weights out anew, in the same way."""
    families: dict[str, list[str]] = defaultdict(list)
    for law in laws:
        words = law.split(".")
        if words[0] == "convolution" and len(words) == 5:
            words[2] = "any"
        families[".".join(words)].append(law)
    return families


def _summed(probes: dict[str, list[tuple[Piece, float]]], found: dict[str, float]) -> dict[str, float]:
    """The parts of a family's laws, none below zero, that come nearest to its probes; and none computes faster than the fastest probe.

    Nearest in relative terms, and a probe that is far off counts for less with each round: what else the machine did slowed it down.
    """
    rows, taken, least = [], [], []
    floor = {law: 1 / found[f"best.{law.rsplit('.', 1)[-1]}.macs_per_s"] if members[0][0].macs else 0.0 for law, members in probes.items()}
    for place, (law, members) in enumerate(probes.items()):
        for one, measured in members:
            own = [0.0] * (len(OWN) * len(probes))
            own[len(OWN) * place : len(OWN) * (place + 1)] = one.bytes * slowness(one.bytes, found), one.work
            rows.append([1.0, one.calls, one.weights, *own])
            taken.append(max(measured - found["operator.s"], measured / 4))
            least.append(one.work * floor[law])
    scaled, wanted = np.array(rows) / np.array(taken)[:, None], 1 - np.array(least) / np.array(taken)
    weight = np.ones(len(taken))
    best = np.zeros(scaled.shape[1])
    for _ in range(_FITS):
        best, _ = nnls(scaled * weight[:, None], wanted * weight)
        weight = 1 / np.maximum(1, np.abs(scaled @ best - wanted) / _CLOSE)
    values = {f"{law}.{part}": float(value) for law in probes for part, value in zip(SHARED, best, strict=False)}
    for place, law in enumerate(probes):
        per_byte, per_item = best[len(SHARED) + len(OWN) * place :][: len(OWN)]
        values |= {f"{law}.s_per_byte": float(per_byte), f"{law}.s_per_item": float(per_item) + floor[law]}
    return values


def _mapped(law: str, probes: list[tuple[Piece, float]], found: dict[str, float]) -> dict[str, float]:
    """The start is what the smallest probe takes, the item what the others take beside it."""
    small = [measured for piece, measured in probes if piece.work <= _SMALL]
    call = max(statistics.median(small) if small else 0.0, found["operator.s"])
    start = call + found["region.s"]
    item = [max(measured - start, measured / 4) / piece.work for piece, measured in probes if piece.work > _SMALL]
    return {f"{law}.call_s": call - found["operator.s"], f"{law}.s_per_item": statistics.median(item)}


def _nearest(name: str, found: dict[str, float]) -> float:
    """The rate; where no probe reached its law on this machine, that of the nearest law that was reached."""
    for nearest in (
        name,
        name.replace(".last.", ".plain."),
        name.replace(".bf16.", ".f32."),
        name.replace(".last.", ".plain.").replace(".bf16.", ".f32."),
        name.replace("convolution.transposed.", "convolution.dense.").replace(".last.", ".plain.").replace(".bf16.", ".f32."),
        name.replace("convolution.unfolded.dense.", "product.").replace(".bf16.", ".f32."),
        name.replace("convolution.unfolded.shared.", "convolution.unfolded.depthwise."),
        name.replace("convolution.unfolded.depthwise.", "products.").replace(".bf16.", ".f32."),
        name.replace("convolution.unfolded.shared.", "products.").replace(".bf16.", ".f32."),
    ):
        if nearest in found:
            return found[nearest]
    raise KeyError(name)


def main() -> None:
    """Measure, and print."""
    started = time.perf_counter()
    torch.set_num_threads(int(sys.argv[1]))
    values = rates()
    print(json.dumps({"values": values, "made_s": time.perf_counter() - started}))


if __name__ == "__main__":
    main()

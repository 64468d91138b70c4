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
from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy.optimize import nnls

from sash.cost._laws import KINDS, MAPPED, NAMES, PARTS, STREAMS, SUMMED
from sash.cost._piece import Piece
from sash.cost._probes import Probe, everything
from sash.cost._time import pieces, slowness
from sash.cost._time_maps import GRAIN

_REPEATS = 5
_LEAST_S = 0.0003
"""A repeat is as many calls as take at least this long."""
_CALLS = 32
_ADAM = 12
"""Operators of Adam's step for one parameter."""
_ROUNDS = 5
_CLOSE = 0.15
"""Relative distance from which on a probe counts for less."""
_LEAST = 1e-15
"""Every rate is above zero: a law's part that no probe shows is this small."""


def rates() -> dict[str, float]:
    """Every rate of this machine, by name."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _basics()
        seen: dict[str, list[tuple[Piece, float]]] = defaultdict(list)
        for one in everything():
            outputs = one.func(*one.args, **one.kwargs)
            parts = pieces(one.func, one.args, one.kwargs, outputs)
            if len(parts) == 1:
                seen[parts[0].law].append((parts[0], _probe_seconds(one)))
    for family in _families(law for law in SUMMED if seen[law]).values():
        found.update(_summed({law: seen[law] for law in family}, found))
    for law in MAPPED:
        found.update(_mapped(law, seen[law], found) if seen[law] else {})
    found.update({f"best.{kind}.macs_per_s": _best(seen, kind) for kind in KINDS})
    return {name: max(_nearest(name, found), _LEAST) for name in NAMES}


def seconds(work: Callable[[], object], least: float = _LEAST_S) -> float:
    """Seconds of one call: the least of a few repeats, for whatever else the machine does can only add to them."""
    work()
    started = time.perf_counter()
    work()
    once = time.perf_counter() - started
    calls = max(1, int(least / max(once, 1e-9)))
    taken = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        taken.append((time.perf_counter() - started) / calls)
    return min(taken)


def _probe_seconds(one: Probe) -> float:
    func, args, kwargs = one
    return seconds(lambda: func(*args, **kwargs))


def _basics() -> dict[str, float]:
    small = torch.ones(16)
    below, above = torch.ones(GRAIN - 1), torch.ones(2 * GRAIN)
    held = torch.empty_like(above)
    add = torch.ops.aten.add.Tensor
    found = {"operator.s": seconds(lambda: add(small, small)), "view.s": seconds(lambda: torch.ops.aten.view.default(small, [4, 4]))}
    one_s = seconds(lambda: torch.add(below, below, out=held[: GRAIN - 1]))
    # Twice the elements for two threads take as long, and the start of the threads beside it.
    both_s = seconds(lambda: torch.add(above, above, out=held))
    found["region.s"] = max(both_s - one_s * 2 / min(torch.get_num_threads(), 2), 1e-8)

    found.update(_python(found["operator.s"]))
    for size in STREAMS:
        source = torch.ones(size // 8)
        out = torch.empty_like(source)
        found[f"stream.{size}.bytes_per_s"] = size / seconds(lambda source=source, out=out: torch.mul(source, 2.0, out=out))
    source = torch.ones(8 << 20)
    out = torch.empty_like(source)

    def on_new_pages() -> None:
        with mmap.mmap(-1, source.nbytes) as pages:
            # Not through the allocator: it may hold pages back from a block that was freed.
            made = torch.frombuffer(pages, dtype=torch.float32)
            torch.mul(source, 2.0, out=made)
            del made

    extra = seconds(on_new_pages) - seconds(lambda: torch.mul(source, 2.0, out=out))
    found["fresh.s_per_byte"] = max(extra, 1e-6) / source.nbytes
    return found


def _python(operator_s: float) -> dict[str, float]:
    """What an operator costs beside itself: its module in forward, its node in backward, its line in an optimizer."""
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

    step = {
        "module.s": (seconds(lambda: layers(x)), 1),
        "backward.s": (seconds(backward), 2),
        "optimizer.s": (seconds(optimizer.step), _ADAM),
    }
    return {
        name: max(taken / _CALLS - calls * operator_s, 1e-8) / (calls if name == "optimizer.s" else 1)
        for name, (taken, calls) in step.items()
    }


def _families(laws: Iterable[str]) -> dict[str, list[str]]:
    """Laws by what they share: convolutions of one layout and type are started, and lay their operands out anew, in the same way."""
    families: dict[str, list[str]] = defaultdict(list)
    for law in laws:
        words = law.split(".")
        families[f"convolution.{words[-2]}.{words[-1]}" if words[0] == "convolution" and len(words) == 5 else law].append(law)
    return families


def _summed(probes: dict[str, list[tuple[Piece, float]]], found: dict[str, float]) -> dict[str, float]:
    """Start, byte and weight byte of a family and the item of each of its laws, none below zero: those nearest to the probes.

    Nearest in relative terms, and a probe that is far off counts for less with each round: what else the machine did slowed it down.
    """
    rows, taken = [], []
    for place, members in enumerate(probes.values()):
        for piece, measured in members:
            items = [0.0] * len(probes)
            items[place] = piece.work
            rows.append([piece.calls, piece.bytes * slowness(piece.bytes, found), piece.weights, *items])
            taken.append(max(measured - found["operator.s"], measured / 4))
    scaled = np.array(rows) / np.array(taken)[:, None]
    weight = np.ones(len(taken))
    best = np.zeros(scaled.shape[1])
    for _ in range(_ROUNDS):
        best, _ = nnls(scaled * weight[:, None], weight)
        weight = 1 / np.maximum(1, np.abs(scaled @ best - 1) / _CLOSE)
    call, byte, weight_byte = (float(value) for value in best[:3])
    values = ((call, float(item), byte, weight_byte) for item in best[3:])
    return {f"{law}.{part}": value for law, parts in zip(probes, values, strict=True) for part, value in zip(PARTS, parts, strict=True)}


def _mapped(law: str, probes: list[tuple[Piece, float]], found: dict[str, float]) -> dict[str, float]:
    start = found["operator.s"] + found["region.s"]
    return {f"{law}.s_per_item": statistics.median(max(measured - start, measured / 4) / piece.work for piece, measured in probes)}


def _best(seen: dict[str, list[tuple[Piece, float]]], kind: str) -> float:
    return max(piece.macs / taken for law, probes in seen.items() if law.endswith(f".{kind}") for piece, taken in probes)


def _nearest(name: str, found: dict[str, float]) -> float:
    """The rate; where no probe reached its law on this machine, that of the nearest law that was reached."""
    for nearest in (
        name,
        name.replace(".last.", ".plain."),
        name.replace(".bf16.", ".f32."),
        name.replace(".last.", ".plain.").replace(".bf16.", ".f32."),
        name.replace("convolution.transposed.", "convolution.dense.").replace(".last.", ".plain.").replace(".bf16.", ".f32."),
        name.replace("convolution.unfolded.dense.", "product.").replace(".bf16.", ".f32."),
        name.replace("convolution.unfolded.depthwise.", "products.").replace(".bf16.", ".f32."),
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

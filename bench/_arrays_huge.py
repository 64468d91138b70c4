"""Blur by sigma 5 of 65,536 x 65,536 float32, a file of 17 GB to another, in 1 GiB, in a process of its own.

Growth is the most resident memory over the level after a tiny job of the same kind (`_arrays_probe.py`). Bytes are counted where the
store reads and writes (`os.preadv`, `os.pwritev`), by file: of the input as shares of its numbers, of the output as shares of its own,
and of files in between as shares of the input's; beside them all that the process read and wrote by calls (/proc/self/io). It takes some
36 GB of disk, which are free again at the end.
"""

from __future__ import annotations

from typing import Any

from _arrays_inputs import picture
from _arrays_probe import ask
from _arrays_rounds import folder

SIDE, BUDGET, SIGMA = 65536, 1 << 30, 5.0
READ_AIM, WRITTEN_AIM = 1.10, 1.001
BETWEEN = 0.25
"""Of the input's size: room for what lies between passes."""
LIMIT_S = 4 * 3600


def huge_section(side: int = SIDE) -> dict[str, Any]:
    """One run."""
    size = 4 * side**2
    with folder(int((2 + BETWEEN) * size)) as place:
        source, tiny = picture(place / "in.npy", side), picture(place / "tiny.npy", 512)
        job = {"operation": "blur", "args": [SIGMA], "words": {"overwrite": True}}
        warm = {**job, "source": str(tiny), "out": str(place / "tiny-out.npy")}
        found = ask({**job, "source": str(source), "out": str(place / "out.npy"), "budget": BUDGET, "warm": [warm]}, LIMIT_S)
    if "error_text" in found:
        raise SystemExit(found["error_text"])
    read, written = found["read_by_file"], found["written_by_file"]
    between = sum(count for name, count in (*read.items(), *written.items()) if ".between-" in name)
    kept = ("method", "tasks", "workers", "passes", "peak_bytes", "growth_bytes", "plan_s", "wall_s", "rchar", "wchar")
    return {
        "side": side,
        "budget_bytes": BUDGET,
        **{key: found[key] for key in kept},
        "pixels_per_s": side**2 / found["wall_s"],
        "read_per_input": read["in.npy"] / size,
        "written_per_output": written["out.npy.partial"] / size,
        "between_per_input": between / size,
        "read_aim": READ_AIM,
    }


def show_huge(found: dict[str, Any]) -> None:
    """A line."""
    grown = f"grew by {found['growth_bytes'] / 2**20:.0f} MiB of {found['budget_bytes'] >> 20} (forecast {found['peak_bytes'] / 2**20:.0f})"
    print(
        f"Blur of {found['side']}² float32, file to file, {found['method']}: {found['wall_s']:.0f} s, "
        f"{found['pixels_per_s'] / 1e6:.0f} M pixels/s; {grown}; read {found['read_per_input']:.4f} of the input, wrote "
        f"{found['written_per_output']:.4f} of the output, and {found['between_per_input']:.4f} of the input's size to and from files "
        "between passes"
    )


def missed_huge(found: dict[str, Any]) -> list[str]:
    """Memory and bytes."""
    lines = []
    if found["growth_bytes"] > found["budget_bytes"]:
        lines.append(f"grew by {found['growth_bytes']} bytes; the budget is {found['budget_bytes']}")
    if found["read_per_input"] > found["read_aim"]:
        lines.append(f"read {found['read_per_input']:.3f} of the input; the aim is {found['read_aim']}")
    if not 0.999 <= found["written_per_output"] <= WRITTEN_AIM:
        lines.append(f"wrote {found['written_per_output']:.3f} of the output; the aim is 1.00")
    return lines

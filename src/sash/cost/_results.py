"""What forecasting and measuring return: one set of facts, in one set of units."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from rich.console import RenderableType


class Category(StrEnum):
    """What a stretch of memory is for."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    INPUT = "input"
    GRADIENT = "gradient"
    OPTIMIZER = "optimizer state"
    SAVED = "saved for backward"
    TEMPORARY = "temporary"
    SCRATCH = "kernel scratch"
    OBSERVED = "observed"
    """Measured blocks: the allocator does not say what they are for."""


class Phase(StrEnum):
    """Part of a step."""

    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


@dataclass(frozen=True, slots=True)
class Moment:
    """One operator call: the timeline's unit of time."""

    phase: Phase
    module: str
    """Path of the innermost module at work, as in `named_modules()`; empty for the model itself."""
    operator: str
    """As `aten.convolution`."""
    seconds: float = 0.0
    """Forecast; 0 in a measurement."""


@dataclass(frozen=True, slots=True)
class Block:
    """One storage's life."""

    bytes: int
    category: Category
    module: str
    """Path of the module that made it (of its owner, for a parameter)."""
    operator: str
    """What made it; a parameter's or input's own name for static blocks."""
    born: int
    """First moment (an index into `Timeline.moments`) it is alive in."""
    died: int
    """First moment it is no longer alive in."""
    kept_for: str = ""
    """The backward node that needs it, for what is saved; empty otherwise."""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """Every block of a step, over its operator calls."""

    moments: tuple[Moment, ...]
    blocks: tuple[Block, ...]

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Bytes alive in each moment, kernel scratch included."""
        return self._levels(self.blocks)

    def levels_of(self, category: Category) -> tuple[int, ...]:
        """Bytes of one category alive in each moment."""
        return self._levels(block for block in self.blocks if block.category is category)

    @cached_property
    def peak_moment(self) -> int:
        """Index of the first moment at the highest level."""
        return max(range(len(self.levels)), key=self.levels.__getitem__, default=0)

    def alive(self, moment: int) -> tuple[Block, ...]:
        """Blocks alive in a moment, the largest first."""
        found = [block for block in self.blocks if block.born <= moment < block.died]
        return tuple(sorted(found, key=lambda block: -block.bytes))

    def _levels(self, blocks) -> tuple[int, ...]:
        change = [0] * (len(self.moments) + 1)
        for block in blocks:
            change[block.born] += block.bytes
            change[min(block.died, len(self.moments))] -= block.bytes
        return tuple(accumulate(change[:-1]))


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One module of the model, over all its calls."""

    path: str
    """As in `named_modules()`; empty for the model itself."""
    kind: str
    """Class name."""
    leaf: bool
    """Has no submodule."""
    calls: int
    outputs: tuple[tuple[int, ...], ...]
    """Shapes that the last call returned."""
    params: int
    """Numbers in its own parameters, submodules' not included; a shared parameter counts in its first owner."""
    param_bytes: int
    macs: int
    """Multiply-accumulates of its own operators in forward, submodules' not included."""
    macs_backward: int
    held_bytes: int
    """By how much its forward calls raised the allocator's level, submodules included: what it keeps."""
    forward_peak_bytes: int
    """The allocator's highest level during its forward calls, static bytes included."""
    at_peak_bytes: int
    """Bytes made by it, submodules not included, that are alive at the step's peak; 0 in a measurement."""
    forward_s: float = 0.0
    """Seconds of its own operators in forward, submodules' not included; 0 in a measurement."""
    backward_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Environment:
    """On what a result was made."""

    torch: str
    python: str
    threads: int
    machine: str
    """Processor kind and instruction set, as `x86_64 AVX512`."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One ranked sentence about the peak, or about the step's time."""

    text: str
    bytes: int
    """Bytes that the sentence explains."""
    modules: tuple[str, ...] = ()
    """Layers it is about."""
    seconds: float = 0.0
    """Seconds of a step that the sentence explains; 0 for one about memory."""


@dataclass(frozen=True)
class Cost:
    """What one step needs. Bytes are int; MACs are multiply-accumulates (FLOPs / 2)."""

    name: str
    """The model's class, or the function's name."""
    setting: str
    """The step in words: inputs, mode, optimizer, precision."""
    peak_bytes: int
    """The allocator's highest level: static bytes, activations, gradients, temporaries, kernel scratch."""
    reserved_bytes: int
    """What the allocator holds from the system; on a CPU the same as `peak_bytes`."""
    process_bytes: int
    """Growth of the process's resident memory over one that has only imported: a bound in a forecast, observed in a measurement."""
    static_bytes: int
    """Parameters, buffers, inputs and optimizer state: alive before the step starts."""
    params: int
    macs: int
    """Forward multiply-accumulates."""
    macs_backward: int
    layers: tuple[LayerCost, ...] = field(repr=False)
    """In the order of `named_modules()`; the model itself first."""
    timeline: Timeline = field(repr=False)
    environment: Environment
    notes: tuple[str, ...]
    """What to know before relying on it: assumptions, unknown kernels, a first step that peaks higher."""

    def to_json(self) -> str:
        """The result as JSON, which `sash.report.from_json` reads back without loss."""
        from sash.report import to_json

        return to_json(self)

    def __str__(self) -> str:
        from sash.report import plain_text

        return plain_text(self)

    def __rich__(self) -> RenderableType:
        from sash.report import text

        return text(self)


@dataclass(frozen=True)
class Forecast(Cost):
    """What a step will need, before anything is allocated."""

    mapped_bytes: int
    """Growth of resident memory when every block is mapped on its own (`measure(work, allocator="mapped")`)."""
    first_step_peak_bytes: int
    """Peak of the very first training step, in which the optimizer makes its state."""
    reasons: tuple[Reason, ...] = field(repr=False)
    forecast_s: float
    """Seconds that forecasting took."""
    wall_s: float = 0.0
    """Seconds of one steady step, all its micro-batches; 0 where this machine could not be calibrated."""
    paging_s: float = 0.0
    """Of these, what pages take that the system hands over anew: the less sure part, for it depends on what the process held before."""

    def why(self) -> tuple[Reason, ...]:
        """Ranked sentences: what holds the peak, and why; then what takes the time, and what bounds it."""
        return self.reasons

    def to_html(self, path: str | os.PathLike[str], measured: Measurement | None = None) -> None:
        """Write one HTML page that opens offline, beside `measured` where it is given; see `sash.report.to_html`."""
        from sash.report import to_html

        to_html(self, path, measured)


@dataclass(frozen=True)
class Measurement(Cost):
    """What a step needed, observed in a fresh child process."""

    allocator: str
    """`default`, or `mapped`: every block of 64 KiB and more mapped on its own."""
    wall_s: float
    """Seconds of one step, without the profiler: the median of those run."""
    process_runs: tuple[int, ...]
    """`process_bytes` of each process that was run."""

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one HTML page that opens offline; see `sash.report.to_html`."""
        from sash.report import to_html

        to_html(self, path)

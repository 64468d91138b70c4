"""Run a step over fake tensors and write down every storage's life.

Below autograd every operator passes through one dispatch mode: what it returns is born, and a weak reference on the storage tells when
it dies. Autograd's saved tensors therefore come out right by themselves. What kernels allocate inside is added by `_scratch`.
"""

from __future__ import annotations

import sys
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch._compile

# torch's optimizers import this by themselves on first use; here it counts as importing, not as forecasting.
import torch._dynamo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sash.cost._macs import operator_macs
from sash.cost._rates import Rates
from sash.cost._results import Category, Moment, Phase
from sash.cost._scopes import Scopes
from sash.cost._scratch import kept_bytes, kernel_scratch
from sash.cost._time import Estimate, operator_seconds

_QUIET = frozenset({"prim.device.default", "aten.detach.default", "aten.alias.default", "aten.lift_fresh.default"})
"""Operators that only look: they make no moment of their own."""
_FILLING = frozenset(
    {"aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default", "aten.index_add.default", "aten.index_put.default"}
)
"""What autograd's nodes do to zeros of their own: in place, but for a dispatch mode."""


@dataclass(slots=True)
class Life:
    """One storage, while it is traced."""

    bytes: int
    module: str
    operator: str
    phase: Phase | None
    born: int
    died: int | None = None
    category: Category | None = None
    kept_for: str = ""
    shape: tuple[int, ...] = ()


@dataclass
class Trace:
    """What a traced step did."""

    moments: list[Moment] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    macs: dict[tuple[str, bool], int] = field(default_factory=lambda: defaultdict(int))
    """By module path and whether in backward."""
    steps: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By moment, the kernel's blocks in order, where they are known; see `Scratch.steps`."""
    unknown: set[str] = field(default_factory=set)
    """Operators whose scratch is not known."""
    estimates: dict[int, Estimate] = field(default_factory=dict)
    """By moment, what the operator takes; empty where the tracer was given no rates."""


class Tracer(TorchDispatchMode):
    """Writes a `Trace` of every operator run under it. Enter it inside a `FakeTensorMode`, or over real tensors."""

    def __init__(self, trace: Trace, rates: Rates | None = None) -> None:
        super().__init__()
        self.trace = trace
        self.rates = rates
        self.phase = Phase.FORWARD
        self.scopes: Scopes | None = None
        self.level = 0
        """Bytes alive now, kernel scratch aside."""
        self.observe: Callable[[Any, tuple, dict, Any], None] | None = None
        """Told of every operator with its arguments and outputs, once it has run."""
        self._alive: dict[int, Life] = {}
        self._watchers: dict[int, weakref.ref] = {}
        self._taking_over: tuple[Life, int] | None = None
        self._node = (0, 0)
        """Sequence number of autograd's node at work, and the moment of its first operator."""

    def static(self, tensor: Tensor, category: Category, name: str, module: str = "") -> None:
        """Count a tensor that is alive before the step starts; one storage once."""
        life = self._seen(tensor.untyped_storage(), tuple(tensor.shape), module, name)
        if life is not None:
            life.category, life.born, life.phase = category, 0, None

    def life_of(self, tensor: Tensor) -> Life | None:
        """The life of a tensor's storage."""
        return self._alive.get(tensor.untyped_storage()._cdata)

    def ignore(self, tensor: Tensor) -> None:
        """Count nothing for this tensor's storage, nor for views of it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._alive[key] = Life(0, "", "", self.phase, len(self.trace.moments))
        self._watchers[key] = weakref.ref(storage, lambda _: self._dies(key))

    def finish(self) -> None:
        """Stop: what still lives lives to the end."""
        self._watchers.clear()
        self._alive.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        if name in _QUIET:
            return func(*args, **kwargs)
        if self.phase is Phase.OPTIMIZER:
            if name == "aten._local_scalar_dense.default" and args[0].numel() == 1 and not args[0].is_complex():
                # A step counter: any value will do, for no optimizer's memory depends on it.
                return 1.0 if args[0].is_floating_point() else 1
            if _updates_in_place(func, args):
                # Same storage in, same storage out: the fake kernel would only check shapes that forward and backward have made.
                self._time(func, args, kwargs, args[0], self._moment(func))
                return args[0]
        if torch.is_inference_mode_enabled() and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                # Not func.decompose: that prefers Python decompositions, which the real kernels do not run.
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        moment = self._moment(func)
        outputs = _asked_for(func, args, func(*args, **kwargs))
        made = self._born(outputs, func)
        self._count(func, args, kwargs, outputs, made, moment)
        if self.observe is not None:
            self.observe(func, args, kwargs, outputs)
        return outputs

    def _moment(self, func: Any) -> int:
        module = self.scopes.current if self.scopes is not None and self.phase is not Phase.OPTIMIZER else ""
        self.trace.moments.append(Moment(self.phase, module, str(func).rsplit(".", 1)[0]))
        moment = len(self.trace.moments) - 1
        node = torch._C._current_autograd_node() if self.phase is Phase.BACKWARD else None
        if node is not None and node._sequence_nr() != self._node[0]:
            self._node = node._sequence_nr(), moment
        return moment

    def _born(self, outputs: Any, func: Any) -> list[Life]:
        made = []
        for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            if isinstance(output, Tensor):
                last = self.trace.moments[-1]
                life = self._seen(output.untyped_storage(), tuple(output.shape), last.module, last.operator)
                if life is not None:
                    made.append(life)
            elif isinstance(output, (tuple, list)):
                made += self._born(output, func)
        return made

    def _seen(self, storage: torch.UntypedStorage, shape: tuple[int, ...], module: str, operator: str) -> Life | None:
        """A new life for a storage not seen before."""
        key = storage._cdata
        if key in self._alive:
            return None
        life = Life(storage.nbytes(), module, operator, self.phase, max(len(self.trace.moments) - 1, 0), shape=shape)
        self._alive[key] = life
        self._watchers[key] = weakref.ref(storage, lambda _: self._dies(key))
        self.trace.lives.append(life)
        self.level += life.bytes
        return life

    def _dies(self, key: int) -> None:
        life = self._alive.pop(key, None)
        self._watchers.pop(key, None)
        if life is None:
            return
        self.level -= life.bytes
        life.died = len(self.trace.moments)
        if self._taking_over is not None and self._taking_over[0] is life and self._taking_over[1] == life.died - 1:
            life.died -= 1

    def _count(self, func: Any, args: tuple, kwargs: dict, outputs: Any, made: list[Life], moment: int) -> None:
        at = self.trace.moments[moment]
        if self.phase is Phase.BACKWARD and made and isinstance(args[0], Tensor) and _called_by_engine():
            self._taking_over = self._taken_over(str(func), args[0], moment)
        for place, size in kept_bytes(func, args, kwargs, outputs).items():
            kept = self.life_of(outputs[place] if isinstance(outputs, (tuple, list)) else outputs)
            if kept is not None:
                self.level += size - kept.bytes
                kept.bytes = size
        scratch = kernel_scratch(func, args, kwargs, outputs)
        if scratch is None:
            self.trace.unknown.add(at.operator)
        elif scratch.bytes > 0:
            self.trace.steps[moment] = scratch.steps
            self.trace.lives.append(Life(scratch.bytes, at.module, at.operator, self.phase, moment, moment + 1, Category.SCRATCH))
        macs = operator_macs(func, args, kwargs, outputs)
        if macs:
            self.trace.macs[at.module, self.phase is Phase.BACKWARD] += macs
        self._time(func, args, kwargs, outputs, moment)

    def _taken_over(self, name: str, first: Tensor, moment: int) -> tuple[Life, int] | None:
        """The life of an operand whose memory the result would have without a dispatch mode, should it die right after.

        Autograd's engine adds the second gradient into the first one's memory where nothing else holds that, as a view's base does. What
        a node adds up by itself begins with what it made itself; the engine's sums begin with what an earlier node made. Nodes that fill
        zeros write into them.
        """
        life = None if first._is_view() else self._alive.get(first.untyped_storage()._cdata)
        if life is None or life.phase is not Phase.BACKWARD:
            return None
        earlier = life.born < self._node[1]
        return (life, moment) if (earlier and name == "aten.add.Tensor") or (not earlier and name in _FILLING) else None

    def _time(self, func: Any, args: tuple, kwargs: dict, outputs: Any, moment: int) -> None:
        if self.rates is not None:
            self.trace.estimates[moment] = operator_seconds(func, args, kwargs, outputs, self.rates)


_AROUND_MODES = (__file__, torch._compile.__file__, torch._dynamo.eval_frame.__file__)
"""Where the lines of Python are that stand between an operator and its dispatch mode."""


def _asked_for(func: Any, args: tuple, outputs: Any) -> Any:
    """The outputs without those that a mask in the arguments leaves out: real kernels do not make them, some fake ones do."""
    place = _mask_place(func)
    if place is None or place >= len(args):
        return outputs
    return tuple(output if wanted else None for output, wanted in zip(outputs, args[place], strict=True))


@cache
def _mask_place(func: Any) -> int | None:
    return next((place for place, argument in enumerate(func._schema.arguments) if argument.name == "output_mask"), None)


def _called_by_engine() -> bool:
    """Whether autograd's engine, or a node of its own in C++, calls the operator at work: no line of Python in between."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _AROUND_MODES:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


def _updates_in_place(func: Any, args: tuple) -> bool:
    """Only its first argument's values are written, and that is returned."""
    name = func.overloadpacket.__name__
    writes = name in ("copy_", "zero_", "fill_") or (name.endswith("_") and torch.Tag.pointwise in func.tags)
    return writes and bool(args) and isinstance(args[0], Tensor)

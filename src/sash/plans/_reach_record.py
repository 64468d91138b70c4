"""Follow a model's forward over a whole image, operator by operator, on stand-ins without memory.

Nothing of the size of the image is allocated. Every operator gets a rule (`_reach_rule`) that tells how far it sees, or stops the run
with the layer's name and the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sash.cost import copy_of, static_tensors
from sash.errors import InputError, ModelError
from sash.plans import _reach_points, _reach_resize, _reach_windows  # noqa: F401 (they register their rules)
from sash.plans._reach import Node, Program, Value
from sash.plans._reach_layout import Layout, image_layout, marked, plain, sizes
from sash.plans._reach_rule import RULES, Call, Rule, SeesAll, Slot
from sash.plans._reach_whole import Bins, Normalised, Statistics, Whole, statistics


def follow(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Program:
    """The program of `model` on an image of `shape`; raises `SeesAll` for an operator that needs more than a tile, a halo or a pass.

    Raises `InputError` where the image has the wrong number of channels, `ModelError` where forward fails for another reason.
    """
    with _disable_current_modes(), torch.inference_mode(), torch.random.fork_rng(devices=[]):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        statics = [tensor for _, _, _, tensor in static_tensors(model)]
        with mode:
            stands = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu") for t in statics]
            image = torch.empty(shape, dtype=dtype)
        memo: dict[int, Any] = {}
        for tensor, stand in zip(statics, stands, strict=True):
            memo[id(tensor)] = nn.Parameter(stand, requires_grad=False) if isinstance(tensor, nn.Parameter) else stand
        copied = copy_of(model, memo)
        recorder = _Recorder(copied, [memo[id(tensor)] for tensor in statics], image)
        try:
            with mode, recorder:
                outputs = copied(image)
        except InputError:
            raise
        except Exception as error:
            raise _explained(error, recorder, shape) from error
        leaves, spec = pytree.tree_flatten(outputs)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise InputError(f"the model returned {type(outputs).__name__} with parts that are no tensors; tiles need tensors only.")
        found = tuple(recorder.value_of(leaf) for leaf in leaves)
    return Program(tuple(shape), len(shape) - 2, tuple(recorder.values), tuple(recorder.nodes), found, spec)


def _explained(error: Exception, recorder: _Recorder, shape: tuple[int, ...]) -> Exception:
    module = recorder.module
    came = getattr(module, "in_channels", None)
    if isinstance(came, int) and recorder.first and came != shape[1]:
        name = recorder.path or type(module).__name__
        return InputError(f"the image has {shape[1]} channels, and {name}, the first convolution, takes {came}.")
    if isinstance(error, (DynamicOutputShapeException, DataDependentOutputException)):
        return SeesAll(f"{recorder.path or 'the model itself'} ({error.func}) {_PICKS}")
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    where = recorder.path or "the model"
    return ModelError(f"{where} failed on an image of {'x'.join(map(str, shape))}: {first}")


_ALIASES = frozenset({"detach", "detach_", "alias", "lift_fresh", "lift", "lift_fresh_copy", "view_as_real_copy"})
_RANDOM = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "randperm",
        "bernoulli",
        "bernoulli_",
        "normal",
        "normal_",
        "uniform_",
        "rand_like",
        "randn_like",
        "randint_like",
        "multinomial",
        "rrelu_with_noise",
        "exponential_",
        "random_",
    ]
)
_MADE = {"new_zeros": 0.0, "new_ones": 1.0, "new_empty": 0.0}
_NORMS = ("group_norm", "native_group_norm", "instance_norm")
_WALKS = "walks over the positions of the image one after the other: the last has seen all of them."
_PICKS = "picks positions by the image's own values: how many there are is not known before."
_WHOLE_WORDS = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer"), _WALKS),
    **dict.fromkeys(("nonzero", "masked_select", "nonzero_numpy", "unique", "_unique2"), _PICKS),
    "item": "reads a value of the image, on which the rest of forward depends.",
    "_local_scalar_dense": "reads a value of the image, on which the rest of forward depends.",
    "im2col": "lays every window's samples out in one row; a convolution can be tiled.",
    "col2im": "adds windows up from rows; a transposed convolution can be tiled.",
}


@dataclass
class _Known:
    """What is known of a tensor object."""

    value: int
    storage: int
    epoch: int
    tensor: Tensor
    """Kept alive, so that its identity is its own."""


class _Recorder(TorchDispatchMode):
    """Writes down the operators that run under it. In inference mode composite operators come by their own names."""

    def __init__(self, model: nn.Module, statics: list[Tensor], image: Tensor) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.first = True
        """No convolution has run yet."""
        self._stack: list[tuple[str, nn.Module]] = [("", model)]
        self._known: dict[int, _Known] = {}
        self._epochs: dict[int, int] = {}
        self._shared: set[int] = set()
        """Storages that must not be written: the image's, the model's, and what is made once for all tiles."""
        self._untold: dict[int, Tensor] = {}
        """Outputs that no rule makes."""
        self._statics = {id(tensor): number for number, tensor in enumerate(statics)}
        self._statics_kept = statics
        for path, module in model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(self._entering(path), prepend=True)
                module.register_forward_hook(self._leaving(path))
        self._rank = image.dim()
        self._bind(image, Value(image_layout(image.shape), image.dtype, 0))
        self._shared.add(_storage(image))

    @property
    def path(self) -> str:
        """The module at work."""
        return self._stack[-1][0]

    @property
    def module(self) -> nn.Module:
        return self._stack[-1][1]

    def value_of(self, tensor: Tensor) -> int:
        """Number of a tensor's value; the model's own tensors and constants become values when they are first met."""
        known = self._known.get(id(tensor))
        if known is not None:
            if known.epoch < self._epochs.get(known.storage, 0):
                raise SeesAll(
                    f"{self.path or 'the model itself'} reads a tensor of which a view was changed in place since; "
                    "write it without the in-place operator (y = f(x) for x[...] = ...)."
                )
            return known.value
        if id(tensor) in self._untold:
            raise SeesAll(f"{self.path or 'the model itself'} uses positions counted from the image's first sample (indices of a maximum).")
        static = self._statics.get(id(tensor))
        value = Value(plain(tensor.shape), tensor.dtype, 0, fixed=True, static=static, literal=None if static is not None else tensor)
        self._shared.add(_storage(tensor))
        return self._bind(tensor, value)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            if func.namespace == "prim":
                return func(*args, **kwargs)
            raise SeesAll(
                f"{self.path or 'the model itself'} runs {func}, an operator that sash does not know: how far it sees is not known."
            )
        name = func.overloadpacket.__name__
        if name in _ALIASES:
            outputs = func(*args, **kwargs)
            self._alias(args[0], outputs)
            return outputs
        if name in _RANDOM:
            raise SeesAll(f"{self.path or 'the model itself'} ({name}) draws random numbers, which would differ from tile to tile.")
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        tensors: list[Tensor] = []

        def slot(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            tensors.append(leaf)
            return Slot(len(tensors) - 1)

        named = {key: pytree.tree_map(slot, value) for key, value in named.items()}
        if name in _MADE or name == "new_full":
            return self._constant(func, named, tensors, args, kwargs)
        inputs = tuple(self.value_of(tensor) for tensor in tensors)
        followed = any(marked(self.values[value].layout) for value in inputs)
        if (
            followed
            and not self._has_rule(func)
            and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        ):
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        if followed and name in _WHOLE_WORDS:
            raise SeesAll(f"{self.path or 'the model itself'} ({name}) {_WHOLE_WORDS[name]}")
        outputs = func(*args, **kwargs)
        self._write(func, named, tensors, inputs, outputs, followed)
        self.first = self.first and not name.startswith("conv")
        return outputs

    def _has_rule(self, func: Any) -> bool:
        name = func.overloadpacket.__name__
        if name == "instance_norm":
            return True
        return name in RULES.builders or name in _NORMS or name in _WHOLE_WORDS or _reach_points.is_pointwise(func)

    def _write(self, func: Any, named: dict, tensors: list[Tensor], inputs: tuple[int, ...], outputs: Any, followed: bool) -> None:
        made = [output for output in (outputs if isinstance(outputs, (tuple, list)) else (outputs,)) if isinstance(output, Tensor)]
        if not made:
            return
        call = Call(
            func,
            named,
            tuple(self.values[value].layout for value in inputs),
            tuple(tuple(output.shape) for output in made),
            self.path,
            tensors[0].dtype if tensors else made[0].dtype,
            made[0].dtype,
        )
        level = max((self.values[value].level for value in inputs), default=0)
        writes = [argument.name for argument in func._schema.arguments if argument.alias_info is not None and argument.alias_info.is_write]
        if writes and (writes != ["self"] or made[0] is not tensors[0]):
            raise call.refuse("writes into a tensor that it is given, in a way that sash does not follow.")
        copies = False
        if writes:
            storage = _storage(tensors[0])
            copies = storage in self._shared or not followed
            if self.values[inputs[0]].static is not None:
                if isinstance(self.module, nn.modules.batchnorm._BatchNorm):
                    raise call.refuse(_reach_points.TRAINING)
                raise call.refuse("changes one of the model's own tensors.")
            self._epochs[storage] = self._epochs.get(storage, 0) + 1
        fixed = all(self.values[value].fixed for value in inputs)
        born = call.name in _reach_resize.METHODS and len(call.shapes[0]) == self._rank
        if not followed and not born:
            self._node(call, inputs, made, None, tuple(map(plain, call.shapes)), level, fixed, copies)
            self._shared.update(map(_storage, made))
            return
        rule = self._rule(call, inputs, made, level)
        if rule is None:
            return
        later = isinstance(rule, Whole)
        self._node(call, inputs, made[:1] if isinstance(rule, Bins) else made, rule, rule.layouts, level + later, False, copies, level)
        if later:
            self._shared.update(map(_storage, made))
        if isinstance(rule, Bins):
            self._untold.update((id(output), output) for output in made[1:])
        for output, layout in zip(made, rule.layouts, strict=False):
            assert tuple(sizes(layout)) == tuple(output.shape), f"{call.where}: {sizes(layout)} for {tuple(output.shape)}"

    def _rule(self, call: Call, inputs: tuple[int, ...], made: list[Tensor], level: int) -> Rule | None:
        """The rule of an operator on the image; None where it was written down already."""
        if call.name in _NORMS:
            groups, eps = statistics(call)
            if call.name == "instance_norm" and not call.get("use_input_stats"):
                raise call.refuse("normalises by running statistics in a form that sash does not follow; batch normalisation is followed.")
            found = Statistics(call, groups, eps)
            number = len(self.values)
            self.values.append(Value(found.layouts[0], torch.float64, level + 1))
            self.nodes.append(Node(call, inputs, (number,), found, level))
            applied = Call(call.func, call.named, (*call.layouts, found.layouts[0]), call.shapes[:1], call.path, call.dtype, call.out_dtype)
            self._node(applied, (*inputs, number), made[:1], Normalised(applied, groups), call.layouts[:1], level + 1, False, False)
            return None
        builder = RULES.builders.get(call.name.removesuffix("_") if call.func._schema.is_mutable else call.name)
        if builder is not None and not (
            call.name == "where" or (call.func._schema.is_mutable and not _reach_points.is_pointwise(call.func))
        ):
            return builder(call)
        if _reach_points.is_pointwise(call.func):
            return _reach_points.pointwise(call)
        raise call.refuse(_why_unknown(call.name))

    def _node(
        self,
        call: Call,
        inputs: tuple[int, ...],
        made: list[Tensor],
        rule: Rule | None,
        layouts: tuple[Layout, ...],
        level: int,
        fixed: bool,
        copies: bool,
        at: int | None = None,
    ) -> None:
        outputs = tuple(
            self._bind(output, Value(layout, output.dtype, level, fixed)) for output, layout in zip(made, layouts, strict=False)
        )
        self.nodes.append(Node(call, inputs, outputs, rule, level if at is None else at, copies))

    def _constant(self, func: Any, named: dict, tensors: list[Tensor], args: tuple, kwargs: dict) -> Any:
        """A new tensor that takes only its type from the image."""
        outputs = func(*args, **kwargs)
        fill = named.get("fill_value", _MADE.get(func.overloadpacket.__name__, 0.0))
        full = torch.ops.aten.full.default
        told = {"size": list(outputs.shape), "fill_value": fill, "dtype": outputs.dtype}
        call = Call(full, told, (), (tuple(outputs.shape),), self.path, outputs.dtype, outputs.dtype)
        self._node(call, (), [outputs], None, (plain(outputs.shape),), 0, True, False)
        self._shared.add(_storage(outputs))
        return outputs

    def _alias(self, original: Tensor, made: Tensor) -> None:
        value = self.value_of(original)
        self._known[id(made)] = _Known(value, _storage(made), self._epochs.get(_storage(made), 0), made)

    def _bind(self, tensor: Tensor, value: Value) -> int:
        self.values.append(value)
        storage = _storage(tensor)
        self._known[id(tensor)] = _Known(len(self.values) - 1, storage, self._epochs.get(storage, 0), tensor)
        return len(self.values) - 1

    def _entering(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, arguments: Any) -> None:
            self._stack.append((path, module))

        return enter

    def _leaving(self, path: str) -> Callable[..., None]:
        def leave(module: nn.Module, arguments: Any, outputs: Any) -> None:
            while len(self._stack) > 1 and self._stack.pop()[0] != path:
                continue

        return leave


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _why_unknown(name: str) -> str:
    if "fft" in name:
        return "is a Fourier transform: every output sees the whole image."
    return "is an operator whose reach sash does not know; it may see the whole image."

"""Ask oneDNN which layouts and scratchpad a primitive would use, without allocating its tensors.

torch carries oneDNN inside `libtorch_cpu.so`. Its C functions are not exported, but the wheel keeps their addresses in the ELF symbol
table, and a primitive descriptor is made from shapes alone. So the library that will run a convolution also tells what it will
allocate, on this processor and in this version. Where the table was stripped, `available()` is False and a forecast says so.

Source: oneDNN C API, `oneapi/dnnl/dnnl.h` as shipped with torch.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CALLS = {
    "version": "",
    "engine_create": "pii",
    "memory_desc_create_with_strides": "pipip",
    "memory_desc_create_with_tag": "pipii",
    "memory_desc_destroy": "p",
    "memory_desc_get_size": "p",
    "memory_desc_equal": "pp",
    "primitive_attr_create": "p",
    "primitive_attr_set_scratchpad_mode": "pi",
    "primitive_desc_query": "piip",
    "primitive_desc_query_md": "pii",
    "primitive_desc_destroy": "p",
    "convolution_forward_primitive_desc_create": "ppiippppppppp",
    "convolution_backward_data_primitive_desc_create": "ppippppppppp",
    "convolution_backward_weights_primitive_desc_create": "ppipppppppppp",
    "deconvolution_forward_primitive_desc_create": "ppiippppppppp",
    "deconvolution_backward_data_primitive_desc_create": "ppippppppppp",
    "deconvolution_backward_weights_primitive_desc_create": "ppipppppppppp",
    "matmul_primitive_desc_create": "ppppppp",
    "lstm_forward_primitive_desc_create": "ppii" + "p" * 11 + "ip",
    "lstm_backward_primitive_desc_create": "ppii" + "p" * 22 + "ipp",
}
"""Arguments of each function: p a pointer, i an int (an enum)."""
_DIMS = ctypes.c_int64 * 12  # dnnl_dims_t
_TYPES = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 7}
_ANY_LAYOUT = 1
_SRC, _DIFF_SRC, _WEIGHTS, _DIFF_WEIGHTS, _DST, _DIFF_DST, _WORKSPACE, _SCRATCHPAD = 129, 130, 131, 132, 133, 134, 135, 136
_FORWARD, _INFERENCE, _BACKWARD = 64, 96, 128
_IMPLEMENTATION = 8
_LEFT_TO_RIGHT = 1
_DIRECT = {"convolution": 0x1, "deconvolution": 0xA}


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes that one primitive's operands take in the layouts it works in; 0 where the plain operand is used as it lies."""

    first: int
    """Copy of the first operand: source, or gradient of the destination."""
    second: int
    """Copy of the second operand: weights, or source for the weights' gradient."""
    result: int
    """The result in the primitive's own layout; always stated."""
    result_layout: str
    """`"plain"` as torch lays a contiguous tensor out, `"channels last"`, or `"blocked"`."""
    scratchpad: int
    workspace: int = 0
    """What training keeps for backward."""
    kernel: str = ""
    """oneDNN's name for its implementation, as `jit_1x1:avx512_core`."""


def available() -> bool:
    """Whether torch's own oneDNN can be asked."""
    return _library() is not None


def convolution(
    direction: str,
    transposed: bool,
    source: Sequence[int],
    weight: Sequence[int],
    destination: Sequence[int],
    bias: bool,
    stride: Sequence[int],
    dilation: Sequence[int],
    pad: tuple[Sequence[int], Sequence[int]],
    groups: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Plan | None:
    """Operands of the `"forward"`, `"data"` or `"weights"` primitive of one convolution; None where oneDNN has none.

    `weight` is in oneDNN's order, (out, in / groups, *kernel); `destination` is the shape of the output.
    """
    if not available():
        return None
    return _convolution(
        direction,
        transposed,
        tuple(source),
        tuple(weight),
        tuple(destination),
        bias,
        tuple(stride),
        tuple(dilation),
        (tuple(pad[0]), tuple(pad[1])),
        groups,
        dtype,
        channels_last,
        torch.get_num_threads(),
    )


@lru_cache(maxsize=8192)
def _convolution(
    direction, transposed, source, weight, destination, bias, stride, dilation, pad, groups, dtype, channels_last, threads
) -> Plan | None:
    library = _library()
    assert library is not None
    kind = "deconvolution" if transposed else "convolution"
    if groups > 1:
        weight = (groups, weight[0] // groups, *weight[1:])
    with _descriptors(library) as make:
        plain_source, plain_weight, plain_destination = (make(shape, dtype, "plain") for shape in (source, weight, destination))
        layout = "channels last" if channels_last else "any"
        md_source, md_destination = make(source, dtype, layout), make(destination, dtype, layout)
        md_weight = make(weight, dtype, "any")
        md_bias = make((destination[1],), dtype, "any") if bias else None
        windows = [_DIMS(*values) for values in (stride, [step - 1 for step in dilation], *pad)]
        attributes = _attributes(library)
        forward = make.primitive(
            f"{kind}_forward",
            _FORWARD,
            _DIRECT[kind],
            md_source,
            md_weight,
            md_bias if direction != "data" else None,
            md_destination,
            *windows,
            attributes,
        )
        if forward is None:
            return None
        if direction == "forward":
            primitive, roles = forward, ((_SRC, plain_source), (_WEIGHTS, plain_weight), (_DST, plain_destination))
        elif direction == "data":
            primitive = make.primitive(
                f"{kind}_backward_data", _DIRECT[kind], md_source, md_weight, md_destination, *windows, forward, attributes
            )
            roles = ((_DIFF_DST, plain_destination), (_WEIGHTS, plain_weight), (_DIFF_SRC, plain_source))
        else:
            primitive = make.primitive(
                f"{kind}_backward_weights", _DIRECT[kind], md_source, md_weight, md_bias, md_destination, *windows, forward, attributes
            )
            roles = ((_DIFF_DST, plain_destination), (_SRC, plain_source), (_DIFF_WEIGHTS, plain_weight))
        if primitive is None:
            return None
        if channels_last:
            last_source, last_destination = make(source, dtype, "channels last"), make(destination, dtype, "channels last")
            swap = {plain_source: last_source, plain_destination: last_destination}
            roles = tuple((role, swap.get(plain, plain)) for role, plain in roles)
        found = [library.primitive_desc_query_md(primitive, role, 0) for role, _ in roles]
        sizes = [library.memory_desc_get_size(one) for one in found]
        copies = [0 if library.memory_desc_equal(one, plain) else size for one, size, (_, plain) in zip(found, sizes, roles, strict=True)]
        result_shape = {"forward": destination, "data": source, "weights": weight}[direction]
        layout = "plain" if library.memory_desc_equal(found[2], make(result_shape, dtype, "plain")) else "blocked"
        if (
            layout == "blocked"
            and direction != "weights"
            and library.memory_desc_equal(found[2], make(result_shape, dtype, "channels last"))
        ):
            layout = "channels last"
        return Plan(copies[0], copies[1], sizes[2], layout, make.size(primitive, _SCRATCHPAD), kernel=make.kernel(primitive))


def matmul_scratchpad(left: Tensor, right: Tensor, result: Tensor) -> int | None:
    """Scratchpad of a plain matrix product of these sizes, strides and types; None where oneDNN has none."""
    if not available():
        return None
    rows = [(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype) for tensor in (left, right, result)]
    return _matmul_scratchpad(*rows, torch.get_num_threads())


@lru_cache(maxsize=8192)
def _matmul_scratchpad(left, right, result, threads) -> int | None:
    library = _library()
    assert library is not None
    with _descriptors(library) as make:
        operands = [make.strided(*row) for row in (left, right, result)]
        primitive = make.primitive("matmul", operands[0], operands[1], None, operands[2], _attributes(library))
        return None if primitive is None else make.size(primitive, _SCRATCHPAD)


def lstm(length: int, batch: int, features: int, hidden: int, dtype: torch.dtype, training: bool, backward: bool = False) -> Plan | None:
    """Weights, workspace and scratchpad of one direction of one LSTM layer; None where oneDNN has none."""
    return _lstm(length, batch, features, hidden, dtype, training, backward, torch.get_num_threads()) if available() else None


@lru_cache(maxsize=1024)
def _lstm(length, batch, features, hidden, dtype, training, backward, threads) -> Plan | None:
    library = _library()
    assert library is not None
    with _descriptors(library) as make:

        def states() -> list[int]:
            layer, state = make((length, batch, features), dtype, "plain"), make((1, 1, batch, hidden), dtype, "plain")
            weights = [make((1, 1, size, 4, hidden), dtype, "any") for size in (features, hidden)]
            return [
                layer,
                state,
                state,
                *weights,
                0,
                0,
                make((1, 1, 4, hidden), dtype, "plain"),
                make((length, batch, hidden), dtype, "plain"),
                state,
                state,
            ]

        plain = [make.strided((1, 1, size, 4, hidden), (0, 0, 1, size * hidden, size), dtype) for size in (features, hidden)]
        attributes = _attributes(library)
        primitive = make.primitive("lstm_forward", _FORWARD if training else _INFERENCE, _LEFT_TO_RIGHT, *states(), 0, attributes)
        if primitive is not None and backward:
            primitive = make.primitive("lstm_backward", _BACKWARD, _LEFT_TO_RIGHT, *states(), *states(), 0, primitive, attributes)
        if primitive is None:
            return None
        copies = []
        for index, one in enumerate(plain):
            found = library.primitive_desc_query_md(primitive, _WEIGHTS, index)
            copies.append(0 if library.memory_desc_equal(found, one) else library.memory_desc_get_size(found))
        workspace = make.size(primitive, _WORKSPACE) if training else 0
        return Plan(copies[0], copies[1], 0, "plain", make.size(primitive, _SCRATCHPAD), workspace)


class _Make:
    """Makes descriptors and remembers them, to destroy them together."""

    def __init__(self, library) -> None:
        self._library = library
        self.memory: list[int] = []
        self.primitives: list[int] = []

    def __call__(self, shape: Sequence[int], dtype: torch.dtype, layout: str) -> int:
        made, dims = ctypes.c_void_p(), _DIMS(*shape)
        if layout == "any":
            self._library.memory_desc_create_with_tag(ctypes.byref(made), len(shape), dims, _TYPES[dtype], _ANY_LAYOUT)
        else:
            order = [0, *range(2, len(shape)), 1] if layout == "channels last" else range(len(shape))
            strides, step = [0] * len(shape), 1
            for axis in reversed(list(order)):
                strides[axis], step = step, step * shape[axis]
            return self.strided(shape, strides, dtype)
        assert made.value, (shape, dtype, layout)
        self.memory.append(made.value)
        return made.value

    def strided(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> int:
        made = ctypes.c_void_p()
        self._library.memory_desc_create_with_strides(ctypes.byref(made), len(shape), _DIMS(*shape), _TYPES[dtype], _DIMS(*strides))
        assert made.value, (shape, strides, dtype)
        self.memory.append(made.value)
        return made.value

    def size(self, primitive: int, role: int) -> int:
        return self._library.memory_desc_get_size(self._library.primitive_desc_query_md(primitive, role, 0))

    def kernel(self, primitive: int) -> str:
        text = ctypes.c_char_p()
        self._library.primitive_desc_query(primitive, _IMPLEMENTATION, 0, ctypes.byref(text))
        return (text.value or b"").decode()

    def primitive(self, name: str, *arguments) -> int | None:
        made = ctypes.c_void_p()
        if (
            getattr(self._library, f"{name}_primitive_desc_create")(ctypes.byref(made), _engine(self._library), *arguments)
            or not made.value
        ):
            return None
        self.primitives.append(made.value)
        return made.value


@contextmanager
def _descriptors(library) -> Iterator[_Make]:
    make = _Make(library)
    try:
        yield make
    finally:
        for one in make.primitives:
            library.primitive_desc_destroy(one)
        for one in make.memory:
            library.memory_desc_destroy(one)


class _Library:
    """The C functions at their addresses in the loaded library, by their names in `_CALLS`."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __init__(self, start: int, offsets: dict[str, int]) -> None:
        for name, arguments in _CALLS.items():
            result = {"version": ctypes.c_void_p, "memory_desc_get_size": ctypes.c_size_t, "primitive_desc_query_md": ctypes.c_void_p}.get(
                name, ctypes.c_int
            )
            types = [ctypes.c_void_p if kind == "p" else ctypes.c_int for kind in arguments]
            setattr(self, name, ctypes.CFUNCTYPE(result, *types)(start + offsets[name]))


@cache
def _engine(library) -> int:
    made = ctypes.c_void_p()
    library.engine_create(ctypes.byref(made), 1, 0)  # dnnl_cpu, the first
    assert made.value
    return made.value


@cache
def _attributes(library) -> int:
    # torch hands its own scratchpads over, so that they come from its allocator.
    made = ctypes.c_void_p()
    library.primitive_attr_create(ctypes.byref(made))
    library.primitive_attr_set_scratchpad_mode(made, 1)
    assert made.value
    return made.value


@cache
def _library():
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not torch.backends.mkldnn.is_available() or not path.exists():
        return None
    start = _load_address(path)
    offsets = _symbols(path, [f"dnnl_{name}" for name in _CALLS])
    if start is None or any(offset is None for offset in offsets.values()):
        return None
    return _Library(start, {name.removeprefix("dnnl_"): offset for name, offset in offsets.items() if offset is not None})


def _load_address(path: Path) -> int | None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(path.name) and line.split()[2] == "00000000":
            return int(line.split("-")[0], 16)
    return None


def _symbols(path: Path, names: Sequence[str]) -> dict[str, int | None]:
    """Offsets of `names` in the ELF symbol table of a 64-bit little-endian library; None for what it does not hold."""
    found: dict[str, int | None] = dict.fromkeys(names)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != b"\x7fELF\x02\x01":
            return found
        (table,), (entry, count) = struct.unpack_from("<Q", data, 0x28), struct.unpack_from("<HH", data, 0x3A)
        sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + index * entry) for index in range(count)]
        for section in sections:
            if section[1] != 2:  # SHT_SYMTAB
                continue
            strings, offset, size = sections[section[6]], section[4], section[5]
            layout = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")])
            symbols = np.frombuffer(data[offset : offset + size], dtype=layout)
            for name in names:
                at = data.find(b"\0" + name.encode() + b"\0", strings[4], strings[4] + strings[5])
                rows = np.flatnonzero(symbols["name"] == at + 1 - strings[4]) if at >= 0 else []
                if len(rows):
                    found[name] = int(symbols["value"][rows[0]])
    return found

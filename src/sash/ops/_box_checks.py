"""What every operator on boxes asks of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sash.errors import InputError
from sash.ops._tensors import has_values, shown

LARGEST = 1e18
"""Of a coordinate: the areas of two such boxes, and their sum, are still numbers in fp32."""


def check_boxes(name: str, boxes: Tensor, columns: str = "x1, y1, x2, y2", *, flat: bool = True) -> None:
    """Raises `InputError` unless the tensor's last axis counts these columns, all of finite size; `flat` wants one box a row."""
    wanted = columns.count(",") + 1
    if boxes.dim() < 1 or boxes.shape[-1] != wanted or (flat and boxes.dim() != 2):
        shape = f"(boxes, {wanted})" if flat else f"(…, {wanted})"
        raise InputError(f"{name} are {shown(boxes)}; they have to be {shape}: {columns}.")
    if boxes.is_complex() or boxes.dtype is torch.bool:
        raise InputError(f"{name} are of type {boxes.dtype}; they have to be numbers: {name}.float() would be.")
    if has_values(boxes) and not (fine := computed(boxes).abs() <= LARGEST).all():
        wrong = (~fine).any(-1)
        first = wrong.nonzero()[0].tolist()
        values = ", ".join(f"{value:g}" for value in boxes[tuple(first)].tolist())
        others = f" ({int(wrong.sum())} such boxes)" if int(wrong.sum()) > 1 else ""
        raise InputError(f"{name}[{', '.join(map(str, first))}] is ({values}){others}; every number has to be finite, up to {LARGEST:.0e}.")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises `InputError` where two tensors are on two devices."""
    if tensor.device != other.device:
        raise InputError(f"the {name} are on {tensor.device} and the {other_name} on {other.device}; move one to the other's.")


def check_share(name: str, value: float) -> None:
    """Raises `InputError` for a number below 0 or above 1."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value!r}; it is a share from 0 to 1.")


def computed(boxes: Tensor) -> Tensor:
    """The same numbers in fp32, or in fp64 where they came so: half precision cannot tell neighbouring pixels of a large image apart."""
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()

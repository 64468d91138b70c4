"""The words that name a workload: a model, its inputs and how a step runs."""

from __future__ import annotations

import difflib
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from sash.cost import FunctionSource, ModelSource, Workload
from sash.errors import InputError
from sash.models import FAMILIES
from sash.plans import Plan
from sash.units import parse_tensor

IMAGES = (".png", ".jpg", ".jpeg")
_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<value>.*)", re.DOTALL)
_MODEL_HELP = f"""path/to/file.py:factory, package.module:factory, or a built-in family ({", ".join(FAMILIES)}).
The factory is a class or a function that makes the model; plain arguments may follow, as in "file.py:make(width=32)".
The file is your own code and is run as such: name only files that you trust."""
_INPUT_HELP = """One input of forward: a shape like 8x3x224x224 (float32), 8x128:int64<30522 (whole numbers below 30522) or mask=8x128:bool
(a keyword argument); or a .png, .jpg or .npy file. Repeat it for several inputs."""

Model = Annotated[str, typer.Argument(help=_MODEL_HELP)]
Inputs = Annotated[list[str], typer.Option("--input", "-i", help=_INPUT_HELP)]
Train = Annotated[bool, typer.Option("--train", help="A training step; without it, inference.")]
Optimizer = Annotated[str | None, typer.Option(help="A name in torch.optim, as adamw; or momentum: SGD with momentum 0.9. Needs --train.")]
Loss = Annotated[
    str | None, typer.Option(help="file.py:function, outputs → scalar; without it, the means of the floating outputs, summed.")
]
Autocast = Annotated[str | None, typer.Option(help="bf16 or fp16: run forward and loss under torch.autocast.")]
Accumulate = Annotated[int, typer.Option(help="Micro-batches a step; the inputs are one of them. Needs --train.")]
Real = Annotated[bool, typer.Option("--real", help="Trace on real tensors: for a forward that needs values. Takes a real step's memory.")]
Html = Annotated[Path | None, typer.Option(help="Write a report that opens offline.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Budget = Annotated[str, typer.Option("--budget", "-b", help="Bytes to keep within, as '2 GiB'.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan that `sash fit --out` wrote: run the step as planned.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def make_workload(
    model: str, inputs: list[str], train: bool, optimizer: str | None, loss: str | None, autocast: str | None, accumulate: int
) -> Workload:
    """The workload that the words name; raises `InputError` for the first that cannot be read."""
    return Workload(
        find_model(model),
        read_inputs(inputs),
        train=train,
        optimizer=optimizer,
        loss=FunctionSource(loss) if loss else None,
        autocast=autocast,
        accumulate=accumulate,
    )


def as_planned(work: Workload, path: Path | None) -> Workload:
    """The workload as the plan in a file has it; as it is where there is none."""
    if path is None:
        return work
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--plan {path} cannot be read ({error}); give a file that `sash fit --out` wrote.") from error
    return Plan.from_json(text, work).planned


def find_model(text: str) -> ModelSource:
    """A source for a file, a package or a built-in family."""
    name, paren, call = text.partition("(")
    if name in FAMILIES:
        factory, settings = FAMILIES[name], ""
        if isinstance(factory, partial):
            settings = ", ".join(f"{key}={value!r}" for key, value in factory.keywords.items())
            factory = factory.func
        given = call.removesuffix(")") if paren else ""
        words = ", ".join(filter(None, [settings, given]))
        return ModelSource(f"sash.models:{factory.__name__}({words})" if words else f"sash.models:{factory.__name__}")
    if ":" in text or text.endswith(".py"):
        return ModelSource(text)
    near = difflib.get_close_matches(name, FAMILIES, 1)
    guess = f"did you mean {near[0]}?" if near else f"built-in families are {', '.join(FAMILIES)};"
    raise InputError(f"there is no model {text!r}; {guess} Your own is named like 'my_model.py:Net' or 'package.module:make'.")


def read_inputs(texts: list[str]) -> dict[int | str, Any]:
    """Inputs by position or keyword: shapes as text, files as tensors."""
    found: dict[int | str, Any] = {}
    for text in texts:
        parts = _INPUT.fullmatch(text.strip())
        assert parts is not None
        path = Path(parts["value"])
        if path.suffix.lower() in (*IMAGES, ".npy"):
            value = read_file(path)
        else:
            parse_tensor(text)
            value = text.strip()
        key = parts["name"] or sum(isinstance(name, int) for name in found)
        if key in found:
            raise InputError(f"the input {key!r} is given twice: {text!r}.")
        found[key] = value
    return found


def read_file(path: Path) -> torch.Tensor:
    """A picture as 1x3xHxW float32 in [0, 1], or a .npy array as it is. Raises `InputError` where it cannot be read."""
    if not path.is_file():
        names = sorted(entry.name for entry in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, 1) or names[:1]
        guess = f"did you mean {path.parent / near[0]}?" if near else "give a path, or a shape like '8x3x224x224'."
        raise InputError(f"there is no file {path}; {guess}")
    return _read_array(path) if path.suffix.lower() == ".npy" else _read_picture(path)


def _read_array(path: Path) -> torch.Tensor:
    try:
        # Without pickles: a file of numbers must not be able to run code.
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read as an array of numbers ({error}); save one with numpy.save.") from error


def _read_picture(path: Path) -> torch.Tensor:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError(f"reading {path} needs pillow, which is not installed: pip install 'sash[demo]'.") from None
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}).") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous().float() / 255

"""A model's failure while it is traced, told once and in the user's terms."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException

from sash.cost._hints import hint
from sash.cost._scopes import Scopes
from sash.cost._shapes import explain_shape_failure
from sash.errors import ModelError, SashError, TraceError

_OURS = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def explain(error: BaseException, scopes: Scopes, real: bool) -> SashError:
    """The error to raise for what the model's step raised."""
    if isinstance(error, SashError):
        return error
    line = _users_line(error)
    layer = scopes.current or "the model"
    cause = _cause(error)
    if isinstance(cause, (DataDependentOutputException, DynamicOutputShapeException)):
        operator = str(getattr(cause, "func", "")).rsplit(".", 1)[0] or "an operator"
        return TraceError(
            f"{layer} needs the value of a tensor to go on ({operator}), and a forecast has only shapes.{line} "
            "Make the step independent of values there, or trace it on real tensors: real=True, on the command line --real."
        )
    # A custom_op says so with a plain RuntimeError.
    unregistered = re.search(r"no fake impl registered for <CustomOpDef\(([^)]*)\)>", str(error))
    if unregistered or isinstance(cause, UnsupportedOperatorException) or (isinstance(cause, NotImplementedError) and not real):
        operator = unregistered[1] if unregistered else getattr(cause, "func", None) or cause
        return TraceError(
            f"{layer} uses {operator}, which has no fake kernel, one for tensors without data.{line} "
            "Register one with torch.library.register_fake, or trace it on real tensors: real=True, on the command line --real."
        )
    told = explain_shape_failure(scopes.calls, error)
    if told is not None:
        return told
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    fix = hint(error, scopes.calls, scopes.current)
    return ModelError(f"{layer} raised {type(error).__name__}: {first}.{line}{' ' + fix if fix else ''}".replace("..", "."))


def _cause(error: BaseException) -> BaseException:
    kinds = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, kinds):
            return at
        at = at.__cause__ or at.__context__
    return error


def _users_line(error: BaseException) -> str:
    """Where the failure was: the innermost line of the user's own files, or of the library that defines the model; torch and sash never."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((_OURS, _TORCH, "<"))]
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    if not frames:
        return ""
    frame = (own or frames)[-1]
    return f" It happened at {frame.filename}:{frame.lineno}: {(frame.line or '').strip()}."

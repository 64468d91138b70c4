"""A model named by text: `file.py:factory`, `package.module:factory`, with or without arguments."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from sash.errors import InputError, ModelError

_TEXT = re.compile(r"(?P<where>[^()]+?)(?::(?P<name>[^():/\\]*)(?P<call>\(.*\))?)?", re.DOTALL)
_EXAMPLES = "'my_model.py:Net', 'my_model.py:make(width=32)' or 'package.module:make'"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that is loaded where it is needed: the text travels to the process that measures, the model does not."""

    text: str
    """`path/to/file.py:factory` or `package.module:factory`; literal arguments may follow, as in `file.py:make(width=32)`."""

    def load(self) -> nn.Module | Callable[..., Any]:
        """The model: what the factory returns, or the module itself where the name is one.

        The file is the user's own code and is run. Its folder stays importable, for its siblings. Raises `InputError` where the text cannot
        be read, `ModelError` where the file cannot be found or loaded, offers no such name, or its factory raises.
        """
        where, name, arguments = _parse(self.text)
        module = _module(where)
        factory = _attribute(module, name, where)
        if isinstance(factory, nn.Module) and arguments is None:
            return factory
        if not callable(factory):
            raise ModelError(f"{where}: {name} is {_a(factory)}; name a class or a function that makes the model.{_offer(module)}")
        args, kwargs = arguments or ((), {})
        _check_arguments(factory, args, kwargs, where, name)
        with _raising_in(module.__file__, where, f"{name} raised"), _importable(_folder(where)):
            model = factory(*args, **kwargs)
        if not callable(model):
            raise ModelError(f"{where}: {name} returned {_a(model)}; it has to return a torch.nn.Module or another callable.")
        return model

    def import_module(self) -> None:
        """Import the file or module, without making the model; raises as `load` does."""
        where, _, _ = _parse(self.text)
        _module(where)


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """A function named by text, found when it is first called: it travels between processes as its text."""

    text: str
    """`path/to/file.py:function` or `package.module:function`."""

    def load(self) -> Callable[..., Any]:
        """The function itself; raises as `ModelSource.load` does."""
        where, name, arguments = _parse(self.text)
        found = _attribute(_module(where), name, where)
        if arguments is not None or not callable(found):
            raise ModelError(f"{self.text!r} does not name a function; write it like 'my_model.py:loss'.")
        return found

    def __call__(self, *args: Any) -> Any:
        return _loaded(self)(*args)


@lru_cache
def _loaded(source: FunctionSource) -> Callable[..., Any]:
    return source.load()


def _parse(text: str) -> tuple[str, str, tuple[tuple, dict[str, Any]] | None]:
    """Place, name and arguments (None where there are no parentheses)."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text!r} does not name a model; write it like {_EXAMPLES}.")
    where, name, call = found["where"].strip(), (found["name"] or "").strip(), found["call"]
    if not name:
        offered = _offer(_module(where)) if where.endswith(".py") or _is_module(where) else ""
        raise InputError(f"{text!r} does not say what to call; write it like {_EXAMPLES}.{offered}")
    if call is None:
        return where, name, None
    try:
        tree = ast.parse("f" + call, mode="eval").body
        if not isinstance(tree, ast.Call) or any(keyword.arg is None for keyword in tree.keywords):
            raise ValueError
        args = tuple(ast.literal_eval(value) for value in tree.args)
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
    except (ValueError, SyntaxError):
        raise InputError(
            f"the arguments in {text!r} are not plain values; write numbers, strings, lists, as in (width=32, kind='plain')."
        ) from None
    return where, name, (args, kwargs)


def _module(where: str) -> ModuleType:
    if where.endswith(".py") or "/" in where or "\\" in where:
        return _from_file(Path(where))
    folder = _folder(where)
    if not _is_module(where):
        near = f" Did you mean the file {where}.py?" if Path(f"{where}.py").is_file() else " Is it installed in this environment?"
        raise ModelError(f"there is no module {where!r}.{near} A model is named like {_EXAMPLES}.")
    with _raising_in(None, where, "importing it raised"), _importable(folder):
        return importlib.import_module(where)


def _is_module(where: str) -> bool:
    try:
        with _importable(_folder(where)):
            return importlib.util.find_spec(where) is not None
    except (ImportError, ValueError):
        return False


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"there is no file {path}. {_near_files(path)}")
    if path.suffix != ".py":
        raise ModelError(f"{path} is not a Python file; a model is named like {_EXAMPLES}.")
    # Named after its place and its last change: run once, and again only when it was edited.
    stamp = f"{path.resolve()} {path.stat().st_mtime_ns}"
    name = f"sash_model_{path.stem}_{sha256(stamp.encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} cannot be loaded as a Python file.")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and pickle look a class's module up by name.
    sys.modules[name] = module
    try:
        with _raising_in(str(path.resolve()), str(path), "loading it raised"), _importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _folder(where: str) -> Path:
    """What has to be importable: a file's own folder, or the working directory for a package's name."""
    return Path(where).resolve().parent if where.endswith(".py") else Path.cwd()


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """First on the path while the user's code loads, as for `python file.py`; last afterwards, for what forward imports late."""
    entry = str(folder)
    if entry in sys.path:
        yield
        return
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        sys.path.append(entry)


@contextmanager
def _raising_in(file: str | None, where: str, what: str) -> Iterator[None]:
    """Turns what the user's code raises into one `ModelError` with the line of the user's file."""
    try:
        yield
    except SyntaxError as error:
        text = f" {error.text.strip()}" if error.text else ""
        name = Path(error.filename).name if error.filename else where
        raise ModelError(f"{where}: {what} a syntax error, {error.msg}\n  line {error.lineno} of {name}:{text}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if file and Path(frame.filename) == Path(file)]
        place = own[-1] if own else frames[-1]
        kind = type(error).__name__
        said = f"{kind}: {error}" if str(error) else kind
        hint = "\nCode that runs a program belongs under `if __name__ == '__main__':`." if isinstance(error, SystemExit) else ""
        raise ModelError(f"{where}: {what} {said}\n  line {place.lineno} of {Path(place.filename).name}: {place.line}{hint}") from error


def _attribute(module: ModuleType, name: str, where: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(name, _offered(module), 1)
            guess = f" Did you mean {near[0]}?" if near else ""
            raise ModelError(f"{where} has no {name}.{guess}{_offer(module)}")
        found = getattr(found, part)
    return found


def _check_arguments(factory: Callable[..., Any], args: tuple, kwargs: dict[str, Any], where: str, name: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # Some compiled callables have none: calling them tells.
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        needed = [p.name for p in signature.parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        example = ", ".join(f"{parameter}=..." for parameter in needed)
        fix = f"give plain values, as in '{where}:{name}({example})', or name" if needed else "change the arguments, or name"
        raise ModelError(f"{where}: {name}{signature} cannot be called so ({error}); {fix} a function that needs none.") from None


def _offered(module: ModuleType) -> list[str]:
    """Public names that the module itself defines and that can be a model or make one."""
    found = []
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__ and callable(value)
        if not name.startswith("_") and (own or isinstance(value, nn.Module)):
            found.append(name)
    return found


def _offer(module: ModuleType) -> str:
    offered = _offered(module)
    return f" It offers {', '.join(offered[:12])}{', …' if len(offered) > 12 else ''}." if offered else ""


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist."
    names = sorted(entry.name for entry in path.parent.glob("*.py"))
    near = difflib.get_close_matches(path.name, names, 3)
    if near:
        return f"Did you mean {' or '.join(str(path.parent / name) for name in near)}?"
    return f"The folder {path.parent.resolve().name or '/'} has {', '.join(names[:8])}." if names else "Its folder has no Python file."


def _a(value: object) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"

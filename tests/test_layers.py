"""Who may import whom: the rules of docs/ARCHITECTURE.md, kept by walking the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sash"

ALLOWED = {
    "cache": set(),
    "errors": set(),
    "heap": set(),
    "units": {"errors"},
    "window": {"errors", "units"},
    "ops": {"errors", "units", "window"},
    "models": {"errors", "units", "window", "ops"},
    "cost": {"cache", "errors", "units", "window"},
    "arrays": {"cache", "errors", "heap", "units", "window"},
    "plans": {"errors", "heap", "units", "window", "ops", "cost"},
    "report": {"errors", "units", "window", "cost", "plans", "arrays"},
    "cli": {"errors", "units", "window", "arrays", "cost", "plans", "models", "report"},
    "__init__": {"errors", "units", "window", "cost", "plans"},
}
"""Folder (or file beside `__init__`) to the folders that it may import."""

FOREIGN_TO_WINDOW = {"torch", "numpy", "scipy"}

RESULTS = (
    "cost/_results.py",
    "plans/_plan.py",
    "plans/_largest.py",
    "arrays/_plan.py",
    "arrays/_topics_result.py",
    "arrays/_pca_result.py",
)
"""The one exception: the methods of a result type may import sash.report, inside the method."""


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Modules that a file imports, with the line and whether it happens inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from sash import report` names the folder in the alias.
            names = [f"sash.{alias.name}" for alias in node.names] if module == "sash" else [module]
            yield from ((name, node.lineno, inside) for name in names)
        else:
            yield from imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def broken_rules(path: str, text: str) -> list[str]:
    """Sentences about what a file of the package, at `path` below src/sash, imports against the rules."""
    home = path.split("/", maxsplit=1)[0].removesuffix(".py")
    found = []
    for name, line, inside in imports(ast.parse(text)):
        top, *rest = name.split(".")
        where = f"{path}:{line} imports {name}"
        if name.startswith("."):
            found.append(f"{where}: write the folder's full name")
        elif home == "window" and top in FOREIGN_TO_WINDOW:
            found.append(f"{where}: window/ uses the standard library only")
        elif top == "sash" and rest and rest[0] != home:
            if len(rest) > 1:
                found.append(f"{where}: name the folder, sash.{rest[0]}")
            elif rest[0] not in ALLOWED[home] and not (path in RESULTS and rest[0] == "report" and inside):
                found.append(f"{where}: {home} may import {', '.join(sorted(ALLOWED[home])) or 'nothing of sash'}")
    return found


def test_every_file_keeps_the_import_rules():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 10
    assert [rule for file in files for rule in broken_rules(file.relative_to(SOURCE).as_posix(), file.read_text())] == []


def test_every_folder_has_a_rule():
    homes = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert homes <= set(ALLOWED)


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("window/_window.py", "import torch", "standard library only"),
        ("window/_window.py", "from sash.cost import forecast", "window may import"),
        ("cost/_trace.py", "from sash.models import unet", "cost may import"),
        ("cost/_trace.py", "from sash.window._window import Window", "name the folder, sash.window"),
        ("report/_text.py", "from .x import y", "full name"),
        ("cost/_results.py", "from sash import report", "cost may import"),
        ("cost/_trace.py", "def f():\n    from sash.report import text", "cost may import"),
        ("ops/_pool.py", "if True:\n    import sash.cost", "ops may import"),
    ],
)
def test_an_import_against_the_rules_is_found(path, text, told):
    (rule,) = broken_rules(path, text)
    assert told in rule


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("cost/_results.py", "class A:\n    def to_html(self):\n        from sash.report import to_html"),
        ("cost/_trace.py", "from sash.cost._results import Forecast\nfrom sash.window import Window\nimport torch"),
        ("cli/_demo.py", "from sash.models import FAMILIES\nfrom sash import report"),
    ],
)
def test_an_import_within_the_rules_passes(path, text):
    assert broken_rules(path, text) == []

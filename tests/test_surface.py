"""The names a user types, and how they are called: a change here is a change for every user, and goes into the changelog."""

import inspect

import sash

NAMES = {
    "Chain",
    "Forecast",
    "InputError",
    "MeasureError",
    "Measurement",
    "ModelError",
    "ModelSource",
    "SashError",
    "ShapeError",
    "Timeline",
    "TraceError",
    "Window",
    "Workload",
    "forecast",
    "measure",
    "walk",
}

SIGNATURES = {
    "Window": "(size, stride=1, dilation=1, pad=(0, 0), ceil=False)",
    "Workload": "(model, inputs, train=False, optimizer=None, loss=None, device='cpu', autocast=None, accumulate=1, rewrite=None)",
    "forecast": "(work, real=False)",
    "measure": "(work, runs=1, allocator='default')",
    "walk": "(text)",
}


def signature(name: str) -> str:
    """Parameters and defaults, without annotations: those are checked by pyright."""
    parameters = inspect.signature(getattr(sash, name)).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


def test_the_public_names_are_these_and_no_others():
    assert set(sash.__all__) == NAMES
    assert len(sash.__all__) == len(NAMES)


def test_every_public_name_exists_and_is_documented():
    for name in sash.__all__:
        assert inspect.getdoc(getattr(sash, name)), name


def test_nothing_else_looks_public():
    folders = {name for name, value in vars(sash).items() if inspect.ismodule(value)}
    visible = {name for name in vars(sash) if not name.startswith("_")} - folders
    assert visible <= NAMES  # what needs torch is there once it is named
    assert set(dir(sash)) == NAMES


def test_public_functions_are_called_as_documented():
    assert {name: signature(name) for name in SIGNATURES} == SIGNATURES

"""The names a user types, and how they are called: a change here is a change for every user, and goes into the changelog."""

import inspect

import sash

NAMES = {
    "Chain",
    "DoesNotFit",
    "Forecast",
    "InputError",
    "Largest",
    "MeasureError",
    "Measurement",
    "ModelError",
    "ModelSource",
    "Plan",
    "SashError",
    "ShapeError",
    "Timeline",
    "TraceError",
    "Window",
    "Workload",
    "assert_fits",
    "fit",
    "forecast",
    "largest",
    "measure",
    "tiled",
    "walk",
}

SIGNATURES = {
    "Window": "(size, stride=1, dilation=1, pad=(0, 0), ceil=False)",
    "Workload": "(model, inputs, train=False, optimizer=None, loss=None, device='cpu', autocast=None, accumulate=1, rewrite=None)",
    "assert_fits": "(work, budget, *, measured=False)",
    "fit": "(work, budget, *, allow=(), bit_identical=False)",
    "forecast": "(work, real=False)",
    "largest": "(work, budget, vary='batch', *, prove=True)",
    "measure": "(work, runs=1, allocator='default')",
    "tiled": "(model, image, budget, out=None, *, two_pass=False, tile=None, output=None, scale=None, restart=False, "
    "progress=None, plan_only=False)",
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

"""The names a user types, and how they are called: a change here is a change for every user, and goes into the changelog."""

import inspect

import pytest

import sash
import sash.models
import sash.ops

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

OPERATORS = {
    "adaptive_pool": "(features, output_size, kind='max', *, axes=None)",
    "anchors": "(rows, columns, stride=16, scales=(8, 16, 32), ratios=(0.5, 1, 2), *, rounded=True, device=None, dtype=None)",
    "avg_pool": "(features, size, stride=None, padding=0, *, rule='torch', ceil=None, count_padding=True, axes=None)",
    "batched_nms": "(boxes, scores, groups, threshold)",
    "box_iou": "(boxes, others)",
    "expected_max": "(values, keep, drop='unit', lengths=None, inverted=True)",
    "gated": "(a, b=None, *, axis=1)",
    "global_pool": "(features, kind='max', *, axes=None)",
    "invert_conv": "(y, weight, bias=None, *, padding='same', padding_mode='circular', dilation=1, groups=1, noise=None)",
    "join": "(x, y, way=None, *, weight=None, bias=None, stride=None, align='centre')",
    "match": "(boxes, truths, high=0.7, low=0.3, *, best=True)",
    "max_pool": "(features, size, stride=None, padding=0, dilation=1, *, rule='torch', ceil=None, axes=None)",
    "nms": "(boxes, scores, threshold)",
    "pyramid_pool": "(features, levels=(4, 2, 1), kind='max', *, axes=None)",
    "roi_align": "(features, rois, output_size, scale=1.0, sampling_ratio=None, aligned=False)",
    "roi_pool": "(features, rois, output_size, scale=1.0, *, return_positions=False)",
    "sample_balanced": "(matches, count=256, positive=0.5, *, generator=None)",
    "separable_conv": "(x, depthwise, pointwise, bias=None, *, stride=1, padding=0, dilation=1, padding_mode='zeros', depthwise_bias=None, "
    "norm=None, activation=None, out_norm=None, out_activation=None, lean=False, band=None)",
    "set_max": "(values, lengths=None, *, offsets=None)",
    "softmax_loss": "(logits, labels, axis=1, ignore=None, normalization='valid', *, weight=None, smoothing=0.0)",
}
"""Of `sash.ops`: those that the design names."""


def signature(name: str, folder=sash) -> str:
    """Parameters and defaults, without annotations: those are checked by pyright."""
    parameters = inspect.signature(getattr(folder, name)).parameters.values()
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
    assert {name: signature(name, sash.ops) for name in OPERATORS} == OPERATORS


@pytest.mark.parametrize("folder", [sash.ops, sash.models])
def test_what_a_folder_offers_is_sorted_and_documented(folder):
    kinds = [
        [name for name in folder.__all__ if kind(name)] for kind in (str.isupper, lambda name: name[0].isupper() and not name.isupper())
    ]
    kinds.append([name for name in folder.__all__ if name[0].islower()])
    assert folder.__all__ == [name for names in kinds for name in sorted(names)]
    for name in folder.__all__:
        assert name.isupper() or inspect.getdoc(getattr(folder, name)), name

"""`sash pca`: principal components of a matrix in a file, inside a budget."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sash.cli._array import ArrayBudget, Overwrite, PlanOnly, Restart, Workers
from sash.cli._show import check_writable, guarded, say, show, show_json
from sash.cli._workload import Debug, Json
from sash.errors import InputError

Source = Annotated[Path, typer.Argument(help="The matrix: .mtx, .mtx.gz, .npz, .npy, .zarr or .h5ad; rows are observations.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="A folder to write, .zarr. It appears when it is whole; the same command goes on.")
]
Components = Annotated[int | None, typer.Option("--components", "-k", help="How many.")]
Variance = Annotated[float | None, typer.Option("--variance", help="As many as explain this share of the variance, as 0.9.")]
Weigh = Annotated[str, typer.Option("--weights", help="counts, log or tfidf.")]
Scale = Annotated[bool, typer.Option("--scale", help="Divide columns by their standard deviations.")]
Tolerance = Annotated[float, typer.Option("--tolerance", help="Largest residual, by a component's singular value.")]
Method = Annotated[str, typer.Option("--method", help="auto, krylov, gram, randqb or nystrom, which reads a large file twice.")]
Seed = Annotated[int, typer.Option("--seed", help="Of random starts.")]
Loadings = Annotated[str, typer.Option("--loadings", help="What components are written as: float64 or float32.")]
Above = Annotated[
    float | None, typer.Option("--loadings-above", help="Keep only loadings of a larger size, as 0.01: components are a sparse matrix.")
]
Names = Annotated[
    Path | None, typer.Option("--names", help="Names of the columns, one a line; docs.vocab.txt beside docs.mtx is found by itself.")
]
Model = Annotated[
    Path | None, typer.Option("--model", help="A folder of components that were found: write scores of the matrix's rows along them, .npy.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write a report, one page that opens offline: scree plot and terms.")]
Estimate = Annotated[
    bool,
    typer.Option("--estimate", help="Print about how many components --variance takes, with bounds, on a Dask cluster too; find none."),
]


@guarded
def pca(
    source: Source,
    out: Out = None,
    components: Components = None,
    variance: Variance = None,
    budget: ArrayBudget = "2 GiB",
    weights: Weigh = "counts",
    scale: Scale = False,
    tolerance: Tolerance = 1e-6,
    method: Method = "auto",
    seed: Seed = 0,
    loadings: Loadings = "float64",
    loadings_above: Above = None,
    names: Names = None,
    model: Model = None,
    html: Html = None,
    estimate: Estimate = False,
    workers: Workers = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Principal components of a matrix, centred without ever being formed.

    sash pca docs.mtx --variance 0.9 --out model.zarr --budget 8GiB

    sash pca docs.mtx --components 100 --weights tfidf

    sash pca other.mtx --model model.zarr --out scores.npy
    """
    from sash import arrays, report

    check_writable(html)
    if model is not None:
        asked = {"--components": components, "--variance": variance, "--html": html}
        if wrong := [name for name, value in asked.items() if value is not None]:
            raise InputError(f"--model scores rows along components that were found; {wrong[0]} finds others: leave one of them away.")
        if plan_only or estimate:
            raise InputError(f"--model scores rows, which has no {'plan' if plan_only else 'estimate'}: leave one of them away.")
        if out is None:
            raise InputError("--model writes scores of rows: say where, as --out scores.npy.")
        found, ways = arrays.PCA.open(model), dict[str, Any](budget=budget, workers=workers, overwrite=overwrite, progress=None)
        found.transform(source, out, **ways)
        count = len(found.singular_values)
        if as_json:
            show_json(json.dumps({"components": count, "out": str(out)}))
        else:
            show(f"wrote {out}: scores along {count} components")
        return
    told: dict[str, Any] = {"weights": weights, "scale": scale, "seed": seed, "budget": budget, "workers": workers}
    if estimate:
        if variance is None:
            raise InputError("--estimate tells how many components a share of the variance takes: give it, as --variance 0.9.")
        found = arrays.estimate_components(source, variance, **told)
        if as_json:
            show_json(found.to_json())
        else:
            show(str(found))
        return
    places: dict[str, Any] = {
        "overwrite": overwrite,
        "restart": restart,
        "tolerance": tolerance,
        "method": method,
        "loadings": loadings,
        "loadings_above": loadings_above,
        "names": names,
    }
    job = partial(arrays.pca, source, components, variance, out, **told, **places)
    if plan_only:
        plan = job(plan_only=True)
        if as_json:
            show_json(plan.to_json())
        else:
            show(str(plan))
        return
    if out is not None and not as_json:
        say(str(job(plan_only=True)))
    try:
        found = job()
    except KeyboardInterrupt:
        if out is not None:
            say(f"interrupted; the same command goes on from {out}.partial.")
        raise
    if html is not None:
        report.components_to_html(html, found, title=source.name)
        say(f"wrote {html}")
    if as_json:
        show_json(json.dumps(json.loads(found.to_json())))
    else:
        show(str(found) + (f"\nwrote {out}" if out is not None else ""))

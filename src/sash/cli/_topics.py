"""`sash topics`: the topics of a document-term matrix, inside a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sash.cli._array import ArrayBudget, Overwrite, PlanOnly, Restart
from sash.cli._show import check_writable, guarded, say, show, show_json
from sash.cli._workload import Debug, Json

Source = Annotated[Path, typer.Argument(help="The matrix of counts, documents by terms: .mtx, .mtx.gz, .npz, .npy, .zarr or .h5ad.")]
Count = Annotated[int, typer.Option("--topics", "-k", help="How many topics.")]
Out = Annotated[Path | None, typer.Option("--out", help="A .zarr folder for topics by terms and documents by topics.")]
Names = Annotated[
    Path | None, typer.Option("--names", help="Names of the columns, one a line; docs.vocab.txt beside docs.mtx is found by itself.")
]
Passes = Annotated[int, typer.Option("--passes", help="Passes over the rows at most; it stops after one that hardly helps.")]
HeldOut = Annotated[float, typer.Option("--held-out", help="Share of the rows that is not learnt from, for the perplexity.")]
Top = Annotated[int, typer.Option("--top", help="Terms of a topic that are told, and whose coherence is.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same topics.")]
Weights = Annotated[str, typer.Option("--weights", help="counts; others are refused, and it is said why.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write a report, one page that opens offline.")]


@guarded
def topics(
    source: Source,
    count: Count = 20,
    out: Out = None,
    names: Names = None,
    passes: Passes = 20,
    held_out: HeldOut = 0.1,
    top: Top = 10,
    seed: Seed = 0,
    weights: Weights = "counts",
    budget: ArrayBudget = "512 MiB",
    html: Html = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Topics of documents, learnt a batch of rows at a time: likeliest terms, held-out perplexity, coherence.

    sash topics docs.mtx --topics 50 --out topics.zarr --html topics.html
    """
    from sash import arrays, report

    check_writable(html)
    found = arrays.topics(
        source,
        count,
        out,
        names=names,
        passes=passes,
        held_out=held_out,
        top=top,
        seed=seed,
        weights=weights,
        budget=budget,
        overwrite=overwrite,
        restart=restart,
        plan_only=plan_only,
    )
    if isinstance(found, arrays.TopicModel) and html is not None:
        report.components_to_html(html, topics=found, title=source.name)
        say(f"wrote {html}")
    if as_json:
        show_json(found.to_json())
        return
    show(str(found))
    if isinstance(found, arrays.TopicModel) and out is not None:
        say(f"wrote {out}")

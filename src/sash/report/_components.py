"""Principal components and topics of a matrix as one page: how much they explain, and what they say in terms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sash.errors import InputError
from sash.report._page import page, replace
from sash.units import format_bytes, format_seconds

if TYPE_CHECKING:
    # Types alone: the folder needs numba, and a report of a model does without.
    from sash.arrays import PCA, TopicModel

_SHOWN = 20
"""Components whose terms are listed."""
_TERMS = 12
"""Terms of each."""
_POINTS = 2000
"""Of a curve: more than a screen has columns."""


def components_to_html(
    path: str | os.PathLike[str], components: PCA | None = None, topics: TopicModel | None = None, *, title: str = "matrix"
) -> None:
    """Write one HTML page that opens offline: the scree plot and each component's largest loadings, and the topics' likeliest terms.

    Either can be left out. The page replaces `path` in one step, or not at all. Raises `InputError` where there is neither, or where
    `path` cannot be written, `SashError` where plotly is not installed.
    """
    if components is None and topics is None:
        raise InputError("A report of a matrix needs components or topics; neither was given.")
    kinds = [*(["principal components"] if components is not None else []), *(["topics"] if topics is not None else [])]
    head = f"<header><p class='kicker'>sash {' and '.join(kinds)}</p><h1>{escape(title)}</h1>"
    sections = [f"{head}<p class='versions'>sash {version('sash')}</p></header>"]
    data: dict[str, Any] = {}
    if components is not None:
        sections.append(_components_section(components))
        data["scree"] = _curve([float(share) for share in components.explained_variance_ratio])
    if topics is not None:
        sections.append(_topics_section(topics))
        if len(topics.history) > 1:
            data["perplexity"] = {"passes": list(topics.history), "unigram": topics.unigram_perplexity}
    replace(Path(path), page(title, sections, data, "components.js"))


def _components_section(found: PCA) -> str:
    count, shares = len(found.singular_values), found.explained_variance_ratio
    rows, columns = found.scores.shape[0], found.components.shape[1]
    kept = []
    if found.shortfall is not None:
        share = f"{found.shortfall / found.total_variance:.2%}"
        kept = [("shortfall", share, "of the total variance, by which the true variance of a component is larger, at most")]
    if found.left_out is not None:
        share = f"{found.components.nnz / (columns * count):.2%}"
        told = f"above {found.loadings_above:g}; of a component, {found.left_out.max():.2f} of 1 is left out at most"
        kept.append(("loadings kept", share, told))
    cards = _cards(
        ("components", f"{count:,}", f"of {rows:,} rows × {columns:,} columns, {found.weights}"),
        ("explained variance", f"{shares.sum():.2%}", f"of a total of {found.total_variance:.6g}, which is exact"),
        ("residuals", f"{found.residuals.max():.0e}", f"of a component's singular value, at most; by {found.method}"),
        *kept,
    )
    hint = "Share of the variance that each component explains, and all up to it. The last one is marked."
    chart = (
        f"<h3>Scree plot</h3><p class='hint'>{hint}</p>"
        "<div class='figure'><div class='chart' data-chart='scree' role='img' aria-label='Scree plot'></div></div>"
    )
    shown = min(count, _SHOWN)
    lines = []
    for place in range(shown):
        terms = "".join(_loading(name, value) for name, value in found.top_terms(place, _TERMS))
        share = f"<td class='number'>{shares[place]:.2%}</td><td class='number'>{shares[: place + 1].sum():.1%}</td>"
        lines.append(f"<tr><th scope='row' class='number'>{place + 1}</th>{share}<td class='terms'>{terms}</td></tr>")
    told = f"the first {shown} of {count:,}" if shown < count else "all"
    words = (
        f"The {_TERMS} largest loadings by size, of {told}. A component and its negative are the same: what counts is which terms oppose."
    )
    table = _table("What the components say", ("component", "explains", "so far", "terms"), lines)
    return f"<section><h2>Principal components</h2>{cards}{chart}<h3>Terms</h3><p class='hint'>{words}</p>{table}</section>"


def _topics_section(found: TopicModel) -> str:
    cards = []
    if found.perplexity is not None and found.unigram_perplexity is not None:
        told = f"of {found.held_out_rows:,} held-out rows; {found.unigram_perplexity:,.0f} if all rows were alike"
        cards.append(("perplexity", f"{found.perplexity:,.0f}", told))
    cards += [
        ("coherence", f"{found.npmi:.3f}", f"mean NPMI, 0 is chance; UMass {found.umass:.2f}"),
        (
            "peak",
            format_bytes(found.peak_bytes),
            f"by forecast, of {format_bytes(found.budget_bytes)}; took {format_seconds(found.wall_s)}",
        ),
    ]
    chart = ""
    if len(found.history) > 1:
        words = "Perplexity of held-out words after each pass over the rows; the line is that of one distribution for all."
        place = "<div class='chart low' data-chart='perplexity' role='img' aria-label='Perplexity'></div>"
        chart = f"<h3>Learning</h3><p class='hint'>{words}</p><div class='figure'>{place}</div>"
    lines = []
    for place, topic in enumerate(found.topics):
        terms = "".join(f"<span class='term'>{escape(term.name)} <small>{term.probability:.1%}</small></span>" for term in topic.terms)
        numbers = "".join(f"<td class='number'>{value}</td>" for value in (f"{topic.share:.1%}", f"{topic.npmi:.3f}", f"{topic.umass:.2f}"))
        lines.append(f"<tr><th scope='row' class='number'>{place + 1}</th>{numbers}<td class='terms'>{terms}</td></tr>")
    table = _table("Topics", ("topic", "of all words", "NPMI", "UMass", "likeliest terms"), lines)
    words = f"{found.rows:,} rows, {found.words:,} words; {found.passes} passes, seed {found.seed}."
    return f"<section><h2>Topics</h2>{_cards(*cards)}{chart}<h3>Terms</h3><p class='hint'>{words}</p>{table}</section>"


def _loading(name: str, value: float) -> str:
    sign = "plus" if value >= 0 else "minus"
    return f"<span class='term {sign}'>{escape(name)} <small>{'+' if value >= 0 else '−'}{abs(value):.2f}</small></span>"


def _cards(*cards: tuple[str, str, str]) -> str:
    made = (
        f"<div class='card'><p class='name'>{name}</p><p class='value'>{value}</p><p class='meaning'>{escape(meaning)}</p></div>"
        for name, value, meaning in cards
    )
    return f"<div class='cards'>{''.join(made)}</div>"


def _table(label: str, names: Sequence[str], lines: Sequence[str]) -> str:
    heads = "".join(f"<th scope='col'{'' if 'terms' in name else ' class=number'}>{name}</th>" for name in names)
    table = f"<table class='said'><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div class='scroll' role='region' aria-label='{label}' tabindex='0'>{table}</div>"


def _curve(shares: Sequence[float]) -> dict[str, Any]:
    """Each component's share and the sum up to it; of many, as many points as are seen, the first and the last among them."""
    sums, total = [], 0.0
    for share in shares:
        total += share
        sums.append(total)
    count = len(shares)
    step = max(1, -(-count // _POINTS))
    places = sorted({*range(0, count, step), count - 1})
    return {
        "number": [place + 1 for place in places],
        "share": [shares[place] for place in places],
        "sum": [sums[place] for place in places],
        "count": count,
    }

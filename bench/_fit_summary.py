"""From the rows of bench/fit.py to the figures of its table: numbers only, nothing is run or printed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

Rows = dict[str, dict[str, Any]]
"""Answers by model, part and question, as `tcn/budgets/exact-3`."""

LADDERS = ("exact", "all")
TIMES = {"half": ("exact", "0.5"), "half-all": ("all", "0.5"), "quarter": ("exact", "0.25")}
BARS = {"half": 0.10, "half-all": 0.0, "quarter": 0.20}
"""Extra time, at most (median)."""
PLAN_S = 10.0
COMPARED = ("outputs", "gradients", "buffers")
OFF = {"relative": "largest difference, relative to its tensor's largest value", "norm": "norm of all differences, relative"}
"""How far results are apart."""
SAME, WRONG = 1e-3, 0.05
"""Norms of differences: outputs this near are the same; gradients this far apart are no matter of rounding, which moves them by 0.02 at
most (where a ReLU turns)."""


def answered(rows: Rows, part: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Model, question and answer of a part; failures left out."""
    for key, answer in rows.items():
        model, of, question = key.split("/")
        if of == part and "error_text" not in answer:
            yield model, question, answer


def ladder(rows: Rows, model: str, levers: str) -> list[dict[str, Any]]:
    """A model's points, from the least budget up."""
    found = [answer for name, question, answer in answered(rows, "budgets") if name == model and question.startswith(f"{levers}-")]
    return sorted(found, key=lambda point: point["budget_bytes"])


def rises(points: list[dict[str, Any]], which: str) -> list[float]:
    """How far a peak lies above that of the next larger budget, as a share of it, wherever it does."""
    peaks = [point[which] for point in points if which in point]
    return [below / above - 1 for below, above in pairwise(peaks) if below > above]


def summarise(rows: Rows) -> dict[str, Any]:
    """The figures of the table."""
    models = list(dict.fromkeys(key.split("/")[0] for key in rows))
    return {
        "models": len(models),
        "failed": {key: answer["error_text"] for key, answer in rows.items() if "error_text" in answer},
        **{levers: _ladders(rows, models, levers) for levers in LADDERS},
        "bits": _bits(rows),
        "times": {question: _times(rows, question) for question in TIMES},
        "plan_s": _plan_seconds(rows),
        "rivals": {who: _rival(rows, who) for who in dict.fromkeys(question for _, question, _ in answered(rows, "rivals"))},
    }


def _ladders(rows: Rows, models: list[str], levers: str) -> dict[str, Any]:
    ladders = [ladder(rows, model, levers) for model in models]
    points = [point for one in ladders for point in one]
    ran = [point for point in points if "measured_bytes" in point]
    over = [point["measured_bytes"] / point["budget_bytes"] - 1 for point in ran if point["measured_bytes"] > point["budget_bytes"]]
    refusals = [(name, found) for name, question, found in answered(rows, "budgets") if question == f"refusal:{levers}"]
    frees = {name: found["least"][levers]["bytes"] for name, question, found in answered(rows, "budgets") if question == "free"}
    least_ran = [one[0] for one in ladders if one]
    return {
        "points": len(points),
        "refused_within": len(points) - len(ran),
        "over": over,
        "off_forecast": _spread(point["measured_bytes"] / point["forecast_bytes"] - 1 for point in ran),
        "rises_measured": [rise for one in ladders for rise in rises(one, "measured_bytes")],
        "rises_forecast": [rise for one in ladders for rise in rises(one, "forecast_bytes")],
        "below": len(refusals),
        "below_refused": sum("least_bytes" in found for _, found in refusals),
        "below_same_least": sum(found.get("least_bytes") == frees.get(name) for name, found in refusals),
        "least_asked": len(least_ran),
        "least_ran": sum(point.get("measured_bytes", point["budget_bytes"] + 1) <= point["budget_bytes"] for point in least_ran),
    }


def _bits(rows: Rows) -> dict[str, Any]:
    repeats = [free["repeats"] for _, question, free in answered(rows, "budgets") if question == "free"]
    rounding = [free["rounding"] for _, question, free in answered(rows, "budgets") if question == "free"]
    found: dict[str, Any] = {
        "plain_repeats": sum(repeats),
        "plain_steps": len(repeats),
        "rounding": {which: {part: max((one[which][part] for one in rounding), default=None) for part in COMPARED} for which in OFF},
    }
    for levers in LADDERS:
        tested = [
            (f"{name} {question}", point["bits"])
            for name, question, point in answered(rows, "budgets")
            if question.startswith(f"{levers}-") and "bits" in point
        ]
        ways = [(where, way, bits[way]) for where, bits in tested for way in ("apply", "step")]
        found[levers] = {
            "plans": len(tested),
            "runs": len(ways),
            "identical": sum(not difference["differing"] for _, _, difference in ways),
            "differing": {f"{where} {way}": difference["differing"] for where, way, difference in ways if difference["differing"]},
            "relative": {part: max((one["relative"][part] for *_, one in ways), default=None) for part in COMPARED},
            "norm": {part: max((one["norm"][part] for *_, one in ways), default=None) for part in COMPARED},
        }
    return found


def _times(rows: Rows, question: str) -> dict[str, Any]:
    found = {name: answer for name, asked, answer in answered(rows, "times") if asked == question}
    extra = {name: answer["pair_ratio"] - 1 for name, answer in found.items()}
    return {
        "extra": extra,
        "at_floor": [name for name, answer in found.items() if answer["floor_bytes"] is not None],
        **_spread(extra.values()),
    }


def _plan_seconds(rows: Rows) -> dict[str, float]:
    return _spread(answer["plan_s"] for part in ("budgets", "times") for *_, answer in answered(rows, part) if "plan_s" in answer)


def _rival(rows: Rows, who: str) -> dict[str, Any]:
    frees = {name: answer for name, question, answer in answered(rows, "budgets") if question == "free"}
    asked = [key for key in rows if key.split("/")[1:] == ["rivals", who]]
    found = {name: answer for name, question, answer in answered(rows, "rivals") if question == who}
    return {
        "models": len(asked),
        "answered": len(found),
        "left": _spread(left for name, answer in found.items() if (left := share_left(frees.get(name), answer)) is not None),
        "extra": _spread(answer["pair_ratio"] - 1 for answer in found.values() if "pair_ratio" in answer),
        "compared": sum("bits" in answer for answer in found.values()),
        "identical": sum(not answer["bits"]["differing"] for answer in found.values() if "bits" in answer),
        "wrong": [name for name, answer in found.items() if wrong(answer)],
    }


def wrong(answer: dict[str, Any]) -> bool:
    """Whether gradients are wrong by themselves: off, where the outputs of the same masks are the same."""
    if "itself" not in answer:
        return False
    off = answer["itself"]["norm"]
    return off["outputs"] < SAME and off["gradients"] > WRONG


def share_left(free: dict[str, Any] | None, answer: dict[str, Any]) -> float | None:
    """Of the plain step's activations, what a rival's peak holds."""
    if free is None:
        return None
    return 1 - (free["measured_bytes"] - answer["peak_bytes"]) / free["activation_bytes"]


def _spread(values: Iterable[float]) -> dict[str, float]:
    found = sorted(values)
    return {"lowest": found[0], "median": statistics.median(found), "highest": found[-1], "count": len(found)} if found else {}

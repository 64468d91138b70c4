"""The tables of bench/fit.py: one for budgets, one for times and rivals, then each figure beside what is required."""

from __future__ import annotations

from typing import Any

from _fit_summary import BARS, LADDERS, OFF, PLAN_S, TIMES, Rows, answered, ladder, rises, share_left, wrong
from rich.console import Console
from rich.table import Table

WORDS = {"exact": "bit-identical levers", "all": "all levers that need no leave"}
FIGURES = {
    "half": "extra time, activations halved, bit-identical",
    "half-all": "the same, with layout and the separable lever allowed",
    "quarter": "extra time, activations quartered, bit-identical",
}


def print_budgets(rows: Rows) -> None:
    """One line a model and ladder: what the plain step needs, the least, and how the budgets between were kept."""
    table = Table(title="Budgets from the least to the plain step's peak, MB", title_justify="left")
    table.add_column("model")
    headings = ("plain", "static", "activations", "levers", "least", "kept", "worst", "rises", "identical", "off", "rounding", "plan s")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, question, free in answered(rows, "budgets"):
        if question != "free":
            continue
        for levers in LADDERS:
            points = ladder(rows, name, levers)
            ran = [point for point in points if "measured_bytes" in point]
            kept = sum(point["measured_bytes"] <= point["budget_bytes"] for point in ran)
            worst = max((point["measured_bytes"] / point["budget_bytes"] - 1 for point in ran), default=None)
            bits = [point["bits"][way] for point in ran if "bits" in point for way in ("apply", "step")]
            first = levers == LADDERS[0]
            taken = sorted(point["plan_s"] for point in ran)
            table.add_row(
                name if first else "",
                *(_mb(free[which]) if first else "" for which in ("measured_bytes", "static_bytes", "activation_bytes")),
                levers,
                _mb(free["least"][levers]["bytes"]),
                f"{kept}/{len(points)}",
                percent(worst),
                str(len(rises(ran, "measured_bytes"))),
                f"{sum(not one['differing'] for one in bits)}/{len(bits)}",
                f"{max(one['norm']['gradients'] for one in bits):.1e}" if bits else "",
                f"{free['rounding']['norm']['gradients']:.1e}" if first else "",
                f"{taken[len(taken) // 2]:.1f} … {taken[-1]:.1f}" if taken else "",
            )
    console = _console()
    console.print(table)
    console.print("activations: alive at the plain step's peak, and neither there before the step (weights, optimizer state, inputs) nor")
    console.print("gradients of parameters. worst: measured peak over the budget. rises: peaks above that of the next larger budget.")
    console.print("off: norm of the gradients' difference, relative; rounding: the same, of weights moved by one unit in the last place.")


def print_times(rows: Rows) -> None:
    """One line a model: planned against plain, and the rivals."""
    rivals = list(dict.fromkeys(question for _, question, _ in answered(rows, "rivals")))
    table = Table(title="Time over the plain step's (and activations left)", title_justify="left")
    table.add_column("model")
    for heading in ("step s", *TIMES, *rivals):
        table.add_column(heading, justify="right")
    frees = {name: free for name, question, free in answered(rows, "budgets") if question == "free"}
    for name in dict.fromkeys(key.split("/")[0] for key in rows):
        timed = {question: answer for model, question, answer in answered(rows, "times") if model == name}
        others = {question: answer for model, question, answer in answered(rows, "rivals") if model == name}
        seconds = [answer["plain_s"] for answer in (*timed.values(), *others.values()) if "plain_s" in answer]
        cells = [_planned_cell(timed.get(question)) for question in TIMES]
        cells += [_rival_cell(frees.get(name), others.get(who), rows.get(f"{name}/rivals/{who}")) for who in rivals]
        table.add_row(name, f"{min(seconds):.2f}" if seconds else "", *cells)
    console = _console()
    console.print(table)
    console.print("Time: median of neighbouring pairs, in one process. floor: the budget is below the least, which was planned for.")
    console.print("≠: not the plain step's bits. wrong: gradients off by more than rounding does, for the same outputs.")


def _planned_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{percent(found['pair_ratio'] - 1)} ({found['reached']:.0%}{', floor' if found['floor_bytes'] is not None else ''})"


def _rival_cell(free: dict[str, Any] | None, found: dict[str, Any] | None, answer: dict[str, Any] | None) -> str:
    if found is None:
        return "" if answer is None else "failed"
    left = share_left(free, found)
    off = " wrong" if wrong(found) else " ≠" if "bits" in found and found["bits"]["differing"] else ""
    taken = percent(found["pair_ratio"] - 1) if "pair_ratio" in found else "?"
    return f"{taken} ({'?' if left is None else f'{left:.0%}'}){off}"


def print_summary(summary: dict[str, Any], made_on: dict[str, Any]) -> None:
    """The figures beside what is required of them."""
    table = Table(title=f"{summary['models']} models", title_justify="left")
    for heading in ("figure", "required", "measured"):
        table.add_column(heading)
    for levers in LADDERS:
        found = summary[levers]
        if not found["points"]:
            continue
        kept = found["points"] - found["refused_within"] - len(found["over"])
        over = f"; over by {percent(min(found['over']))} … {percent(max(found['over']))}" if found["over"] else ""
        refused = f"; {found['refused_within']} refused" if found["refused_within"] else ""
        table.add_row(f"measured peak ≤ budget, {WORDS[levers]}", "every run", f"{kept} of {found['points']}{over}{refused}")
        for which in ("measured", "forecast"):
            risen = found[f"rises_{which}"]
            told = f"{len(risen)} times{f', by {percent(max(risen))} at most' if risen else ''}"
            table.add_row(f"{which} peak rises when the budget falls, {levers}", "never", told)
        told = f"{found['below_refused']} of {found['below']}; {found['below_same_least']} with the same least"
        table.add_row(f"3 % below the least: refused before running, {levers}", "every time", told)
        table.add_row(f"the least runs within itself, {levers}", "every time", f"{found['least_ran']} of {found['least_asked']}")
    exact, every = (summary["bits"][levers] for levers in LADDERS)
    again = f"the plain step repeats itself on {summary['bits']['plain_repeats']} of {summary['bits']['plain_steps']} models"
    told = f"{exact['identical']} of {exact['runs']} runs of {exact['plans']} plans; {again}"
    table.add_row("outputs, gradients, buffers, random state identical", "every run, deterministic mode", told)
    for which, words in OFF.items():
        table.add_row(f"with all levers: {words}", "stated", _off(every[which]))
        table.add_row("  the plain step's, its weights moved by one unit in the last place", "", _off(summary["bits"]["rounding"][which]))
    for question, figure in FIGURES.items():
        found = summary["times"][question]
        table.add_row(f"{figure}, median", f"≤ {BARS[question]:.0%}", _times_cell(found))
    taken = summary["plan_s"]
    told = f"{taken['median']:.1f} s, at most {taken['highest']:.1f} s ({taken['count']} plans)" if taken else "not measured"
    table.add_row("time to plan, median", f"≤ {PLAN_S:.0f} s", told)
    table.add_row("no plan", "", "every peak is the plain step's; +0 %; identical")
    for who, found in summary["rivals"].items():
        name = "torch.utils.checkpoint, every block" if who == "checkpoint" else f"torch.compile, {who.replace('-', ', budget ')}"
        table.add_row(name, "", _rival_summary(found))
    console = _console()
    console.print(table)
    for where, parts in {**exact["differing"], **summary["failed"]}.items():
        console.print(f"{where}: {parts}"[:400], markup=False, highlight=False)
    versions = ", ".join(f"{name} {version}" for name, version in made_on["versions"].items())
    console.print(f"{versions}; Python {made_on['python']}; {made_on['threads']} threads; {made_on['processor']}", highlight=False)
    console.print("Not measured on a GPU. The separable block and the U-Nets: bench/separable.py; tiled inference: bench/tiled.py.")


def _off(found: dict[str, float | None]) -> str:
    return ", ".join(f"{part} {value:.1e}" for part, value in found.items() if value is not None) or "not measured"


def _times_cell(found: dict[str, Any]) -> str:
    if not found["extra"]:
        return "not measured"
    floor = f"; at their floor: {', '.join(found['at_floor'])}" if found["at_floor"] else ""
    return f"{percent(found['median'])} ({percent(found['lowest'])} … {percent(found['highest'])}, {found['count']} models{floor})"


def _rival_summary(found: dict[str, Any]) -> str:
    if not found["answered"]:
        return f"failed on all of {found['models']}"
    told = [f"{found['left']['median']:.0%} of the activations left"] if found["left"] else []
    told += [f"{percent(found['extra']['median'])} time ({found['extra']['count']} models)"] if found["extra"] else []
    told += [f"identical on {found['identical']} of {found['compared']}"]
    told += [f"wrong gradients on {', '.join(found['wrong'])}"] if found["wrong"] else []
    failed = found["models"] - found["answered"]
    return "; ".join(told + ([f"failed on {failed}"] if failed else []))


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1%}" if abs(value) >= 0.01 else f"{value:+.3%}"


def _mb(value: int) -> str:
    return f"{value / 1e6:.1f}"


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 190)

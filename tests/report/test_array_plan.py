"""The page of an array job: figures, the cut drawn where it is as told, what was weighed."""

import re
from dataclasses import replace

import pytest

from sash.arrays import ArrayPlan, Method
from sash.errors import InputError
from sash.report import plan_to_html

PLAN = ArrayPlan(
    operation="blur of 3000x4000 float32 by sigma 3",
    method="direct",
    shape=(3000, 4000),
    dtype="float32",
    tasks=16,
    task_shape=(1, 375, 2000),
    workers=2,
    passes=1,
    budget_bytes=16 << 20,
    peak_bytes=12 << 20,
    read_bytes=48 << 20,
    written_bytes=46 << 20,
    wall_s=0.25,
    error=2.5e-4,
    methods=(Method("direct", 5 << 20, 0.25, 2.5e-4, "chosen"), Method("<fft>", None, None, 1e-7, "not looked at")),
)


def written(tmp_path, plan):
    plan.to_html(tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    return page[page.index("<main>") : page.index("</main>")]


def test_a_plan_is_told_with_its_figures_and_what_was_weighed(tmp_path):
    page = written(tmp_path, PLAN)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for told in ("peak 12.0 MiB of a budget of 16.0 MiB", "reads 48.0 MiB", "2.5e-04", "&lt;fft&gt; 1.0e-07 not looked at", "16 tasks"):
        assert told in words
    assert "<fft>" not in page
    # No chart, no script: the page is small, and needs no plotly.
    assert (tmp_path / "plan.html").stat().st_size < 30_000


@pytest.mark.parametrize(
    ("shape", "task_shape", "tasks", "plane"),
    [
        ((3000, 4000), (1, 375, 2000), 16, "3,000 × 4,000"),
        ((5, 1000, 1000), (5, 100, 1000), 10, "1,000 × 1,000"),
        ((3, 1000, 900, 3), (3, 175, 500), 36, "1,000 × 900"),
        ((4000,), (1, 1, 1000), 4, "1 × 4,000"),
        ((3000, 4000), (1, 375, 2000), 17, None),
    ],
)
def test_the_cut_is_drawn_where_the_tasks_are_accounted_for(tmp_path, shape, task_shape, tasks, plane):
    page = written(tmp_path, replace(PLAN, shape=shape, task_shape=task_shape, tasks=tasks))
    assert ("<svg" in page) == (plane is not None)
    assert plane is None or f"a plane of {plane};" in page


def test_a_page_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        plan_to_html(PLAN, tmp_path / "nowhere" / "plan.html")

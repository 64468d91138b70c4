"""The page of components and topics: figures, terms, signs; complete, escaped, whole or not at all."""

import re
from dataclasses import replace

import numpy as np
import pytest

from sash.arrays import PCA, Topic, TopicModel, TopicTerm
from sash.errors import InputError
from sash.report import components_to_html

HOSTILE = "</script><script>document.title='taken'</script>"


def make_topics(names=("cat", "dog", "ship", "sail")):
    said = [TopicTerm(place, name, 0.4 - 0.1 * place) for place, name in enumerate(names)]
    made = (Topic(0.625, (said[0], said[1]), 0.31, -0.8), Topic(0.375, (said[2], said[3]), -0.05, -2.5))
    return TopicModel(
        rows=1200,
        columns=4,
        words=34567,
        topics=made,
        held_out_rows=120,
        perplexity=870.4,
        unigram_perplexity=1646.2,
        history=(950.1, 870.4),
        passes=2,
        npmi=0.13,
        umass=-1.65,
        seed=7,
        budget_bytes=512 << 20,
        peak_bytes=49 << 20,
        wall_s=15.8,
        topic_terms=np.full((2, 4), 0.25),
        documents=np.full((1200, 2), 0.5),
    )


def make_components(names=("cat", "dog", "ship", "sail")):
    return PCA(
        components=np.array([[0.8, 0.1, -0.59, 0.0], [0.1, 0.9, 0.0, -0.4]]),
        singular_values=np.array([30.0, 20.0]),
        explained_variance=np.array([9.0, 4.0]),
        explained_variance_ratio=np.array([0.6, 0.2667]),
        mean=np.zeros(4),
        scale=None,
        scores=np.zeros((101, 2)),
        residuals=np.array([1e-9, 3e-8]),
        total_variance=15.0,
        method="krylov",
        weights="tfidf",
        names=names,
    )


def words_of(page):
    """The page's words, without its scripts, styles and tags."""
    body = page[page.index("<main>") : page.index("</main>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_what_components_may_miss_is_told(tmp_path):
    components_to_html(tmp_path / "page.html", replace(make_components(), method="nystrom", shortfall=0.3))
    told = words_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "shortfall 2.00% of the total variance, by which the true variance of a component is larger, at most" in told
    components_to_html(tmp_path / "page.html", make_components())
    assert "shortfall" not in words_of((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_topics_are_told_with_their_figures_and_terms(tmp_path):
    components_to_html(tmp_path / "page.html", topics=make_topics(), title="docs.mtx")
    words = words_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    for told in (
        "docs.mtx",
        "perplexity 870",
        "1,646 if all rows were alike",
        "62.5% 0.310 -0.80",
        "cat 40.0%",
        "34,567 words; 2 passes, seed 7",
    ):
        assert told in words
    assert "Principal components" not in words


def test_components_are_told_with_what_they_explain_and_the_signs_of_their_terms(tmp_path):
    components_to_html(tmp_path / "page.html", make_components())
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    words = words_of(page)
    for told in ("101 rows × 4 columns, tfidf", "86.67%", "of a total of 15", "3e-08", "1 60.00% 60.0% cat +0.80 ship −0.59 dog +0.10"):
        assert told in words
    assert "<span class='term minus'>ship" in page
    assert "Topics" not in words


def test_results_write_their_own_pages(tmp_path):
    make_topics().to_html(tmp_path / "page.html", title="docs.mtx")
    assert "docs.mtx – sash" in (tmp_path / "page.html").read_text(encoding="utf-8")
    make_components().to_html(tmp_path / "page.html", make_topics())
    assert {"Principal components", "Topics"} <= set(re.findall(r"<h2>(.*?)</h2>", (tmp_path / "page.html").read_text(encoding="utf-8")))


def test_markup_in_names_stays_text(tmp_path):
    components_to_html(tmp_path / "page.html", topics=make_topics((HOSTILE, "b", "c", "d")), title=HOSTILE)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;document.title") == 3
    assert "<script" not in page[page.index("<main>") : page.index("</main>")]


def test_a_page_of_nothing_and_a_page_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(InputError, match="neither was given"):
        components_to_html(tmp_path / "page.html")
    with pytest.raises(InputError, match="cannot be written"):
        components_to_html(tmp_path / "nowhere" / "page.html", topics=make_topics())
    assert list(tmp_path.iterdir()) == []

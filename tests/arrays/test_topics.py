"""Topics of a matrix of counts: those that made it, figures as defined, within a budget, and nothing half-written."""

import json

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr

from sash.arrays import _topics, topics
from sash.arrays._coherence import npmi, shared_documents, umass
from sash.errors import DoesNotFit, InputError

TOPICS, TERMS, ROWS = 4, 60, 500


def drawn(seed=0):
    """Counts drawn from topics of fifteen terms each, and the topics' shares in each row."""
    rng = np.random.default_rng(seed)
    made = np.full((TOPICS, TERMS), 1e-3)
    for topic in range(TOPICS):
        made[topic, 15 * topic : 15 * topic + 15] = 1
    made /= made.sum(axis=1)[:, None]
    shares = rng.dirichlet(np.full(TOPICS, 0.1), ROWS)
    return np.array([rng.multinomial(80, share @ made) for share in shares]), shares


COUNTS, SHARES = drawn()
SPARSE = scipy.sparse.csr_array(COUNTS)
NAMES = [f"term{number}" for number in range(TERMS)]


@pytest.fixture(scope="module")
def model():
    return topics(SPARSE, TOPICS, names=NAMES, seed=3)


def test_the_topics_that_made_the_documents_are_found(model):
    blocks = {frozenset(term.column // 15 for term in topic.terms) for topic in model.topics}
    assert blocks == {frozenset({block}) for block in range(TOPICS)}
    assert all(term.name == f"term{term.column}" for topic in model.topics for term in topic.terms)
    np.testing.assert_allclose(model.topic_terms.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(model.documents.sum(axis=1), 1, rtol=1e-12)
    # Each topic's share of a row, with its column in the model found by its terms; eighty words tell it within a few per cent.
    order = [topic.terms[0].column // 15 for topic in model.topics]
    assert np.abs(model.documents - SHARES[:, order]).mean() < 0.03
    assert sum(topic.share for topic in model.topics) == pytest.approx(1)
    assert [topic.share for topic in model.topics] == sorted((topic.share for topic in model.topics), reverse=True)


def test_held_out_words_are_foretold_better_than_by_one_distribution_for_all(model):
    # Documents of one to two topics of 15 terms: some twenty words to choose from, against sixty.
    assert model.held_out_rows == 50
    assert 15 < model.perplexity < 28
    assert 55 < model.unigram_perplexity < 65
    assert model.history[-1] == model.perplexity
    assert len(model.history) == model.passes


def test_coherence_is_as_defined_pair_by_pair():
    likeliest = np.array([[3, 5, 8], [20, 2, 41]])
    blocks = [SPARSE[:200], SPARSE[200:]]
    shared = shared_documents(blocks, likeliest)
    there = COUNTS > 0
    for topic, terms in enumerate(likeliest):
        chance, told = [], []
        for place, first in enumerate(terms):
            for second in terms[place + 1 :]:
                both = (there[:, first] & there[:, second]).sum()
                one, other = there[:, first].sum(), there[:, second].sum()
                chance.append(np.log(both / ROWS / (one / ROWS * other / ROWS)) / -np.log(both / ROWS))
                told.append(np.log((both + 1) / one))
        assert npmi(shared, ROWS)[topic] == pytest.approx(np.mean(chance), rel=1e-12)
        assert umass(shared)[topic] == pytest.approx(np.mean(told), rel=1e-12)


def test_terms_that_never_meet_count_minus_one_and_those_everywhere_nothing():
    rows = scipy.sparse.csr_array(np.array([[1, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1]]))
    shared = shared_documents([rows], np.array([[0, 1], [2, 3]]))
    assert npmi(shared, 3).tolist() == [-1, 0]


def test_the_same_seed_gives_the_same_numbers_from_memory_and_from_a_file(tmp_path, model):
    scipy.io.mmwrite(tmp_path / "docs.mtx", SPARSE)
    (tmp_path / "docs.vocab.txt").write_text("\n".join(NAMES) + "\n")
    told = topics(tmp_path / "docs.mtx", TOPICS, tmp_path / "out.zarr", seed=3)
    assert told.topics == model.topics
    assert told.history == model.history
    root = zarr.open_group(tmp_path / "out.zarr", mode="r")
    np.testing.assert_array_equal(root["documents"][:], model.documents)
    np.testing.assert_array_equal(root["topics"][:], model.topic_terms)
    assert root["names"][:].tolist() == NAMES
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["docs.mtx", "docs.vocab.txt", "out.zarr"]
    assert topics(SPARSE, TOPICS, seed=4).history != model.history


def test_a_result_is_told_as_text_and_as_json(model):
    text = str(model)
    assert text.startswith("4 topics of 500 rows × 60 columns")
    assert all(topic.terms[0].name in text for topic in model.topics)
    found = json.loads(model.to_json())
    assert found["schema"] == "sash.topics/1"
    assert found["topics"][0]["terms"][0] == {
        "column": model.topics[0].terms[0].column,
        "name": model.topics[0].terms[0].name,
        "probability": model.topics[0].terms[0].probability,
    }
    assert found["words"] == COUNTS.sum()


def test_a_plan_tells_the_peak_and_runs_nothing():
    plan = topics(SPARSE, TOPICS, budget="64 MiB", plan_only=True)
    assert plan.shape == (ROWS, TOPICS)
    assert 0 < plan.peak_bytes < 64 << 20


def test_the_least_budget_that_is_told_runs_and_less_is_refused():
    with pytest.raises(DoesNotFit, match="Fewer topics, or fewer columns, hold less") as found:
        topics(SPARSE, TOPICS, budget=20_000)
    least = found.value.least_bytes
    assert topics(SPARSE, TOPICS, budget=least, passes=1).peak_bytes <= least
    with pytest.raises(DoesNotFit):
        topics(SPARSE, TOPICS, budget=least - 1)


@pytest.mark.parametrize(
    ("told", "source", "settings"),
    [
        (r"row 0 has 0\.5 in column \d+; a topic model draws words", SPARSE * 0.5, {}),
        ("row 0 has -1 in column", SPARSE * -1, {}),
        ("tfidf are none that can be drawn: give the counts", SPARSE, {"weights": "tfidf"}),
        ("topics is 0; give a whole number from 1 on", SPARSE, {"topics": 0}),
        ("top is 1; give a whole number from 2 on", SPARSE, {"top": 1}),
        ("held_out is 1; give a share", SPARSE, {"held_out": 1}),
        (r"out\.npy has the suffix \.npy; topics are written to a \.zarr folder", SPARSE, {"out": "out.npy"}),
    ],
)
def test_what_is_no_corpus_and_what_is_no_setting_is_refused(tmp_path, monkeypatch, told, source, settings):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=told):
        topics(source, **{"topics": 3, "out": "out.zarr", **settings})
    assert list(tmp_path.iterdir()) == []


def test_without_held_out_rows_there_is_no_perplexity():
    found = topics(SPARSE, TOPICS, held_out=0, passes=2)
    assert (found.perplexity, found.unigram_perplexity, found.history, found.passes) == (None, None, (), 2)


def test_an_interrupted_run_goes_on_after_the_last_whole_pass_with_the_same_numbers(tmp_path, monkeypatch):
    words = {"names": NAMES, "seed": 3, "passes": 4}
    whole = topics(SPARSE, TOPICS, tmp_path / "whole.zarr", **words)
    learn, learnt, out = _topics._Learner.learn, [], tmp_path / "out.zarr"
    monkeypatch.setattr(_topics._Learner, "learn", lambda learner, number, tick: learn(learner, number, tick) if number < 2 else stop())
    with pytest.raises(KeyboardInterrupt):
        topics(SPARSE, TOPICS, out, **words)
    assert not out.exists()
    monkeypatch.setattr(_topics._Learner, "learn", lambda learner, number, tick: (learnt.append(number), learn(learner, number, tick)))
    with pytest.raises(InputError, match=r"other things changed: seed\. Undo that to go on with it, or say restart=True"):
        topics(SPARSE, TOPICS, out, **{**words, "seed": 4})
    found = topics(SPARSE, TOPICS, out, **words)
    assert learnt == [2, 3][: whole.passes - 2]
    assert found.history == whole.history
    for name in ("topics", "documents"):
        np.testing.assert_array_equal(zarr.open_group(out)[name][...], zarr.open_group(tmp_path / "whole.zarr")[name][...])
    assert {path.name for path in tmp_path.iterdir()} == {"whole.zarr", "out.zarr"}


def test_what_was_kept_and_cannot_be_read_is_made_again(tmp_path, monkeypatch):
    learn = _topics._Learner.learn
    monkeypatch.setattr(_topics._Learner, "learn", lambda learner, number, tick: learn(learner, number, tick) if number < 1 else stop())
    with pytest.raises(KeyboardInterrupt):
        topics(SPARSE, TOPICS, tmp_path / "out.zarr", passes=2)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    monkeypatch.setattr(_topics._Learner, "learn", learn)
    assert topics(SPARSE, TOPICS, tmp_path / "out.zarr", passes=2).passes == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def stop():
    raise KeyboardInterrupt

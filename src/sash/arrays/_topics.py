"""A topic model of a document-term matrix that may be larger than memory: online latent Dirichlet allocation over blocks of rows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from sash.arrays._coherence import npmi, shared_documents, umass
from sash.arrays._matrix import Matrix
from sash.arrays._matrix_names import Names
from sash.arrays._matrix_open import open_matrix
from sash.arrays._plan import ArrayPlan, Method
from sash.arrays._running import MAPPED_FROM, showing
from sash.arrays._store_sink import Target, remove
from sash.arrays._topics_documents import Documents
from sash.arrays._topics_passes import Learnt, Passes
from sash.arrays._topics_result import Topic, TopicModel, TopicTerm
from sash.arrays._weights import blocks_within
from sash.errors import DoesNotFit, InputError
from sash.heap import blocks_given_back
from sash.units import format_bytes, parse_bytes

_TABLES = 7
"""Tables of topics and terms that scikit-learn holds at once while it learns from a batch, and the probabilities beside them."""
_ROW_TABLES = 4
"""Tables of rows and topics: what a row is made of, its logarithms, and both put together."""
_RUNS = 16
"""A batch is so many runs of rows from all over the matrix: rows that follow each other are often alike."""
_MOST_HELD_OUT = 2000
"""Rows that perplexity is measured on: more would tell it no better than within a per cent."""
_PASS_BYTES = 16 << 20
"""For a block of a pass in order, at most: larger ones are not quicker."""
_ENOUGH = 2e-3
"""A pass that lowers the perplexity by a smaller share is the last."""


def topics(
    source: Any,
    topics: int = 20,
    out: str | os.PathLike[str] | None = None,
    *,
    budget: str | int = "512 MiB",
    names: Names | None = None,
    weights: str = "counts",
    passes: int = 20,
    held_out: float = 0.1,
    top: int = 10,
    batch_rows: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool | None = None,
    plan_only: bool = False,
) -> TopicModel | ArrayPlan:
    """The topics of a matrix of counts, documents by terms, with perplexity on rows that were held out, and coherence.

    `source` is what `pca` takes; `names` of columns as there. scikit-learn's LatentDirichletAllocation learns online, a batch of rows at
    a time, in up to `passes` passes; it stops after one that hardly helps. A share `held_out` of the rows, at most 2,000, is not learnt
    from: half of their words, drawn by `seed`, are foretold from the other half. Coherence is of the `top` likeliest terms of a topic,
    over all rows. With `out`, a .zarr folder, the arrays `topics` (topics, columns), `documents` (rows, topics) and, where there are
    any, `names` are written there, and otherwise returned; the same seed gives the same numbers. What was learnt is kept beside the folder
    after every pass: the same call goes on with an interrupted run, and `restart` begins it anew.

    What is held stays within `budget`; `plan_only` tells it without running. Raises `InputError` for numbers that are no counts,
    `DoesNotFit` where the budget is too small.
    Source: M. Hoffman, D. Blei, F. Bach, Online Learning for Latent Dirichlet Allocation, NIPS 2010.
    """
    begun = time.perf_counter()
    _check(topics, weights, passes, held_out, top)
    limit = parse_bytes(budget)
    with ExitStack() as stack:
        target = None if out is None else _target(Path(out), overwrite)
        scratch = None if target is None else target.final.with_name(f"{target.final.name}.rows")
        if scratch is not None:
            stack.callback(remove, scratch)
        stack.enter_context(blocks_given_back(MAPPED_FROM))
        matrix = open_matrix(source, budget_bytes=limit, scratch=scratch, names=names, progress=progress)
        stack.callback(matrix.close)
        cut = _cut(matrix, topics, target is None, batch_rows, limit)
        plan = _plan(matrix, topics, cut, passes, limit)
        if plan_only:
            return plan
        kept = None if target is None else Passes(target, _resting(matrix, topics, cut, held_out, seed))
        before = None if kept is None else kept.begun(restart)
        learner = _Learner(matrix, topics, cut, held_out, seed)
        # A pass to learn, and one at the end that puts topics into rows: by numbers, which take as long wherever they lie.
        tick = stack.enter_context(showing(progress, plan.operation, 12 * matrix.nnz * (passes + 1)))
        history = _learnt(learner, passes, kept, before, tick)
        found = _told(learner, cut, target, top, history, seed, plan, begun, tick)
        if kept is not None:
            kept.remove()
        return found


def _resting(matrix: Matrix, topics: int, cut: _Cut, held_out: float, seed: int) -> dict[str, Any]:
    """What a pass rests on."""
    return {
        "source": matrix.identity,
        "topics": topics,
        "held_out": held_out,
        "seed": seed,
        "batch": cut.run_rows,
        "versions": [version(name) for name in ("scikit-learn", "numpy")],
    }


def _learnt(learner: _Learner, passes: int, kept: Passes | None, before: Learnt | None, tick: Callable[[float], None]) -> list[float]:
    """Passes from where an earlier run ended, each kept once it is whole; the perplexity after each."""
    history = [] if before is None else list(before.history)
    if before is not None:
        before.put(learner.model)
        tick(12 * learner.matrix.nnz * before.passes)
    for number in range(0 if before is None else before.passes, passes):
        if len(history) > 1 and history[-1] > history[-2] * (1 - _ENOUGH):
            break
        learner.learn(number, tick)
        if learner.held:
            history.append(learner.perplexity())
        if kept is not None:
            kept.put(Learnt.of(learner.model, history, number + 1))
    return history


@dataclass(frozen=True)
class _Cut:
    """How rows are read."""

    blocks: tuple[tuple[int, int], ...]
    """For passes in order."""
    run_rows: int
    """Rows of each of a batch's runs."""
    peak_bytes: int


class _Learner:
    """scikit-learn's model, and the rows that it does and does not learn from."""

    def __init__(self, matrix: Matrix, topics: int, cut: _Cut, held_out: float, seed: int) -> None:
        self.matrix, self._cut, self._seed = matrix, cut, seed
        rows = matrix.shape[0]
        self.held = min(int(held_out * rows), _MOST_HELD_OUT)
        self.learnt = np.ones(rows, bool)
        """Whether a row is learnt from."""
        self.learnt[np.random.default_rng([seed, 0]).choice(rows, self.held, replace=False)] = False
        self.model = _sklearn()(n_components=topics, total_samples=rows - self.held, batch_size=rows, random_state=seed)
        self.counts = np.zeros(matrix.shape[1])
        """Of each term, in rows that are learnt from."""
        self.words = 0.0
        for first, block in self.blocks():
            self.words += float(block.sum())
            self.counts += block.T @ self.learnt[first : first + block.shape[0]].astype(float)
        if not self.counts.any():
            raise InputError("the rows that are learnt from have no words; hold out fewer.")

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """All rows in order, with the first one's number; raises `InputError` for numbers that are no counts."""
        for start, stop in self._cut.blocks:
            yield start, _counted(self.matrix.block(start, stop), start)

    def learn(self, number: int, tick: Callable[[float], None]) -> None:
        """A pass over the rows, in runs in an order of its own."""
        rows, step = self.matrix.shape[0], self._cut.run_rows
        order = np.random.default_rng([self._seed, 1, number]).permutation(-(-rows // step))
        for first in range(0, len(order), _RUNS):
            parts = []
            for run in np.sort(order[first : first + _RUNS]):
                start, stop = int(run) * step, min((int(run) + 1) * step, rows)
                block = _counted(self.matrix.block(start, stop), start)
                parts.append(block[np.flatnonzero(self.learnt[start:stop])])
                tick(12 * block.nnz)
            batch = scipy.sparse.vstack(parts, format="csr")
            if batch.nnz:
                self.model.partial_fit(batch)

    @property
    def topic_terms(self) -> np.ndarray:
        """Probability of each term in each topic."""
        return self.model.components_ / self.model.components_.sum(axis=1)[:, None]

    def perplexity(self, unigram: bool = False) -> float:
        """Of half of each held-out row's words given the other half; or given nothing, by the terms' frequencies.

        Source: H. Wallach et al., Evaluation Methods for Topic Models, ICML 2009, section 5, with topics in each row from its first half.
        """
        terms = ((self.counts + 1) / (self.counts + 1).sum())[None] if unigram else self.topic_terms
        logarithm = words = 0.0
        for first, block in self.blocks():
            away = np.flatnonzero(~self.learnt[first : first + block.shape[0]])
            if not len(away):
                continue
            seen = scipy.sparse.csr_array(block[away])
            asked = seen.copy()
            seen.data = np.random.default_rng([self._seed, 2, first]).binomial(seen.data.astype(np.int64), 0.5).astype(float)
            asked.data -= seen.data
            shares = np.ones((len(away), 1)) if unigram else self.model.transform(seen)
            for row in range(len(away)):
                place = slice(asked.indptr[row], asked.indptr[row + 1])
                logarithm += asked.data[place] @ np.log(shares[row] @ terms[:, asked.indices[place]])
                words += asked.data[place].sum()
        return float(np.exp(-logarithm / max(words, 1)))


def _told(
    learner: _Learner,
    cut: _Cut,
    target: Target | None,
    top: int,
    history: list[float],
    seed: int,
    plan: ArrayPlan,
    begun: float,
    tick: Callable[[float], None],
) -> TopicModel:
    """What was learnt, the shares of topics in all rows, and coherence."""
    matrix, terms = learner.matrix, learner.topic_terms
    rows, columns = matrix.shape
    top = min(top, columns)
    likeliest = np.argsort(-terms, axis=1, kind="stable")[:, :top]
    made = Documents(target, rows, len(terms))
    weight = np.zeros(len(terms))
    try:

        def read() -> Iterator[Any]:
            for first, block in learner.blocks():
                shares = learner.model.transform(block)
                weight[:] += shares.T @ np.asarray(block.sum(axis=1)).reshape(-1)
                made.put(first, shares)
                tick(12 * block.nnz)
                yield block

        shared = shared_documents(read(), likeliest)
        order = np.argsort(-weight, kind="stable")
        documents = made.finish(order, terms[order], matrix.names)
    except BaseException:
        made.abandon()
        raise
    told, chance = umass(shared), npmi(shared, rows)

    def term(topic: int, column: int) -> TopicTerm:
        name = matrix.names[column] if matrix.names else f"column {column}"
        return TopicTerm(column, name, float(terms[topic, column]))

    found = tuple(
        Topic(
            float(weight[topic] / weight.sum()),
            tuple(term(topic, int(column)) for column in likeliest[topic]),
            float(chance[topic]),
            float(told[topic]),
        )
        for topic in order
    )
    return TopicModel(
        rows,
        columns,
        round(learner.words),
        found,
        learner.held,
        history[-1] if history else None,
        learner.perplexity(unigram=True) if history else None,
        tuple(history),
        len(history) or plan.passes,
        float(chance.mean()),
        float(told.mean()),
        seed,
        plan.budget_bytes,
        plan.peak_bytes,
        time.perf_counter() - begun,
        terms[order],
        documents,
    )


def _check(topics: int, weights: str, passes: int, held_out: float, top: int) -> None:
    for name, value, least in (("topics", topics, 1), ("passes", passes, 1), ("top", top, 2)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name} is {value!r}; give a whole number from {least} on.")
    if not 0 <= held_out < 1:
        raise InputError(f"held_out is {held_out!r}; give a share of the rows, from 0 to less than 1.")
    if weights != "counts":
        raise InputError(f"weights are {weights!r}; a topic model draws words, and {weights} are none that can be drawn: give the counts.")
    _sklearn()


def _sklearn() -> Any:
    try:
        from sklearn.decomposition import LatentDirichletAllocation
    except ImportError:
        raise InputError("topics need scikit-learn, which is not installed: pip install 'sash[sklearn]'.") from None
    return LatentDirichletAllocation


def _target(out: Path, overwrite: bool) -> Target:
    if out.suffix.lower() != ".zarr":
        raise InputError(f"{out} has the suffix {out.suffix or 'none'}; topics are written to a .zarr folder.")
    return Target.of(out, overwrite, folder=True)


def _counted(block: scipy.sparse.csr_array | np.ndarray, first: int) -> scipy.sparse.csr_array:
    """A block as sparse counts in float64: in float32 the terms that are rare among many have no probability left."""
    counts = scipy.sparse.csr_array(block, dtype=np.float64)
    bad = (counts.data < 0) | (np.floor(counts.data) != counts.data)
    if bad.any():
        place = int(np.argmax(bad))
        row = first + int(np.searchsorted(counts.indptr, place, "right")) - 1
        raise InputError(
            f"row {row} has {counts.data[place]:.6g} in column {counts.indices[place]}; a topic model draws words, and takes how often "
            "each occurs: give the counts, not weights of them."
        )
    return counts


def _cut(matrix: Matrix, topics: int, in_memory: bool, batch_rows: int | None, limit: int) -> _Cut:
    """As many rows at once as the budget allows beside the tables, and no more than learning needs."""
    rows, columns = matrix.shape
    asked = min(rows, batch_rows or min(max(256, rows // 20), 4096))
    held = matrix.held_bytes + 8 * _TABLES * topics * columns + 24 * rows + 16 * columns + (16 * rows * topics if in_memory else 0)

    before = np.concatenate([[0], np.cumsum(matrix.row_nnz())])

    def needed(start: int, stop: int) -> int:
        stored = int(before[stop] - before[start])
        # A block, its counts, and what is picked out of it or split in two.
        return matrix.block_bytes(start, stop) + 40 * stored + 8 * _ROW_TABLES * topics * (stop - start)

    room = limit - held
    step = max(1, -(-asked // _RUNS))
    starts = range(0, rows, step)
    batch = max(needed(start, min(start + step, rows)) for start in starts) * _RUNS if room > 0 else 0
    while step > 1 and batch > room > 0:
        step //= 2
        batch = max(needed(start, min(start + step, rows)) for start in range(0, rows, step)) * _RUNS
    if room <= 0 or batch > room:
        least = held + _RUNS * max(needed(row, row + 1) for row in range(rows))
        raise DoesNotFit(
            f"{topics} topics of {columns} columns hold {format_bytes(least)} at least; the budget is {format_bytes(limit)}. "
            "Fewer topics, or fewer columns, hold less.",
            least,
        )
    blocks = tuple(blocks_within(rows, needed, max(batch, min(room, _PASS_BYTES))))
    return _Cut(blocks, step, held + max(batch, max(needed(*block) for block in blocks)))


def _plan(matrix: Matrix, topics: int, cut: _Cut, passes: int, limit: int) -> ArrayPlan:
    rows = matrix.shape[0]
    return ArrayPlan(
        operation=f"{topics} topics",
        method="online variational Bayes",
        shape=(rows, topics),
        dtype="float64",
        tasks=passes * -(-rows // (cut.run_rows * _RUNS)),
        task_shape=(min(rows, cut.run_rows * _RUNS), topics),
        workers=1,
        passes=passes,
        budget_bytes=limit,
        peak_bytes=cut.peak_bytes,
        read_bytes=matrix.file_bytes * (2 * passes + 3),
        written_bytes=8 * topics * (rows + matrix.shape[1]),
        wall_s=None,
        error=0.0,
        methods=(Method("online variational Bayes", cut.peak_bytes, None, 0.0, "chosen: it reads rows a batch at a time"),),
    )

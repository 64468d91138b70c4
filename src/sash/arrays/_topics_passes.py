"""What a topic model has learnt after each pass, beside its output, so that an interrupted run goes on from there with the same numbers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sash.arrays._store_sink import Target, partial_of, sync
from sash.errors import InputError


@dataclass(frozen=True, eq=False)
class Learnt:
    """scikit-learn's model between two passes, and the perplexity after each of them."""

    components: np.ndarray
    expected: np.ndarray
    """exp of the expected logarithms of what is in `components`."""
    batches: int
    random: np.ndarray
    """Of the generator, its 624 numbers."""
    random_place: int
    history: tuple[float, ...]
    passes: int

    @classmethod
    def of(cls, model: Any, history: list[float], passes: int) -> Learnt:
        """What a model has learnt."""
        _, numbers, place, *_ = model.random_state_.get_state()
        return cls(model.components_, model.exp_dirichlet_component_, model.n_batch_iter_, numbers, place, tuple(history), passes)

    def put(self, model: Any) -> None:
        """Into a model that has learnt nothing yet."""
        count, columns = self.components.shape
        model.components_, model.exp_dirichlet_component_ = self.components, self.expected
        model.n_batch_iter_, model.n_iter_, model.n_features_in_ = self.batches, 0, columns
        model.doc_topic_prior_ = model.topic_word_prior_ = 1.0 / count
        model.random_state_ = np.random.RandomState()
        model.random_state_.set_state(("MT19937", self.random, self.random_place, 0, 0.0))


class Passes:
    """A file of them, for an output that is not whole yet."""

    def __init__(self, target: Target, facts: dict[str, Any]) -> None:
        self._target = target
        self._path = partial_of(target.final).with_suffix(".passes")
        self._facts = json.loads(json.dumps(facts))

    def begun(self, restart: bool) -> Learnt | None:
        """What an earlier run learnt; None where a new one starts. Raises `InputError` where that run was another one."""
        if restart:
            self.remove()
        try:
            with self._path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                before = json.loads(str(file["facts"]))
                learnt = Learnt(
                    file["components"],
                    file["expected"],
                    int(file["batches"]),
                    file["random"],
                    int(file["random_place"]),
                    tuple(file["history"].tolist()),
                    int(file["passes"]),
                )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            # Cut off, or none of ours.
            self.remove()
            return None
        changed = [name for name in {**before, **self._facts} if before.get(name) != self._facts.get(name)]
        if changed:
            raise InputError(
                f"{self._path.name} was left by an interrupted run, and since then other things changed: {', '.join(changed)}. "
                "Undo that to go on with it, or say restart=True (--restart) to begin anew."
            )
        return learnt

    def put(self, learnt: Learnt) -> None:
        """Write a pass; the file before stays until this one is whole."""
        fresh = self._path.with_suffix(".passes-new")
        with self._target.room(learnt.components.nbytes + learnt.expected.nbytes), fresh.open("wb") as file:
            np.savez(
                file,
                facts=np.array(json.dumps(self._facts)),
                components=learnt.components,
                expected=learnt.expected,
                random=learnt.random,
                history=np.array(learnt.history),
                batches=np.array(learnt.batches),
                random_place=np.array(learnt.random_place),
                passes=np.array(learnt.passes),
            )
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        sync(self._path.parent)

    def remove(self) -> None:
        """Take it away."""
        for path in (self._path, self._path.with_suffix(".passes-new")):
            path.unlink(missing_ok=True)

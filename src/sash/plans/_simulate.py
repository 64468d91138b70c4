"""What a schedule does to a step, moment by moment, without running it: the session's own rules on the graph's sizes."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sash.plans._graph import Fact, Node
from sash.plans._schedule import Problem, Schedule


class Simulation:
    """Bytes in each moment, and the seconds of the calls that run again."""

    def __init__(self, problem: Problem, schedule: Schedule) -> None:
        self.problem = problem
        self.schedule = schedule
        self.seconds = 0.0
        self._change = np.zeros(problem.moments + 1, dtype=np.int64)
        self._carried = np.zeros(problem.moments + 1, dtype=np.int64)
        self._spikes: dict[int, int] = {}
        """By moment: the most that replaying takes for a while right before it."""
        self._back: Counter[int] = Counter()
        """By moment: what has come back right before it."""
        self._made: dict[Fact, int] = {}
        self._at = 0
        self._run()
        levels = problem.base + np.cumsum(self._change)[:-1]
        before = problem.carried + np.cumsum(self._carried)[:-1]
        for moment, spike in self._spikes.items():
            levels[moment] = max(levels[moment], before[moment] + spike)
        self.levels = levels
        self.peak_bytes = int(levels.max())

    def _hold(self, fact: Fact, start: int, stop: int) -> None:
        stop = min(stop, self.problem.moments)
        if stop > start:
            self._change[start] += fact.bytes
            self._change[stop] -= fact.bytes
            self._carried[min(start + 1, stop)] += fact.bytes
            self._carried[stop] -= fact.bytes

    def _note(self, node: Node, stop: int) -> None:
        """Bits of what the call drew, made right after it."""
        start = node.moment + 1
        for change in (self._change, self._carried):
            change[start] += node.note_bytes
            change[max(start, min(stop, self.problem.moments))] -= node.note_bytes
        self._spikes[start] = max(self._spikes.get(start, 0), node.spread_bytes)

    def _run(self) -> None:
        schedule, problem = self.schedule, self.problem
        for fact in problem.droppable:
            if fact not in schedule.drop and fact not in schedule.keep:
                self._hold(fact, fact.freed, fact.released)
        last, drawn = self._last_needs()
        for node, stop in drawn.items():
            self._note(node, stop)
        always = set(problem.always)
        for fact in schedule.keep:
            stop = max(last.get(fact, 0), fact.released)
            self._hold(fact, fact.released if fact in always else fact.freed, stop)
        asked = [(moment, fact) for fact in schedule.drop for moment in fact.wanted]
        for moment, fact in sorted(asked, key=lambda one: (one[0], one[1].node.number, one[1].place)):
            self._at = moment
            if fact not in self._made:
                self._replay(fact, moment)

    def _last_needs(self) -> tuple[dict[Fact, int], dict[Node, int]]:
        """When the last dropped fact is done with that is computed from a kept one, or from bits that were noted."""
        last: dict[Fact, int] = {}
        drawn: dict[Node, int] = {}
        for fact in self.schedule.drop:
            nodes, sources = self._closure(fact, made=False)
            for source in sources:
                last[source] = max(last.get(source, 0), fact.released)
            for node in nodes:
                if node.note_bytes:
                    drawn[node] = max(drawn.get(node, 0), fact.released)
        return last, drawn

    def _closure(self, fact: Fact, made: bool) -> tuple[set[Node], set[Fact]]:
        nodes, sources, waiting = set(), set(), [fact.node]
        while waiting:
            node = waiting.pop()
            if node in nodes:
                continue
            nodes.add(node)
            for read in node.reads:
                if read in self.schedule.keep:
                    sources.add(read)
                elif not (made and read in self._made and read.released > self._at):
                    waiting.append(read.node)
        return nodes, sources

    def _replay(self, target: Fact, moment: int) -> None:
        nodes = sorted(self._closure(target, made=True)[0], key=lambda node: node.number)
        segment = self.schedule.segments[target.node]
        readers = Counter(fact for node in nodes for fact in node.reads)
        level = spike = 0
        temporary: dict[Fact, int] = {}
        for node in nodes:
            self.seconds += node.again_s
            for over in node.reads if node.in_place and len(node.reads) == 1 else node.over:
                # Its result takes the place of what was made for it alone.
                if readers[over] == 1:
                    level -= temporary.pop(over, 0)
            for fact in node.makes:
                own = self.schedule.segments.get(node, ())
                wanted = fact in self.schedule.drop and fact.released > moment and own == segment[: len(own)]
                if wanted or fact is target:
                    level += fact.bytes
                    self._made[fact] = moment
                    self._hold(fact, moment, fact.released)
                else:
                    temporary[fact] = fact.bytes
                    level += fact.bytes
            spike = max(spike, level + node.scratch_bytes + node.spread_bytes)
            for fact in node.reads:
                readers[fact] -= 1
                if readers[fact] == 0:
                    level -= temporary.pop(fact, 0)
            for fact in node.makes:
                if readers[fact] == 0:
                    level -= temporary.pop(fact, 0)
        self._spikes[moment] = max(self._spikes.get(moment, 0), self._back[moment] + spike)
        self._back[moment] += level

"""What holds the peak, and why, in ranked sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import StrEnum
from math import prod

from sash.cost._kept import is_loss, keeper
from sash.cost._phrases import count, joined, largest_of, makers, named, paths, saved_text, shape, shown, sizes, times, total
from sash.cost._results import Block, Category, Forecast, Moment, Phase, Reason
from sash.units import format_bytes

_LEAST_SHARE = 0.02
"""Of the peak: what holds less than this goes into the last sentence."""
_MOST = 8
"""Sentences between the first, on the whole peak, and the last, on the rest."""
_STATIC = (Category.PARAMETER, Category.BUFFER, Category.INPUT, Category.OPTIMIZER)
_PHASES = {Phase.FORWARD: "forward", Phase.LOSS: "the loss", Phase.BACKWARD: "backward", Phase.OPTIMIZER: "the optimizer's step"}


def reasons(found: Forecast) -> tuple[Reason, ...]:
    """Sentences on what is alive at the peak, most bytes first.

    The first is on the whole peak; the bytes of the others are disjoint and add up to what is alive there.
    """
    moment = found.timeline.peak_moment
    alive = found.timeline.alive(moment)
    if not alive:
        return ()
    peak = _Peak(found, moment, alive)
    groups = _groups(found, alive, moment)
    ranked = sorted(groups.items(), key=lambda item: -total(item[1]))
    told = [item for item in ranked if total(item[1]) >= _LEAST_SHARE * found.peak_bytes][:_MOST]
    sentences = [peak.whole(), *(_reason(peak.tell(key, blocks), blocks) for key, blocks in told)]
    rest = ranked[len(told) :]
    if rest:
        blocks = [block for _, members in rest for block in members]
        parts = [f"{key} {format_bytes(total(members))}" for key, members in rest[:3]]
        sentences.append(Reason(f"The rest holds {format_bytes(total(blocks))}: {joined(parts, len(rest) > 3)}.", total(blocks)))
    return tuple(sentences)


class _Held(StrEnum):
    """What a group of blocks is; what is saved is grouped by what it is saved for instead."""

    PARAMETERS = "parameters"
    BUFFERS = "buffers"
    INPUTS = "inputs"
    STATE = "optimizer state"
    GRADIENTS = "gradients of the parameters"
    SCRATCH = "inside the kernel"
    CASTS = "casts of the weights"
    LOSS = "the loss"
    STATISTICS = "means and deviations of normalisations"
    OUTPUTS = "the model's outputs"
    FORWARD = "tensors in use in forward"
    BACKWARD = "gradients of activations"
    STEP = "temporaries of the optimizer"


_CATEGORIES = {
    Category.PARAMETER: _Held.PARAMETERS,
    Category.BUFFER: _Held.BUFFERS,
    Category.INPUT: _Held.INPUTS,
    Category.OPTIMIZER: _Held.STATE,
    Category.GRADIENT: _Held.GRADIENTS,
    Category.SCRATCH: _Held.SCRATCH,
}


def _groups(found: Forecast, alive: Sequence[Block], moment: int) -> dict[str, list[Block]]:
    weights = {(block.module, block.shape) for block in alive if block.category is Category.PARAMETER}
    moments = found.timeline.moments
    groups: dict[str, list[Block]] = defaultdict(list)
    for block in alive:
        groups[_key(block, moments, moment, weights)].append(block)
    return groups


def _key(block: Block, moments: Sequence[Moment], moment: int, weights: set[tuple[str, tuple[int, ...]]]) -> str:
    if block.category in _CATEGORIES:
        return _CATEGORIES[block.category]
    born = moments[block.born].phase
    if block.operator == "aten._to_copy" and (block.module, block.shape) in weights and born is Phase.FORWARD:
        return _Held.CASTS
    if born is Phase.LOSS or is_loss(block.operator) or is_loss(block.kept_for):
        return _Held.LOSS
    if block.category is Category.SAVED:
        family = keeper(block.kept_for).name
        return _Held.STATISTICS if family.endswith("normalisation") and family == _own_family(block) else f"saved for {family}"
    if born is Phase.FORWARD and moments[moment].phase is not Phase.FORWARD and block.died == len(moments):
        return _Held.OUTPUTS
    return {Phase.FORWARD: _Held.FORWARD, Phase.BACKWARD: _Held.BACKWARD, Phase.OPTIMIZER: _Held.STEP}[born]


def _own_family(block: Block) -> str:
    """The family of the operator that made a block: normalisation keeps a mean and a deviation that it makes itself."""
    return keeper(block.operator.removeprefix("aten.").replace("_", "")).name


class _Peak:
    """The peak of one forecast, told."""

    def __init__(self, found: Forecast, moment: int, alive: Sequence[Block]) -> None:
        self.found, self.moment, self.alive = found, moment, alive
        self.at = found.timeline.moments[moment]
        self.kinds = {layer.path: layer.kind for layer in found.layers}
        self.by_category: dict[Category, int] = defaultdict(int)
        for block in alive:
            self.by_category[block.category] += block.bytes
        self.params = self.by_category[Category.PARAMETER]

    def whole(self) -> Reason:
        """Where the peak is, and its largest parts."""
        held = self.by_category
        saved, gradients = held[Category.SAVED], held[Category.GRADIENT]
        working = held[Category.TEMPORARY] + held[Category.SCRATCH]
        parts = [
            (sum(held[category] for category in _STATIC), "is there before the step starts"),
            (saved, "is saved for backward"),
            (gradients, "is gradients of the parameters"),
            (working, "is temporary"),
        ]
        shown = joined([f"{format_bytes(size)} {what}" for size, what in sorted(parts, reverse=True) if size])
        where = f" at {named(self.at.module)}" if self.at.module else ""
        calls = f"call {self.moment + 1} of {len(self.found.timeline.moments)}"
        text = f"The peak, {format_bytes(self.found.peak_bytes)}, comes in {_PHASES[self.at.phase]}{where} ({self.at.operator}, {calls})"
        text = f"{text}: {shown}."
        activations = saved + (working if self.at.phase is not Phase.OPTIMIZER else 0)
        if self.params and activations >= 1.5 * self.params:
            text += f" Activations are {times(activations / self.params)} the parameters ({format_bytes(self.params)})."
        return Reason(text, self.found.peak_bytes, (self.at.module,) if self.at.module else ())

    def tell(self, key: str, blocks: Sequence[Block]) -> str:
        """The sentence on one group."""
        tellers: dict[str, Callable[[Sequence[Block]], str]] = {
            _Held.PARAMETERS: self._parameters,
            _Held.BUFFERS: self._buffers,
            _Held.INPUTS: self._inputs,
            _Held.STATE: self._state,
            _Held.GRADIENTS: self._gradients,
            _Held.SCRATCH: self._scratch,
            _Held.CASTS: self._casts,
            _Held.LOSS: self._loss,
            _Held.STATISTICS: self._statistics,
            _Held.OUTPUTS: self._outputs,
            _Held.FORWARD: self._forward,
            _Held.BACKWARD: self._backward,
            _Held.STEP: self._step,
        }
        return tellers[key](blocks) if key in tellers else f"{saved_text(blocks, self.kinds)}."

    def _parameters(self, blocks: Sequence[Block]) -> str:
        owned: dict[str, int] = defaultdict(int)
        for block in blocks:
            owned[block.module] += block.bytes
        largest = [f"{named(path)} ({format_bytes(size)})" for path, size in sorted(owned.items(), key=lambda item: -item[1])[:2]]
        held = f"Parameters hold {format_bytes(total(blocks))}"
        if len(owned) == 1:
            return f"{held}, all in {named(blocks[0].module)}."
        return f"{held}; the largest share is that of {largest[0]}, then {largest[1]}."

    def _buffers(self, blocks: Sequence[Block]) -> str:
        return f"Buffers, which are not trained, hold {format_bytes(total(blocks))}; the largest is {shown(blocks[0])}."

    def _inputs(self, blocks: Sequence[Block]) -> str:
        return f"Inputs hold {format_bytes(total(blocks))}; they live as long as the step."

    def _state(self, blocks: Sequence[Block]) -> str:
        name, size = blocks[0].operator, total(blocks)
        share = f", {times(size / self.params)} the parameters" if self.params else ""
        return f"{name}'s state holds {format_bytes(size)}{share}: {_STATE.get(name, 'what it remembers from step to step')}."

    def _gradients(self, blocks: Sequence[Block]) -> str:
        size = total(blocks)
        final = sum(block.bytes for block in self.found.timeline.blocks if block.category is Category.GRADIENT)
        if size < 0.99 * final:
            by_now = f"Gradients of the parameters hold {format_bytes(size)} by now"
            return f"{by_now}, of the {format_bytes(final)} they come to when backward ends."
        return f"Gradients of the parameters hold {format_bytes(size)}, one number for each trained parameter, until the step ends."

    def _scratch(self, blocks: Sequence[Block]) -> str:
        size, where = format_bytes(total(blocks)), named(blocks[0].module)
        if "convolution" in self.at.operator:
            backward = self.at.phase is Phase.BACKWARD
            what = "the gradient, input, weights and results" if backward else "its input, weights and result"
            return (
                f"The convolution at work, {where}, takes {size} inside its kernel and gives it back: oneDNN computes in blocked layouts "
                f"of its own, so those of {what} that lie in another layout are there twice."
            )
        return f"The operator at work, {self.at.operator} of {where}, takes {size} inside its kernel and gives it back when it returns."

    def _casts(self, blocks: Sequence[Block]) -> str:
        bits = 8 * blocks[0].bytes // max(prod(blocks[0].shape), 1)
        at_work = self.at.phase is Phase.FORWARD and all(block.module == self.at.module for block in blocks)
        until = "lives as long as the layer reads it" if at_work else "is kept until autocast ends, and for backward"
        return (
            f"Autocast's {bits}-bit copies of {makers(blocks, self.kinds, 'the weights of')} hold {format_bytes(total(blocks))}: "
            f"each weight is cast once and the copy {until}, beside the parameter itself."
        )

    def _loss(self, blocks: Sequence[Block]) -> str:
        large = [block for block in blocks if block.bytes >= 0.1 * blocks[0].bytes]
        parts = [f"{_LOSS.get(block.operator, block.operator)} ({format_bytes(block.bytes)})" for block in large]
        values = "scores" if any("softmax" in block.operator for block in large) else "values"
        return f"The loss over {shape(blocks[0])} {values} holds {format_bytes(total(blocks))}: {joined(parts[:4], len(parts) > 4)}."

    def _statistics(self, blocks: Sequence[Block]) -> str:
        return f"Normalisation keeps {format_bytes(total(blocks))} of means and deviations for its backward, in {len(blocks)} tensors."

    def _outputs(self, blocks: Sequence[Block]) -> str:
        return f"The model's outputs, {sizes(blocks)}, stay until the step ends, because the step still refers to them."

    def _forward(self, blocks: Sequence[Block]) -> str:
        made = [block for block in blocks if block.born == self.moment]
        waiting = [block for block in blocks if block.born < self.moment]
        if not waiting:
            return f"The result of {makers(made, self.kinds)} takes {sizes(made)} while it is written."
        text = f"{count(waiting, 'result')} of earlier layers ({paths(waiting)}) {'holds' if len(waiting) == 1 else 'hold'} "
        text += f"{format_bytes(total(waiting))}: a layer has yet to read them, the one at work or a later one that a skip leads to"
        return f"{text}; beside them {named(self.at.module)} writes {sizes(made)}." if made else f"{text}."

    def _backward(self, blocks: Sequence[Block]) -> str:
        text = f"Backward carries {format_bytes(total(blocks))} of gradients of activations, in {count(blocks, 'tensor')}; "
        text += largest_of(blocks)
        moments = self.found.timeline.moments
        # Who reads a gradient last is at work in the moment before it dies.
        waiting = [block for block in blocks if self.at.module not in (block.module, moments[block.died - 1].module)]
        if total(waiting) > 0.1 * total(blocks):
            readers = list(dict.fromkeys(named(moments[block.died - 1].module) for block in waiting))
            text += f"; {format_bytes(total(waiting))} of it waits until backward has reached {joined(readers[:2], len(readers) > 2)}"
        return f"{text}."

    def _step(self, blocks: Sequence[Block]) -> str:
        owners = {block.shape: block.module for block in reversed(self.alive) if block.category is Category.PARAMETER}
        owner = owners.get(blocks[0].shape)
        size = f"{shape(blocks[0])}, as a weight of {named(owner)} is" if owner is not None else shape(blocks[0])
        return (
            f"The optimizer's step computes in {count(blocks, 'temporary', 'temporaries')}, {format_bytes(total(blocks))} in all, "
            f"and updates one parameter after the other; the largest here is {size}."
        )


_MOMENTS = "two moments for each trained parameter, the running means of its gradient and of its square"
_STATE = {
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam"), _MOMENTS),
    "Adamax": "for each trained parameter the running mean of its gradient and the largest one",
    "SGD": "momentum keeps one running sum for each trained parameter",
    "RMSprop": "the running mean of each gradient's square, and what its options add",
    "Adagrad": "the sum of each gradient's squares",
    "Adadelta": "for each trained parameter the running means of the squares of its gradient and of its change",
}
_LOSS = {
    "aten._log_softmax": "the log-softmax, saved for backward",
    "aten._log_softmax_backward_data": "the gradient of the scores",
    "aten.nll_loss_backward": "the gradient of the log-softmax",
    "aten.nll_loss2d_backward": "the gradient of the log-softmax",
}


def _reason(text: str, blocks: Sequence[Block]) -> Reason:
    return Reason(text, total(blocks), tuple(dict.fromkeys(block.module for block in blocks if block.module)))

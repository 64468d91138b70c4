"""What backward keeps a tensor for, in words: one entry for each family of autograd nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Keeper:
    """A family of operators whose backward needs something saved."""

    name: str
    """Plural or a mass noun, as it stands after "saved for"."""
    why: str
    """What its backward does with it, as it stands after the name and a comma."""


_WEIGHTS = "whose backward needs the input for the gradient of the weights"
_STRAIGHT = {
    "convolutions": _WEIGHTS,
    "linear layers": _WEIGHTS,
    "matrix products": "whose backward needs each factor for the other one's gradient",
    "batch normalisation": "whose backward needs its input again",
    "layer normalisation": "whose backward needs its input again",
    "group normalisation": "whose backward needs its input again",
    "max pooling": "whose backward needs its input and, 8 bytes each, the place of every maximum",
    "attention": "whose backward needs queries, keys, values and its result to make the scores again",
    "softmax": "whose backward needs its result, one weight for every score",
    "ReLU": "whose backward needs its result to see where that is above zero",
    "dropout": "whose backward needs the mask of what was kept",
    "recurrent layers": "whose backward needs the gates and states of every time step",
    "products": "whose backward needs each factor for the other one's gradient",
}
_KEEPERS = {name: Keeper(name, why) for name, why in _STRAIGHT.items()}
_NODES = (
    ("conv", "convolutions"),
    ("addmm|linear|^t$", "linear layers"),
    ("mm$|baddbmm|^mv$|^dot$|einsum", "matrix products"),
    ("batchnorm", "batch normalisation"),
    ("layernorm|rmsnorm", "layer normalisation"),
    ("groupnorm", "group normalisation"),
    ("maxpool", "max pooling"),
    ("scaleddotproduct|attention", "attention"),
    ("softmax", "softmax"),
    ("^relu$|^threshold$", "ReLU"),
    ("dropout", "dropout"),
    ("rnn|lstm|gru", "recurrent layers"),
    ("^mul$|^div$", "products"),
)
_FROM_RESULT = frozenset({"sigmoid", "tanh", "exp", "sqrt", "rsqrt", "reciprocal"})


@cache
def keeper(node: str) -> Keeper:
    """The family of an autograd node, by a name such as `NativeBatchNormBackward0`."""
    bare = re.sub(r"Backward\d*$", "", node)
    for pattern, name in _NODES:
        if re.search(pattern, bare.lower()):
            return _KEEPERS[name]
    name = bare.upper() if len(bare) <= 4 else bare
    needs = "its result" if bare.lower() in _FROM_RESULT else "its input again"
    return Keeper(name, f"whose backward needs {needs}")


def is_loss(node_or_operator: str) -> bool:
    """Whether an autograd node or an operator is part of a loss: its name says so, or it is the softmax inside cross-entropy."""
    return re.search(r"loss|log_?softmax|cross_?entropy", node_or_operator.lower()) is not None

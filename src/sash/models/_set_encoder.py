"""An encoder of sets: elements see each other through a context that is pooled from all of them and gates each.

Source: B. Varadarajan and others, "MultiPath++: Efficient Information Fusion and Trajectory Aggregation for Behavior Prediction", 2021,
section III (context gating, and its stack with running means in the place of skip connections).
"""

# ruff: noqa: F722 (jaxtyping writes axes as text, which is no annotation to ruff)
from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Integer
from torch import Tensor, nn

from sash.models._lengths import check_lengths, ended
from sash.models._pictures import check_counts
from sash.ops import set_max

Pool = Callable[[Tensor, Tensor | None], Tensor]
"""Elements (batch, set, channel) and lengths → one vector a set, as `sash.ops.set_max` and `set_mean`."""


def set_encoder(in_channels: int = 3, out_channels: int = 10, *, width: int = 64, blocks: int = 3, pool: Pool = set_max) -> SetEncoder:
    """An encoder of sets: (batch, set, in_channels), lengths → (batch, out_channels), whatever the order of a set's elements.

    An embedding, `blocks` of context gating, and a linear layer behind the last context; (in + 1) · width + 4 · blocks · (width² + width) +
    (width + 1) · out parameters, which are 50 826 by default. Memory and time grow with the elements, not with their pairs.
    Raises `InputError` for a count below 1.
    """
    check_counts("a set encoder", in_channels=in_channels, out_channels=out_channels, width=width, blocks=blocks)
    return SetEncoder(in_channels, out_channels, width, blocks, pool)


class SetEncoder(nn.Module):
    """`set_encoder` as a module."""

    def __init__(self, in_channels: int, out_channels: int, width: int, blocks: int, pool: Pool) -> None:
        super().__init__()
        self.embed = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(ContextGating(width, pool) for _ in range(blocks))
        self.head = nn.Linear(width, out_channels)

    def forward(
        self, values: Float[Tensor, "batch set channel"], lengths: Integer[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch out"]:
        """One vector a set, of its first `lengths` elements, or of all; what lies behind them is not read, be it NaN.

        A set without elements has a vector of its own. Raises `InputError` for another rank or other channels, and for lengths that are not
        one whole number a set, or that lie beyond the sets (not looked at where tensors have no values).
        """
        check_lengths("sets", values, self.embed.in_features, lengths)
        elements = self.embed(ended(values, lengths))
        context = elements.new_ones(elements.shape[0], elements.shape[2])
        for count, block in enumerate(self.blocks, 1):
            fresh, pooled = block(elements, context, lengths)
            # Means of everything so far, the embedding and the context of ones among it.
            elements = elements + (fresh - elements) / (count + 1)
            context = context + (pooled - context) / (count + 1)
        return self.head(context)


class ContextGating(nn.Module):
    """Each element's vector times one made of the context; the pool of the products is the new context."""

    def __init__(self, width: int, pool: Pool = set_max) -> None:
        super().__init__()
        self.on_elements, self.on_context = _two_layers(width), _two_layers(width)
        self.pool = pool

    def forward(
        self,
        elements: Float[Tensor, "batch set channel"],
        context: Float[Tensor, "batch channel"],
        lengths: Integer[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch set channel"], Float[Tensor, "batch channel"]]:
        """The gated elements and the new context."""
        gated = self.on_elements(elements) * self.on_context(context)[:, None]
        return gated, self.pool(gated, lengths)


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

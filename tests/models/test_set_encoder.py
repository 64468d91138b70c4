"""The set encoder: it does not care about order, nor about what lies behind a set's end."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sash.errors import InputError
from sash.models import ContextGating, set_encoder, train
from sash.ops import set_max, set_mean

POOLS = {"max": set_max, "mean": set_mean}
lengths_of_sets = st.lists(st.integers(0, 7), min_size=1, max_size=5)


def written_out(model, elements):
    """The encoder for one set, element by element."""
    rows = [model.embed(element) for element in elements]
    seen, contexts = [[row] for row in rows], [torch.ones(model.embed.out_features, dtype=torch.float64)]
    for block in model.blocks:
        context = torch.stack(contexts).mean(0)
        rows = [block.on_elements(torch.stack(past).mean(0)) * block.on_context(context) for past in seen]
        for past, row in zip(seen, rows, strict=True):
            past.append(row)
        stacked = torch.stack(rows)
        contexts.append(stacked.amax(0) if block.pool is set_max else stacked.mean(0))
    return model.head(torch.stack(contexts).mean(0))


@settings(max_examples=25)
@given(lengths_of_sets, st.integers(0, 99), st.sampled_from(sorted(POOLS)), st.sampled_from([0.0, 1e30, float("nan"), float("inf")]))
def test_each_set_has_the_vector_of_its_elements_alone(lengths, seed, pool, filling):
    torch.manual_seed(seed)
    model = set_encoder(2, 3, width=5, blocks=2, pool=POOLS[pool]).double()
    values = torch.full((len(lengths), 7, 2), filling, dtype=torch.float64)
    for one, length in zip(values, lengths, strict=True):
        one[:length] = torch.randn(length, 2, dtype=torch.float64)
    values.requires_grad_()
    found = model(values, torch.tensor(lengths))
    for row, one, length in zip(found, values.detach(), lengths, strict=True):
        if length:
            torch.testing.assert_close(row, written_out(model, one[:length]), rtol=1e-10, atol=1e-12)
    found.square().sum().backward()
    assert found.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(not gradient[length:].any() for gradient, length in zip(values.grad, lengths, strict=True))


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_the_order_of_a_sets_elements_makes_no_difference(pool):
    torch.manual_seed(0)
    model = set_encoder(2, 3, width=5, pool=pool).double()
    values = torch.randn(4, 9, 2, dtype=torch.float64)
    torch.testing.assert_close(model(values[:, torch.randperm(9)]), model(values), rtol=1e-12, atol=1e-12)


def test_a_context_gates_each_element_and_is_the_pool_of_the_gated():
    torch.manual_seed(0)
    block = ContextGating(4).double()
    elements, context = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    found, pooled = block(elements, context)
    for batch in range(2):
        for element in range(3):
            expected = block.on_elements(elements[batch, element]) * block.on_context(context[batch])
            torch.testing.assert_close(found[batch, element], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(pooled, found.amax(1))


def test_it_has_the_parameters_its_docstring_says():
    assert sum(parameter.numel() for parameter in set_encoder().parameters()) == 50_826
    wide = set_encoder(4, 6, width=8, blocks=2)
    assert sum(parameter.numel() for parameter in wide.parameters()) == 5 * 8 + 8 * (64 + 8) + 9 * 6


def test_it_learns_a_question_about_whole_sets_of_different_sizes():
    # Is there an element with both coordinates above 0.5? No element can tell for the others.
    torch.manual_seed(0)
    values, lengths = torch.rand(200, 6, 2), torch.randint(1, 7, (200,))
    inside = torch.arange(6) < lengths[:, None]
    labels = ((values > 0.5).all(2) & inside).any(1).long()
    model = set_encoder(2, 2, width=16, blocks=2)
    settings = {"loss": F.cross_entropy, "optimizer": partial(torch.optim.Adam, lr=0.01), "epochs": 12, "batch": 25, "progress": False}
    history = train(model, ((values, lengths), labels), **settings)
    assert history.epochs[-1].train["loss"] < 0.3


def test_sets_may_be_empty_missing_exported_and_of_half_precision():
    torch.manual_seed(0)
    model, values, lengths = set_encoder(2, 3, width=8), torch.randn(4, 6, 2), torch.tensor([6, 0, 3, 1])
    assert model(values[:0], lengths[:0]).shape == (0, 3)
    assert model(values[:, :0]).isfinite().all()
    exported = torch.export.export(model, (values, lengths)).module()
    torch.testing.assert_close(exported(values, lengths), model(values, lengths))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(values, lengths)
    assert (found.float() - model(values, lengths)).norm() <= 0.05 * model(values, lengths).norm()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: set_encoder(width=0), "width=0: a set encoder has at least 1"),
        (lambda: set_encoder()(torch.zeros(4, 3)), "the sets are 4x3 of torch.float32; they have to be batch x length x 3, floating"),
        (lambda: set_encoder()(torch.zeros(2, 4, 3, dtype=torch.int64)), "the sets are 2x4x3 of torch.int64"),
        (lambda: set_encoder()(torch.zeros(2, 4, 3), torch.tensor([1, 5])), "lengths go from 1 to 5; sets of 2x4x3 .* from 0 to 4"),
        (lambda: set_encoder()(torch.zeros(2, 4, 3), torch.tensor([True, True])), "lengths are 2 of torch.bool"),
        (lambda: set_encoder()(torch.zeros(2, 4, 3), torch.zeros(2, dtype=torch.int64, device="meta")), "on cpu and lengths on meta"),
    ],
)
def test_what_does_not_go_together_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()

"""The largest size that keeps a budget, and a budget as a test."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import sash
from sash.errors import DoesNotFit, InputError, ModelError
from sash.plans import Largest, _assert, _largest
from sash.plans._headroom import needed, usable
from sash.plans._lever import pull
from sash.plans._microbatch import MicroBatch


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(x).relu()
        return self.second(x if mask is None else x * mask)


class InSixteens(Convolutions):
    """As a U-Net without care for odd sides: only multiples of 16."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(x)
        return x + nn.functional.interpolate(nn.functional.max_pool2d(x, 16), scale_factor=16)


class Tokens(nn.Module):
    """Positions up to 128."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.places = nn.Parameter(torch.zeros(128, 16))
        self.mix = nn.Linear(16, 16)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.words(ids) + self.places[: ids.shape[1]]
        x = x if mask is None else x * mask[..., None]
        return torch.softmax(self.mix(x) @ x.mT, -1) @ x


class FourOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights


def assert_largest(found: Largest) -> None:
    """What is named fits and the next does not, by fresh forecasts of both."""
    assert found.peak_bytes <= usable(found.budget_bytes)
    assert sash.forecast(found.work).peak_bytes == found.peak_bytes
    assert found.next_size == found.size + found.step
    assert found.next_peak_bytes is None or found.next_peak_bytes > usable(found.budget_bytes)


@pytest.mark.parametrize("start", [1, 2, 40])
@pytest.mark.parametrize("train", [False, True])
def test_the_largest_batch_fits_and_one_more_does_not(start, train):
    work = sash.Workload(Convolutions(), f"{start}x3x32x32", train=train)
    found = sash.largest(work, "3 MB", prove=False)
    assert_largest(found)
    assert found.inputs == (f"{found.size}x3x32x32",)
    more = sash.Workload(Convolutions(), f"{found.size + 1}x3x32x32", train=train)
    assert sash.forecast(more).peak_bytes == found.next_peak_bytes > 3_000_000


def test_the_answer_does_not_depend_on_where_the_search_starts():
    sizes = {sash.largest(sash.Workload(Convolutions(), f"{start}x3x32x32"), "3 MB", prove=False).size for start in (1, 7, 64)}
    assert len(sizes) == 1


def test_few_forecasts_are_needed_where_the_peak_grows_evenly():
    found = sash.largest(sash.Workload(Convolutions(), "2x3x32x32", train=True), "30 MB", prove=False)
    assert found.size > 50
    assert found.forecasts <= 5


def test_every_input_of_the_same_batch_grows_and_no_other():
    inputs = {"x": "4x3x32x32", "mask": "4x1x32x32"}
    found = sash.largest(sash.Workload(Convolutions(), inputs), "3 MB", prove=False)
    assert found.inputs == (f"{found.size}x3x32x32", f"{found.size}x1x32x32")
    shared = sash.largest(sash.Workload(Convolutions(), {"x": "4x3x32x32", "mask": "1x1x32x32"}), "3 MB", prove=False)
    assert shared.inputs == (f"{shared.size}x3x32x32", "1x1x32x32")


def test_a_side_is_one_that_the_model_takes():
    found = sash.largest(sash.Workload(InSixteens(), "2x3x64x64"), "3 MB", vary="side", prove=False)
    assert_largest(found)
    assert found.step == 16
    assert found.size % 16 == 0
    assert found.inputs == (f"2x3x{found.size}x{found.size}",)


def test_sides_grow_in_proportion():
    found = sash.largest(sash.Workload(InSixteens(), "2x3x64x128"), "13 MB", vary="side", prove=False)
    assert_largest(found)
    height, width = map(int, found.inputs[0].split("x")[2:])
    assert width == found.size
    assert height % 16 == width % 16 == 0
    assert abs(height - width / 2) <= 8


def test_three_sides_grow_together():
    work = sash.Workload(nn.Conv3d(2, 4, 3, padding=1), "1x2x8x8x8")
    found = sash.largest(work, "2 MB", vary="side", prove=False)
    assert_largest(found)
    assert found.inputs == (f"1x2x{found.size}x{found.size}x{found.size}",)


def test_the_length_of_tokens_is_their_second_dimension_and_the_mask_goes_with_it():
    work = sash.Workload(Tokens(), {"ids": "4x16:int64<50", "mask": "4x16"})
    found = sash.largest(work, "300 KB", vary="length", prove=False)
    assert_largest(found)
    assert found.inputs == (f"4x{found.size}", f"4x{found.size}")
    assert str(found.work.inputs["ids"]) == f"4x{found.size}:int64<50"


def test_where_the_model_takes_no_more_that_is_said():
    found = sash.largest(sash.Workload(Tokens(), "4x16:int64<50"), "1 GB", vary="length", prove=False)
    assert found.size == 128
    assert found.next_peak_bytes is None
    assert "129" in found.limit
    assert "129" in str(found)


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (nn.Conv1d(8, 8, 3), "2x8x64", "2x8x{}"),
        (nn.LSTM(8, 8, batch_first=True), "2x64x8", "2x{}x8"),
        (nn.Conv1d(8, 8, 3), "2x8x8", "2x8x{}"),
    ],
)
def test_of_three_dimensions_the_model_says_which_is_the_length(model, inputs, expected):
    found = sash.largest(sash.Workload(model, inputs), "200 KB", vary="length", prove=False)
    assert_largest(found)
    assert found.inputs == (expected.format(found.size),)
    assert found.size > 64


def test_given_values_are_repeated_so_that_they_stay_valid():
    ids = torch.tensor([[3, 49, 7], [1, 0, 2]])
    found = sash.largest(sash.Workload(Tokens(), ids), "30 KB", prove=False)
    (grown,) = found.work.inputs
    assert found.size > 2
    assert torch.equal(grown, ids[torch.arange(found.size) % 2])


@pytest.mark.parametrize(
    "given",
    [
        torch.rand(2, 3, 16, 16),
        torch.rand(2, 3, 16, 16).to(memory_format=torch.channels_last),
        torch.rand(8, 3, 16, 16)[:2],
        torch.rand(1, 3, 16, 16).expand(2, -1, -1, -1),
        torch.rand(2, 3, 16, 16, requires_grad=True),
        torch.empty(2, 3, 16, 16, device="meta"),
    ],
    ids=["plain", "channels-last", "part of a batch", "expanded", "with gradient", "meta"],
)
def test_given_tensors_keep_their_kind(given):
    found = sash.largest(sash.Workload(Convolutions(), given, train=True), "3 MB", prove=False)
    assert_largest(found)
    (grown,) = found.work.inputs
    assert (grown.dtype, grown.device, grown.requires_grad, grown.is_leaf) == (given.dtype, given.device, given.requires_grad, True)
    assert grown.is_contiguous(memory_format=torch.channels_last) == given.is_contiguous(memory_format=torch.channels_last)


def test_inputs_within_inputs_grow_too():
    class Scaled(Convolutions):
        def forward(self, pair):
            return super().forward(pair[0]) * pair[1].view(-1, 1, 1, 1)

    found = sash.largest(sash.Workload(Scaled(), (("4x3x16x16", "4"),)), "3 MB", prove=False)
    assert_largest(found)
    assert found.inputs == (f"{found.size}x3x16x16", f"{found.size}")


def test_a_batch_may_go_by_pairs_or_start_at_two():
    class Pairs(nn.Linear):
        def forward(self, input):
            return super().forward(input.view(-1, 2, 8).sum(1))

    found = sash.largest(sash.Workload(Pairs(8, 8), "4x8"), "20 KB", prove=False)
    assert_largest(found)
    assert found.step == 2
    with pytest.raises(DoesNotFit, match="batch 2, the least that it takes"):  # one sample has no variance
        sash.largest(sash.Workload(nn.BatchNorm1d(8), "4x8", train=True), "200 B", prove=False)


def test_a_planned_step_has_a_largest_batch_too():
    work = sash.Workload(Convolutions(), "8x3x32x32", train=True)
    planned = pull(work, [MicroBatch(4)])
    found = sash.largest(planned, "3 MB", prove=False)
    assert_largest(found)
    # The whole batch stays in memory beside the part at work.
    whole = MicroBatch(4).on_work(sash.Workload(Convolutions(), f"{4 * found.size}x3x32x32", train=True))
    assert sash.forecast(whole).peak_bytes == found.peak_bytes


@pytest.fixture(scope="module")
def proven():
    return sash.largest(sash.Workload(Convolutions(), "2x3x32x32", train=True), "30 MB")


def test_one_measured_run_proves_it(proven):
    found = proven
    assert found.kept is True
    assert found.measurement.peak_bytes <= 30_000_000
    assert found.measurement.setting.startswith(f"{found.size}x3x32x32")
    told = json.loads(found.to_json())
    assert told["schema"] == "sash.largest/1"
    assert told["measured_peak_bytes"] == found.measurement.peak_bytes
    assert (told["size"], told["inputs"], told["kept"]) == (found.size, list(found.inputs), True)


def test_a_proof_over_the_budget_is_told(proven, monkeypatch):
    monkeypatch.setattr(_largest, "measure", lambda work: replace(proven.measurement, peak_bytes=3_000_001))
    found = sash.largest(sash.Workload(Convolutions(), "2x3x32x32"), "3 MB")
    assert found.kept is False
    assert "over the budget" in str(found)


class Looked(nn.Module):
    """Its table ends where no shape tells."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.places(torch.arange(ids.shape[1])) * ids[..., None]


def test_a_size_that_does_not_run_is_told_with_what_the_model_said():
    with pytest.raises(ModelError, match=r"length \d+ peaks at .* and fits; the run that was to prove it failed: .*index out of range"):
        sash.largest(sash.Workload(Looked(), "2x16:int64<2"), "1 MB", vary="length")


def test_a_budget_below_the_smallest_size_is_refused_with_the_least_bytes():
    work = sash.Workload(InSixteens(), "2x3x64x64")
    with pytest.raises(DoesNotFit, match="side 16, the least that it takes") as raised:
        sash.largest(work, "1 KB", vary="side")
    found = sash.largest(work, raised.value.least_bytes, vary="side", prove=False)
    assert found.size == 16
    assert raised.value.least_bytes == needed(found.peak_bytes)


@pytest.mark.parametrize(
    ("model", "inputs", "budget", "vary", "told"),
    [
        (Convolutions(), "2x3x32x32", "6 gigs", "batch", "'6 gigs' is not a number of bytes"),
        (Convolutions(), "2x3x32x32", 0, "batch", "the budget is 0 bytes"),
        (Convolutions(), "2x3x32x32", "1 GB", "bath", "'batch' is the nearest"),
        (FourOnly(), "4x3", "1 MB", "batch", "takes the batch 4 only"),
        (nn.Linear(16, 4), "16", "1 MB", "batch", "has the input a batch dimension"),
        (nn.ReLU(), torch.tensor(1.0), "1 MB", "batch", "no input has a dimension; inputs: a single number"),
        (nn.ReLU(), torch.rand(0, 3), "1 MB", "batch", "an input is empty; inputs: 0x3"),
        (nn.Conv1d(3, 4, 3), "2x3x32", "1 MB", "side", "vary='length'"),
        (nn.Linear(3, 4), "3", "1 MB", "length", "no input has one beside its batch"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), "2x3x32x32", "1 GB", "side", "takes the side 32 only"),
        (nn.ReLU(), "2x1", 10**15, "batch", "the budget does not limit the batch"),
    ],
)
def test_what_cannot_be_read_or_varied_is_refused(model, inputs, budget, vary, told):
    with pytest.raises(InputError, match=told):
        sash.largest(sash.Workload(model, inputs), budget, vary, prove=False)


def test_a_step_within_its_budget_passes_and_gives_its_forecast():
    work = sash.Workload(Convolutions(), "2x3x32x32", train=True)
    expected = sash.forecast(work).peak_bytes
    assert sash.assert_fits(work, expected).peak_bytes == expected


def test_a_step_over_its_budget_fails_with_the_peak_the_reasons_and_what_fits():
    work = sash.Workload(Convolutions(), "4x3x32x32", train=True)
    peak = sash.forecast(work).peak_bytes
    with pytest.raises(AssertionError) as raised:
        sash.assert_fits(work, int(peak * 0.8))
    told = str(raised.value)
    assert f"({peak} bytes)" in told
    assert f"({int(peak * 0.8)} bytes)" in told
    assert "1. The peak" in told
    assert "The largest batch that fits as it is: 3" in told
    assert "sash.fit" in told or "the least is" in told


def test_a_measured_step_is_held_to_its_budget(proven, monkeypatch):
    monkeypatch.setattr(_assert, "measure", lambda work: proven.measurement)
    peak = proven.measurement.peak_bytes
    assert sash.assert_fits(proven.work, peak, measured=True) is proven.measurement
    with pytest.raises(AssertionError, match=rf"measured, peaks at .* \({peak} bytes\)"):
        sash.assert_fits(proven.work, peak - 1, measured=True)


@pytest.mark.parametrize("budget", ["6 gigs", 0])
def test_a_budget_that_is_none_is_wrong_use_and_no_failed_test(budget):
    with pytest.raises(InputError, match="bytes"):
        sash.assert_fits(sash.Workload(nn.Linear(3, 3), "2x3"), budget)


def test_pytest_points_at_the_test_that_failed():
    with pytest.raises(AssertionError) as raised:
        sash.assert_fits(sash.Workload(nn.Linear(64, 64), "8x64"), "10 KB")
    shown = raised.traceback.filter(raised)
    assert {entry.path.name for entry in shown} == {"test_largest.py"}

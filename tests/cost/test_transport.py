"""What travels to the measuring process, and how."""

import importlib.util
import io
import sys
import textwrap

import pytest
import torch
from torch import nn

from sash.cost import Workload
from sash.cost._transport import Parcel, receive


def through(work):
    """The workload as the other side of the pipe has it, and the parcel."""
    parcel, pipe = Parcel(work), io.BytesIO()
    parcel.write(pipe)
    pipe.seek(0)
    return receive(pipe), parcel


def test_storages_are_shared_on_arrival_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    whole = torch.arange(8.0)
    came, parcel = through(Workload(model, (whole[:4], whole[4:])))
    assert came.model[0].weight is came.model[1].weight
    first, second = came.inputs
    assert first.untyped_storage()._cdata == second.untyped_storage()._cdata
    assert second.tolist() == [4, 5, 6, 7]
    assert sum(size for size, _, _ in parcel.storages) == (16 + 4 + 4 + 8) * 4


def test_gradients_stay_at_home():
    model = nn.Linear(4, 4)
    model(torch.ones(1, 4)).sum().backward()
    came, _ = through(Workload(model, "1x4"))
    assert model.weight.grad is not None
    assert came.model.weight.grad is None


@pytest.fixture
def stranger(tmp_path):
    """A module loaded from a file that is on no path, as a notebook's or a model file's is."""
    text = """
        import statistics
        from torch import nn

        class Own(nn.Linear):
            "Travels whole."

        def loss(outputs):
            return nn.functional.mse_loss(twice(outputs), outputs)

        def twice(outputs):
            return statistics.mean([2, 2]) * outputs
    """
    (tmp_path / "stranger.py").write_text(textwrap.dedent(text))
    spec = importlib.util.spec_from_file_location("sash_test_stranger", tmp_path / "stranger.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_modules_that_a_fresh_process_finds_are_named_and_others_travel_whole(stranger):
    _, parcel = through(Workload(stranger.Own(4, 4), "1x4", train=True, loss=stranger.loss))
    assert "torch.nn.functional" in parcel.modules
    assert "sash.cost._workload" in parcel.modules
    assert "statistics" in parcel.modules, "a function's globals count as well"
    assert stranger.__name__ not in parcel.modules
    assert b"Travels whole." in parcel.pickle


def test_a_functions_own_module_is_named_not_its_types():
    _, parcel = through(Workload(nn.functional.relu, "1x4"))
    assert parcel.modules.index("torch.nn.functional") >= 0


def test_what_has_no_data_arrives_filled_by_its_type():
    model = nn.BatchNorm1d(16).to("meta")
    came, parcel = through(
        Workload(model, (torch.zeros(2, 16, dtype=torch.bfloat16, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")))
    )
    assert all(tensor is None for _, _, tensor in parcel.storages)
    assert came.model.running_var.min() > 0
    assert came.model.num_batches_tracked == 0
    numbers, indices = came.inputs
    assert 0 < numbers.min() <= numbers.max() < 0.03
    assert indices.tolist() == [0, 0, 0]


def test_a_parametrized_layer_travels():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)).eval()
    came, _ = through(Workload(model, "1x4"))
    x = torch.randn(3, 4)
    assert torch.equal(came.model(x), model(x))
    assert [name for name, _ in came.model.named_parameters()] == [name for name, _ in model.named_parameters()]

"""Saved tensors on disk: the same bits back, the memory gone meanwhile, and nothing left behind."""

import copy
import gc
import os

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sash.cost import Workload, forecast, measure
from sash.errors import InputError
from sash.plans import Exactness, Lever, _disk
from sash.plans._disk import DiskFile, DiskRate, disk_rate, on_disk
from sash.plans._lever import pull, shared_copy
from sash.plans._offload import Offload, price_s, propose, written_bytes


class Block(nn.Module):
    """Convolution, batch norm, an in-place activation, dropout and a part of the result twice."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        y = self.drop(F.relu_(self.norm(self.conv(x))))
        half = y[:, : y.shape[1] // 2]
        return x + torch.cat([half.sigmoid() * half, y[:, y.shape[1] // 2 :].exp()], 1).transpose(2, 3).contiguous().transpose(2, 3)


class Checkpointed(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


def net(width=8):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), Block(width), Checkpointed(Block(width)), nn.Flatten(), nn.LazyLinear(4))


def made(width=8, side=16):
    model = net(width)
    model(torch.zeros(2, 3, side, side))
    return model


def two_steps(model, x, labels):
    """Everything that two training steps leave: outputs, gradients, buffers, parameters."""
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters())
    left = []
    for _ in range(2):
        outputs = model(x)
        F.cross_entropy(outputs, labels).backward()
        left += [outputs.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        optimizer.step()
        optimizer.zero_grad()
    return [*left, *(tensor.clone() for tensor in model.state_dict().values())]


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "lever", [Offload(least_bytes=0), Offload(least_bytes=4096, limit_bytes=100_000), Offload(0, modules=("1.norm", "1"))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_is_the_same_to_the_last_bit(lever, dtype):
    model = made().to(dtype)
    x, labels = torch.randn(2, 3, 16, 16, dtype=dtype), torch.tensor([0, 3])
    plain, offloaded = copy.deepcopy(model), lever.on_model(copy.deepcopy(model))
    assert list(offloaded.state_dict()) == list(plain.state_dict())
    expected, found = two_steps(plain, x, labels), two_steps(offloaded, x, labels)
    assert len(expected) == len(found)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))


def test_layouts_and_views_come_back_as_they_were():
    lever = Offload(least_bytes=0)
    model = lever.on_model(nn.Identity())
    found = []

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.transpose(0, 1)[1:], x.contiguous(memory_format=torch.channels_last), (x * 2)[..., ::3], x > 0)
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            found.extend(ctx.saved_tensors)
            return gradient

    model.forward = lambda x: Keep.apply(x * 1)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    model(x).sum().backward()
    y = x.detach()
    expected = [y.transpose(0, 1)[1:], y.contiguous(memory_format=torch.channels_last), (y * 2)[..., ::3], y > 0]
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one, two)
        assert (one.stride(), one.storage_offset()) == (two.stride(), two.storage_offset())


def test_a_forecast_with_the_lever_is_what_is_measured():
    work = Workload(made(16, 64), "4x3x64x64", train=True, optimizer="AdamW", loss=lambda y: y.log_softmax(1).mean())
    planned = cloudpickle.loads(cloudpickle.dumps(pull(work, [Offload(least_bytes=1 << 16)])))
    plain, less = forecast(work), forecast(planned)
    assert less.peak_bytes < 0.8 * plain.peak_bytes
    assert less.peak_bytes == pytest.approx(measure(planned).peak_bytes, rel=5e-4)


def test_a_forecast_with_a_limit_is_what_is_measured():
    work = pull(Workload(chain(), "8x4x64x64", train=True), [Offload(least_bytes=1 << 16, limit_bytes=5 << 19)])
    assert forecast(work).peak_bytes == pytest.approx(measure(work).peak_bytes, rel=5e-4)


def test_a_forecast_writes_nothing(monkeypatch):
    monkeypatch.setattr(DiskFile, "write", lambda *_: pytest.fail("a forecast wrote to disk"))
    forecast(pull(Workload(made(), "2x3x16x16", train=True), [Offload(least_bytes=0)]))


def test_a_change_in_place_after_saving_raises_as_it_does_without_the_lever():
    class Spoilt(nn.Module):
        def forward(self, x, early):
            y = x * 2
            z = y.exp()
            small = (y[:1] * 1).tanh()
            (z if early else small).add_(1)
            return z.sum() + small.sum()

    for early in (True, False):
        for lever in (None, Offload(least_bytes=1000)):
            model = Spoilt() if lever is None else lever.on_model(Spoilt())
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                model(torch.randn(64, 64, requires_grad=True), early).backward()


def test_parameters_inputs_and_small_tensors_stay_in_memory_and_a_storage_goes_once(monkeypatch):
    sizes = []
    write = DiskFile.write
    monkeypatch.setattr(DiskFile, "write", lambda self, storage: (sizes.append(storage.nbytes()), write(self, storage))[1])
    # Linear saves its input and its weight; exp saves its result, sigmoid too, and the product saves both factors.
    model = Offload(least_bytes=4096).on_model(nn.Sequential(nn.Linear(64, 64), Twice()))
    x = torch.randn(32, 64, requires_grad=True)
    model(x).sum().backward()
    assert sizes == [32 * 64 * 4] * 2


class Twice(nn.Module):
    def forward(self, x):
        return x.exp() * x.sigmoid()


def test_no_more_than_the_limit_is_on_disk_at_a_time(monkeypatch):
    highest = []
    write = DiskFile.write
    monkeypatch.setattr(DiskFile, "write", lambda self, storage: [write(self, storage), highest.append(self.bytes)][0])
    model = Offload(least_bytes=8192, limit_bytes=40_960).on_model(chain())
    for _ in range(2):
        model(torch.randn(2, 4, 16, 16)).sum().backward()
        assert max(highest) == 40_960


def chain():
    """Each result is gone soon after it is written: storages' addresses are given out again."""
    blocks = [(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(10)]
    return nn.Sequential(*[layer for block in blocks for layer in block])


def test_no_file_is_seen_and_none_is_left(tmp_path):
    gc.collect()
    before = open_files()
    model = Offload(least_bytes=0, folder=str(tmp_path)).on_model(nn.Sequential(nn.Linear(64, 64), Twice()))
    for _ in range(3):
        loss = model(torch.randn(32, 64)).sum()
        assert list(tmp_path.iterdir()) == []
        assert open_files() == before + 1
        loss.backward()
    del model, loss
    gc.collect()
    assert open_files() == before


def test_room_on_disk_is_used_again(tmp_path):
    file = DiskFile(str(tmp_path))
    storage = torch.arange(1000).untyped_storage()
    for _ in range(5):
        place = file.write(storage)
        assert (place.offset, file.bytes) == (0, 8000)
        back = torch.zeros(1000, dtype=torch.int64)
        file.read(place, back.untyped_storage())
        assert torch.equal(back, torch.arange(1000))
        del place
    assert file.bytes == 0


def test_two_graphs_at_a_time_and_a_second_backward_are_right():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 64), Twice())
    model = Offload(least_bytes=0).on_model(shared_copy(plain))
    first, second = torch.randn(2, 32, 64)

    def run(net):
        one, two = net(first).sum(), net(second).sum()
        two.backward()
        one.backward(retain_graph=True)
        one.backward()
        found = [parameter.grad for parameter in plain.parameters()]
        plain.zero_grad()
        return found

    assert all(torch.equal(a, b) for a, b in zip(run(plain), run(model), strict=True))


def test_a_forward_that_raises_leaves_no_hook_behind():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    model = Offload(least_bytes=0).on_model(Broken())
    with pytest.raises(ValueError, match="no"):
        model(torch.randn(2))
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        torch.randn(64, requires_grad=True).exp()
    x = torch.randn(64, requires_grad=True).exp()
    assert packed
    assert type(x.grad_fn._saved_result) is torch.Tensor


def test_a_model_with_the_lever_can_be_copied_and_sent():
    model = Offload(least_bytes=0).on_model(made())
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    two_steps(copy.deepcopy(model), x, labels)
    for other in (copy.deepcopy(model), cloudpickle.loads(cloudpickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(two_steps(other, x, labels), two_steps(copy.deepcopy(model), x, labels), strict=True))


def test_its_price_is_what_is_saved_at_the_disks_rates():
    work = Workload(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()), "1024x64", train=True)
    plain = forecast(work)
    size = 1024 * 64 * 4
    # The first relu's result; the second one's is the output.
    assert written_bytes(Offload(least_bytes=1 << 16), plain) == 2 * size
    assert written_bytes(Offload(least_bytes=1 << 16, modules=("1",)), plain) == size
    assert written_bytes(Offload(least_bytes=1 << 16, limit_bytes=1000), plain) == 1000
    assert written_bytes(Offload(least_bytes=size + 1), plain) == 0
    assert price_s(Offload(least_bytes=1 << 16), plain, DiskRate(1e6, 2e6)) == pytest.approx(2 * size * 1.5e-6)


def test_a_disks_rates_are_measured_once(monkeypatch, tmp_path):
    monkeypatch.setattr(_disk, "PROBE_BYTES", 1 << 16)
    found = disk_rate(str(tmp_path))
    assert found.write_bytes_per_s > 0
    assert found.read_bytes_per_s > 0
    assert disk_rate(str(tmp_path)) is found


def test_a_folder_that_does_not_help_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is no folder"):
        Offload(folder=str(tmp_path / "none")).on_model(nn.Identity())
    monkeypatch.setattr(_disk, "_kind", lambda folder: "tmpfs")
    with pytest.raises(InputError, match=r"is kept in memory \(tmpfs\)"):
        on_disk(str(tmp_path))


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    model = Offload(least_bytes=0, folder=str(tmp_path)).on_model(Twice())
    with pytest.raises(InputError, match=r"16\.0 KiB were to be offloaded .* left \(No space left on device\)"):
        model(torch.randn(64, 64, requires_grad=True))


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="to='host' moves a device's tensors"):
        Offload(to="host")
    with pytest.raises(InputError, match="to is 'cloud'"):
        Offload(to="cloud")
    for value in (-1, 1.5, True, "1 MiB"):
        with pytest.raises(InputError, match="least_bytes is"):
            Offload(least_bytes=value)
    with pytest.raises(InputError, match="'decoder', which is no module"):
        Offload(modules=("decoder",)).on_model(nn.Identity())


def test_it_is_proposed_for_training_only():
    lever = propose(Workload(nn.Linear(8, 8), "4x8", train=True))
    assert isinstance(lever, Lever)
    assert (lever.name, lever.exactness) == ("offload", Exactness.BITS)
    assert "wait on disk" in lever.describe()
    assert propose(Workload(nn.Linear(8, 8), "4x8")) is None

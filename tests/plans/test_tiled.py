"""`sash.tiled`: arrays and files in and out, the budget kept, interruptions taken up, bad input named."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.autograd.profiler import profile

from sash.cost import static_tensors
from sash.errors import DoesNotFit, InputError, ModelError
from sash.models import unet
from sash.plans import _tiled
from sash.plans._tile_files import BoxFile
from sash.plans._tiled import tiled
from sash.window import Interval

TILE = (48, 64)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return unet(width=4, depth=2).eval()


@pytest.fixture
def pixels(tmp_path):
    """A picture of 3 channels in a .npy file."""
    made = np.random.default_rng(0).integers(0, 256, (3, 151, 203), dtype=np.uint8)
    np.save(tmp_path / "image.npy", made)
    return made


def whole(model, pixels):
    with torch.inference_mode():
        return model(torch.from_numpy(pixels)[None].float() / 255).numpy()


def assert_near(found, expected):
    assert found.shape == expected.shape
    # float32: sums in another order.
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_from_file_to_file(model, pixels, tmp_path):
    found = tiled(model, tmp_path / "image.npy", "64 MiB", tmp_path / "out.npy", tile=TILE)
    assert_near(found, whole(model, pixels))
    assert_near(np.load(tmp_path / "out.npy"), whole(model, pixels))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.npy", "out.npy"]


def test_arrays_give_arrays_and_tensors_tensors(model, pixels):
    expected = whole(model, pixels)
    array, tensor = tiled(model, pixels, "64 MiB", tile=TILE), tiled(model, torch.from_numpy(pixels), "64 MiB", tile=TILE)
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, torch.Tensor)
    assert_near(array, expected)
    assert_near(tensor.numpy(), expected)
    # As floats, in a batch, not contiguous, and read-only.
    floats = np.asfortranarray(pixels[None].astype(np.float32) / 255)
    floats.flags.writeable = False
    assert_near(tiled(model, floats, "64 MiB", tile=TILE), expected)
    assert_near(tiled(model, pixels.astype(np.int16), "64 MiB", scale=1 / 255, tile=TILE), expected)


def test_a_picture_is_read(model, tmp_path):
    made = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(made).save(tmp_path / "a.png")
    assert_near(tiled(model, tmp_path / "a.png", "64 MiB"), whole(model, made.transpose(2, 0, 1)))


def test_an_image_without_channels_is_one_channel():
    net = nn.Conv2d(1, 2, 3, padding=1)
    made = np.random.default_rng(0).random((30, 20), dtype=np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(made)[None, None]).numpy()
    assert_near(tiled(net, made, "1 MiB", tile=(7, 9)), expected)


def test_sound_and_volumes_are_cut_too():
    net = nn.Sequential(nn.Conv1d(2, 4, 9, padding=4), nn.ConvTranspose1d(4, 1, 4, 2, 1))
    sound = torch.randn(2, 1000)
    with torch.inference_mode():
        assert_near(tiled(net, sound, "1 MiB", tile=(300,)).numpy(), net(sound[None]).numpy())
    net = nn.Conv3d(1, 2, 3, padding=1)
    volume = torch.randn(1, 12, 13, 14)
    with torch.inference_mode():
        assert_near(tiled(net, volume, "1 MiB", tile=(5, 6, 7)).numpy(), net(volume[None]).numpy())


def test_float64_models_give_float64(model, pixels):
    net = unet(width=4, depth=2).eval().double()
    with torch.inference_mode():
        expected = net(torch.from_numpy(pixels)[None].double() / 255)
    found = tiled(net, pixels, "64 MiB", tile=TILE)
    assert found.dtype == np.float64
    assert np.abs(found - expected.numpy()).max() <= 1e-12


def test_the_mode_of_the_model_is_left_alone(pixels):
    net = unet(width=4, depth=2).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    tiled(net, pixels, "64 MiB", tile=TILE)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("budget", [2_000_000, 6_000_000])
def test_the_allocator_stays_in_the_budget(model, pixels, tmp_path, budget):
    source = tmp_path / "image.npy"
    plan = tiled(model, source, budget, tmp_path / "out.npy", plan_only=True)
    tiled(model, source, budget, tmp_path / "out.npy")
    level = peak = sum(tensor.untyped_storage().nbytes() for _, _, _, tensor in static_tensors(model))
    with profile(profile_memory=True, use_kineto=True) as record:
        tiled(model, source, budget, tmp_path / "out.npy")
    events = [(event.start_ns(), event.nbytes()) for event in record.kineto_results.events() if event.name() == "[memory]"]
    for _, size in sorted(events, key=lambda event: event[0]):
        level += size
        peak = max(peak, level)
    assert peak <= budget
    assert abs(peak / plan.peak_bytes - 1) < 0.01


def test_a_larger_budget_is_no_more_work(model, tmp_path, pixels):
    plans = [tiled(model, tmp_path / "image.npy", budget, "out.npy", plan_only=True) for budget in (1_500_000, 3_000_000, 6_000_000)]
    assert plans[0].extra >= plans[1].extra >= plans[2].extra
    assert all(plan.peak_bytes <= budget for plan, budget in zip(plans, (1_500_000, 3_000_000, 6_000_000), strict=True))


def test_what_does_not_fit_says_the_least_that_does(model, pixels, tmp_path):
    with pytest.raises(DoesNotFit, match="leanest tile") as caught:
        tiled(model, tmp_path / "image.npy", "200 KiB", tmp_path / "out.npy")
    least = caught.value.least_bytes
    assert tiled(model, tmp_path / "image.npy", least, tmp_path / "out.npy", plan_only=True).peak_bytes <= least
    assert not (tmp_path / "out.npy").exists()
    with pytest.raises(DoesNotFit, match="the budget is 500 KiB"):
        tiled(model, pixels, "500 KiB")


class InterruptedRunError(Exception):
    pass


def interrupt_after(monkeypatch, tiles):
    """Stops a run as a signal would, before a tile is written."""
    write, made = BoxFile.write, []

    def counted(self, box, part):
        if len(made) == tiles:
            raise InterruptedRunError
        made.append(box)
        write(self, box, part)

    monkeypatch.setattr(BoxFile, "write", counted)
    return made


def test_an_interrupted_run_goes_on_and_ends_the_same(model, pixels, tmp_path, monkeypatch):
    source, out = tmp_path / "image.npy", tmp_path / "out.npy"
    tiled(model, source, "64 MiB", tmp_path / "straight.npy", tile=TILE)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(InterruptedRunError):
            tiled(model, source, "64 MiB", out, tile=TILE)
    assert not out.exists()
    assert (tmp_path / "out.npy.partial").exists()
    # The journal's last line may be cut off as well.
    journal = tmp_path / "out.npy.journal"
    journal.write_text(journal.read_text()[:-1] + "x")
    with monkeypatch.context() as patch:
        made = interrupt_after(patch, 1000)
        tiled(model, source, "64 MiB", out, tile=TILE)
    assert len(made) == 16 - 4
    assert out.read_bytes() == (tmp_path / "straight.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.npy", "out.npy", "straight.npy"]


def test_a_killed_process_leaves_no_output_and_is_taken_up(model, pixels, tmp_path):
    program = textwrap.dedent(
        """
        import os, signal, torch
        from sash.models import unet
        from sash.plans._tile_files import BoxFile
        from sash.plans._tiled import tiled
        torch.manual_seed(0)
        torch.set_num_threads(THREADS)
        model, write, made = unet(width=4, depth=2).eval(), BoxFile.write, []
        def counted(self, box, part):
            if len(made) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            made.append(box)
            write(self, box, part)
        BoxFile.write = counted
        tiled(model, "image.npy", "64 MiB", "out.npy", tile=(48, 64))
        """
    ).replace("THREADS", str(torch.get_num_threads()))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out.npy").exists()
    assert len((tmp_path / "out.npy.journal").read_text().splitlines()) == 4
    tiled(model, tmp_path / "image.npy", "64 MiB", tmp_path / "straight.npy", tile=TILE)
    tiled(model, tmp_path / "image.npy", "64 MiB", tmp_path / "out.npy", tile=TILE)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "straight.npy").read_bytes()


@pytest.mark.parametrize("changed", ["weights", "image", "tile", "scale"])
def test_a_changed_run_is_not_taken_up(model, pixels, tmp_path, monkeypatch, changed):
    source, out = tmp_path / "image.npy", tmp_path / "out.npy"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(InterruptedRunError):
            tiled(model, source, "64 MiB", out, tile=TILE)
    net, tile, scale, told = model, TILE, None, {"weights": "weights", "image": "the image", "tile": "48", "scale": "scale"}[changed]
    if changed == "weights":
        net = unet(width=4, depth=2).eval()
    elif changed == "image":
        np.save(source, pixels[::-1].copy()[:, :150])
    elif changed == "tile":
        tile = (64, 64)
    else:
        scale = 1.0
    with pytest.raises(InputError, match=told) as caught:
        tiled(net, source, "64 MiB", out, tile=tile, scale=scale)
    assert "restart=True" in str(caught.value)
    found = tiled(net, source, "64 MiB", out, tile=tile, scale=scale, restart=True)
    assert found.shape[0] == 1
    assert not (tmp_path / "out.npy.partial").exists()


def test_passes_are_made_again_after_an_interruption(tmp_path, pixels, monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 3, padding=1)).eval()
    source, out = tmp_path / "image.npy", tmp_path / "out.npy"
    with pytest.raises(InputError, match=r"1 \(group_norm\) sees the whole image"):
        tiled(net, source, "64 MiB", out, tile=TILE)
    tiled(net, source, "64 MiB", tmp_path / "straight.npy", tile=TILE, two_pass=True)
    assert_near(np.load(tmp_path / "straight.npy"), whole(net, pixels))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(InterruptedRunError):
            tiled(net, source, "64 MiB", out, tile=TILE, two_pass=True)
    tiled(net, source, "64 MiB", out, tile=TILE, two_pass=True)
    assert out.read_bytes() == (tmp_path / "straight.npy").read_bytes()


def test_one_of_several_outputs_is_picked(pixels):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x):
            return {"out": self.layer(x), "half": self.layer(x)[..., ::2, ::2]}

    net = Two()
    with torch.inference_mode():
        expected = net(torch.from_numpy(pixels)[None].float() / 255)["half"].numpy()
    assert_near(tiled(net, pixels, "64 MiB", output="half", tile=TILE), expected)
    with pytest.raises(InputError, match="'out', 'half'"):
        tiled(net, pixels, "64 MiB")


def test_a_box_of_a_file_is_the_array_s(tmp_path):
    made = np.random.default_rng(0).random((2, 3, 5, 7))
    for dtype in (np.float64, np.dtype(">f4"), np.uint8, np.int16):
        np.save(tmp_path / "a.npy", (made * 200).astype(dtype))
        file = BoxFile.existing(tmp_path / "a.npy")
        for box in (((0, 2), (0, 3), (0, 5), (0, 7)), ((1, 2), (0, 2), (2, 4), (0, 7)), ((0, 2), (1, 3), (1, 5), (3, 6))):
            part = file.narrow_all(tuple(Interval(*pair) for pair in box)).numpy()
            assert np.array_equal(part, (made * 200).astype(dtype)[tuple(slice(*pair) for pair in box)])
        file.close()


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"budget": "2 gigs"}, InputError, "2 gigs"),
        ({"budget": 0}, DoesNotFit, "leanest tile"),
        ({"out": "out.tif"}, InputError, "out.npy"),
        ({"out": "nowhere/out.npy"}, InputError, "folder that exists"),
        ({"image": "imag.npy"}, InputError, "image.npy"),
        ({"image": "nan\0"}, InputError, "nan"),
        ({"image": np.zeros((2, 40, 40), np.float32)}, InputError, "enter.0, the first convolution, takes 3"),
        ({"image": np.zeros((40,), np.float32)}, InputError, "(channels, height, width)"),
        ({"image": np.zeros((1, 1, 3, 40, 40), np.float32)}, InputError, "(channels, height, width)"),
        ({"image": np.zeros((3, 0, 40), np.float32)}, InputError, "shape"),
        ({"image": np.zeros((3, 40, 40), complex)}, InputError, "complex"),
        ({"image": np.array([["a"]], object)}, InputError, "object"),
        ({"image": np.zeros((3, 40, 40), np.int32)}, InputError, "scale="),
        ({"image": [[1.0]]}, InputError, "list"),
        ({"image": np.zeros((3, 2, 2), np.float32)}, ModelError, "2x2"),
        ({"tile": (5,)}, InputError, "2 whole numbers"),
        ({"tile": (0, 5)}, InputError, "above 0"),
    ],
)
def test_bad_input_is_named(model, pixels, tmp_path, monkeypatch, change, error, told):
    monkeypatch.chdir(tmp_path)
    given = {"image": "image.npy", "budget": "64 MiB", "out": "out.npy", **change}
    with pytest.raises(error) as caught:
        tiled(model, **given)
    assert told in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.npy"]


def test_files_that_are_no_images_are_named(model, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.zeros((3, 40, 41), np.float32)))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "short.npy", np.zeros((3, 40, 40), np.float32))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-4])
    (tmp_path / "a.csv").write_text("1,2")
    for name, told in (
        ("objects.npy", "object"),
        ("fortran.npy", "Fortran"),
        ("text.npy", "numpy.save"),
        ("text.png", "picture"),
        ("short.npy", "cut off"),
        ("a.csv", ".npy"),
    ):
        with pytest.raises(InputError, match=told):
            tiled(model, tmp_path / name, "64 MiB")


def test_a_small_image_is_one_tile(model):
    plan = tiled(model, np.zeros((3, 16, 17), np.float32), "64 MiB", plan_only=True)
    assert (plan.tiles, plan.tile, plan.extra) == (1, (16, 17), 0.0)
    assert "1 tiles" not in str(replace(plan, tiles=2))


def test_progress_counts_tiles(model, pixels, capsys):
    tiled(model, pixels, "64 MiB", tile=TILE, progress=True)
    assert "16/16" in capsys.readouterr().err
    assert _tiled.__doc__

"""What a plan says is read is what is read, halos and whole chunks included."""

import numpy as np
import pytest

from sash import arrays
from sash.arrays import _deconvolve
from sash.arrays._store_source import Source
from sash.errors import DoesNotFit

RNG = np.random.default_rng(5)
KERNEL = RNG.standard_normal((33, 21))


@pytest.fixture
def counted(monkeypatch):
    """Bytes that boxes hold which are read of files; of chunks all that are decoded."""
    found, read = [0], Source.read

    def counting(self, box, into):
        found[0] += self.read_bytes(box) if self.array is None else 0
        read(self, box, into)

    monkeypatch.setattr(Source, "read", counting)
    return found


def least(call):
    with pytest.raises(DoesNotFit) as refused:
        call(budget=1, plan_only=True)
    return refused.value.least_bytes


def sources(folder, name):
    if name == "npy":
        np.save(folder / "in.npy", RNG.random((400, 500), np.float32))
    elif name == "stack":
        np.save(folder / "in.npy", RNG.random((5, 150, 200), np.float32))
    else:
        zarr = pytest.importorskip("zarr")
        made = zarr.create_array(folder / "in.zarr", shape=(400, 500), dtype=np.float32, chunks=(128, 96))
        made[...] = RNG.random((400, 500), np.float32)
        return folder / "in.zarr"
    return folder / "in.npy"


@pytest.mark.parametrize("name", ["npy", "stack", "zarr"])
@pytest.mark.parametrize("boundary", ["constant", "wrap"])
@pytest.mark.parametrize("job", ["blur", "two rates", "fft"])
def test_a_plan_counts_what_its_tasks_read(tmp_path, counted, name, boundary, job):
    source, out = sources(tmp_path, name), tmp_path / "out.npy"

    def call(**words):
        words = {"boundary": boundary, "workers": 2, **words}
        if job == "fft":
            return arrays.convolve(source, KERNEL, out, method="fft", **words)
        return arrays.blur(source, 4 if job == "blur" else 12, out, method="direct" if job == "blur" else "multirate", **words)

    least_bytes = least(call)
    for times in (1.2, 8):
        budget = int(times * least_bytes)
        plan = call(budget=budget, plan_only=True)
        counted[0] = 0
        call(budget=budget, overwrite=True)
        # What lies between passes is no input; a coarse plane is smaller by far. A chunk at both ends of the table is read twice.
        most = 1.5 if name == "zarr" or job == "two rates" else 1
        assert plan.read_bytes <= counted[0] <= most * plan.read_bytes


@pytest.mark.parametrize("words", [{"noise": 0.1}, {"adjoint": True, "boundary": "mirror"}, {"method": "richardson-lucy", "iterations": 2}])
def test_a_deconvolutions_plan_counts_the_look_before_and_regions(tmp_path, counted, words):
    source, out = sources(tmp_path, "npy"), tmp_path / "out.npy"
    kernel = np.outer(*(np.exp(-(np.arange(-4, 5) ** 2) / 2),) * 2)
    plan = arrays.deconvolve(source, kernel, out, budget="64 MiB", plan_only=True, **words)
    # The look is not taken twice at the file that was looked at last.
    _deconvolve._LAST.clear()
    counted[0] = 0
    arrays.deconvolve(source, kernel, out, budget="64 MiB", **words)
    assert counted[0] == plan.read_bytes

"""Measuring in a fresh process: what it finds, what it says when it fails, and what it never leaves behind."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from sash.cost import Category, FunctionSource, ModelSource, Workload, forecast, measure
from sash.errors import InputError, MeasureError, ModelError, ShapeError


class Perceptron(nn.Module):
    """Defined in a test file, which a fresh process cannot import."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(256, 1024), nn.Linear(1024, 256)
        self.masks = [torch.rand(64, 1024)]

    def forward(self, x):
        return self.second(torch.relu(self.first(x)) * self.masks[0])


class Doing(nn.Module):
    """A linear layer, and something else in its forward."""

    def __init__(self, deed):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.deed = deed

    def forward(self, x):
        self.deed()
        return self.layer(x)


def doing(deed):
    return Workload(Doing(deed), "2x8")


def test_a_measurement_agrees_with_the_forecast_and_with_the_allocator(truth):
    model, inputs = Perceptron(), (torch.randn(64, 256),)
    work = Workload(model, inputs, train=True, optimizer="adamw")
    found = measure(work)
    expected = forecast(work)
    assert found.peak_bytes == pytest.approx(truth(model, inputs, train=True, optimizer=torch.optim.AdamW), rel=0.001)
    assert found.peak_bytes == pytest.approx(expected.peak_bytes, rel=0.005)
    assert (found.name, found.setting, found.params, found.macs) == (expected.name, expected.setting, expected.params, expected.macs)
    static = {block.category: block.bytes for block in found.timeline.blocks if block.category is not Category.OBSERVED}
    assert static == {
        Category.PARAMETER: 525_568 * 4,
        Category.BUFFER: 64 * 1024 * 4,
        Category.INPUT: 64 * 256 * 4,
        Category.OPTIMIZER: 2 * 525_568 * 4 + 4 * 4,
    }
    assert found.static_bytes == sum(static.values())
    # AdamW's four step counters are in no forecast.
    assert found.static_bytes - expected.static_bytes in (0, 4 * 4)
    assert [layer.path for layer in found.layers] == [layer.path for layer in expected.layers]
    assert max(found.timeline.levels) == found.peak_bytes
    assert found.process_bytes == found.process_runs[0] > 0
    assert found.wall_s > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_values_travel_exactly(tmp_path):
    class Echo(nn.Module):
        """Writes down what it is made of, where the parent can read it."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64).t())
            self.weight.note = "kept"
            self.small = nn.Parameter(torch.randn(5).bfloat16(), requires_grad=False)
            self.register_buffer("corner", torch.arange(20).view(4, 5)[1:3, 2:])
            self.alias = self.corner
            self.odd = [torch.tensor([1 + 2j]), torch.tensor([True, False]), torch.tensor(7, dtype=torch.int8), torch.empty(0)]

        def forward(self, x):
            torch.save(
                {"tensors": [self.weight.data, self.small.data, self.corner, *self.odd, x], "facts": facts(self)}, tmp_path / "echo.pt"
            )
            return x * 1.0

    def facts(model):
        return {
            "note": model.weight.note,
            "gradients": [model.weight.requires_grad, model.small.requires_grad],
            "stride": model.weight.stride(),
            "alias": model.alias is model.corner,
            "offset": model.corner.storage_offset(),
        }

    model, x = Echo(), torch.tensor([float("nan"), float("inf"), -0.0])
    measure(Workload(model, (x,)))
    found = torch.load(tmp_path / "echo.pt")
    for sent, came in zip([model.weight.data, model.small.data, model.corner, *model.odd, x], found["tensors"], strict=True):
        assert came.dtype is sent.dtype
        assert torch.equal(came.nan_to_num(5.0), sent.nan_to_num(5.0))
    assert found["facts"] == facts(model)


def test_a_model_without_values_is_filled_with_some_that_work():
    model = nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 256)).to("meta")
    work = Workload(model, "8x4:int64<50", train=True)
    assert measure(work).peak_bytes == pytest.approx(forecast(work).peak_bytes, rel=0.005)


def test_a_model_that_prints_much_is_measured():
    def print_much():
        print("x" * 300_000)
        print("y" * 300_000, file=sys.stderr)

    assert measure(doing(print_much)).peak_bytes > 0


def test_a_plain_function_is_measured_with_the_module_it_closes_over():
    layer = nn.Linear(256, 512)

    def apply(x):
        return layer(x).relu()

    work = Workload(apply, "64x256", train=True, optimizer="sgd")
    found = measure(work)
    assert found.peak_bytes == pytest.approx(forecast(work).peak_bytes, rel=0.005)
    assert found.params == 256 * 512 + 512


def test_importing_the_model_is_not_running_it(tmp_path):
    (tmp_path / "tables.py").write_text("import torch\nTABLE = torch.ones(30_000_000)\n")
    (tmp_path / "heavy.py").write_text(
        textwrap.dedent("""
        import tables
        from torch import nn

        def make():
            return nn.Linear(8, 8)

        def total(y):
            return y.sum()
        """)
    )
    source = f"{tmp_path / 'heavy.py'}"
    found = measure(Workload(ModelSource(f"{source}:make"), "2x8", train=True, loss=FunctionSource(f"{source}:total")))
    assert found.process_bytes < 60e6, "the table of 120 MB was made when the file was imported"


def test_what_the_model_raises_is_told_with_its_layer():
    def fail():
        raise KeyError("nothing here")

    with pytest.raises(ModelError, match=r"KeyError: 'nothing here'.*test_measure\.py"):
        measure(doing(fail))
    with pytest.raises(ShapeError, match="layer") as caught:
        measure(Workload(Doing(print), "2x9"))
    assert caught.value.path == "layer"


def test_a_killed_child_is_told_as_such():
    with pytest.raises(MeasureError, match="was killed; most likely the machine ran out of memory"):
        measure(doing(lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_a_child_that_leaves_is_told_with_its_last_words():
    def leave():
        print("goodbye", flush=True)
        os._exit(3)

    with pytest.raises(MeasureError, match="exit code 3: goodbye"):
        measure(doing(leave))


def test_a_step_that_gets_no_memory_says_how_much_it_asked_for():
    def fill():
        import resource

        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)
        torch.ones(1 << 28)

    with pytest.raises(MeasureError, match=r"asked for 1\.00 GiB at once.*Forecast the step first"):
        measure(doing(fill))


def test_a_large_model_whose_child_fails_early_is_no_deadlock(tmp_path):
    (tmp_path / "fails.py").write_text("raise RuntimeError('not today')\n")
    work = Workload(nn.Linear(2048, 2048), "1x2048", train=True, loss=FunctionSource(f"{tmp_path / 'fails.py'}:loss"))
    with pytest.raises(ModelError, match="not today"):
        measure(work)


def test_what_cannot_travel_is_named_with_the_way_that_works():
    model = nn.Linear(8, 8)
    model.lock = threading.Lock()
    with pytest.raises(MeasureError, match=r"Linear cannot be handed to the measuring process.*lock.*ModelSource"):
        measure(Workload(model, "2x8"))


@pytest.mark.parametrize(("setting", "words"), [({"runs": 0}, "runs is 0"), ({"allocator": "best"}, "'default' or 'mapped'")])
def test_a_wrong_setting_is_refused(setting, words):
    with pytest.raises(InputError, match=words):
        measure(Workload(nn.Linear(8, 8), "2x8"), **setting)


def test_an_interrupt_leaves_no_child_behind(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, time
        from pathlib import Path
        from torch import nn
        import sash

        # A test run in the background of a shell inherits that interrupts are ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Slow(nn.Module):
            def forward(self, x):
                Path({str(tmp_path / "child.txt")!r}).write_text(str(os.getpid()))
                time.sleep(120)
                return x

        if __name__ == "__main__":
            sash.measure(sash.Workload(Slow(), "2x8"))
        """)
    )
    running = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    note = tmp_path / "child.txt"
    while not (note.exists() and note.read_text()):
        assert running.poll() is None, running.stderr and running.stderr.read().decode()
        time.sleep(0.05)
    child = int(note.read_text())
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    assert b"KeyboardInterrupt" in said
    assert running.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_model_defined_in_a_script_is_measured(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        import torch
        from torch import Tensor, nn
        import sash

        @dataclass
        class Answer:
            logits: Tensor

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(64, 256)

            def forward(self, x):
                return Answer(self.layer(x))

        class Mine(torch.optim.SGD):
            pass

        if __name__ == "__main__":
            work = sash.Workload(Net(), "32x64", train=True, optimizer=Mine, loss=lambda answer: answer.logits.square().mean())
            print(sash.measure(work).peak_bytes, sash.forecast(work).peak_bytes)
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    measured, expected = map(int, done.stdout.split())
    assert measured == pytest.approx(expected, rel=0.005)

"""The examples do what they say: the same training to the last bit, inside the budget."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sash
from sash.cost._record import record_step

ROOT = Path(__file__).parents[1]

lightning_warns = [
    # Lightning and torchmetrics with this version of torch; sash calls neither.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # Advice to the user of a loader and of a logger.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loop():
    return load("plain_loop")


@pytest.fixture(scope="module")
def callback():
    # torchmetrics, which Lightning imports, imports torchvision where it is installed; this one loads without its compiled operators.
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        importlib.import_module("_torchvision")
        yield load("lightning_callback")
    finally:
        sys.path.remove(str(ROOT / "bench"))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, value), (_, expected) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name


BUDGET = 20_000_000


def test_the_planned_module_and_the_planned_step_train_as_the_plain_loop_does(loop):
    plain, applied, stepped = loop.make_model(), loop.make_model(), loop.make_model()
    plan, step = (loop.make_plan(model, "20 MB") for model in (applied, stepped))
    assert plan.levers
    expected = loop.train_with_module(plain, loop.make_batches(3))
    assert loop.train_with_module(plan.apply(applied), loop.make_batches(3)) == expected
    assert loop.train_with_step(step, loop.make_batches(3)) == expected
    assert_same(applied, plain)
    assert_same(stepped, plain)


def test_the_planned_module_stays_within_the_budget_and_the_plain_one_does_not(loop):
    model = loop.make_model().train()
    plan = loop.make_plan(model, "20 MB")
    batches = list(loop.make_batches(1))

    def peak(module: nn.Module) -> int:
        def step(enter) -> None:
            loop.F.cross_entropy(module(batches[0][0]), batches[0][1]).backward()
            for parameter in module.parameters():
                parameter.grad = None

        step(None)
        return record_step(module, step, plan.forecast.static_bytes)["peak_bytes"]

    assert peak(plan.apply(model)) <= BUDGET < peak(model)


def test_the_loop_runs_as_a_script(loop, capsys):
    loop.main("20 MB")
    printed = capsys.readouterr().out
    assert "recompute" in printed
    losses = [line.partition(": ")[2] for line in printed.splitlines() if line.lstrip().startswith(("plain:", "plan."))]
    assert len(losses) == 3
    assert len(set(losses)) == 1


class TestLightning:
    pytestmark = lightning_warns
    SHAPES = ("16x3x32x32", "16:int64<10")

    def inside(self, callback, budget=BUDGET, **settings):
        return callback.FitInside(budget, list(self.SHAPES), **{"bit_identical": True, **settings})

    def test_a_module_trains_inside_the_budget_as_it_would_without(self, callback):
        class Watch(callback.L.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                planned.append("training_step" in vars(pl_module))
                logged.append(trainer.callback_metrics["loss"].item())

        found = []
        for within in (self.inside(callback), None):
            planned, logged = [], []
            module = callback.train(*([within] if within else []), Watch())
            assert planned == [within is not None] * 6
            assert "training_step" not in vars(module)
            found.append((module, logged))
            if within:
                assert [lever.name for lever in within.plan.levers] == ["recompute"]
                assert within.plan.forecast.peak_bytes <= BUDGET < within.plan.plain_peak_bytes
        assert_same(found[0][0], found[1][0])
        assert found[0][1] == found[1][1]

    def test_the_planned_training_step_stays_within_the_budget(self, callback):
        class Watch(callback.L.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                def step(enter) -> None:
                    within.step(*batch).backward()
                    within.step.logged.clear()
                    for parameter in pl_module.parameters():
                        parameter.grad = None

                if batch_idx == 1:
                    peaks.append(record_step(within.step, step, within.plan.forecast.static_bytes)["peak_bytes"])

        within, peaks = self.inside(callback), []
        callback.train(within, Watch(), max_epochs=1)
        assert peaks[0] <= BUDGET

    def test_a_step_that_fits_is_left_alone(self, callback):
        within = self.inside(callback, "1 GB")
        callback.train(within, max_epochs=1)
        assert within.plan.levers == ()

    def test_accumulated_batches_and_autocast_are_planned_for(self, callback):
        within = self.inside(callback)
        callback.train(within, max_epochs=1, accumulate_grad_batches=3, precision="bf16-mixed")
        assert within.plan.work.accumulate == 3
        assert within.plan.work.autocast is torch.bfloat16
        assert "AdamW" in within.plan.work.setting

    def test_what_is_the_trainers_to_pull_is_refused_by_name(self, callback):
        within = self.inside(callback, 5_000_000, bit_identical=False, allow=("microbatch",))
        with pytest.raises(sash.InputError, match=r"microbatch \(.*\).*accumulate_grad_batches.*the least is \d+ bytes"):
            callback.train(within)

    def test_a_budget_that_no_plan_keeps_is_refused_before_the_first_step(self, callback):
        module = callback.Classifier()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with pytest.raises(sash.DoesNotFit, match="The least that can be kept"):
            callback.train(self.inside(callback, "1 MB"), module=module)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    @pytest.mark.parametrize(("settings", "told"), [({"precision": "64-true"}, "64-true"), ({"manual": True}, "automatic optimization")])
    def test_a_step_that_cannot_be_planned_is_refused(self, callback, settings, told):
        module = callback.Classifier()
        if settings.pop("manual", False):
            module.automatic_optimization = False
        with pytest.raises(sash.InputError, match=told):
            callback.train(self.inside(callback), module=module, **settings)

    def test_parts_in_evaluation_mode_stay_so(self, callback):
        class Frozen(callback.Classifier):
            def on_train_epoch_start(self):
                self.net[2].eval()

        models = []
        for within in ([self.inside(callback)], []):
            torch.manual_seed(0)
            models.append(callback.train(*within, module=Frozen(), max_epochs=1))
        assert models[0].net[2].num_batches_tracked == 0
        assert_same(*models)

    def test_the_example_runs_as_a_script(self, callback, capsys):
        callback.main("20 MB")
        assert "parameters and buffers are identical" in capsys.readouterr().out

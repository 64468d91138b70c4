"""A model that cannot be traced: one message, in the user's terms, with what works instead."""

import importlib.util
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sash.cost import Workload, forecast
from sash.cost._fakes import quiet_fakes
from sash.errors import InputError, ModelError, ShapeError, TraceError

IMAGE = "1x3x16x16"


class Net(nn.Module):
    """A convolution, and what is done with its output."""

    def __init__(self, then=None):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.then = then

    def forward(self, x):
        x = self.first(x)
        return x if self.then is None else self.then(x)


@torch.library.custom_op("sash_test_failures::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def halved(x):
    return halve(x)


def branch(x):
    return x * 2 if x.sum() > 0 else x


def count(x):
    return x[: int(x.argmax())]


def pick(x):
    return x[x > 0]


def told(work, kind, real=False):
    with pytest.raises(kind) as caught:
        forecast(work, real=real)
    return str(caught.value)


@pytest.mark.parametrize(
    ("deed", "line"), [(branch, "return x * 2 if x.sum() > 0 else x"), (count, "return x[: int(x.argmax())]"), (pick, "return x[x > 0]")]
)
def test_control_flow_that_needs_values_names_the_users_line_and_offers_real(deed, line):
    work = Workload(Net(deed), IMAGE)
    text = told(work, TraceError)
    assert "test_failures.py" in text
    assert line in text
    assert "real=True" in text
    assert "--real" in text
    assert forecast(work, real=True).peak_bytes > 0


def test_an_operator_without_a_fake_kernel_is_named_and_offered_real():
    work = Workload(Net(halved), IMAGE)
    text = told(work, TraceError)
    assert "sash_test_failures" in text or "halve" in text
    assert "register_fake" in text
    assert "real=True" in text
    assert forecast(work, real=True).peak_bytes > 0


def test_what_is_not_implemented_is_no_missing_kernel_on_real_tensors():
    def unfinished(x):
        raise NotImplementedError("the decoder comes later")

    assert "raised NotImplementedError: the decoder comes later" in told(Workload(Net(unfinished), IMAGE), ModelError, real=True)


def test_a_whole_number_input_to_a_convolution_names_the_types():
    text = told(Workload(Net(), f"{IMAGE}:int64"), ModelError)
    assert "first" in text
    assert "float32" in text
    assert f"'{IMAGE}'" in text


def test_an_input_of_the_wrong_rank_is_a_shape_error():
    with pytest.raises(ShapeError) as caught:
        forecast(Workload(Net(), "3x16"))
    assert caught.value.path == "first"


def test_the_line_is_the_models_own_where_a_library_is_called(tmp_path, monkeypatch):
    # An installed library fails inside; what the user can change is the line that called it.
    library = tmp_path / "site" / "library.py"
    library.parent.mkdir()
    library.write_text("def check(x):\n    raise ValueError('odd')\n")
    monkeypatch.syspath_prepend(str(library.parent))
    monkeypatch.setattr("sash.cost._failures._INSTALLED", (str(library.parent),))
    own = tmp_path / "own.py"
    own.write_text(
        textwrap.dedent("""
        import library
        from torch import nn

        class Own(nn.Module):
            def forward(self, x):
                return library.check(x)
        """)
    )
    spec = importlib.util.spec_from_file_location("own", own)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = told(Workload(module.Own(), IMAGE), ModelError)
    del sys.modules["library"]
    assert f"{own}:7: return library.check(x)" in text


def test_a_shape_that_a_stand_in_refuses_is_not_logged_by_torch(caplog):
    with FakeTensorMode():
        left, right = torch.empty(2, 3), torch.empty(4, 5)
        with quiet_fakes(), pytest.raises(RuntimeError):
            left @ right
        assert caplog.records == []
        with pytest.raises(RuntimeError):
            left @ right
    assert caplog.records, "torch no longer logs this: quiet_fakes has nothing left to do"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"loss": lambda y: 1.0}, "the loss returned a float"),
        ({"optimizer": lambda parameters: parameters}, "returned a list; it has to return a torch.optim.Optimizer"),
    ],
)
def test_a_training_step_that_cannot_be_is_refused(setting, words):
    assert words in told(Workload(Net(), IMAGE, train=True, **setting), InputError)


def test_a_model_without_anything_to_train_is_refused():
    assert "nothing to train" in told(Workload(Net().requires_grad_(False), IMAGE, train=True), InputError)


def test_an_optimizer_for_a_model_without_parameters_is_refused():
    assert "has no parameters" in told(Workload(nn.ReLU(), IMAGE, train=True, optimizer="sgd"), InputError)


def test_lazy_layers_are_asked_for_their_sizes():
    assert "run it once on a small input" in told(Workload(nn.LazyLinear(8), IMAGE), InputError)


def test_a_sparse_parameter_is_refused():
    model = nn.Linear(4, 4)
    model.register_buffer("graph", torch.eye(4).to_sparse())
    assert "layout torch.sparse_coo" in told(Workload(model, "1x4"), InputError)


def test_real_tensors_are_needed_for_a_real_trace():
    assert "meta device" in told(Workload(Net().to("meta"), IMAGE), InputError, real=True)


def test_the_model_is_left_as_it_was_after_a_failure():
    model = Net(branch).train()
    told(Workload(model, IMAGE), TraceError)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model(torch.ones(1, 3, 16, 16)).shape == (1, 8, 16, 16)

"""A folder with a user's model file, and the command run in it."""

import sys

import pytest
from typer.testing import CliRunner

from sash.cli import app

MODEL = '''"""A user's models: one that works, and one for each way not to."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x, mask=None):
        x = F.relu(self.first(x))
        return self.second(x if mask is None else x * mask)


class Chatty(Net):
    def forward(self, x):
        print("forward was here")
        return super().forward(x)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, ids):
        return self.head(self.embed(ids))


class Branching(Net):
    def forward(self, x):
        if x.sum() > 0:
            return self.first(x)
        return x


class Picking(Net):
    def forward(self, x):
        x = self.first(x)
        return x[x > 0]


@torch.library.custom_op("sash_cli_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class NoFakeKernel(Net):
    def forward(self, x):
        return twice(self.first(x))


class OnCuda(Net):
    def __init__(self):
        super().__init__()
        self.to("cuda")


class InputToCuda(Net):
    def forward(self, x):
        return self.first(x.to("cuda"))


def on_meta():
    return Net().to("meta")


def raising():
    sizes = {"small": 8}
    return Net(sizes["large"])


def total(y):
    return y.sum()


def not_scalar(y):
    return y
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(MODEL.replace("sash_cli_test", f"sash_cli_{tmp_path.name.replace('-', '_')}"))
    monkeypatch.chdir(tmp_path)
    before, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if name.startswith("sash_model_"):
            del sys.modules[name]


@pytest.fixture
def sash(folder):
    """Runs the command in this process: `sash("walk", "40 | conv 8")`."""
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])

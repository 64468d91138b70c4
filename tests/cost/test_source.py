"""Models named by text, and the one message for each way that it can go wrong."""

import pickle
import sys

import pytest
import torch
from torch import nn

from sash.cost._source import FunctionSource, ModelSource
from sash.errors import InputError, ModelError

MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
from sibling import WIDTH

@dataclass
class Config:
    width: int = WIDTH

class Net(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.layer = nn.Linear(width, 2)

    def forward(self, x):
        return self.layer(x)

class Wide(Net):
    def __init__(self, width, depth):
        super().__init__(width)

ready = Net(5)

def make(width=4):
    return Net(width)

def broken():
    widths = [1, 2]
    return widths[7]

def deep():
    return nn.Linear(-1, 2)

def number():
    return 3

def loss(y):
    return y.square().sum()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    before, modules = list(sys.path), set(sys.modules)
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "sibling.py").write_text("WIDTH = 3\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def load(text):
    return ModelSource(text).load()


def told(text, error=ModelError):
    with pytest.raises(error) as caught:
        load(text)
    return str(caught.value)


def test_a_class_is_called_without_arguments_and_its_siblings_are_found(folder):
    assert load("my_model.py:Net").layer.in_features == 3


def test_arguments_are_plain_values(folder):
    assert load("my_model.py:make(width=7)").layer.in_features == 7
    assert load("my_model.py:Wide(6, depth=2)").layer.in_features == 6


def test_a_module_that_stands_in_the_file_is_taken_as_it_is(folder):
    assert load("my_model.py:ready").layer.in_features == 5


def test_a_package_is_named_with_dots():
    assert isinstance(load("torch.nn:Linear(2, 3)"), nn.Linear)


def test_a_file_in_another_folder_is_found_by_its_path(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load(f"{folder}/my_model.py:Net").layer.in_features == 3


def test_the_folder_is_last_on_the_path_after_loading(folder):
    load("my_model.py:Net")
    assert sys.path.count(str(folder)) == 1
    assert sys.path[-1] == str(folder)


def test_a_function_source_travels_as_text(folder):
    source = pickle.loads(pickle.dumps(FunctionSource("my_model.py:loss")))
    assert source(torch.tensor([1.0, 2.0])) == 5.0


def test_a_missing_file_names_the_nearest(folder):
    assert told("my_modle.py:Net") == "there is no file my_modle.py. Did you mean my_model.py?"


def test_a_missing_file_without_a_near_name_lists_the_folder(folder):
    assert "has my_model.py, sibling.py" in told("zzz.py:Net")


def test_a_missing_folder_is_said_to_be_missing(folder):
    assert told("nowhere/zzz.py:Net") == "there is no file nowhere/zzz.py. The folder nowhere does not exist."


def test_a_syntax_error_shows_its_line(folder):
    (folder / "bad.py").write_text("x = 1\ndef make(:\n    pass\n")
    text = told("bad.py:make")
    assert "syntax error" in text
    assert "line 2 of bad.py: def make(:" in text


def test_a_missing_name_gets_the_nearest_and_the_offer(folder):
    text = told("my_model.py:Nets")
    assert "Did you mean Net?" in text
    assert "It offers Config, Net, Wide, ready, make, broken, deep, number, loss." in text


def test_a_factory_that_raises_shows_the_exception_and_the_line(folder):
    text = told("my_model.py:broken")
    assert "broken raised IndexError: list index out of range" in text
    assert "of my_model.py: return widths[7]" in text


def test_a_factory_that_raises_inside_a_library_shows_the_users_line(folder):
    assert "of my_model.py: return nn.Linear(-1, 2)" in told("my_model.py:deep")


def test_a_file_that_raises_shows_the_line(folder):
    (folder / "raising.py").write_text("import no_such_package\n")
    assert "line 1 of raising.py: import no_such_package" in told("raising.py:make")


def test_a_file_that_exits_is_told_where_programs_belong(folder):
    (folder / "program.py").write_text("import sys\nsys.exit(3)\n")
    assert "__main__" in told("program.py:make")


def test_a_file_that_failed_to_load_is_loaded_anew(folder):
    (folder / "mended.py").write_text("1 / 0\n")
    told("mended.py:make")
    (folder / "mended.py").write_text("def make():\n    return abs\n")
    assert load("mended.py:make") is abs


def test_a_factory_that_needs_arguments_is_told_how_to_give_them(folder):
    assert "my_model.py:Wide(width=..., depth=...)" in told("my_model.py:Wide")


def test_a_factory_that_returns_no_callable_is_named(folder):
    assert "number returned an int" in told("my_model.py:number")


def test_a_module_that_is_not_installed_is_said_to_be_missing(folder):
    assert "there is no module 'no.such.package'" in told("no.such.package:make")
    assert "Did you mean the file my_model_two.py?" not in told("my_model_two:make")


def test_arguments_that_are_not_plain_values_are_refused(folder):
    assert "plain values" in told("my_model.py:make(width=__import__('os').getpid())", InputError)
    assert "plain values" in told("my_model.py:make(**{})", InputError)


def test_a_text_without_a_factory_lists_what_the_file_offers(folder):
    assert "It offers Config, Net" in told("my_model.py", InputError)


@pytest.mark.parametrize("text", ["", ":", "my_model.py:", "(3)", "my_model.py:make(width=3"])
def test_a_text_that_names_nothing_is_refused(folder, text):
    assert told(text, InputError)

"""What a workload takes, what it says of itself, and what it refuses."""

import functools
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sash.cost import ModelSource, Workload
from sash.cost._workload import default_loss, make_tensor, map_tensors, tensors_in
from sash.errors import InputError
from sash.units import TensorSpec

MODEL = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("inputs", "setting"),
    [
        ("8x4", "8x4, inference"),
        (torch.zeros(8, 4), "8x4, inference"),
        (("8x4", "2x3:int64<10"), "8x4, 2x3:int64<10, inference"),
        (["8x4", "mask=2x3:bool"], "8x4, mask=2x3:bool, inference"),
        ({"x": "8x4", "scale": 2.0}, "x=8x4, scale=float, inference"),
    ],
)
def test_the_setting_says_the_inputs_in_words(inputs, setting):
    assert Workload(MODEL, inputs).setting == setting


def test_the_setting_says_how_a_training_step_runs():
    work = Workload(MODEL, "8x4", train=True, optimizer="momentum", autocast="bf16", accumulate=4)
    assert work.setting == "8x4, training, SGD(momentum=0.9), autocast bfloat16, 4 micro-batches"


@pytest.mark.parametrize(
    ("model", "name"),
    [(MODEL, "Linear"), (torch.relu, "relu"), (functools.partial(torch.relu), "partial"), (ModelSource("a.py:Net"), "a.py:Net")],
)
def test_a_workload_is_named_after_its_model(model, name):
    assert Workload(model, "8x4").name == name


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"inputs": "8x3xnanx3"}, "has the length 'nan'; every length is a positive whole number"),
        ({"inputs": "-8x4"}, "has the length '-8'"),
        ({"inputs": "8x4:floaty32"}, "the nearest is 'float32'"),
        ({"inputs": 8}, "inputs are of type int; give a tensor"),
        ({"model": 3}, "model is of type int; it must be an nn.Module, a callable or a ModelSource"),
        ({"device": "cuda"}, "device 'cuda' was asked for; sash forecasts and measures on 'cpu'"),
        ({"optimizer": "adam"}, "without train=True"),
        ({"loss": default_loss}, "a loss was asked for without train=True"),
        ({"train": True, "loss": "mse"}, "loss is of type str; give a function outputs → scalar"),
        ({"train": True, "optimizer": "adamwx"}, "optimizer 'adamwx' is not in torch.optim; the nearest is 'AdamW'"),
        ({"train": True, "optimizer": "zzz"}, "try 'AdamW', 'Adam', 'SGD' or 'momentum'"),
        ({"train": True, "optimizer": 0.1}, "optimizer is of type float"),
        ({"train": True, "accumulate": 0}, "accumulate is 0; it is a number of micro-batches"),
        ({"train": True, "accumulate": 1.5}, "accumulate is 1.5"),
        ({"autocast": "int3"}, "autocast is 'int3'; it may be 'bf16' or 'fp16'"),
        ({"autocast": torch.float32}, "it may be 'bf16' or 'fp16'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_works(setting, words):
    with pytest.raises(InputError) as caught:
        Workload(**{"model": MODEL, "inputs": "8x4", **setting})
    assert words in str(caught.value)


def test_positional_inputs_come_before_named_ones():
    positional, keyword = Workload(MODEL, ("8x4", "mask=2x3:bool", "5")).arguments()
    assert [spec.shape for spec in positional] == [(8, 4), (5,)]
    assert list(keyword) == ["mask"]


def test_tensors_are_found_in_every_container_once():
    @dataclass
    class Answer:
        logits: Tensor
        others: dict

    Pair = namedtuple("Pair", "left right")
    one, two, three = (torch.zeros(size) for size in (1, 2, 3))
    found = tensors_in([Answer(one, {"a": two}), Pair(three, one), "text", None])
    assert [tensor.numel() for tensor in found] == [1, 2, 3]


def test_mapping_keeps_containers_and_reaches_into_named_tuples():
    Pair = namedtuple("Pair", "left right")
    found = map_tensors(make_tensor, {"a": [TensorSpec((2,))], "b": Pair(TensorSpec((3,)), 1)})
    assert found["a"][0].shape == (2,)
    assert found["b"].left.shape == (3,)
    assert isinstance(found["b"], Pair)


def test_made_whole_numbers_stay_below_their_bound():
    made = make_tensor(TensorSpec((1000,), "int64", below=7))
    assert made.min() >= 0
    assert made.max() == 6
    assert make_tensor(TensorSpec((3,), "int64")).tolist() == [0, 0, 0]
    assert make_tensor(TensorSpec((2,), "complex64")).dtype is torch.complex64


def test_the_default_loss_adds_the_means_of_floating_outputs():
    assert default_loss({"a": torch.tensor([1.0, 3.0]), "b": (torch.tensor(5.0), torch.tensor([7]))}) == 7.0
    with pytest.raises(InputError, match="no floating tensor"):
        default_loss(torch.tensor([7]))

"""Pictures with labels that need no download: Fashion-MNIST from its Debian package, scikit-learn's digits."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FASHION = Path("/usr/share/datasets/fashion-mnist")
_KINDS = {"train": "train", "test": "t10k"}
_PICTURES, _LABELS = 2051, 2049
"""How the files of the two kinds begin, in the idx format."""


def fashion_mnist(split: str = "train", count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `count` pictures of a split, "train" (60 000) or "test" (10 000), and their labels from 0 to 9.

    Pictures are count x 1 x 28 x 28, in float32, shifted and scaled by the mean and the deviation of the whole training split.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017; Debian package dataset-fashion-mnist.
    """
    if not FASHION.is_dir():
        raise FileNotFoundError(f"there is no {FASHION}: install the Debian package dataset-fashion-mnist.")
    name = _KINDS[split]
    pictures = _read(FASHION / f"{name}-images-idx3-ubyte.gz", _PICTURES, 3)[:count]
    labels = _read(FASHION / f"{name}-labels-idx1-ubyte.gz", _LABELS, 1)[:count]
    # 0.2860 and 0.3530 of the range: the training split's mean and deviation.
    return (torch.from_numpy(pictures).unsqueeze(1).float() / 255 - 0.2860) / 0.3530, torch.from_numpy(labels).long()


def digits(scale: int = 1) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's 1 797 digits, count x 1 x 8 x 8, in two parts that are always the same: 1 200 to train with and 597 held out.

    With `scale`, enlarged so many times, bilinearly. Values are shifted and scaled to mean 0 and deviation 1.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    pictures = torch.from_numpy(found.images).float().unsqueeze(1)[order]
    if scale > 1:
        pictures = F.interpolate(pictures, scale_factor=scale, mode="bilinear")
    pictures = (pictures - pictures.mean()) / pictures.std()
    labels = torch.from_numpy(found.target).long()[order]
    return (pictures[:1200], labels[:1200]), (pictures[1200:], labels[1200:])


def _read(path: Path, begin: int, axes: int) -> np.ndarray:
    """An array of the idx format: a number that says what it is, its sizes, its bytes."""
    content = gzip.decompress(path.read_bytes())
    head = np.frombuffer(content, ">i4", axes + 1)
    if head[0] != begin:
        raise ValueError(f"{path} begins with {head[0]}; {begin} would be such a file.")
    return np.frombuffer(content, np.uint8, offset=head.nbytes).reshape(head[1:]).copy()

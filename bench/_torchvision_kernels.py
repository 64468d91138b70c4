"""torchvision's compiled CPU kernels, on a torch built for CPUs only: `torch.ops.torchvision.nms` and so on.

The wheel's library is linked to CUDA's. Its CPU kernels need none of that: a library of the two missing names, with the one variable that
has to be there, lets the loader bring it in; what is not called is never looked up. Needs a C compiler (`cc`), libcudart and torchvision.
Import this before torchvision, timm or transformers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

import torch

_VARIABLE = "char _ZN3c104cuda20CUDACachingAllocator9allocatorE[64];"


def _load() -> None:
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise ImportError("torchvision is not installed")
    library = Path(found.origin).parent / "_C.so"
    try:
        torch.ops.load_library(library)
        return
    except OSError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text(_VARIABLE)
        for name in ("libc10_cuda.so", "libtorch_cuda.so"):
            made = Path(folder) / name
            subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(made), str(source)], check=True)
            ctypes.CDLL(str(made), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library), os.RTLD_LAZY)


_load()
nms, roi_pool, roi_align = torch.ops.torchvision.nms, torch.ops.torchvision.roi_pool, torch.ops.torchvision.roi_align
"""(boxes, scores, threshold); (features, rois, scale, height, width); the same with sampling_ratio and aligned."""

"""On what a result is made."""

from __future__ import annotations

import platform

import torch

from sash.cost._results import Environment


def environment() -> Environment:
    """This process's versions, threads and kind of machine."""
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return Environment(torch=torch.__version__, python=platform.python_version(), threads=torch.get_num_threads(), machine=machine)

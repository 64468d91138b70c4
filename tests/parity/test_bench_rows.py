"""Rows of the forecast bench, held to the allocator's record: slow, so under `make test-long`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
FORECAST = """
import sys
sys.path.insert(0, sys.argv[1])
import sash
from _workloads import WORKLOADS
row = WORKLOADS[sys.argv[2]]
model, inputs = row.make()
work = sash.Workload(model, inputs, train=row.train, optimizer=row.optimizer, autocast=row.autocast, accumulate=row.accumulate)
print(sash.forecast(work).peak_bytes)
"""
ROWS = (
    "resnet18-b16-momentum-train",
    "resnet50-b8-last-infer",
    "resnet50-b4-bf16-train",
    "efficientnet_b0-b4-adam-train",
    "densenet121-b4-infer",
    "edgenext_small-b4-infer",
    "xcit_nano-b2-train",
    "bert-b8-infer",
    "t5-b4-accumulate-train",
    "unet-b1-bf16-train",
    "lstm-b32-adam-train",
    "spectral-b4-adam-train",
    "volume-b2-momentum-train",
    "decoder-b16-adam-train",
)


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_the_forecast_is_the_allocators_peak(name, tmp_path):
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORECAST, str(BENCH), name], capture_output=True, text=True, check=True
    ).stdout
    answer = tmp_path / "truth.json"
    subprocess.run([sys.executable, "-W", "ignore", str(BENCH / "_truth.py"), name, "--json", str(answer)], capture_output=True, check=True)
    peak = json.loads(answer.read_text())[name]["peak_bytes"]
    assert int(told.split()[-1]) == pytest.approx(peak, rel=2e-3)

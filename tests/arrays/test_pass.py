"""What a pass over many tasks holds is counted from some of them, and is not less than what all of them hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.arrays import _pass
from sash.arrays._foreseen import ForeseenSink, ForeseenSource
from sash.arrays._pass import Cut, Pass
from sash.arrays._planes import planes_of
from sash.arrays._stage import Correlate

FLOAT = np.dtype(np.float32)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["wrap", "reflect", "constant"]),
    st.integers(1, 40),
    st.integers(1, 300),
    st.integers(1, 200),
    st.integers(1, 4),
    st.sampled_from([1, 7, 32]),
    st.integers(300, 900),
)
def test_some_tasks_tell_what_all_of_them_hold(boundary, rows, taps, along, workers, grain, height):
    with pytest.MonkeyPatch.context() as patched:
        shape = (height, 90)
        (planes, _), *_ = planes_of(shape, (0, 1))
        source = ForeseenSource(shape, FLOAT, False)
        source.grain = (grain, 1)
        stage = Correlate(shape, FLOAT, boundary, np.ones(taps), np.ones(along), (taps // 2, along // 2))
        made, cut = Pass(stage, planes, planes, source, FLOAT), Cut(workers, (), rows, 40)
        sink = ForeseenSink("out.npy", shape, FLOAT)
        some = made.peak_bytes(cut, sink)
        patched.setattr(_pass, "FEW", height)
        whole = made.peak_bytes(cut, sink)
    # Rows that last are counted in whole grains, and one more at either end.
    width = 40 + along
    assert whole <= some <= whole + 4 * (4 * grain + taps) * width * (boundary == "wrap")

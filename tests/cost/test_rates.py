"""Rates: kept, shown, deleted, refused where they are no rates. One test measures; none looks at how fast anything was."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sash.cli import app
from sash.cost import Rates, _calibration, _rates, calibrate, forecast, forget_rates, rates_path, read_rates, stored_rates
from sash.cost._laws import NAMES, STREAMS
from sash.cost._piece import Piece
from sash.cost._probes import probe
from sash.cost._time import slowness
from sash.cost._workload import Workload
from sash.errors import InputError, MeasureError

MADE_UP = Path(__file__).with_name("rates.json")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no rates named by the environment."""
    monkeypatch.delenv("SASH_RATES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def made_up():
    return read_rates(MADE_UP.read_text())


@pytest.fixture
def counted(monkeypatch, made_up):
    """Measuring, replaced: it hands out this machine's name with made-up rates, and counts its calls."""
    calls = []

    def measured():
        calls.append(1)
        return replace(made_up, machine=_rates.machine_kind(), torch=torch.__version__, threads=torch.get_num_threads())

    monkeypatch.setattr(_rates, "_measured", measured)
    return calls


def test_a_calibration_finds_every_rate_in_a_process_of_its_own(cache):
    before = torch.get_num_threads()
    found = calibrate()
    assert set(found.values) == set(NAMES)
    assert all(0 < value < float("inf") for value in found.values.values())
    assert (found.torch, found.threads) == (torch.__version__, before)
    assert found.made_s > 0
    assert rates_path().is_relative_to(cache)
    assert stored_rates() == found
    assert [path.name for path in rates_path().parent.iterdir() if path.suffix == ".part"] == []


EVEN = {f"stream.{size}.bytes_per_s": 5e10 for size in STREAMS}
"""Memory as fast as the caches."""


def test_the_parts_of_a_law_are_found_again_in_what_its_probes_took():
    sizes = [(1, 1e6, 1e5, 1e4), (4, 1e5, 1e7, 1e3), (2, 5e7, 1e6, 1e5), (1, 1e7, 3e6, 1e7), (8, 1e8, 2e7, 0), (16, 1e6, 1e6, 1e6)]
    items = {"first": 2e-11, "second": 5e-12}
    seen = {
        law: [
            (
                Piece(law, work, moved, weights, calls=calls),
                1e-6 + 5e-5 + 2e-6 * calls + 4e-11 * moved + 1e-10 * weights + items[law] * work,
            )
            for calls, work, moved, weights in sizes
        ]
        for law in items
    }
    found = _calibration._summed(seen, {"operator.s": 1e-6, **EVEN})
    shared = {"start_s": 5e-5, "call_s": 2e-6, "s_per_byte": 4e-11, "s_per_weight_byte": 1e-10}
    for law, item in items.items():
        parts = {**shared, "s_per_item": item}
        assert {part: found[f"{law}.{part}"] for part in parts} == pytest.approx(parts, rel=1e-6)


def test_no_law_computes_faster_than_the_fastest_probe():
    pieces = [Piece("law.f32", macs, 1e3, 0, macs) for macs in (1e6, 1e7, 1e8)]
    seen = {"law.f32": [(piece, 2e-6 + piece.work / 4e11) for piece in pieces]}
    found = _calibration._summed(seen, {"operator.s": 1e-6, "best.f32.macs_per_s": 2e11, **EVEN})
    assert found["law.f32.s_per_item"] == pytest.approx(5e-12)


def test_a_byte_takes_longer_where_no_cache_holds_the_map():
    fast, slow = 5e10, 2e10
    streams = {f"stream.{size}.bytes_per_s": fast if size < 1 << 25 else slow for size in STREAMS}
    sizes = [(1e6, 1e5), (1e7, 1e6), (4e7, 1e5), (1e8, 1e6), (2e5, 1e7), (4e7, 1e8)]
    pieces = [Piece("law", work, moved) for moved, work in sizes]
    seen = {"law": [(one, 2e-6 + 4e-11 * one.bytes * slowness(one.bytes, streams) + 1e-11 * one.work) for one in pieces]}
    found = _calibration._summed(seen, {"operator.s": 1e-6, **streams})
    assert (found["law.s_per_byte"], found["law.s_per_item"]) == pytest.approx((4e-11, 1e-11), rel=1e-6)
    assert slowness(1e6, streams) == pytest.approx(1)
    assert slowness(1e9, streams) == pytest.approx(2.5)


def test_the_start_of_a_map_is_what_its_smallest_probe_takes():
    probes = [(Piece("law", 100, 800), 6e-6), (Piece("law", 1e6, 8e6), 6e-6 + 1e-6 + 3e-4)]
    found = _calibration._mapped("law", probes, {"operator.s": 2e-6, "region.s": 1e-6})
    assert found == pytest.approx({"law.call_s": 4e-6, "law.s_per_item": 3e-10}, rel=1e-6)


def test_probes_are_called_in_turn():
    calls = []
    made = [probe(lambda name=name: calls.append(name)) for name in "abc"]
    taken = _calibration.in_turn(made)
    assert calls[:6] == ["a", "b", "c", "a", "b", "c"]
    assert [len(one) for one in taken] == [len(calls) // 3 - 1] * 3


def test_rates_are_measured_once_and_then_read(cache, counted):
    assert stored_rates() is None
    first = calibrate()
    assert calibrate() == first == stored_rates()
    assert len(counted) == 1
    assert calibrate(again=True) == first
    assert len(counted) == 2


def test_json_reads_back_without_loss(made_up):
    assert read_rates(made_up.to_json()) == made_up


def test_the_printed_rates_have_a_line_and_a_unit_each(made_up):
    head, *lines = str(made_up).splitlines()
    assert head == "a made-up machine, torch 2.13.0, 2 threads; measured in 5.0 s"
    assert len(lines) == len(NAMES)
    assert any(line.split() == ["operator.s", "1.5", "µs"] for line in lines)
    assert any(line.split() == ["best.f32.macs_per_s", "200", "GMAC/s"] for line in lines)
    assert any(line.split() == ["elementwise.add.f32.s_per_item", "0.05", "ns/item"] for line in lines)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": "sash.rates/0"}', "\0", "[" * 100_000])
def test_a_broken_file_is_measured_anew(cache, counted, text):
    calibrate()
    rates_path().write_text(text)
    assert stored_rates() is None
    calibrate()
    assert len(counted) == 2
    assert stored_rates() is not None


def test_a_file_of_another_machine_torch_or_number_of_threads_is_measured_anew(cache, counted):
    found = calibrate()
    for other in (replace(found, machine="another"), replace(found, torch="1.0"), replace(found, threads=64)):
        rates_path().write_text(other.to_json())
        assert stored_rates() is None
    calibrate()
    assert len(counted) == 2


def test_a_file_that_is_not_text_is_measured_anew(cache, counted):
    calibrate()
    rates_path().write_bytes(b"\xff\xfe\x00")
    calibrate()
    assert len(counted) == 2


def test_forgotten_rates_are_gone(cache, counted):
    assert not forget_rates()
    calibrate()
    assert forget_rates()
    assert stored_rates() is None
    assert not rates_path().exists()
    assert not forget_rates()


def test_a_cache_folder_that_cannot_be_made_does_not_stop_a_calibration(cache, counted, monkeypatch):
    (cache / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert isinstance(calibrate(), Rates)
    assert not forget_rates()


def test_a_relative_cache_folder_is_not_used(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(cache))
    assert rates_path().is_relative_to(cache / ".cache" / "sash")


def changed(**fields):
    return json.dumps(json.loads(MADE_UP.read_text()) | fields)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "this is not JSON"),
        ("[]", "the schema is None; this version of sash reads 'sash.rates/2'"),
        (changed(schema="sash.rates/3"), "the schema is 'sash.rates/3'"),
        (changed(machine=3), "machine is 3"),
        (changed(threads=True), "threads is True"),
        (changed(made_s=None), "made_s is None"),
        (changed(values=[]), "values is []"),
        (changed(values={}), "the rate operator.s is None; it is a number above 0"),
        (changed(values=json.loads(MADE_UP.read_text())["values"] | {"view.s": 0}), "the rate view.s is 0"),
        (changed(values=json.loads(MADE_UP.read_text())["values"] | {"view.s": -1.0}), "the rate view.s is -1.0"),
        (changed(values=json.loads(MADE_UP.read_text())["values"] | {"view.s": "fast"}), "the rate view.s is 'fast'"),
        (changed(values=json.loads(MADE_UP.read_text())["values"] | {"view.s": float("nan")}), "the rate view.s is nan"),
        (changed(values=json.loads(MADE_UP.read_text())["values"] | {"view.s": True}), "the rate view.s is True"),
    ],
)
def test_what_is_no_rates_is_refused_with_the_field(text, told):
    with pytest.raises(InputError) as raised:
        read_rates(text)
    assert told in str(raised.value)


def test_a_rate_that_this_version_does_not_know_is_left_out():
    values = json.loads(MADE_UP.read_text())["values"] | {"teleport.s": 1.0}
    assert "teleport.s" not in read_rates(changed(values=values)).values


@pytest.mark.parametrize("name", ["missing.json", "broken.json"])
def test_a_named_file_that_cannot_be_read_is_refused_with_its_name(tmp_path, monkeypatch, name):
    (tmp_path / "broken.json").write_text("{")
    monkeypatch.setenv("SASH_RATES", str(tmp_path / name))
    for ask in (stored_rates, calibrate):
        with pytest.raises(InputError, match=name):
            ask()


def test_a_forecast_without_rates_measures_them_once(cache, counted, capsys):
    work = Workload(torch.nn.Linear(4, 4), "2x4")
    assert forecast(work).wall_s > 0
    assert forecast(work).wall_s > 0
    assert len(counted) == 1
    assert capsys.readouterr().err == ""  # no terminal, no progress


def test_a_forecast_tells_a_terminal_that_it_measures(cache, counted, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    forecast(Workload(torch.nn.Linear(4, 4), "2x4"))
    assert "Measuring how fast this machine is" in capsys.readouterr().err


def test_where_measuring_fails_memory_is_forecast_all_the_same(cache, monkeypatch):
    def failing():
        raise MeasureError("the calibrating process ended with exit code 1: no processors")

    monkeypatch.setattr(_rates, "_measured", failing)
    found = forecast(Workload(torch.nn.Linear(4, 4), "2x4"))
    assert found.peak_bytes > 0
    assert found.wall_s == 0
    assert not any(reason.seconds for reason in found.why())
    assert any("Times are not forecast: the calibrating process ended" in note for note in found.notes)


def test_a_calibrating_process_that_dies_says_why(cache, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: -1)
    with pytest.raises(MeasureError, match="exit code 1"):
        _rates._measured()


def test_the_verb_shows_and_deletes(cache):
    def run(*words):
        return CliRunner().invoke(app, ["calibrate", *words])

    nothing = run("--show")
    assert nothing.exit_code == 2
    assert "nothing is kept" in nothing.stderr
    assert run("--show", "--delete").exit_code == 2
    rates_path().parent.mkdir(parents=True)
    kept = read_rates(MADE_UP.read_text())
    rates_path().write_text(
        replace(kept, machine=_rates.machine_kind(), torch=torch.__version__, threads=torch.get_num_threads()).to_json()
    )
    shown = run("--show", "--json")
    assert read_rates(shown.stdout).values == kept.values
    assert "GMAC/s" in run("--show").stdout
    assert "deleted" in run("--delete").stderr
    assert not rates_path().exists()
    assert "nothing was kept" in run("--delete").stderr

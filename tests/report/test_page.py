"""The page as a file: complete, escaped, and written whole or not at all."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sash.errors import InputError, SashError
from sash.report import compare_to_html, to_html


class Elements(HTMLParser):
    """Every element of a page, its attributes, and the words outside scripts."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.words = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] not in ("script", "style"):
            self.words.append(data)


@pytest.fixture
def read(tmp_path):
    def read(write, *args):
        path = tmp_path / "report.html"
        write(*args[:1], path, *args[1:])
        return path.read_text(encoding="utf-8")

    return read


def test_the_page_shows_the_figures_side_by_side(read, forecast, measurement):
    words = Elements(read(to_html, forecast, measurement)).words
    for word in (
        "UNet",
        forecast.setting,
        "peak",
        "forecast",
        "measured",
        "error",
        "+0.3 %",
        "1.84 s",
        "Why",
        forecast.reasons[0].text + " ",
        "Notes",
    ):
        assert word in words
    assert any("torch 2.13.0" in word and "Python 3.11.2" in word and "2 threads" in word for word in words)


def test_the_page_asks_for_nothing_from_outside(read, forecast, measurement):
    found = Elements(read(to_html, forecast, measurement)).found
    sources = [attrs[name] for _, attrs in found for name in ("src", "href", "action", "data") if name in attrs]
    assert sources == ["data:,"]
    (policy,) = [attrs["content"] for tag, attrs in found if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_markup_in_names_stays_text(read, hostile, measurement):
    page = read(to_html, hostile, measurement)
    assert len([tag for tag, _ in Elements(page).found if tag == "script"]) == 3
    assert not [tag for tag, _ in Elements(page).found if tag == "img"]


def test_two_models_are_compared_by_ratio(read, forecast, measurement, twin):
    page = read(compare_to_html, [(forecast, measurement), (twin, None)])
    found = Elements(page)
    assert "SeparableUNet / UNet" in found.words
    assert f"{twin.params / forecast.params:.2f} ×" in found.words
    assert [attrs["data-chart"] for _, attrs in found.found if "data-chart" in attrs] == ["0", "1"]


def test_two_models_in_different_settings_say_so(read, forecast, twin):
    words = Elements(read(compare_to_html, [(forecast, None), (replace(twin, setting="inference"), None)])).words
    assert f"UNet: {forecast.setting}" in words
    assert "SeparableUNet: inference" in words


def test_a_measurement_has_a_page_of_its_own(read, measurement):
    page = read(lambda cost, path: cost.to_html(path), measurement)
    assert "sash measurement" in Elements(page).words
    assert "forecast" not in Elements(page).words


def test_a_result_without_timeline_has_a_page_without_chart(read, forecast):
    bare = replace(forecast, layers=(), timeline=replace(forecast.timeline, moments=(), blocks=()))
    assert "This result has no timeline." in Elements(read(to_html, bare)).words


def test_very_many_layers_are_cut_to_the_largest_and_the_page_says_so(read, forecast):
    many = tuple(replace(forecast.layers[0], path=f"layer{index}", at_peak_bytes=index, held_bytes=0) for index in range(3000))
    page = read(to_html, replace(forecast, layers=many))
    assert "The 2,000 largest of 3,000 layers." in Elements(page).words
    assert ">layer2999<" in page
    assert ">layer999<" not in page


def test_an_old_page_survives_a_failed_write(tmp_path, forecast, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(InputError, match=r"report.html cannot be written: Permission denied"):
        to_html(forecast, path)
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["missing/report.html", "", "file.txt/report.html"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, forecast, name):
    (tmp_path / "file.txt").write_text("a file, not a folder")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / name)) + " cannot be written"):
        to_html(forecast, tmp_path / name)


def test_a_comparison_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one"):
        compare_to_html([], tmp_path / "report.html")


def test_without_plotly_the_error_names_the_extra(tmp_path, forecast, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(SashError, match=r"pip install 'sash\[report\]'"):
        forecast.to_html(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []

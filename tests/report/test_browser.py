"""The page in a real browser, opened from disk: drawn, sorted, searched, pointed at."""

import json
import shutil

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from sash.arrays import PCA, Topic, TopicModel, TopicTerm
from sash.report import compare_to_html, components_to_html, to_html

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1300,1000"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    # Not skipped: a report that no browser has opened is not tested.
    assert chromium, "The report tests need chromium on the PATH."
    assert driver, "The report tests need chromedriver on the PATH."
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, Service(driver))
    yield started
    started.quit()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens what `write` writes and waits until every chart is drawn."""

    def open_page(write, first, *rest):
        path = tmp_path / "report.html"
        write(first, path, *rest)
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(path.as_uri())
        WebDriverWait(browser, 60).until(lambda page: not page.find_elements(By.CSS_SELECTOR, ".chart:not([data-drawn])"))
        return path.as_uri()

    return open_page


def requested(browser, uri):
    """Addresses that the page itself asked for; the browser's own start page asks for others."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return {one["request"]["url"] for one in sent if one["documentURL"] == uri}


def column(browser, place):
    shown = "[...document.querySelectorAll('#layers-0 tbody tr')].filter(row => !row.hidden)"
    rows = browser.execute_script(f"return {shown}.map(row => [...row.cells].map(cell => cell.textContent))")
    return [row[place] for row in rows]


def header(browser, words):
    buttons = browser.find_elements(By.CSS_SELECTOR, "#layers-0 thead button")
    place = [button.text for button in buttons].index(words)
    return place, buttons[place]


def point_at(browser, share):
    """Moves the pointer to a share of the chart's width."""
    plot = browser.find_element(By.CSS_SELECTOR, ".chart .nsewdrag")
    ActionChains(browser).move_to_element_with_offset(plot, int((share - 0.5) * plot.size["width"]), 0).perform()
    WebDriverWait(browser, 20).until(lambda page: page.find_element(By.CSS_SELECTOR, ".tip").is_displayed())


def test_the_page_opens_without_errors_or_outside_requests(browser, open_page, forecast, measurement):
    uri = open_page(to_html, forecast, measurement)
    assert browser.get_log("browser") == []
    assert {url for url in requested(browser, uri) if not url.startswith(("data:", "blob:"))} == {uri}
    assert browser.find_elements(By.CSS_SELECTOR, ".chart .scatterlayer .trace")
    assert [label.text for label in browser.find_elements(By.CSS_SELECTOR, ".chart .annotation-text")][:1] == ["forward"]


def test_markup_in_names_does_not_run(browser, open_page, hostile, measurement):
    open_page(to_html, hostile, measurement)
    point_at(browser, 0.5)
    assert browser.title.endswith("– sash")
    assert browser.get_log("browser") == []
    assert browser.find_elements(By.CSS_SELECTOR, "img[src='x']") == []
    assert hostile.name in browser.find_element(By.CSS_SELECTOR, ".tip").text


def test_a_click_on_a_header_sorts_by_number_and_a_second_turns_it_round(browser, open_page, forecast):
    open_page(to_html, forecast)
    sizes = {layer.path: layer.params for layer in forecast.layers}
    place, button = header(browser, "parameters")
    button.click()
    names = ["" if name == forecast.name else name for name in column(browser, 0)]
    assert [sizes[name] for name in names] == sorted(sizes.values(), reverse=True)
    assert header(browser, "parameters")[1].find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    button.click()
    names = ["" if name == forecast.name else name for name in column(browser, 0)]
    assert [sizes[name] for name in names] == sorted(sizes.values())
    assert place > 0


def test_the_layer_header_brings_back_the_order_of_the_model(browser, open_page, forecast):
    open_page(to_html, forecast)
    before = column(browser, 0)
    header(browser, "kind")[1].click()
    kinds = column(browser, 1)
    assert kinds == sorted(kinds, key=str.lower)
    assert column(browser, 0) != before
    header(browser, "layer")[1].click()
    assert column(browser, 0) == before == [layer.path or forecast.name for layer in forecast.layers]


def test_searching_leaves_the_layers_that_match(browser, open_page, forecast):
    open_page(to_html, forecast)
    box = browser.find_element(By.ID, "search-0")
    box.send_keys("BATCHNORM")
    expected = [layer.path for layer in forecast.layers if layer.kind == "BatchNorm2d"]
    assert column(browser, 0) == expected
    assert browser.find_element(By.CSS_SELECTOR, "output").text == f"{len(expected)} of {len(forecast.layers)} layers"
    box.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
    assert len(column(browser, 0)) == len(forecast.layers)


def test_pointing_at_the_timeline_shows_the_module_at_work(browser, open_page, forecast, measurement):
    open_page(to_html, forecast, measurement)
    panel = browser.find_element(By.CSS_SELECTOR, ".panel")
    timeline = forecast.timeline
    peak = timeline.moments[timeline.peak_moment]
    assert peak.module in panel.text
    assert "the peak" in panel.text
    point_at(browser, 0.1)
    tip = browser.find_element(By.CSS_SELECTOR, ".tip").text.splitlines()
    near = timeline.moments[int(0.1 * len(timeline.moments)) - 3 : int(0.1 * len(timeline.moments)) + 4]
    assert tip[0] in {moment.module for moment in near}
    assert panel.text.startswith(tip[0])
    assert "forward" in panel.text.splitlines()[0]
    assert "largest blocks alive" in panel.text


def test_the_arrow_keys_walk_the_timeline(browser, open_page, forecast):
    open_page(to_html, forecast)
    chart = browser.find_element(By.CSS_SELECTOR, ".chart")
    chart.send_keys(Keys.HOME)
    assert browser.find_element(By.CSS_SELECTOR, ".panel").text.startswith(forecast.timeline.moments[0].module)
    chart.send_keys(Keys.ARROW_RIGHT)
    assert f"call 2 of {len(forecast.timeline.moments)}" in browser.find_element(By.CSS_SELECTOR, ".panel").text


def test_two_models_have_two_charts_on_one_scale(browser, open_page, forecast, measurement, twin):
    open_page(compare_to_html, [(forecast, measurement), (twin, None)])
    assert browser.get_log("browser") == []
    ranges = browser.execute_script("return [...document.querySelectorAll('.chart')].map(chart => chart._fullLayout.yaxis.range)")
    assert len(ranges) == 2
    assert ranges[0] == ranges[1]


def test_a_phone_shows_the_page_without_sideways_scrolling(browser, open_page, forecast, measurement, twin):
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        open_page(compare_to_html, [(forecast, measurement), (twin, None)])
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_plan_is_drawn_under_its_budget_and_the_plain_peak(browser, open_page, plan, measurement):
    open_page(to_html, plan, measurement)
    assert browser.get_log("browser") == []
    lines = browser.execute_script(
        "return Object.fromEntries(document.querySelector('.chart')._fullData.filter(one => one.line && one.line.dash === 'dash')"
        ".map(one => [one.name, one.y[0] * step.unit]))"
    )
    assert lines == {"budget": pytest.approx(plan.budget_bytes), "plain peak": pytest.approx(plan.plain_peak_bytes)}
    labels = [label.text for label in browser.find_elements(By.CSS_SELECTOR, ".chart .annotation-text")]
    assert any(label.startswith("budget ") for label in labels)
    assert any(label.startswith("plain peak ") for label in labels)
    top = browser.execute_script("return document.querySelector('.chart')._fullLayout.yaxis.range[1] * step.unit")
    assert top > plan.plain_peak_bytes
    assert "recompute" in browser.find_element(By.CSS_SELECTOR, ".levers").text
    point_at(browser, 0.1)  # the lines are not pointed at
    assert plan.forecast.timeline.moments[0].phase in browser.find_element(By.CSS_SELECTOR, ".panel").text


def test_a_phone_shows_a_plan_without_sideways_scrolling(browser, open_page, plan, measurement):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True})
    try:
        open_page(to_html, plan, measurement)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("count", [8, 300])
def test_a_scree_plot_and_what_was_learnt_are_drawn(browser, open_page, count):
    shares = 0.9 * 2.0 ** -np.arange(1, count + 1)
    found = PCA(np.eye(count), shares, shares, shares, np.zeros(count), None, np.zeros((9, count)), shares, 1.0, "gram")
    topic = Topic(1.0, (TopicTerm(0, "cat", 0.5),), 0.1, -1.0)
    topics = TopicModel(
        9, count, 99, (topic,), 2, 50.0, 90.0, (60.0, 50.0), 2, 0.1, -1.0, 0, 1, 1, 1.0, np.ones((1, count)), np.ones((9, 1))
    )
    open_page(lambda first, path: components_to_html(path, first, topics), found)
    labels = browser.execute_script("return [...document.querySelectorAll('.annotation-text')].map((one) => one.textContent)")
    assert labels == [f"k = {count}: {90 * (1 - 0.5**count):.1f} %", "one distribution for all"]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []

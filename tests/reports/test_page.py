"""The HTML page of a report: its contents, and its behavior in Chromium, if installed.

To look at it: VIT_JAX_PICTURES=DIR python -m pytest tests/reports/test_page.py leaves screenshots there.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.reports.browser import CHROMIUM, Browser
from tests.reports.made import finished, many
from tests.reports.test_paper import study
from vit_jax.runs.reports import page
from vit_jax.runs.reports.comparison import compare_runs
from vit_jax.runs.reports.page import as_page, encode, points_per_curve, thin

NASTY = "</script><script>document.body.remove()</script><b onclick=\"x\">&amp;'{{data}}'"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_names_and_values_cannot_become_html(tmp_path):
    finished(tmp_path / "a", 0.5, {"note": NASTY})
    finished(tmp_path / "b", 0.5, {"note": "\u2028"}, hardware=NASTY)
    text = as_page(compare_runs([tmp_path]))
    assert text.count("</script>") == 2
    assert "document.body.remove()</script>" not in text
    assert data_of(text)["runs"][0]["settings"] == [NASTY]
    assert data_of(text)["runs"][1]["hardware"] == NASTY


def test_the_page_asks_for_nothing_outside_it(tmp_path):
    finished(tmp_path / "a", 0.5)
    text = as_page(compare_runs([tmp_path]))
    assert not re.search(r"(src|href)=|url\(|@import|fetch\(|https?://", text)
    assert "default-src 'none'" in text


def test_a_curve_is_thinned_to_its_ends_and_its_peaks():
    curve = [(step, float(step % 7)) for step in range(1, 1001)]
    curve[500] = (501, 99.0)
    curve[700] = (701, -99.0)
    few = thin(curve, 50)
    assert len(few) <= 50
    assert (few[0], few[-1]) == (curve[0], curve[-1])
    assert {(501, 99.0), (701, -99.0)} <= set(few)
    assert list(few) == sorted(few)
    assert thin(curve, 1000) == curve


def test_curves_share_the_points_that_a_page_may_have(monkeypatch):
    monkeypatch.setattr(page, "TOTAL_POINTS", 10_000)
    assert points_per_curve(100) == 100
    assert points_per_curve(0) == points_per_curve(1) == page.MAX_POINTS
    assert points_per_curve(5000) == page.MIN_POINTS


def test_an_encoded_curve_holds_differences_of_steps():
    assert encode([(50, 1 / 3), (100, 2.0), (200, -1e-9)]) == ([50, 50, 100], [0.33333, 2.0, -1e-9])
    assert encode([]) is None


@pytest.fixture
def opened(tmp_path):
    """Open the page of a report in Chromium; at the end, assert that there were no errors and no requests."""
    browsers = []

    def start(report, name, **options):
        path = tmp_path / f"{name}.html"
        path.write_text(as_page(report), encoding="utf-8")
        browser = Browser(tmp_path / f"profile{len(browsers)}", **options)
        browsers.append((browser, name, path))
        browser.open(path)
        return browser

    yield start
    for browser, name, path in browsers:
        if folder := os.environ.get("VIT_JAX_PICTURES"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            browser.picture(Path(folder) / f"{name}_seen.png")
            browser.picture(Path(folder) / f"{name}_whole.png", whole=True)
            shutil.copy(path, folder)
        browser.close()
        assert browser.errors == []
        assert set(browser.requests) == {path.absolute().as_uri()}


def cells(browser, column, table="runs", count=5):
    script = f"[...document.querySelectorAll('#{table} tbody tr')].filter(r => !r.hidden).map(r => r.cells[{column}].innerText.trim())"
    return browser.run(script)[:count]


def head(name, table="runs"):
    return f"[...document.querySelectorAll('#{table} th button')].find(b => b.textContent === {name!r})"


def drawn(browser):
    """Return the names of the curves in each panel."""
    return browser.run(
        "Object.fromEntries([...panels].map(([metric, panel]) => [metric, panel.series.map(one => one.name)]))"
    )


def colors(browser, metric):
    """Return the number of pixels of a panel that are colored, unlike text, grid and background."""
    script = (
        "(c => {const copy = new OffscreenCanvas(c.width, c.height).getContext('2d', {willReadFrequently: true});"
        "copy.drawImage(c, 0, 0); const p = copy.getImageData(0, 0, c.width, c.height).data; let n = 0;"
        "for (let i = 0; i < p.length; i += 4) if (p[i + 3] && Math.max(p[i], p[i+1], p[i+2]) - Math.min(p[i], p[i+1], p[i+2]) > 60) n++;"
        f"return n}})(panels.get({metric!r}).canvas)"
    )
    return browser.run(script)


@needs_chromium
def test_runs_are_sorted_filtered_and_chosen_by_click(tmp_path, opened):
    for lr in (0.1, 0.02):
        for seed in range(3):
            finished(tmp_path / "runs" / f"lr={lr},seed={seed}", lr + seed / 10, {"seed": seed, "optim": {"lr": lr}})
    browser = opened(compare_runs([tmp_path / "runs"], study(tmp_path)), "small")
    assert cells(browser, 0)[:2] == ["lr=0.1,seed=2", "lr=0.02,seed=2"]  # the best first
    browser.click(head("seed"))
    assert cells(browser, 3) == ["0", "0", "1", "1", "2"]
    browser.click(head("seed"))
    assert cells(browser, 3) == ["2", "2", "1", "1", "0"]
    browser.click(head("lr"))
    assert cells(browser, 2) == ["0.02", "0.02", "0.02", "0.1", "0.1"]  # as numbers
    assert browser.run(f"{head('lr')}.closest('th').ariaSort") == "ascending"

    assert len(drawn(browser)["test/accuracy"]) == 6
    browser.click("document.getElementById('choose-none')")
    assert drawn(browser) == {"test/accuracy": [], "loss": []}
    assert colors(browser, "loss") < 50  # of text, where fonts are smoothed in colours
    browser.click("document.querySelector('#runs tbody tr input')")
    assert drawn(browser)["loss"] == ["lr=0.02,seed=0"]
    assert colors(browser, "loss") > 100
    browser.click("document.querySelectorAll('#runs tbody tr')[4].cells[3]")
    assert sorted(drawn(browser)["loss"]) == ["lr=0.02,seed=0", "lr=0.1,seed=1"]

    browser.click("[...document.querySelectorAll('#metrics button')].find(b => b.textContent === 'loss')")
    assert list(drawn(browser)) == ["test/accuracy"]
    browser.type("document.getElementById('filter')", "lr=0.1 seed=1")
    assert cells(browser, 0) == ["lr=0.1,seed=1"]
    browser.click("document.getElementById('choose-shown')")
    assert drawn(browser) == {"test/accuracy": ["lr=0.1,seed=1"]}

    browser.click("document.querySelector('#groups tbody tr')")
    browser.click("document.getElementById('means')")
    assert drawn(browser) == {"test/accuracy": ["lr=0.1, mean of 3"]}
    assert cells(browser, 2, "paper", 3) == ["not run"] * 3
    browser.open(tmp_path / "small.html")
    assert drawn(browser) == {"test/accuracy": ["lr=0.1, mean of 3"]}  # a page that is watched keeps what was chosen


@needs_chromium
def test_a_page_of_500_runs_is_quick_enough_to_use(tmp_path, opened):
    many(tmp_path / "runs", 500, 200)
    report = compare_runs([tmp_path / "runs"])
    browser = opened(report, "many", dark=True)
    assert len((tmp_path / "many.html").read_text(encoding="utf-8")) < 8e6
    assert len(cells(browser, 0, count=1000)) == 500
    assert len(drawn(browser)["loss"]) == 10
    browser.click(head("width"))
    assert set(cells(browser, 2)) == {"32"}
    browser.click("document.getElementById('choose-shown')")
    assert len(drawn(browser)["loss"]) == 500
    x, y = browser.place("panels.get('loss').canvas")
    for offset in range(-40, 60, 20):
        browser.mouse("mouseMoved", x, y + offset)
    browser.drawn()
    assert re.search(r"^lr=.*\nloss \d", browser.run("document.getElementById('tooltip').innerText"))


@needs_chromium
def test_nasty_names_are_shown_as_they_are(tmp_path, opened):
    finished(tmp_path / "runs" / "<img src=x onerror=alert(1)>", 0.5, {"note": NASTY})
    finished(tmp_path / "runs" / "b", 0.6, {"note": None}, hardware=NASTY)
    (tmp_path / "runs" / "<b>broken").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "runs" / "<b>broken" / name).write_text("")
    browser = opened(compare_runs([tmp_path / "runs"]), "nasty")
    assert cells(browser, 0) == ["b", "<img src=x onerror=alert(1)>"]
    assert NASTY in cells(browser, 2)
    assert browser.run("document.querySelectorAll('main b[onclick], img, header b').length") == 0
    assert "<b>broken" in browser.run("document.getElementById('broken').innerText")

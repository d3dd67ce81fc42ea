"""The pages as a browser shows them: Chromium without a window, where it and its driver are installed."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report import page
from eval.report.pictures import Pictures
from eval.results import Report
from pipeline.common.image_grid import draw_rows
from tests.support.reports import (
    HOSTILE,
    bare_report,
    digits_report,
    drawn_points,
    every_picture,
    hostile,
    inception_report,
    pictures,
    points_report,
    prompted_report,
    row,
)

WIDTHS = (360, 390, 768, 1100, 1280, 1400)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser tests need selenium")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver are installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def opened(browser: Any, tmp_path: Path, html: str, width: int = 1280, scheme: str = "light") -> str:
    """Show `html` in a window of `width` pixels and a colour scheme, and return its address."""
    path = tmp_path / "page.html"
    path.write_text(html)
    resize(browser, width)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for log in ("browser", "performance"):
        browser.get_log(log)  # what earlier pages left
    browser.get(path.as_uri())
    return path.as_uri()


def resize(browser: Any, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requests(browser: Any, address: str) -> set[str]:
    """What the page at `address` asked for since `opened`, but for what is in the page itself."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = {params["request"]["url"] for params in sent if params["documentURL"] == address}
    return {url for url in urls if not url.startswith("data:")}


def comparison(report: Report) -> str:
    buffer = io.BytesIO()
    draw_rows(pictures(report)).save(buffer, format="png")
    return page.render_comparison([("a", report, buffer.getvalue()), ("b", digits_report(seed=1), None)])


def shown(report: Report) -> str:
    return page.render(report, Pictures(samples=pictures(report)))


def many_rows() -> Report:
    rows = [row("few-step", f"a sampler with a long name {n}", n, [99.0 / n, 100.0 / n]) for n in range(1, 41)]
    return digits_report(rows=tuple(rows))


def long_words() -> Report:
    """Names without a place to break them."""
    return hostile("0123456789abcdef" * 8)


PROMPTS = ("a dog", "three cats in the snow, seen from above, in the style of an old master", "x" * 400, "<b>fog</b>")
PAGES = {
    "digits": lambda: page.render(digits_report(), every_picture()),
    "inception": lambda: shown(inception_report()),
    "points": lambda: page.render(points_report(), drawn_points(points_report())),
    "prompts": lambda: page.render(prompted_report(PROMPTS), every_picture((3, 64, 64))),
    "bare": lambda: page.render(bare_report()),
    "40 rows": lambda: shown(many_rows()),
    "long words": lambda: shown(long_words()),
    "comparison": lambda: comparison(digits_report()),
    "comparison of long words": lambda: comparison(long_words()),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_and_loads_its_images_and_nothing_else(browser: Any, tmp_path: Path, name: str) -> None:
    address = opened(browser, tmp_path, PAGES[name]())
    unloaded = "return [...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert browser.execute_script(unloaded) == 0
    assert requests(browser, address) == {address}
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    for width in WIDTHS:
        resize(browser, width)
        beyond = "const page = document.documentElement; return [innerWidth, page.scrollWidth - page.clientWidth]"
        assert browser.execute_script(beyond) == [width, 0]


# By how much the first table of scores is wider than its box.
BEYOND = "const box = document.querySelector('.scroll'); return box.scrollWidth - box.clientWidth"


def test_a_wide_table_scrolls_in_its_own_box(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, PAGES["inception"](), 360)
    assert browser.execute_script(BEYOND) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["digits", "inception", "points"])
def test_a_table_of_every_metric_is_whole_in_a_wide_window(
    browser: Any, tmp_path: Path, name: str, scheme: str
) -> None:
    opened(browser, tmp_path, PAGES[name](), scheme=scheme)
    for width in (1100, 1400):
        resize(browser, width)
        assert browser.execute_script(BEYOND) == 0


@pytest.mark.parametrize("text", [HOSTILE, '"><img src=x onerror=alert(1)>'])
def test_what_the_page_is_given_is_shown_and_not_run(browser: Any, tmp_path: Path, text: str) -> None:
    for html in (page.render(hostile(text)), comparison(hostile(text))):
        address = opened(browser, tmp_path, html)
        assert text in browser.execute_script("return document.body.innerText")
        assert browser.execute_script("return document.scripts.length") == 0
        assert browser.execute_script("return document.querySelectorAll('[onerror]').length") == 0
        assert requests(browser, address) == {address}


CONTRAST = """
const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
const over = element => {
  if (!element) return [255, 255, 255];
  const [r, g, b, a = 1] = rgb(getComputedStyle(element).backgroundColor);
  const below = a < 1 ? over(element.parentElement) : [0, 0, 0];
  return [r, g, b].map((value, i) => a * value + (1 - a) * below[i]);
};
return [...document.querySelectorAll('h1, p, li, th, td, dt, dd, summary, pre, figcaption, small, .spread')]
  .filter(element => element.innerText && element.innerText.trim() && element.offsetParent !== null)
  .map(element => [element.innerText.slice(0, 40), rgb(getComputedStyle(element).color).slice(0, 3), over(element)]);
"""


def luminance(colour: list[float]) -> float:
    """Relative luminance of sRGB (WCAG 2.1)."""
    share = np.array(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_in_dark(browser: Any, tmp_path: Path, scheme: str) -> None:
    for name in ("digits", "points", "prompts", "comparison"):
        opened(browser, tmp_path, PAGES[name](), scheme=scheme)
        found = browser.execute_script(CONTRAST)
        assert len(found) > 50
        for text, ink, paper in found:
            bright, dark = sorted([luminance(ink), luminance(paper)], reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, f"{text}: {ink} on {paper}"
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (luminance([float(part) for part in re.findall(r"[\d.]+", paper)]) > 0.5) == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_texts_of_charts_can_be_read_too(browser: Any, tmp_path: Path, scheme: str) -> None:
    opened(browser, tmp_path, PAGES["digits"](), scheme=scheme)
    colours = browser.execute_script(
        "const rgb = colour => colour.match(/[\\d.]+/g).map(Number);"
        "return [getComputedStyle(document.body).backgroundColor,"
        " ...[...document.querySelectorAll('svg.chart text')].map(text => getComputedStyle(text).fill)].map(rgb)"
    )
    paper, *inks = (luminance(colour[:3]) for colour in colours)
    assert len(inks) > 50
    for ink in inks:
        bright, dark = sorted([ink, paper], reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)], ids=str)
def test_pictures_are_scaled_by_whole_factors_and_large_enough(
    browser: Any, tmp_path: Path, shape: tuple[int, ...], width: int
) -> None:
    opened(browser, tmp_path, page.render(digits_report(), every_picture(shape)), width)
    factors = browser.execute_script(
        "return [...document.images].filter(image => image.getClientRects().length).map(image =>"
        " [image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight, image.clientWidth])"
    )
    assert len(factors) > 200
    for across, down, size in factors:
        assert across == down == int(across) >= 1
        assert size >= 40


@pytest.mark.parametrize("width", [390, 1280])
def test_pictures_of_points_are_large_and_their_paths_are_whole(browser: Any, tmp_path: Path, width: int) -> None:
    opened(browser, tmp_path, PAGES["points"](), width)
    first = "return [...document.querySelector('.single').querySelectorAll('img')].map(image => image.clientWidth)"
    assert min(browser.execute_script(first)) >= 250
    ends = "return [...document.querySelectorAll('.path img:last-child')].map(i => i.getBoundingClientRect().right)"
    found = browser.execute_script(ends)
    assert len(found) == 2
    assert max(found) <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_each_prompt_s_pictures_stand_side_by_side_under_their_names(browser: Any, tmp_path: Path, width: int) -> None:
    opened(browser, tmp_path, PAGES["prompts"](), width)
    lefts = "row => [...row.querySelectorAll('.teacher, .student, td')].map(cell => cell.getBoundingClientRect().left)"
    head, *rows = browser.execute_script(f"return [...document.querySelectorAll('.prompts tr')].map({lefts})")
    assert len(rows) == len(PROMPTS)
    assert len(head) == 4
    assert head == sorted(set(head))
    assert all(row == pytest.approx(head, abs=1) for row in rows)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_strip_shows_the_same_whole_pictures_in_every_row(browser: Any, tmp_path: Path, width: int) -> None:
    opened(browser, tmp_path, PAGES["digits"](), width)
    strips = browser.execute_script(
        "return [...document.querySelector('.strip').querySelectorAll('.images')].map(row => {"
        " const box = row.getBoundingClientRect();"
        " return [...row.children].map(image => image.getBoundingClientRect()).filter(image => image.top < box.bottom)"
        "  .map(image => [image.left, box.bottom - image.bottom, box.right - image.right]); })"
    )
    assert len(strips) == 5
    assert len(strips[0]) >= 5
    for strip in strips:
        assert [left for left, *_ in strip] == [left for left, *_ in strips[0]]
        assert all(0 <= below < 4 and right >= 0 for _, below, right in strip)


def test_what_scrolls_can_be_reached_by_the_keyboard_and_has_a_name(browser: Any, tmp_path: Path) -> None:
    for name in ("digits", "comparison"):
        opened(browser, tmp_path, PAGES[name]())
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].map(box => [box.tabIndex, box.ariaLabel])"
        )
        assert boxes
        assert all(index == 0 and label for index, label in boxes)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_texts_of_a_chart_do_not_touch_and_are_large_enough(browser: Any, tmp_path: Path, width: int) -> None:
    opened(browser, tmp_path, PAGES["digits"](), width)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].filter(svg => svg.getClientRects().length).map(svg => "
        "[...svg.querySelectorAll('text')].map(text => { const b = text.getBoundingClientRect();"
        " return [b.left, b.right, b.top + b.height / 4, b.bottom - b.height / 4, b.height]; }))"
    )
    assert len(boxes) == 7  # one of each pair, and the small ones
    for texts in boxes:
        for number, (left, right, top, bottom, height) in enumerate(texts):
            assert height >= 11
            for other_left, other_right, other_top, other_bottom, _ in texts[:number]:
                assert right < other_left or left > other_right or bottom < other_top or top > other_bottom


def test_the_opponents_are_there_on_demand(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, PAGES["digits"]())
    assert "euler 4" not in browser.execute_script("return document.body.innerText")
    browser.find_element("css selector", "summary").click()
    assert "euler 4" in browser.execute_script("return document.body.innerText")

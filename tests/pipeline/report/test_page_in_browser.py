"""The page in headless Chromium, from disk: what a person sees, presses and prints."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import render_page
from tests.pipeline.report.documents import empty_contents, full_contents

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PHONE, DESKTOP = {"width": 360, "height": 780}, {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {"full": folder / "full.html", "empty": folder / "empty.html"}
    found["full"].write_text(render_page(full_contents()), encoding="utf-8")
    found["empty"].write_text(render_page(empty_contents()), encoding="utf-8")
    return found


@pytest.fixture
def page(browser: Any, files: dict[str, Path]) -> Generator[Any]:
    """The full page on a desktop."""
    opened = browser.new_page(viewport=DESKTOP)
    opened.goto(files["full"].as_uri())
    yield opened
    opened.close()


def covered(page: Any) -> str:
    return page.evaluate("document.querySelector('.stage').style.getPropertyValue('--covered')")


@pytest.mark.parametrize("name", ["full", "empty"])
def test_it_opens_from_disk_without_an_error_or_a_request(
    browser: Any, files: dict[str, Path], name: str
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url[:80]))
    page.goto(files[name].as_uri())
    page.wait_for_load_state("load")
    outside = [url for url in asked if not url.startswith("data:") and url != files[name].as_uri()]
    page.close()
    assert said == []
    assert outside == []


@pytest.mark.parametrize("name", ["full", "empty"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_reaches_beyond_the_edge(
    browser: Any, files: dict[str, Path], size: dict[str, int], name: str
) -> None:
    page = browser.new_page(viewport=size)
    page.goto(files[name].as_uri())
    width = page.evaluate("document.documentElement.scrollWidth")
    page.close()
    assert width <= size["width"]


def test_it_is_light_by_day_and_dark_by_night(page: Any) -> None:
    def lightness(element: str, what: str) -> float:
        value = page.evaluate(f"getComputedStyle(document.querySelector({element!r})).{what}")
        return sum(float(part) for part in re.findall(r"[\d.]+", value)[:3]) / 3

    shown = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shown[scheme] = (
            lightness("body", "backgroundColor"),
            lightness("body", "color"),
            lightness("svg .axes text", "fill"),
            lightness("#learning .c0 polyline, #learning polyline.c0", "stroke"),
        )
    paper, ink, ticks, line = shown["light"]
    assert paper > 240 > 100 > ink
    assert line < 130
    night, chalk, night_ticks, night_line = shown["dark"]
    assert night < 40 < 200 < chalk
    assert night_line > line
    assert night_ticks > ticks


def test_print_is_light_even_by_night(page: Any) -> None:
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    ink = page.evaluate("getComputedStyle(document.querySelector('h2')).color")
    assert max(int(part) for part in re.findall(r"\d+", ink)) < 80


def test_the_slider_follows_the_keyboard(page: Any) -> None:
    slider = page.locator(".wipe").first
    slider.focus()
    before = covered(page)
    page.keyboard.press("End")
    assert covered(page) == "100%" != before
    page.keyboard.press("Home")
    assert covered(page) == "0%"
    page.keyboard.press("ArrowRight")
    assert covered(page) == "1%"


def test_the_slider_follows_the_mouse_and_moves_what_is_seen(page: Any) -> None:
    stage = page.locator(".stage").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    seen = {}
    for share in (0.2, 0.9):
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 3)
        seen[share] = float(covered(page).rstrip("%"))
        clip = page.evaluate("getComputedStyle(document.querySelector('.stage .over')).clipPath")
        assert clip.startswith("inset(")
    assert seen[0.2] == pytest.approx(20, abs=4)
    assert seen[0.9] == pytest.approx(90, abs=4)


def test_another_layer_is_chosen_by_key_and_by_click(page: Any) -> None:
    def over() -> str:
        return page.evaluate("document.querySelector('.stage .over figcaption').textContent")

    assert over() == "prediction"
    page.locator(".chooser input").first.focus()
    page.keyboard.press("ArrowRight")
    assert over() == "entropy"
    page.locator(".chooser label", has_text="label").first.click()
    assert over() == "label"
    absent = page.locator(".absent:visible")
    assert absent.all_text_contents() == ["no label yet"] * 2


def test_headings_are_in_order_and_pictures_have_words(page: Any) -> None:
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.evaluate("[...document.images].filter(i => !i.alt || !i.naturalWidth).length") == 0
    assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))")


def test_it_prints_as_pages_with_every_layer(page: Any, tmp_path: Path) -> None:
    document = page.pdf(prefer_css_page_size=True, print_background=True)
    assert document.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", document))
    assert 4 <= pages <= 30
    page.emulate_media(media="print")
    layers = "[...document.querySelectorAll('.stage')].map(s => [...s.querySelectorAll('img')]"
    shown = page.evaluate(layers + ".filter(i => i.offsetWidth > 0).length)")
    assert shown[0] == 7
    assert page.locator(".wipe:visible, .chooser:visible, nav:visible").count() == 0


def test_without_a_script_every_layer_is_shown(browser: Any, files: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=DESKTOP)
    page = context.new_page()
    page.goto(files["full"].as_uri())
    assert page.locator(".stage").first.locator("img:visible").count() == 7
    assert page.locator(".chooser:visible").count() == 0
    context.close()

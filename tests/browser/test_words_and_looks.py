"""Languages, colours, widths, and what a screen reader meets."""

import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import Open

pytestmark = pytest.mark.slow
# Keys that are put together: what stands before the variable part.
TEXTS = ("english.js", "chinese.js")
PUT_TOGETHER = ("certificate.", "error.", "served.", "state.", "status.", "times.")


@pytest.fixture
def texts(open_page: Open, url: str) -> dict[str, dict[str, Any]]:
    words = open_page(url).page.evaluate("import('./page/words.js').then((all) => all.WORDS)")
    return dict(words)


def test_both_languages_say_the_same_things(texts: dict[str, dict[str, Any]]) -> None:
    english, chinese = texts["en"], texts["zh"]
    assert list(english) == list(chinese)

    def blanks(text: Any) -> set[str]:
        forms = text.values() if isinstance(text, dict) else [text]
        return {blank for form in forms for blank in re.findall(r"\{\w+\}", form)}

    for key, text in english.items():
        assert blanks(chinese[key]) <= blanks(text), key
        assert isinstance(chinese[key], dict) == isinstance(text, dict), key


def test_no_text_is_unused_and_none_is_missing(
    texts: dict[str, dict[str, Any]], repo_dir: Path
) -> None:
    files = [*(repo_dir / "server/ui").glob("*.js"), repo_dir / "server/ui/index.html"]
    source = "\n".join(each.read_text() for each in files if each.name not in TEXTS)
    used = set(re.findall(r'"([a-z]+(?:\.\w+)?)"', source))
    for key in texts["en"]:
        assert key in used or key.startswith(PUT_TOGETHER) or key == "page.title", key
    asked = re.findall(r'words\("([\w.]+)"|data-(?:words|label|tip)="([\w.]+)"', source)
    for key in (one or other for one, other in asked):
        assert key in texts["en"], key


def test_chinese_browsers_get_chinese_and_can_switch(
    open_page: Open, url: str, samples: list[Path]
) -> None:
    visit = open_page(url, locale="zh-CN")
    page = visit.page
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#pick")).to_have_text("选择图片")
    visit.pick(samples[2])
    visit.done(1)
    expect(page.locator("#found h2")).to_have_text("检测结果")
    page.get_by_role("button", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator("#found h2")).to_have_text("Detections")
    page.reload()
    expect(page.locator("#pick")).to_have_text("Choose images")


def test_other_languages_get_english(open_page: Open, url: str) -> None:
    page = open_page(url, locale="fr-FR").page
    expect(page.locator("html")).to_have_attribute("lang", "en")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_nothing_stands_in_the_way_of_assistive_technology(
    open_page: Open, url: str, samples: list[Path], scheme: str, locale: str
) -> None:
    visit = open_page(
        url, locale=locale, color_scheme=scheme, bypass_csp=True, expected="status of 415"
    )
    expect(visit.page.locator(".sample")).to_have_count(len(samples))
    empty = Axe().run(visit.page)
    assert empty.violations_count == 0, empty.generate_report()
    visit.pick(samples[0], {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
    visit.done(1)
    visit.page.locator(".item[data-state=failed]").wait_for()
    visit.page.locator("#certificate summary").click()
    visit.page.get_by_role("button", name="RBC").click()
    found = Axe().run(visit.page)
    assert found.violations_count == 0, found.generate_report()
    visit.page.locator(".item").nth(1).click()
    failed = Axe().run(visit.page)
    assert failed.violations_count == 0, failed.generate_report()


def test_dark_is_the_systems_choice_until_one_is_made(open_page: Open, url: str) -> None:
    page = open_page(url, color_scheme="dark").page

    def brightness() -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    expect(page.locator("#theme")).to_have_attribute("aria-label", "Light colours")
    assert brightness() < 150
    page.locator("#theme").click()
    assert brightness() > 600
    page.reload()
    assert brightness() > 600


@pytest.mark.parametrize("locale", ["en", "zh-CN"])
def test_a_phone_scrolls_only_downwards(
    open_page: Open, url: str, samples: list[Path], locale: str
) -> None:
    visit = open_page(
        url,
        locale=locale,
        viewport={"width": 360, "height": 740},
        is_mobile=True,
        has_touch=True,
        permissions=["camera"],
    )
    page = visit.page
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    expect(page.locator(".sample")).to_have_count(len(samples))
    assert page.evaluate(overflow) == 0
    visit.pick(*samples)
    visit.done(3)
    assert page.evaluate(overflow) == 0
    page.locator("#camera-more").click()
    expect(page.locator("#camera-rate")).not_to_be_empty()
    assert page.evaluate(overflow) == 0
    bar = page.locator("#camera-bar").bounding_box()
    assert bar is not None
    assert bar["x"] >= 0
    assert bar["x"] + bar["width"] <= 360


def test_boxes_are_drawn_at_the_screens_own_resolution(
    open_page: Open, url: str, samples: list[Path]
) -> None:
    visit = open_page(url, device_scale_factor=3)
    visit.pick(samples[0])
    visit.done(1)
    canvas, shown = visit.page.evaluate(
        "[document.getElementById('overlay')].map((o) => [o.width, o.clientWidth])[0]"
    )
    assert canvas == pytest.approx(3 * shown, abs=2)

"""Takes the screenshots of the documentation: `python -m tests.browser.screenshots`.

Writes docs/assets/page.png, page-dark.png and page-phone.png, of the default weights on this
machine; `--all FOLDER` writes further states of the page there, to look at.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser.driver import LIMIT_MS, chromium
from tests.support.processes import ready

REPO = Path(__file__).resolve().parents[2]
SAMPLES = sorted((REPO / "samples").glob("*.jpg"))
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2,
    "has_touch": True, "is_mobile": True,
}  # fmt: skip


def opened(browser: Browser, url: str, **options: Any) -> Page:
    """The page, in a browser that knows nothing of it yet."""
    context = browser.new_context(**({"locale": "en"} | options))
    context.set_default_timeout(LIMIT_MS)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#status-text")).to_have_text(
        ["Ready", "就绪"][options.get("locale") == "zh-CN"]
    )
    return page


def detected(page: Page, *files: Path) -> Page:
    """The page with these images, all answered, and the pointer on nothing."""
    page.locator("#picker").set_input_files(files)
    answered = page.locator(".item[data-state=done], .item[data-state=failed]")
    expect(answered).to_have_count(len(files))
    page.wait_for_function("() => document.querySelector('#stage .media')")
    page.mouse.move(0, 0)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page


def write(page: Page, path: Path, *, full: bool = False) -> None:
    """Takes the screenshot and closes the page."""
    image = Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    # Six bits a channel look the same, and are three fifths of the bytes: smears have noise.
    image.point([min(255, (level + 2) & ~3) for level in range(256)] * 3).save(path, optimize=True)
    page.context.close()
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB", file=sys.stderr)


def write_assets(browser: Browser, url: str, folder: Path) -> None:
    """The three of the documentation."""
    write(detected(opened(browser, url, **DESKTOP), *SAMPLES), folder / "page.png")
    dark = opened(browser, url, **DESKTOP, color_scheme="dark")
    write(detected(dark, *SAMPLES), folder / "page-dark.png")
    write(detected(opened(browser, url, **PHONE), *SAMPLES), folder / "page-phone.png")


def write_states(browser: Browser, url: str, folder: Path) -> None:
    """Others, for whoever changes the page."""
    for name, options in {
        "empty": DESKTOP,
        "empty-dark": DESKTOP | {"color_scheme": "dark"},
        "empty-phone": PHONE,
        "empty-zh": DESKTOP | {"locale": "zh-CN"},
    }.items():
        page = opened(browser, url, **options)
        expect(page.locator(".sample")).to_have_count(len(SAMPLES))
        write(page, folder / f"{name}.png", full=True)
    chinese = opened(browser, url, **DESKTOP, locale="zh-CN")
    write(detected(chinese, *SAMPLES), folder / "zh.png", full=True)
    write(detected(opened(browser, url, **DESKTOP), *SAMPLES), folder / "full.png", full=True)
    write(detected(opened(browser, url, **PHONE), *SAMPLES), folder / "full-phone.png", full=True)
    with tempfile.TemporaryDirectory() as scratch:
        broken = Path(scratch) / "notes.jpg"
        broken.write_text("no image")
        page = detected(opened(browser, url, **DESKTOP), SAMPLES[0], broken)
        page.locator(".item").last.click()
        write(page, folder / "error.png")
    marked = detected(opened(browser, url, **DESKTOP), SAMPLES[1])
    marked.locator("#rows tr").nth(3).focus()
    write(marked, folder / "marked.png")
    zoomed = detected(opened(browser, url, **DESKTOP, device_scale_factor=2), SAMPLES[2])
    for _ in range(3):
        zoomed.locator("#zoom-in").click()
    write(zoomed, folder / "zoomed.png")
    live = opened(browser, url, **DESKTOP, permissions=["camera"])
    live.locator("#camera").click()
    expect(live.locator("#camera-rate")).not_to_be_empty()
    write(live, folder / "camera.png")


def main() -> None:
    """Starts a server and a browser, and writes the files."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "assets")
    parser.add_argument("--all", type=Path, help="also write other states of the page here")
    arguments = parser.parse_args()
    weights = REPO / "weights"
    with ready(REPO, weights, "--precision", "fp32") as (_, client), chromium() as browser:
        write_assets(browser, str(client.base_url), arguments.out)
        if arguments.all:
            arguments.all.mkdir(parents=True, exist_ok=True)
            write_states(browser, str(client.base_url), arguments.all)


if __name__ == "__main__":
    main()

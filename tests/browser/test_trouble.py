"""What breaks, and what a visitor reads then."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from server.errors import ServerError
from server.problems import rejection_reasons
from tests.browser.conftest import Open
from tests.browser.served_here import served_here
from tests.processes import ready
from tests.serving import one_cell

pytestmark = pytest.mark.slow
NETWORK = r"Failed to load resource"
CELL = {"name": "cell.png", "mimeType": "image/png", "buffer": one_cell()}
TEXT = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"a shopping list"}


def test_a_text_file_fails_alone(open_page: Open, url: str, samples: list[Path]) -> None:
    visit = open_page(url, expected="status of 415")
    visit.pick(TEXT, samples[0])
    visit.done(1)
    message = visit.page.locator("#message")
    expect(message).to_contain_text("This is no picture of a kind that is read")
    expect(message).to_contain_text("the image is not a JPEG")  # the server's own words
    expect(message).to_contain_text("Request ")
    expect(visit.page.locator("#alerts")).to_contain_text("notes.jpg")
    expect(visit.page.locator("#retry")).to_be_hidden()
    visit.page.locator(".item").nth(1).click()
    expect(message).to_be_hidden()
    assert visit.found() > 0


def test_a_server_that_went_away_is_told_and_asked_again_when_it_is_back(
    open_page: Open, repo_dir: Path, artifact: Path
) -> None:
    with ready(repo_dir, artifact) as (server, client):
        address = str(client.base_url)
        visit = open_page(address, expected=NETWORK)
        expect(visit.page.locator("#status-text")).to_have_text("Ready")
        client.close()
        server.stop()
    visit.pick(CELL)
    expect(visit.page.locator("#message-text")).to_contain_text("can't be reached")
    expect(visit.page.locator("#status-text")).to_have_text("No connection")
    expect(visit.page.locator("#retry")).to_be_visible()
    with ready(repo_dir, artifact, "--port", address.rsplit(":", 1)[1].strip("/")):
        visit.done(1)
        expect(visit.page.locator("#status-text")).to_have_text("Ready")
        assert visit.found() == 1
        visit.page.context.close()  # or its connection would hold the server up


def test_a_busy_server_is_waited_for_in_view(open_page: Open, artifact: Path) -> None:
    with served_here(artifact, max_queue_images=1, max_images_per_request=1) as (address, gate):
        visit = open_page(address, expected="status of 503")
        visit.pick(*({**CELL, "name": f"{n}.png"} for n in range(6)))
        waiting = visit.page.locator(".item[data-state=retrying]")
        waiting.first.wait_for()
        label = waiting.first.get_attribute("aria-label") or ""
        assert re.search(r"the server is busy; again in \d s", label), label
        gate.set()
        visit.done(6)
        assert visit.detections_asked() > 6


def test_a_server_that_asks_for_a_key_gets_it(
    open_page: Open, repo_dir: Path, artifact: Path
) -> None:
    with ready(repo_dir, artifact, YOLO_FLA_API_KEYS="open sesame") as (_, client):
        visit = open_page(str(client.base_url), expected="status of 401")
        page = visit.page
        visit.pick(CELL)
        expect(page.locator("#key-form")).to_be_visible()
        expect(page.locator("#message-text")).to_have_text("waits for the key")
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-wrong")).to_be_visible()
        page.get_by_label("API key").fill("open sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        visit.done(1)
        expect(page.locator("#served-list")).to_contain_text("RBC")  # /model asks for it, too
        assert page.evaluate("sessionStorage.getItem('yolov8-fla.key')") == "open sesame"
        assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
        page.reload()
        visit.pick(CELL)
        visit.done(1)


def test_a_gpu_that_is_not_used_makes_a_red_banner(open_page: Open, artifact: Path) -> None:
    why = "a GPU is visible, but this is the CPU build of ONNX Runtime"
    with served_here(artifact, cpu_fallback=why) as (address, _):
        banner = open_page(address).page.get_by_role("alert").filter(has_text="not on a GPU")
        expect(banner).to_be_visible()
        expect(banner).to_contain_text(why)
        red, green, blue = map(
            int,
            re.findall(
                r"\d+", banner.evaluate("(element) => getComputedStyle(element).backgroundColor")
            )[:3],
        )
        assert red > 2 * max(green, blue)


def test_the_camera_takes_pictures_and_goes_live(open_page: Open, url: str) -> None:
    visit = open_page(url, permissions=["camera"])
    page = visit.page
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("#camera-rate")).to_contain_text("pictures/s")
    live = page.get_by_role("button", name="Live")
    expect(live).to_have_attribute("aria-pressed", "true")
    live.click()
    expect(live).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Take a picture").click()
    visit.done(1)
    expect(page.locator("#name")).to_have_text("camera-1.jpg")
    expect(page.locator("#camera-bar")).to_be_hidden()


def test_a_camera_that_is_refused_or_insecure_is_explained(open_page: Open, url: str) -> None:
    page = open_page(url).page
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("#notice")).to_contain_text("The browser refused the camera")
    expect(page.locator("#alerts")).to_contain_text("refused")
    # As browsers have it on a page that came by HTTP from another machine.
    page.add_init_script("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    page.reload()
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("#notice")).to_contain_text("HTTPS")


def test_every_error_of_the_server_has_words(open_page: Open, url: str) -> None:
    codes = {*rejection_reasons(), ServerError.code, "request_timeout", "internal_error"}
    known = open_page(url).page.evaluate(
        "import('./page/words.js').then((all) => Object.keys(all.WORDS.en))"
    )
    assert {f"error.{code}" for code in codes} <= set(known)


def test_without_scripts_there_is_a_form_that_works(
    open_page: Open, url: str, samples: list[Path]
) -> None:
    # Chromium styles a lone picture by itself, which the answer's policy forbids.
    visit = open_page(url, expected="inline style", java_script_enabled=False)
    page = visit.page
    expect(page.locator("#app")).to_be_hidden()
    page.get_by_label("Image").set_input_files(samples[0])
    with page.expect_navigation() as navigation:
        page.get_by_role("button", name="Detect").click()
    answer = navigation.value
    assert answer is not None
    assert answer.headers["content-type"] == "image/jpeg"


def test_the_page_works_below_a_proxys_prefix(url: str) -> None:
    page = httpx.get(url).text
    assert not re.search(r'(?:src|href|action)="/', page)

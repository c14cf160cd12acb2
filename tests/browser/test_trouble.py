"""What breaks, and what a visitor reads then."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from server.errors import ServerError
from server.http.errors import rejection_reasons
from tests.browser.conftest import Open
from tests.browser.proxy import Upstream, proxied
from tests.browser.served_here import served_here
from tests.support.artifacts import tiny_artifact
from tests.support.processes import ready
from tests.support.serving import one_cell

pytestmark = pytest.mark.slow
NETWORK = r"Failed to load resource"
CELL = {"name": "cell.png", "mimeType": "image/png", "buffer": one_cell()}
TEXT = {"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"a shopping list"}


def test_a_text_file_fails_alone(open_page: Open, url: str, samples: list[Path]) -> None:
    visit = open_page(url, expected="status of 415")
    visit.pick(TEXT, samples[0])
    visit.done(1)
    message = visit.page.locator("#message")
    expect(message).to_contain_text("Unsupported image format")
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
        assert re.search(r"the server is busy; retrying in \d s", label), label
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
        expect(page.locator("#message-text")).to_have_text("waiting for the key")
        # Nobody has written anything wrong yet.
        empty = page.get_by_label("API key")
        expect(empty).not_to_have_css(
            "border-color",
            page.locator("#key-wrong").evaluate("(element) => getComputedStyle(element).color"),
        )
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


def test_the_camera_takes_images_and_goes_live(open_page: Open, url: str) -> None:
    visit = open_page(url, permissions=["camera"])
    page = visit.page
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("#camera-rate")).to_contain_text("images/s")
    live = page.get_by_role("button", name="Live")
    expect(live).to_have_attribute("aria-pressed", "true")
    live.click()
    expect(live).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Take a photo").click()
    visit.done(1)
    expect(page.locator("#name")).to_have_text("camera-1.jpg")
    expect(page.locator("#camera-bar")).to_be_hidden()


def test_a_camera_that_is_refused_or_insecure_is_explained(open_page: Open, url: str) -> None:
    page = open_page(url).page
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("#notice")).to_contain_text("The browser denied access to the camera")
    expect(page.locator("#alerts")).to_contain_text("denied")
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
    # Chromium styles a lone image by itself, which the answer's policy forbids.
    visit = open_page(url, expected="inline style", java_script_enabled=False)
    page = visit.page
    expect(page.locator("#app")).to_be_hidden()
    page.get_by_label("Image", exact=True).set_input_files(samples[0])
    with page.expect_navigation() as navigation:
        page.get_by_role("button", name="Detect").click()
    answer = navigation.value
    assert answer is not None
    assert answer.headers["content-type"] == "image/jpeg"


def test_the_page_works_below_a_proxys_prefix(
    open_page: Open, url: str, samples: list[Path]
) -> None:
    with proxied(Upstream(url)) as address:
        visit = open_page(address)
        expect(visit.page.locator("#status-text")).to_have_text("Ready")
        expect(visit.page.locator(".sample")).to_have_count(len(samples))
        visit.page.locator(".sample").first.click()
        visit.done(1)
        assert visit.found() > 0
        visit.page.get_by_role("link", name="API").click()
        visit.page.locator(".opblock-get").filter(has_text="/model").first.click()
        visit.page.get_by_role("button", name="Try it out").click()
        visit.page.get_by_role("button", name="Execute").click()
        expect(visit.page.locator(".request-url")).to_contain_text(address)
        expect(visit.page.locator(".live-responses-table")).to_contain_text("yolov8n-fla-bccd")
        visit.page.context.close()
        assert all(each.url.startswith((address, "blob:", "data:")) for each in visit.requests)


def test_what_a_proxy_answers_for_a_server_that_is_gone_is_sent_again(
    open_page: Open, url: str
) -> None:
    upstream = Upstream(url)
    with proxied(upstream) as address:
        visit = open_page(address, expected="status of 502")
        expect(visit.page.locator("#status-text")).to_have_text("Ready")
        upstream.url = None
        visit.pick(CELL)
        message = visit.page.locator("#message-text")
        expect(message).to_contain_text("no connection; retrying in")
        expect(message).to_contain_text("error 502")
        expect(visit.page.locator("#status-text")).to_have_text("No connection")
        upstream.url = url
        visit.done(1)
        visit.page.context.close()


def test_images_are_asked_about_again_when_another_model_answers(
    open_page: Open, artifact: Path, tmp_path: Path
) -> None:
    names = ("<img src=x onerror=alert(1)>", "=1+1", "{n} $&")  # texts, whatever is in them
    other = tiny_artifact(tmp_path / "other.onnx", class_names=names)
    with served_here(artifact) as (old, first), served_here(other) as (new, second):
        first.set()
        second.set()
        upstream = Upstream(old)
        with proxied(upstream) as address:
            visit = open_page(address)
            visit.pick(CELL)
            visit.done(1)
            before = visit.page.locator("#rows .name").inner_text()
            upstream.url = new
            visit.pick(CELL)
            visit.page.wait_for_function(
                "() => performance.getEntriesByType('resource')"
                ".filter((each) => each.name.includes('detect')).length === 3"
            )
            visit.done(2)
            for item in visit.page.locator(".item").all():
                item.click()
                expect(visit.page.locator("#rows .name")).not_to_have_text(before)
                assert visit.page.locator("#rows .name").inner_text() in names
            assert visit.page.locator("#rows img, #classes img").count() == 0
            assert visit.detections_asked() == 3
            visit.page.context.close()


def test_a_connection_that_breaks_once_is_tried_again_by_itself(open_page: Open, url: str) -> None:
    visit = open_page(url, expected=NETWORK)
    expect(visit.page.locator("#status-text")).to_have_text("Ready")
    visit.page.route("**/detect?*", lambda route: route.abort("connectionreset"), times=1)
    visit.pick(CELL)
    visit.done(1)
    assert visit.detections_asked() == 2


def test_a_key_that_no_request_can_carry_is_not_accepted(
    open_page: Open, repo_dir: Path, artifact: Path
) -> None:
    with ready(repo_dir, artifact, YOLO_FLA_API_KEYS="open sesame") as (_, client):
        visit = open_page(str(client.base_url), expected="status of 401")
        expect(visit.page.locator("#key-form")).to_be_visible()
        visit.page.get_by_label("API key").fill("芝麻开门")
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("#key-wrong")).to_be_visible()
        expect(visit.page.locator("#key-form")).to_be_visible()
        assert visit.page.evaluate("sessionStorage.getItem('yolov8-fla.key')") is None


def test_a_file_that_changed_after_it_was_chosen_is_told_apart_from_a_dead_network(
    open_page: Open, artifact: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"{n}.png" for n in range(4)]
    for file in files:
        file.write_bytes(one_cell())
    with served_here(artifact) as (address, gate):
        visit = open_page(address, expected=NETWORK)
        visit.page.locator("#picker").set_input_files(files)
        expect(visit.page.locator(".item[data-state=sending]")).to_have_count(3)
        files[3].unlink()
        gate.set()
        visit.done(3)
        visit.page.locator(".item").nth(3).click()
        message = visit.page.locator("#message-text")
        expect(message).to_contain_text("The browser can't read the file any more")
        assert visit.detections_asked() <= 4


def test_a_page_of_which_a_script_did_not_come_says_so(open_page: Open, url: str) -> None:
    visit = open_page(url, expected=NETWORK)
    expect(visit.page.locator("#not-started")).to_have_count(0)
    visit.page.route("**/page/queue.js", lambda route: route.abort())
    visit.page.reload()
    expect(visit.page.locator("#not-started")).to_be_visible()
    expect(visit.page.locator("#not-started")).to_contain_text("reload it")


def test_an_empty_file_is_called_empty(open_page: Open, url: str) -> None:
    visit = open_page(url, expected="status of 400")
    visit.pick({"name": "nothing.jpg", "mimeType": "image/jpeg", "buffer": b""})
    expect(visit.page.locator("#message-text")).to_have_text("The file is empty.")
    expect(visit.page.locator("#overlay")).to_have_attribute("aria-label", "nothing.jpg, failed")


def test_two_clicks_on_the_camera_open_one_and_images_close_it(
    open_page: Open, url: str, samples: list[Path]
) -> None:
    visit = open_page(url, permissions=["camera"])
    page = visit.page
    page.evaluate(
        """() => {
          window.streams = [];
          const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          navigator.mediaDevices.getUserMedia = async (wanted) => {
            const stream = await open(wanted);
            streams.push(stream);
            return stream;
          };
          for (const _ of [1, 2]) document.getElementById("camera").click();
        }"""
    )
    expect(page.locator("#camera-rate")).not_to_be_empty()
    live = "streams.filter((each) => each.getTracks()[0].readyState === 'live').length"
    page.wait_for_function(f"() => streams.length === 2 && {live} === 1")
    visit.pick(samples[0])
    visit.done(1)
    assert page.evaluate(live) == 0


def test_a_hidden_page_sends_no_camera_images(open_page: Open, url: str) -> None:
    visit = open_page(url, permissions=["camera"])
    page = visit.page
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("#camera-rate")).not_to_be_empty()
    turn = """(hidden) => {
      Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    asked = (
        "performance.getEntriesByType('resource').filter((e) => e.name.includes('detect')).length"
    )
    page.evaluate("performance.setResourceTimingBufferSize(100000)")
    page.evaluate(turn, True)
    page.wait_for_load_state("networkidle")  # half a second without a request: it sends several
    before = page.evaluate(asked)
    page.wait_for_load_state("networkidle")
    assert page.evaluate(asked) == before
    page.evaluate(turn, False)
    page.wait_for_function(f"() => {asked} > {before}")


def test_the_keyboard_goes_on_where_what_it_was_on_has_gone(
    open_page: Open, url: str, samples: list[Path]
) -> None:
    visit = open_page(url)
    page = visit.page
    page.locator(".sample").first.focus()
    page.keyboard.press("Enter")
    visit.done(1)
    expect(page.locator("#stage")).to_be_focused()
    page.locator("#remove").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#pick")).to_be_focused()

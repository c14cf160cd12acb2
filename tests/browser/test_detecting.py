"""Images in, boxes on the screen: what a visitor does first."""

import base64
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from server.version import this_build
from tests.browser.conftest import Open, Visit
from tests.support.processes import ServerProcess

pytestmark = pytest.mark.slow
DROP = """async ([files, type]) => {
  const transfer = new DataTransfer();
  for (const [name, base64] of files) {
    const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  if (type === "paste") {
    document.dispatchEvent(new ClipboardEvent(type, {clipboardData: transfer, bubbles: true}));
  } else {
    for (const each of ["dragenter", "dragover", "drop"]) {
      document.body.dispatchEvent(
        new DragEvent(each, {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }
  }
}"""


def bring(visit: Visit, how: str, *files: Path) -> None:
    """Drops or pastes files."""
    encoded = [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in files]
    visit.page.evaluate(DROP, [encoded, how])


def counted(client: httpx.Client, file: Path, **parameters: Any) -> int:
    """What the server itself finds."""
    answer = client.post("/detect", content=file.read_bytes(), params=parameters)
    return len(answer.json()["results"][0]["detections"])


def drawn_pixels(visit: Visit) -> int:
    """How many pixels of the canvas over the image are not transparent."""
    return int(
        visit.page.evaluate(
            """async () => {
              await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
              const canvas = document.getElementById("overlay");
              const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
              copy.drawImage(canvas, 0, 0);
              const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
              let count = 0;
              for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
              return count;
            }"""
        )
    )


def test_two_dropped_images_are_detected_and_thresholds_send_nothing(
    open_page: Open, url: str, server: tuple[ServerProcess, httpx.Client], samples: list[Path]
) -> None:
    visit = open_page(url)
    bring(visit, "drop", *samples[:2])
    visit.done(2)
    assert visit.detections_asked() == 2
    expect(visit.page.locator("#name")).to_have_text("smear_1.jpg")
    client = server[1]
    assert visit.found() == visit.rows() == counted(client, samples[0])
    boxes = drawn_pixels(visit)
    for control, parameter, value in [
        ("conf-number", "conf", 0.9),
        ("conf-number", "conf", 0.05),
        ("iou-number", "iou", 0.3),
        ("iou-number", "iou", 0.95),
        ("max-det", "max_det", 3),
    ]:
        visit.page.locator("#reset").click()
        visit.set_number(control, value)
        expected = counted(client, samples[0], **{parameter: value})
        assert visit.found() == visit.rows() == expected, (parameter, value)
    assert drawn_pixels(visit) < boxes  # three boxes of many
    second = str(counted(client, samples[1], max_det=3))
    expect(visit.page.locator(".item .badge").nth(1)).to_have_text(second)
    assert visit.detections_asked() == 2


def test_the_slider_moves_by_keys_and_the_list_follows(
    open_page: Open, url: str, samples: list[Path]
) -> None:
    visit = open_page(url)
    visit.pick(samples[0])
    visit.done(1)
    before = visit.found()
    visit.page.locator("#conf").focus()
    visit.page.keyboard.press("End")
    expect(visit.page.locator("#found-count")).to_have_text("0")
    expect(visit.page.locator("#nothing")).to_be_visible()
    visit.page.keyboard.press("Home")
    assert visit.found() > before
    expect(visit.page.locator("#announcements")).to_contain_text(f"{visit.found()} objects")


def test_a_class_is_hidden_by_its_button(open_page: Open, url: str, samples: list[Path]) -> None:
    visit = open_page(url)
    visit.pick(samples[0])
    visit.done(1)
    all_classes = visit.found()
    chip = visit.page.get_by_role("button", name="RBC")
    hidden = int(chip.locator(".chip-count").inner_text())
    chip.focus()
    visit.page.keyboard.press("Enter")
    expect(chip).to_have_attribute("aria-pressed", "false")
    expect(chip).to_be_focused()
    assert visit.found() == all_classes - hidden
    assert 0 < hidden < all_classes


def test_pasted_images_and_samples_are_detected(
    open_page: Open, url: str, samples: list[Path]
) -> None:
    visit = open_page(url)
    expect(visit.page.locator(".sample")).to_have_count(len(samples))
    visit.page.get_by_role("button", name="Try the sample smear_2.jpg").click()
    visit.done(1)
    bring(visit, "paste", samples[2])
    visit.done(2)
    expect(visit.page.locator("#name")).to_have_text("smear_3.jpg")
    visit.page.locator("#remove").click()
    visit.done(1)
    expect(visit.page.locator("#name")).to_have_text("smear_2.jpg")
    visit.page.locator("#remove").click()
    expect(visit.page.locator("#welcome")).to_be_visible()


def test_list_and_image_point_at_each_other(open_page: Open, url: str, samples: list[Path]) -> None:
    visit = open_page(url)
    visit.pick(samples[0])
    visit.done(1)
    page = visit.page
    plain = drawn_pixels(visit)
    page.locator("#rows tr").nth(2).hover()
    assert drawn_pixels(visit) > plain  # the box is filled
    page.mouse.move(0, 0)
    assert drawn_pixels(visit) == plain
    x, y = page.evaluate(
        """() => {
          const place = document.querySelector("#rows tr .place").textContent;
          const [x, y, w, h] = place.match(/[0-9]+/g).map(Number);
          const frame = document.querySelector("#stage .media").getBoundingClientRect();
          const scale = frame.width / 640;
          return [frame.left + (x + 3) * scale, frame.top + (y + h - 3) * scale];
        }"""
    )
    page.mouse.move(x, y)
    expect(page.locator("#rows tr.marked")).to_have_count(1)
    page.mouse.click(x, y)
    expect(page.locator("#rows tr.marked")).to_be_focused()


def test_all_can_be_done_by_keyboard(open_page: Open, url: str, samples: list[Path]) -> None:
    visit = open_page(url)
    page = visit.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".sample")).to_have_count(len(samples))
    page.get_by_role("button", name="Try the sample smear_1.jpg").focus()
    page.keyboard.press("Enter")
    visit.done(1)
    rows = page.locator("#rows tr")
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_be_focused()
    expect(rows.nth(1)).to_have_class("marked")
    page.keyboard.press("End")
    expect(rows.last).to_be_focused()
    visit.pick(samples[1])
    visit.done(2)
    page.locator("#strip [aria-selected=true]").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#name")).to_have_text("smear_1.jpg")
    page.locator("#stage").focus()
    fitted = page.locator("#zoom-level").inner_text()
    page.keyboard.press("+")
    expect(page.locator("#zoom-level")).not_to_have_text(fitted)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("0")
    expect(page.locator("#zoom-level")).to_have_text(fitted)


def test_a_turned_photo_is_upright_and_a_tiff_is_shown_by_the_server(
    open_page: Open, url: str, tmp_path: Path, samples: list[Path]
) -> None:
    image = cv2.imread(str(samples[0]))
    assert image is not None
    exif = bytes.fromhex("ffe1002245786966000049492a000800000001001201030001000000")
    exif += bytes.fromhex("0600000000000000")
    jpeg = samples[0].read_bytes()
    turned = tmp_path / "turned.jpg"
    turned.write_bytes(jpeg[:2] + exif + jpeg[2:])
    tiff = tmp_path / "smear.tiff"
    cv2.imwrite(str(tiff), image)
    visit = open_page(url)
    visit.pick(turned)
    visit.done(1)
    expect(visit.page.locator("#size")).to_have_text("480 × 640")
    assert visit.found() > 0
    assert visit.page.evaluate("document.querySelector('#stage .media').naturalWidth") == 480
    expect(visit.page.locator("#note")).to_be_empty()
    visit.pick(tiff)
    visit.done(2)
    expect(visit.page.locator("#note")).to_contain_text("as decoded by the server")
    assert visit.page.evaluate("document.querySelector('#stage .media').naturalWidth") == 640
    assert drawn_pixels(visit) > 0
    visit.page.locator(".item").first.click()
    expect(visit.page.locator("#note")).to_be_empty()
    visit.page.locator(".item").nth(1).click()  # answered before it is looked at
    expect(visit.page.locator("#note")).to_contain_text("as decoded by the server")
    assert visit.page.evaluate("document.querySelector('#stage .media').naturalWidth") == 640
    visit.page.wait_for_function("() => !document.querySelector('#stage.plate')")


def test_images_of_one_pixel_and_of_many_are_shown(
    open_page: Open, url: str, tmp_path: Path
) -> None:
    one, many = tmp_path / "one.png", tmp_path / "many.jpg"
    cv2.imwrite(str(one), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(many), np.full((3000, 4000, 3), 200, np.uint8))
    visit = open_page(url)
    visit.pick(one, many)
    visit.done(2)
    visit.page.locator(".item").nth(1).click()
    expect(visit.page.locator("#size")).to_have_text("4,000 × 3,000")


def test_many_large_images_leave_one_in_memory(open_page: Open, url: str, tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    cv2.imwrite(str(large), np.full((3000, 4000, 3), 200, np.uint8))
    visit = open_page(url)
    # Of all that is made in the page, the test keeps no count; the browser's own URLs are what it
    # would keep images by.
    visit.page.evaluate(
        """() => {
          window.open_urls = new Set();
          const [make, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
          URL.createObjectURL = (of) => { const u = make(of); open_urls.add(u); return u; };
          URL.revokeObjectURL = (url) => { open_urls.delete(url); revoke(url); };
        }"""
    )
    visit.pick(*(large for _ in range(8)))
    visit.done(8)
    for item in visit.page.locator(".item").all():
        item.click()
        expect(visit.page.locator("#stage .media")).to_have_count(1)
    expect(visit.page.locator(".thumb canvas")).to_have_count(8)
    visit.page.wait_for_function("() => open_urls.size === 1")
    widths = visit.page.locator(".thumb canvas").evaluate_all("(all) => all.map((c) => c.width)")
    assert max(widths) <= 600
    visit.page.get_by_role("button", name="Remove all").click()
    expect(visit.page.locator("#welcome")).to_be_visible()
    visit.page.wait_for_function("() => open_urls.size === 0")


def test_what_is_served_is_told(open_page: Open, url: str) -> None:
    visit = open_page(url)
    page = visit.page
    expect(page.locator("#status-text")).to_have_text("Ready")
    served = page.locator("#served-list")
    for text in ("yolov8n-fla-bccd", "fp32", "CPUExecutionProvider", "RBC, WBC, Platelets"):
        expect(served).to_contain_text(text)
    expect(served).to_contain_text("Verified against its source")
    expect(served).to_contain_text(this_build().version)
    page.locator("#certificate summary").click()
    expect(page.locator("#certificate-json")).to_contain_text('"verdict": "equal"')
    expect(page.locator("#gpu-banner")).to_be_hidden()
    for link in page.locator("nav a").all():
        assert httpx.get(url + "/" + (link.get_attribute("href") or "")).status_code == 200


def test_timings_add_up(open_page: Open, url: str, samples: list[Path]) -> None:
    visit = open_page(url)
    visit.pick(samples[0])
    visit.done(1)
    texts = visit.page.locator("#times-list dd").all_inner_texts()
    *parts, total, round_trip = (float(text.split()[0]) for text in texts)
    assert len(parts) == 6
    assert sum(parts) == pytest.approx(round_trip, abs=4)  # shown as whole milliseconds
    assert sum(parts[:-1]) == pytest.approx(total, abs=4)

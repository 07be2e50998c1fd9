"""The page in a browser: Debian's Chromium, led by Playwright. By hand, with `pip install playwright` and -m slow.

Last run: 2026-11-26, Chromium 156, Playwright 1.65: all passed.
"""

import re
import shutil

import pytest

pytestmark = pytest.mark.slow
WIDTHS = (1280, 800)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Debian's package chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(browser, client, request):
    """The page, whose console must stay empty."""
    page, problems = browser.new_page(viewport={"width": request.param, "height": 900}), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda failed: problems.append(failed.url))
    page.goto(f"http://127.0.0.1:{client.port}/")
    page.wait_for_selector(".matrix")
    yield page
    page.close()
    # a video that leaves the page while it loads is a request that ends early, and no problem
    assert [problem for problem in problems if not problem.endswith(".mp4")] == []


def test_a_click_on_a_cell_plays_the_clips_behind_it(page, client):
    counts = client.get("/0/test")["labels"][0]["confusion"]
    cell = page.locator(".matrix button:not(.zero)").first
    true, predicted = map(int, cell.get_attribute("data-cell").split("-"))
    cell.click()
    page.wait_for_selector("#behind video")
    page.locator("#behind").scroll_into_view_if_needed()
    shown = page.locator("#behind video").count() + page.locator("#behind .more").count()
    assert shown and int(cell.inner_text()) == counts[true][predicted]
    playing = "() => { const video = document.querySelector('#behind video'); return video.currentTime > 0.1 }"
    page.wait_for_function(playing)
    frame = page.evaluate(
        """() => {
          const video = document.querySelector('#behind video'), canvas = document.createElement('canvas');
          canvas.width = video.videoWidth;
          canvas.height = video.videoHeight;
          canvas.getContext('2d').drawImage(video, 0, 0);
          return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    assert max(frame[::4]) > min(frame[::4])  # a picture, and no blank


def test_a_clip_is_opened_and_explained(page):
    page.locator(".card").first.click()
    page.wait_for_selector("dialog video")
    page.locator("dialog button", has_text="Explain").click()
    page.wait_for_selector(".explained video", timeout=120_000)
    assert re.search(r"Most important frames: \d", page.locator(".explained").inner_text())
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")


def test_runs_are_sorted_chosen_and_opened(page):
    assert page.locator("#curves g[data-run]").count() > 0
    for box in page.locator("#runs tbody input").all():
        box.click()
    page.wait_for_selector("text=No run is ticked.")
    page.locator("#runs input").first.check()
    page.wait_for_selector("#curves polyline")
    page.locator("#runs th button", has_text="run").click()
    page.locator("#runs th button", has_text="run").click()
    assert "no_temporal_layer_seed1" in page.locator("#runs tbody tr").first.inner_text()
    page.locator("#runs button.name").first.click()
    page.wait_for_selector("#run-title:text-is('no_temporal_layer_seed1')")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out

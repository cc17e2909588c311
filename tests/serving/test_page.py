"""The page in a real Chromium."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import opened
from live_server import Live, Serve, until
from PIL import Image

from latentrt.images.upscale import Upscale
from latentrt.serving.web.pictures import from_text
from latentrt.serving.web.settings import Settings

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with opened() as made:
        yield made


@pytest.fixture
def visit(browser) -> Iterator[Callable]:
    """Opens the page of a server in a session of its own, and afterwards asserts that nothing went wrong in it."""
    sessions, faults = [], []

    def go(live: Live, *, keyed: str | None = None, **options):
        session = browser.new_context(reduced_motion="reduce", **options)
        session.set_default_timeout(20_000)
        sessions.append(session)
        page = session.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if _is_fault(line) else None)
        page.on("request", lambda asked: faults.append(asked.url) if _elsewhere(asked.url, live) else None)
        page.goto(live.url)
        if keyed is not None:
            page.fill("#key", keyed)
            page.keyboard.press("Enter")
            page.locator("#lock").wait_for(state="hidden")
        page.locator("#sampler option").first.wait_for(state="attached")
        return page

    yield go
    for session in sessions:
        session.close()
    assert not faults


def _is_fault(line) -> bool:
    """An answer of 4xx is told as an error, too."""
    return line.type == "error" and not line.text.startswith("Failed to load resource")


def _elsewhere(url: str, live: Live) -> bool:
    return not url.startswith((live.url, "data:", f"blob:{live.url}"))


@pytest.fixture
def shut(live: Live) -> Iterator[Live]:
    """The shared server, whose steps wait for the test."""
    live.gate.shut()
    yield live
    live.gate.open()


def card(page, name: str):
    return page.locator(f'.job[data-job="{name}"]')


def newest(live: Live):
    return live.service.jobs()[-1]


def downloaded(page, link) -> Image.Image:
    with page.expect_download() as caught:
        link.click()
    image = Image.open(io.BytesIO(Path(caught.value.path()).read_bytes()))
    image.load()
    return image


def saved(page, job) -> Image.Image:
    link = card(page, job.id).get_by_text("Download", exact=True)
    link.wait_for()
    return downloaded(page, link)


def test_an_image_is_made_by_keyboard_and_its_preview_moves(visit, shut: Live):
    page = visit(shut)
    page.keyboard.type("a fox")  # the prompt has the focus
    page.get_by_label("Steps", exact=True).fill("6")
    page.get_by_label("Seed", exact=True).fill("1")
    page.keyboard.press("Control+Enter")
    page.locator(".job").wait_for()
    job = newest(shut)
    bar, image = card(page, job.id).locator("progress"), card(page, job.id).locator("img")
    seen = []
    for step in (1, 3, 5):
        shut.gate.let(step - job.done)
        card(page, job.id).get_by_text(f"{step} of 6 steps").wait_for()
        seen.append((bar.evaluate("bar => bar.value"), image.get_attribute("src")))
    assert [round(6 * value) for value, _ in seen] == [1, 3, 5]
    assert len({source for _, source in seen}) == 3
    assert page.locator("#waiting li").inner_text().split("\n")[0].endswith("yours")
    page.get_by_text("fake: 1 image of 1 job").wait_for()  # the page looks now and then
    shut.gate.open()
    picture = saved(page, job)
    assert picture.info["parameters"] == job.result.parameters()[0]
    assert np.array_equal(np.asarray(picture), job.result.images[0])
    page.get_by_text("Idle").wait_for()
    assert page.locator("#queue").is_hidden()


def test_one_job_is_cancelled_and_the_other_goes_on(visit, shut: Live):
    page = visit(shut)
    names = []
    for prompt in ("first", "second"):
        page.fill("#prompt", prompt)
        page.click("#make")
        page.get_by_text(prompt, exact=True).and_(page.locator(".words")).wait_for()
        names.append(newest(shut).id)
    first, second = names
    card(page, first).get_by_text("Cancel", exact=True).click()
    card(page, first).get_by_text("Cancelled").wait_for()
    shut.gate.open()
    card(page, second).get_by_text("Download").wait_for()
    assert [str(shut.service.job(name).state) for name in names] == ["cancelled", "done"]


def test_a_painted_mask_leaves_the_rest_as_it_was_and_parameters_are_used_again(visit, live: Live, tmp_path: Path):
    photo = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    page = visit(live)
    page.fill("#prompt", "a door")
    page.get_by_text("Image to image").click()
    page.set_input_files("#photo input", tmp_path / "photo.png")
    page.get_by_label("Inpaint").check()
    assert (page.input_value("#width"), page.input_value("#height")) == ("192", "128")
    canvas = page.locator("#mask")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 4, steps=3)
    page.mouse.up()
    canvas.focus()
    for key in ("ArrowRight", "ArrowDown", " "):  # a dot beside the middle
        page.keyboard.press(key)
    page.click("#make")
    page.locator(".job").wait_for()
    job = newest(live)
    image, mask = np.asarray(saved(page, job)), np.asarray(job.request.start.mask)[..., 0] >= 128
    assert mask[32, 50] and mask[68, 100] and not mask[120, 180]
    assert np.array_equal(image[~mask], photo[~mask])
    assert (image[mask] != photo[mask]).any()

    page.fill("#prompt", "something else")
    page.get_by_role("button", name="Clear").click()
    page.locator("#photo .remove").click()
    page.fill("#width", "64")
    card(page, job.id).get_by_text("Reuse").click()
    assert page.input_value("#prompt") == "a door"
    assert page.input_value("#seed") == str(job.seeds[0])
    page.keyboard.press("Control+Enter")
    page.locator(".job:nth-child(2)").wait_for()
    again = newest(live)
    assert again.id != job.id
    assert np.array_equal(np.asarray(saved(page, again)), image)


def test_several_images_are_looked_at_and_one_begins_the_next(visit, live: Live):
    page = visit(live)
    page.fill("#prompt", "a fox")
    page.fill("#images", "3")
    page.fill("#seed", "5")
    page.click("#make")
    page.locator(".frame:enabled").nth(2).click()
    assert "Seed: 7" in page.locator("#parameters").inner_text()
    page.keyboard.press("ArrowRight")
    assert "Seed: 6" in page.locator("#parameters").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Use as start").click()
    page.locator("#photo-settings").wait_for()
    page.click("#make")
    until(lambda: newest(live).request.images == 3 and type(newest(live).request.start).__name__ == "Image", "the job")
    assert np.array_equal(np.asarray(newest(live).request.start.photo), live.service.jobs()[-2].result.images[0])


def test_an_image_is_enlarged_and_that_is_used_again(visit, live: Live):
    page = visit(live)
    page.fill("#prompt", "a fox")
    page.locator("#upscale-part summary").click()
    page.locator("#enlarge").check()
    page.fill("#factor", "1.5")
    page.fill("#upscale-strength", "0.6")
    page.click("#make")
    job = card(page, page.locator(".job").get_attribute("data-job"))
    job.get_by_text("Download").wait_for()
    assert newest(live).request.upscale == Upscale(1.5, strength=0.6)
    page.locator("#enlarge").uncheck()
    job.get_by_role("button", name="Reuse").click()
    assert page.locator("#enlarge").is_checked() and page.input_value("#factor") == "1.5"


def test_the_gallery_is_there_again_after_the_page_was_loaded_again(visit, live: Live):
    page = visit(live)
    page.fill("#prompt", "a fox that stays")
    page.click("#make")
    job = card(page, page.locator(".job").get_attribute("data-job"))
    job.get_by_text("Download").wait_for()
    page.reload()
    job.get_by_text("Download").wait_for()
    assert job.locator(".words").inner_text() == "a fox that stays"


def test_a_fault_is_told_at_its_field(visit, live: Live):
    page = visit(live)
    page.fill("#prompt", "a fox")
    page.fill("#steps", "0")
    page.click("#make")
    assert page.locator("#said").is_visible()
    assert page.evaluate("document.activeElement.id") == "steps"
    assert page.get_attribute("#steps", "aria-invalid") == "true"
    page.fill("#steps", "4")
    page.click("#make")
    page.locator(".job").wait_for()
    assert page.locator("#said").is_hidden()


def test_loras_and_controlnets_are_asked_for(visit, live: Live, tmp_path: Path):
    photo = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "lines.png")
    page = visit(live)
    bodies = []

    def richer(route):
        found = route.fetch().json()
        found["models"][0] |= {"loras": ["ink", "wool"], "controls": ["canny"]}
        route.fulfill(json=found)

    def taken(route):
        if route.request.method == "GET":
            return route.continue_()
        bodies.append(json.loads(route.request.post_data))
        return route.fulfill(
            status=429, headers={"Retry-After": "7"}, json={"error": {"message": "full", "param": None}}
        )

    page.route("**/v1/capabilities", richer)
    page.route("**/v1/jobs", taken)
    page.reload()
    page.get_by_text("LoRAs").click()
    page.get_by_text("Add a LoRA").click()
    page.locator("#loras .name").select_option("wool")
    page.locator("#loras .scale").fill("0.4")
    page.locator("#control-part summary").click()
    page.get_by_text("Add a ControlNet").click()
    page.set_input_files("#controls input[type=file]", tmp_path / "lines.png")
    page.locator("#controls .edges").check()
    page.locator("#controls .end").fill("0.5")
    page.locator("#controls img").wait_for()
    page.click("#make")
    page.get_by_text("Try again in 7 s").wait_for()
    (body,) = bodies
    assert body["loras"] == [{"name": "wool", "scale": 0.4}]
    (control,) = body["controls"]
    picture = control.pop("image")
    assert control == {"name": "canny", "scale": 1, "start": 0, "end": 0.5, "edges": True}
    assert np.array_equal(np.asarray(from_text(picture, "picture")), photo)


def test_a_key_is_asked_for_once(visit, serve: Serve):
    live = serve(Settings(keys=("right",)))
    page = visit(live, keyed="right")
    page.fill("#prompt", "a fox")
    page.click("#make")
    page.locator(".job").get_by_text("Download").wait_for()
    assert page.locator("#lock").is_hidden()
    page.reload()
    page.locator("#sampler option").first.wait_for(state="attached")
    assert page.locator("#lock").is_hidden()


def test_every_control_has_a_name_and_text_can_be_read_in_both_schemes(visit, live: Live):
    page = visit(live)
    nameless = page.evaluate(
        """[...document.querySelectorAll("input, select, textarea, button, canvas")].filter((each) =>
            !(each.labels?.length || each.ariaLabel || each.title || each.textContent.trim()))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for selector in ("#load", "#make", "label.field", "summary", "#empty", "#prompt"):
            front, back = page.locator(selector).first.evaluate(COLOURS)
            assert contrast(front, back) >= 4.5, (scheme, selector, front, back)
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"


COLOURS = """(each) => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const front = rgb(getComputedStyle(each).color);
    while (rgb(getComputedStyle(each).backgroundColor)[3] === 0) each = each.parentElement;
    return [front, rgb(getComputedStyle(each).backgroundColor)];
}"""


def contrast(*colours: list[float]) -> float:
    """As WCAG 2 has it."""
    channels = np.array([colour[:3] for colour in colours]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    dark, light = np.sort(linear @ (0.2126, 0.7152, 0.0722))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("width", [320, 375, 768, 1280, 1920])
def test_no_width_needs_scrolling_sideways(visit, live: Live, width: int):
    page = visit(live, viewport={"width": width, "height": 800})
    page.fill("#prompt", "word" * 100)
    page.fill("#steps", "2")
    page.click("#make")
    page.locator(".job").get_by_text("Download").wait_for()
    for details in page.locator("details:visible").all():
        details.evaluate("part => part.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#make").is_visible()

"""Screenshots of the server's page for docs/serving.md: in a window, and at a phone's width in the dark.

    python examples/screenshots.py build/bundles/shapes docs/images

It needs Chromium and the package playwright.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

PROMPTS = (
    "a red circle on a white background",
    "a blue star on a yellow background",
    "a green square on a black background",
    "a yellow triangle on a blue background",
)
QUALITY = 70  # of the files, which are small so


def main() -> None:
    parser = argparse.ArgumentParser(description="screenshots of the server's page")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no Chromium here: install the system's package, or name one in CHROMIUM")
    with served(options.bundle) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        window(browser, url, options.folder / "page.webp")
        phone(browser, url, options.folder / "page-phone.webp")
        browser.close()


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The address of a server of this bundle."""
    code = "import sys; from latentrt.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", f"shapes={bundle}", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            text = ""
            while not text.endswith("}\n"):
                line = process.stdout.readline()
                if not line:
                    sys.exit("the server did not start")
                text += line
            yield str(json.loads(text)["url"])
        finally:
            process.terminate()


def window(browser: Browser, url: str, path: Path) -> None:
    """Images that are done, one whose mask is painted, and two on their way."""
    page = opened(browser, url, width=1280, height=860)
    for seed, prompt in enumerate(PROMPTS, 1):
        generate(page, prompt, seed)
    page.locator(".job:not(.busy)").nth(len(PROMPTS) - 1).wait_for()
    page.fill("#images", "2")
    page.fill("#steps", "200")
    for seed, prompt in enumerate(PROMPTS[:2], 11):
        generate(page, prompt, seed)
    page.locator(".job.busy img").nth(3).wait_for()
    page.locator("#waiting li").nth(1).wait_for()
    shoot(page, path)


def phone(browser: Browser, url: str, path: Path) -> None:
    """A mask over a photo, in the dark."""
    page = opened(browser, url, width=390, height=844, scheme="dark")
    generate(page, PROMPTS[0], 3)
    page.get_by_text("Use as start").click()
    page.locator("#masked").check()
    canvas = page.locator("#mask")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.6, steps=8)
    page.mouse.up()
    page.evaluate("document.querySelector('#photo-settings').scrollIntoView()")
    shoot(page, path)


def opened(browser: Browser, url: str, *, width: int, height: int, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(url)
    page.locator("#sampler option").first.wait_for(state="attached")
    return page


def generate(page: Page, prompt: str, seed: int) -> None:
    page.fill("#prompt", prompt)
    page.fill("#seed", str(seed))
    cards = page.locator(".job").count()
    page.keyboard.press("Control+Enter")
    page.locator(".job").nth(cards).wait_for()


def shoot(page: Page, path: Path) -> None:
    Image.open(BytesIO(page.screenshot())).convert("RGB").save(path, quality=QUALITY, method=6)


if __name__ == "__main__":
    main()

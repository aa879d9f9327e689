"""A page of runs with hostile names, and one of several runs, in a real Chromium: `make browser`.

At 400 and at 1,600 pixels, in light and in dark, and printed: no error on the console, no request, nothing wider than
the window. It needs Debian's packages chromium and chromium-driver, and selenium. `--out DIR` keeps the pages, their
screenshots and the prints, to look at.
"""

import argparse
import base64
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import pages
from PIL import Image
from selenium import webdriver

from hifuse_timm.report import write_report

WIDTHS, SCHEMES = (400, 1600), ("light", "dark")


def write_pages(folder: Path) -> list[Path]:
    """Write a page of one run, all of whose words are hostile, and one of four runs of eight classes."""
    buffer = io.BytesIO()
    Image.effect_noise((240, 160), 60).save(buffer, "JPEG")
    picture = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    runs = {
        "hostile": [pages.hostile_run(picture)],
        "several": [
            pages.make_run(pages.predict([f"class {k}" for k in range(8)], 200, seed), f"fold{seed}")
            for seed in range(4)
        ],
    }
    paths = [folder / f"{name}.html" for name in runs]
    for path, of_page in zip(paths, runs.values(), strict=True):
        write_report(path, of_page, ["report", *pages.HOSTILE])
    return paths


def start() -> webdriver.Chrome:
    """A Chromium without a window, which notes its console and its requests."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def set_window(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    """Give the window this width, and the system this scheme of colours."""
    scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_feature]})
    metrics = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def find_faults(browser: webdriver.Chrome, path: Path, width: int, scheme: str) -> list[str]:
    """What is wrong with a page in a window of this width and a scheme of colours."""
    set_window(browser, width, scheme)
    browser.get_log("performance")
    browser.get(path.as_uri())
    faults = [f"console: {entry['message']}" for entry in browser.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    faults += [f"request: {url:.80}" for url in asked if url != path.as_uri() and not url.startswith("data:")]
    found = browser.execute_script("return [document.documentElement.scrollWidth, document.title, innerWidth]")
    if found[0] > width or found[2] != width:
        faults.append(f"{found[0]} pixels wide")
    if found[1] == "run":
        faults.append("a script ran")
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    if (ground == "rgb(255, 255, 255)") != (scheme == "light"):
        faults.append(f"its ground is {ground}")
    return faults


def save_screenshot(browser: webdriver.Chrome, path: Path, width: int) -> None:
    """Save a picture of the whole page, however long it is."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    clip = dict(x=0, y=0, width=width, height=height, scale=1)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", dict(captureBeyondViewport=True, clip=clip))
    path.write_bytes(base64.b64decode(shot["data"]))


def save_picture(path: Path, light: Path, dark: Path) -> None:
    """Save the upper part of one screenshot at 1,600 pixels and what comes below it of the other, in a small file."""
    margin, height, scale = 140, 2330, 0.55
    picture = Image.new("RGB", (2 * (1600 - 2 * margin), height))
    for i, (screenshot, top) in enumerate(((light, 0), (dark, 2690))):
        with Image.open(screenshot) as whole:
            part = whole.convert("RGB").crop((margin, top, 1600 - margin, top + height))
        picture.paste(part, (i * part.width, 0))
    size = (round(picture.width * scale), round(picture.height * scale))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    small.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Open pages of report in Debian's Chromium, and look for faults.")
    parser.add_argument("pages", nargs="*", type=Path, help="pages to open; by default some of made up runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep pages, screenshots and prints here")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="save a small picture of the first page here")
    args = parser.parse_args()
    browser = start()
    num_faults = 0
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.out or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            for path in [page.resolve() for page in args.pages or write_pages(folder)]:
                for width in WIDTHS:
                    for scheme in SCHEMES:
                        faults = find_faults(browser, path, width, scheme)
                        num_faults += len(faults)
                        print(f"{path.name} at {width} pixels, {scheme}: {'; '.join(faults) or 'fine'}")
                        save_screenshot(browser, folder / f"{path.stem}-{width}-{scheme}.png", width)
                printed = browser.execute_cdp_cmd("Page.printToPDF", dict(paperWidth=8.27, paperHeight=11.69))
                (folder / f"{path.stem}.pdf").write_bytes(base64.b64decode(printed["data"]))
                if args.picture:
                    names = (folder / f"{path.stem}-1600-{scheme}.png" for scheme in SCHEMES)
                    save_picture(args.picture, *names)
                    args.picture = None
    finally:
        browser.quit()
    return int(num_faults > 0)


if __name__ == "__main__":
    sys.exit(main())

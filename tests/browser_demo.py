"""The page of demo in a real Chromium: `make browser`.

At 400 and at 1,600 pixels, in light and in dark: an image, a DICOM file and one that is none are answered for, by the
keyboard too, and another layer; two users ask at once. No error on the console, no request to another machine, nothing
wider than the window, and nothing left on the disk. It needs what tests/browser.py needs, and the extra demo. `--out
DIR` keeps screenshots, to look at.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import dicoms
import miniatures
import numpy as np
import timm
import torch
from browser import SCHEMES, WIDTHS, save_screenshot, set_window, start
from conftest import NARROW
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import hifuse_timm  # noqa: F401

SECONDS = 60  # to wait for a page, or an answer, at most


def write_network(folder: Path) -> None:
    """Write a narrow network of two classes, one of which has a hostile name, as published."""
    torch.manual_seed(0)
    model = timm.create_model("hifuse_tiny", num_classes=2, **NARROW)
    timm.models.save_for_hf(
        model, folder, model_config=dict(label_names=["normal", "<b>pneumonia</b>"]), model_args=NARROW
    )


def write_files(folder: Path) -> dict[str, Path]:
    """Write a picture, a DICOM file, and two files that are called pictures and are none."""
    files = {name: folder / name for name in ("stripes.png", "chest.dcm", "<i>no picture.png", "empty.png")}
    picture, dicom, text, empty = files.values()
    miniatures.paint(0, 2, (300, 200), "RGB", np.random.default_rng(0)).save(picture)
    dicoms.write_dicom(dicom, np.arange(4096, dtype=np.uint16).reshape(64, 64))
    text.write_text("no picture")
    empty.touch()
    return files


@contextmanager
def serve(temporary: Path, *options: str) -> Iterator[str]:
    """Gives the address of a demo, whose temporary files lie in this folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "hifuse_timm", "demo", *options, "--port", port]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = dict(os.environ, TMPDIR=str(temporary), PYTHONPATH=paths)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            if not line.startswith("http"):
                sys.exit(f"demo does not start: {line}")
            yield line.split()[0]
        finally:
            server.terminate()


def open_page(browser: webdriver.Chrome, url: str) -> None:
    browser.get(url)
    WebDriverWait(browser, SECONDS).until(lambda b: b.find_elements(By.ID, "files"))


def send_files(browser: webdriver.Chrome, *files: Path) -> None:
    browser.find_element(By.ID, "files").send_keys("\n".join(map(str, files)))


def wait_for(browser: webdriver.Chrome, *names: str, maps: int | None = None) -> list[str]:
    """The answers, as text, once they are those for files of these names with so many pictures each."""

    def find(b: webdriver.Chrome) -> list[str] | None:
        script = (
            "return [...document.querySelectorAll('article')].map(a => [a.innerText, a.querySelectorAll('img').length])"
        )
        found = b.execute_script(script)
        whole = maps is None or all(num == maps for _, num in found)
        return [t for t, _ in found] if [t.splitlines()[0] for t, _ in found] == list(names) and whole else None

    return WebDriverWait(browser, SECONDS).until(find)


def find_foreign(browser: webdriver.Chrome, url: str) -> list[str]:
    """Errors on the console, and requests to anything but the demo."""
    faults = [f"console: {entry['message']}" for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    own = urlsplit(url).netloc
    return faults + [f"request: {u:.80}" for u in asked if urlsplit(u).netloc != own and urlsplit(u).scheme != "data"]


def find_faults(browser: webdriver.Chrome, url: str, width: int) -> list[str]:
    """As `find_foreign`, and what is wider than the window."""
    found = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    return find_foreign(browser, url) + ([] if found == [width, width] else [f"{found} pixels wide"])


def check_page(browser: webdriver.Chrome, url: str, files: dict[str, Path], width: int) -> list[str]:
    """What is wrong with a page, and with its answers, in a window of this width."""
    faults = []
    open_page(browser, url)
    send_files(browser, *files.values())
    picture, dicom, *others = wait_for(browser, *files)
    for answer in (picture, dicom):
        if "<b>pneumonia</b>" not in answer or "%" not in answer or "stage4.fused" not in answer:
            faults.append(f"answer: {answer!r}")
    faults += [f"answer: {answer!r}" for answer in others if "is no image that is read here" not in answer]
    return faults + find_faults(browser, url, width)


def check_keyboard(browser: webdriver.Chrome, url: str, file: Path) -> list[str]:
    """What cannot be done by the keyboard: come to the files, choose another layer, ask again."""
    open_page(browser, url)
    reached = []
    for _ in range(20):
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.execute_script("return document.activeElement.id || document.activeElement.role"))
    faults = [f"the keyboard does not reach {name}: {reached}" for name in ("files", "ask") if name not in reached]
    send_files(browser, file)
    wait_for(browser, file.name, maps=2)
    layers = browser.find_element(By.CSS_SELECTOR, "input[aria-label^=Layers]")
    layers.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    wait_for(browser, file.name, maps=3)
    return faults + find_foreign(browser, url)


def check_examples(browser: webdriver.Chrome, url: str) -> list[str]:
    """What is wrong with the page of the packaged network, and with an image of its own that is clicked on."""
    open_page(browser, url)
    examples = browser.find_elements(By.CSS_SELECTOR, ".examples button")
    name = examples[-1].text
    examples[-1].send_keys(Keys.ENTER)
    wait_for(browser, name, maps=2)
    predicted = browser.find_element(By.CSS_SELECTOR, "article tbody th").text
    return [] if name.startswith(predicted) else [f"{name} is answered for with {predicted}"]


def drop(browser: webdriver.Chrome, file: Path) -> None:
    """Drop a file on the field for files."""
    field = browser.find_element(By.ID, "files")
    place = {key: field.rect[key] + field.rect[side] / 2 for key, side in (("x", "width"), ("y", "height"))}
    data = dict(items=[], files=[str(file)], dragOperationsMask=1)
    for event in ("dragEnter", "dragOver", "drop"):
        browser.execute_cdp_cmd("Input.dispatchDragEvent", dict(type=event, data=data, **place))


def check_drop(browser: webdriver.Chrome, url: str, file: Path) -> list[str]:
    """What is wrong where a file is dropped."""
    open_page(browser, url)
    drop(browser, file)
    wait_for(browser, file.name, maps=2)
    return find_foreign(browser, url)


def check_two_users(browsers: list[webdriver.Chrome], url: str, files: dict[str, Path]) -> list[str]:
    """What is wrong where two ask at once, for the same file, and for different ones."""
    names = ["stripes.png", "chest.dcm"]
    for wanted in (names, names[:1] * 2):
        for browser in browsers:
            open_page(browser, url)
        for browser, name in zip(browsers, wanted, strict=True):
            send_files(browser, files[name])
        for browser, name in zip(browsers, wanted, strict=True):
            wait_for(browser, name, maps=2)
    return [fault for browser in browsers for fault in find_foreign(browser, url)]


def check_upload(url: str) -> list[str]:
    """What is wrong where a file is sent to Gradio's own door for files, which would keep it."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nkept?\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        urlopen(Request(f"{url}/gradio_api/upload", body, headers))
    except HTTPError as e:
        return [] if e.code == 413 else [f"it ends in {e}"]
    return ["it is taken"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Open the page of demo in Debian's Chromium, and look for faults.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep screenshots here")
    args = parser.parse_args()
    faults = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("network", "files", "temporary", "pictures")]
        for folder in folders:
            folder.mkdir()
        network, given, temporary, out = folders
        out = args.out or out
        out.mkdir(parents=True, exist_ok=True)
        write_network(network)
        files = write_files(given)
        browsers = [start(), start()]
        try:
            with serve(temporary, "--model", f"local-dir:{network}", "--pretrained") as url:
                for width in WIDTHS:
                    for scheme in SCHEMES:
                        set_window(browsers[0], width, scheme)
                        found = check_page(browsers[0], url, files, width)
                        print(f"demo at {width} pixels, {scheme}: {'; '.join(found) or 'fine'}")
                        save_screenshot(browsers[0], out / f"demo-{width}-{scheme}.png", width)
                        faults += found
                for name, found in (
                    ("for a dropped file", check_drop(browsers[0], url, files["chest.dcm"])),
                    ("by the keyboard", check_keyboard(browsers[0], url, files["stripes.png"])),
                    ("for two users", check_two_users(browsers, url, files)),
                    ("for an upload past the page", check_upload(url)),
                    ("on the disk", [f"left: {path}" for path in temporary.rglob("*") if path.is_file()]),
                ):
                    print(f"demo {name}: {'; '.join(found) or 'fine'}")
                    faults += found
            with serve(temporary) as url:
                for width, scheme in zip(WIDTHS, SCHEMES, strict=True):
                    set_window(browsers[0], width, scheme)
                    found = check_examples(browsers[0], url) + find_faults(browsers[0], url, width)
                    print(f"demo of the packaged network at {width} pixels, {scheme}: {'; '.join(found) or 'fine'}")
                    save_screenshot(browsers[0], out / f"demo-packaged-{width}-{scheme}.png", width)
                    faults += found
        finally:
            for browser in browsers:
                browser.quit()
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

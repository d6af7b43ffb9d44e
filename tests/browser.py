"""The notebooks in a real browser: run all of one, move a slider, press the button.

    make test-browser

Not part of `make test`: it needs Chromium and its driver, which the system's packages
bring.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = shutil.which("chromium") and shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def lab():
    """JupyterLab's address. What happens there is not saved to the notebooks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
    ]
    settings += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        *settings,
        f"--ServerApp.root_dir={ROOT}",
    ]
    data = str(Path(os.environ.get("DATA_DIR", ROOT / "data")).resolve())
    server = subprocess.Popen(
        command,
        env=os.environ | {"DATA_DIR": data},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(60):
        try:
            urllib.request.urlopen(f"{address}/api").close()
            break
        except OSError:
            time.sleep(0.5)
    yield address
    server.terminate()
    server.wait()


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--window-size=1400,2400"):
        options.add_argument(flag)
    driver = webdriver.Chrome(
        options, webdriver.ChromeService(shutil.which("chromedriver"))
    )
    yield driver
    driver.quit()


def run_all(browser, address: str, name: str) -> None:
    """Opens a notebook and runs all of its cells."""
    browser.get(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?reset")
    wait = WebDriverWait(browser, 60)
    wait.until(lambda b: b.execute_script("return !!window.jupyterapp"))
    ready = "const w = window.jupyterapp.shell.currentWidget;"
    ready += " return w && w.sessionContext && w.sessionContext.session"
    ready += " && w.sessionContext.session.kernel.status == 'idle'"
    wait.until(lambda b: b.execute_script(ready))
    browser.execute_script(
        "window.jupyterapp.commands.execute('notebook:run-all-cells')"
    )


def pictures(browser) -> list[str]:
    """The sources of the pictures that sliders and buttons show."""
    script = (
        "return [...document.querySelectorAll('.widget-output img')].map(i => i.src)"
    )
    return browser.execute_script(script)


def changed(browser, before: list[str], seconds: float) -> list[str]:
    WebDriverWait(browser, seconds).until(lambda b: pictures(b) != before)
    return pictures(browser)


def test_a_square_is_moved_and_filled(lab, browser):
    run_all(browser, lab, "inpaint")
    WebDriverWait(browser, 300).until(pictures)
    before = pictures(browser)
    handle = browser.find_elements(By.CSS_SELECTOR, ".noUi-handle")[0]
    handle.send_keys(Keys.ARROW_RIGHT)
    moved = changed(browser, before, 30)
    (button,) = browser.find_elements(
        By.XPATH, "//button[contains(., 'fill the square')]"
    )
    button.click()
    start = time.monotonic()
    changed(browser, moved, 120)
    print(f"filled in {time.monotonic() - start:.1f} s")
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/inpaint.png")


def test_sliders_change_samples_and_walk_between_images(lab, browser):
    run_all(browser, lab, "train_glow_mnist")
    WebDriverWait(browser, 300).until(lambda b: len(pictures(b)) == 2)
    for handle in browser.find_elements(By.CSS_SELECTOR, ".noUi-handle"):
        before = pictures(browser)
        handle.send_keys(Keys.ARROW_RIGHT)
        changed(browser, before, 30)
        WebDriverWait(browser, 30).until(lambda b: len(pictures(b)) == 2)
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/train_glow_mnist.png")

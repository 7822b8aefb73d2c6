"""A server of mode=serve in a process of its own, and Debian's Chromium in front of it.

python -m tests.helpers.browser RUN PICTURE OUT.png     write a screenshot of the page
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.reading import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def serving(run: Path, *keys: str, temporary: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yield the address of a server and its process, which is ended afterwards; its temporary files are in a folder."""
    command = [sys.executable, "run.py", "mode=serve", f"pretrained_name={run}", "serve.port=0", "trainer.device=cpu"]
    environment = {**os.environ, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [*command, *keys], cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as server:
        try:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"http://\S+:\d+", line):
                    yield found[0], server
                    break
            else:
                raise AssertionError("".join(lines))
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
            server.stderr.read()


@contextmanager
def browser(*, phone: bool = False, dark: bool = False):
    """Yield a driver of headless Chromium with a profile of its own, in the size of a desktop or a phone."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory(prefix="profile-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for option in (*OPTIONS, f"--user-data-dir={profile}", "--window-size=1200,1400"):
            options.add_argument(option)
        if phone:
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": {"width": 390, "height": 1600}})
        if dark:
            options.add_argument("--blink-settings=preferredColorScheme=0")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def wait_for(driver, what, *, seconds: float = 120):
    """Return the first value of `what(driver)` that is true."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds, ignored_exceptions=[StaleElementReferenceException]).until(what)


def drop(driver, picture: Path) -> None:
    """Give the page a picture, and wait for its explanation and maps."""
    wait_for(driver, lambda d: d.find_elements("css selector", "input[type=file]"))[0].send_keys(str(picture))
    wait_for(driver, lambda d: d.find_elements("css selector", "#maps figcaption"))


if __name__ == "__main__":
    run, picture, out = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder, serving(run, temporary=Path(folder)) as server, browser() as page:
        page.set_window_size(1200, 1350)
        page.get(server[0])
        drop(page, picture.resolve())
        page.save_screenshot(str(out))

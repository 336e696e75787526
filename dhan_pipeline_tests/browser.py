"""The system's Chromium, without a window, as a person in India sees it.

Needs the system's package `chromium`. No page may reach anything but this machine.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, BrowserContext, sync_playwright

#: What Debian and others call it.
_NAMES = ("chromium", "chromium-browser", "google-chrome")

#: Root may not have a sandbox; containers have little shared memory; everything else is asked of nobody.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class ChromiumMissingError(RuntimeError):
    """Chromium is not installed on this machine."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, for as long as the block. Raises ChromiumMissingError."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise ChromiumMissingError("Chromium is not installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_ARGUMENTS))
        yield browser
        browser.close()


def in_india(browser: Browser) -> BrowserContext:
    """A window of a person in India. The UI shows times in the zone of the browser."""
    return browser.new_context(
        timezone_id="Asia/Kolkata", locale="en-IN", viewport={"width": 1600, "height": 1000}, reduced_motion="reduce"
    )

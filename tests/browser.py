"""Pages in a real browser: the Chromium of the system, driven by Playwright."""

import contextlib
import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Where the tests decide about a change, a missing browser is a failure.
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="there is no Chromium"
)


@contextlib.contextmanager
def open_page(address, width=1200, height=900, dark=False):
    """A page in a browser of its own.

    Yields:
        Playwright's `Page`, with `complaints`, the errors and warnings of its console
        and its scripts, and `requests`, the addresses that it asked for, both lists
        that grow.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        page.complaints, page.requests = [], []
        page.on("console", lambda message: _note(message, page.complaints))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(address)
        yield page
        browser.close()


def _note(message, complaints):
    if message.type in ("error", "warning"):
        complaints.append(message.text)


def find_broken_pictures(page):
    """The sources of the pictures of a page that were not loaded."""
    return page.evaluate(
        "[...document.images].filter(i => !i.complete || !i.naturalWidth)"
        ".map(i => i.src.slice(0, 80))"
    )


def scrolls_sideways(page):
    """Whether a page is wider than its window."""
    return page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )

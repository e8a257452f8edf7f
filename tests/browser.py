"""A real browser for pages that parspike writes or serves: Debian's Chromium, driven by playwright.

    def test_a_page(browser, tmp_path):
        with opened(browser, "file:///…/report.html", width=390, scheme="dark") as seen:
            assert seen.page.title() == "…"

`opened` fails at its end where the console had an error, the page threw one, a request failed, or anything outside the
page's own place was asked for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = "/usr/bin/chromium"
QUIET = [
    "--no-sandbox",  # root, as on CI
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # What Chromium asks of its maker's hosts by itself, which no network here answers.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. The test skips where it is absent, and fails on CI, which installs it.

    One a module: while playwright's own event loop runs, no test of another module could run one in this process."""
    lacking = None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking = "needs the package playwright: pip install -c constraints.txt -e '.[dev]'"
    if lacking is None and shutil.which(CHROMIUM) is None:
        lacking = f"needs {CHROMIUM}: apt-get install chromium"
    if lacking is not None:
        if os.environ.get("CI"):
            pytest.fail(f"{lacking} (.ci/run does it; its output says why it failed)")
        pytest.skip(lacking)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@dataclass
class Seen:
    """A page, and what went wrong in it so far, one line each."""

    page: Page
    wrong: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@contextmanager
def opened(
    browser: Browser,
    url: str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
) -> Iterator[Seen]:
    """A page in a window of its own. What it asks for elsewhere than at its own scheme, host and port (of a file: than
    the file itself) is stopped, and fails the test at the end, as errors in the console do."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=scripts
    )
    seen = Seen(context.new_page())
    page = seen.page

    def answer(route) -> None:
        if own(route.request.url, url):
            route.continue_()
        else:
            seen.wrong.append(f"asked for {route.request.url}")
            route.abort()

    page.route("**/*", answer)
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and seen.wrong.append(f"console: {message.text}"),
    )
    page.on("pageerror", lambda error: seen.wrong.append(f"error in the page: {error}"))
    page.on("requestfailed", lambda request: seen.wrong.append(f"failed: {request.url} {request.failure}"))
    page.on("response", lambda answer: answer.status >= 400 and seen.wrong.append(f"{answer.status}: {answer.url}"))
    page.on("websocket", lambda socket: own(socket.url, url) or seen.wrong.append(f"asked for {socket.url}"))
    try:
        page.goto(url)
        yield seen
        assert not seen.wrong, "\n".join(seen.wrong)
    finally:
        context.close()


def own(asked: str, url: str) -> bool:
    """Whether what a page asks for is its own: inside it (data:, blob:), or at its scheme, host and port."""
    one, other = urlsplit(asked), urlsplit(url)
    if one.scheme in ("data", "blob", "about"):
        return True
    if other.scheme == "file":
        return (one.scheme, one.path) == (other.scheme, other.path)
    schemes = {other.scheme, {"http": "ws", "https": "wss"}[other.scheme]}
    return one.scheme in schemes and one.netloc == other.netloc

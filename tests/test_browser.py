"""The browser that other tests use sees what a page does wrong."""

from __future__ import annotations

import pytest
from browser import opened, own

PIXEL = "<img src='data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7'>"


def page(folder, text):
    path = folder / "page.html"
    path.write_text(f"<!doctype html><title>a page</title>{text}")
    return path.as_uri()


def test_a_page_that_needs_nothing(browser, tmp_path):
    with opened(browser, page(tmp_path, PIXEL), width=390, scheme="dark") as seen:
        assert seen.page.title() == "a page"
        assert seen.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert seen.overflow() <= 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<img src='http://example.com/a.png'>", "asked for http://example.com"),
        ("<script src='//example.com/a.js'></script>", "example.com/a.js"),
        ("<link rel=stylesheet href=other.css>", "asked for file:.*other.css"),
        ("<script>console.error('broken')</script>", "console: broken"),
        ("<script>throw Error('thrown')</script>", "error in the page: thrown"),
    ],
)
def test_what_is_wrong_is_seen(browser, tmp_path, text, why):
    with pytest.raises(AssertionError, match=why), opened(browser, page(tmp_path, text)) as seen:
        seen.page.wait_for_load_state("networkidle")


def test_a_page_too_wide_is_seen(browser, tmp_path):
    with opened(browser, page(tmp_path, "<div style='width:1000px'>wide</div>"), width=390) as seen:
        assert seen.overflow() > 500


def test_own():
    assert own("ws://127.0.0.1:9/ws", "http://127.0.0.1:9/")
    assert own("data:x", "file:///a.html")
    assert not own("http://127.0.0.1:8/", "http://127.0.0.1:9/")
    assert not own("file:///b.css", "file:///a.html")

"""Debian's chromium under playwright, for tests of what a page does; skipped where either is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


class Visit:
    """A page in the browser, and all that went wrong in it or left it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def open(self, path: Path) -> Any:
        """Open a page from disk."""
        self.page.goto(path.as_uri())
        return self.page

    def check(self, folder: Path) -> None:
        """Assert that nothing was complained of, and that no request left the folder."""
        assert not self.complaints
        inside = (folder.as_uri(), "data:", "blob:")
        assert not [url for url in self.requests if not url.startswith(inside)]


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser, or skip."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip("Debian's chromium is not installed")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()

"""The page in a real browser: it draws, says nothing on the console and asks nothing of the network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from study_on_disk import build, page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # which a container may have little of
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The browser has business of its own on the network; no name resolves, so none of it leaves the machine.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
    "--window-size=1300,30000",
    "--dump-dom",
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: no page was opened in a browser"
)


def visit(path: Path, scratch: Path) -> tuple[str, list[str], set[str]]:
    """The document after its scripts ran, lines of the console, addresses that the page (not the browser) asked for."""
    log = scratch / "net.json"
    files = (f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}")
    done = subprocess.run(
        [str(BROWSER), *FLAGS, *files, path.as_uri()], capture_output=True, text=True, timeout=1800, check=True
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked: set[str] = set()
    for line in log.read_text(encoding="utf-8").splitlines():
        # Events stand one a line, and a browser that is stopped may leave the list open.
        if '"url":' in line and '"site_for_cookies":"SiteForCookies: {site=file://' in line:
            found = re.search(r'"url":("(?:[^"\\]|\\.)*")', line)
            assert found is not None
            asked.add(json.loads(found[1]))
    return done.stdout, console, {url for url in asked if url.startswith(("http", "ws"))}


@needs_browser
def test_the_watch_on_network_and_console_sees_what_it_should(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<!DOCTYPE html><img src="http://127.0.0.9:9/x.png"><script>console.log("heard")</script>')
    _, console, asked = visit(bad, tmp_path)
    assert asked == {"http://127.0.0.9:9/x.png"}
    assert any("heard" in line for line in console)


@needs_browser
def test_the_page_draws_every_figure_without_network_or_console(tmp_path: Path) -> None:
    world = build(tmp_path / "study", steps=40)
    page(world, tmp_path / "out")
    dom, console, asked = visit(tmp_path / "out" / "report.html", tmp_path)
    assert console == []
    assert asked == set()
    assert "<title>synthetic · prism</title>" in dom
    figures = len(re.findall(r'data-figure="', dom))
    assert figures == 16
    assert len(re.findall(r'data-drawn="yes"', dom)) == figures
    assert dom.count('class="main-svg"') >= figures

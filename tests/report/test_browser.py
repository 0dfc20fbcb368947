"""The page in a real browser: it draws, says nothing on the console and asks nothing of the network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest
from study_on_disk import build, page

from prismlab.report.heat import HeatMap, heat_maps

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


def visit(path: Path, scratch: Path, *more: str) -> tuple[str, list[str], set[str]]:
    """The document after its scripts ran, lines of the console, addresses that the page (not the browser) asked for."""
    log = scratch / "net.json"
    files = (f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}")
    done = subprocess.run(
        [str(BROWSER), *FLAGS, *more, *files, path.as_uri()], capture_output=True, text=True, timeout=1800, check=True
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


@needs_browser
def test_on_a_narrow_screen_names_under_a_panel_end_above_the_next_one(tmp_path: Path) -> None:
    """Names as long as ``mid[MCS]>finetune[MCS]`` stand upright, about 7 pixels a letter; then a title."""
    long = ["mid[MCS]>finetune[MCS]", "mid[MCS]>rl[MCS]", "rl-base-mcs-balanced", "rl-mcs-mcs-balanced"]
    maps = [
        HeatMap(title=str(k), names=names, values=[[0.5] * len(names)] * len(names))
        for k, names in enumerate((long, ["a", "b"], long))
    ]
    drawn = heat_maps(maps)
    script = resources.files("prismlab.report").joinpath("templates/page.js").read_text(encoding="utf-8")
    test_page = tmp_path / "narrow.html"
    test_page.write_text(
        '<!DOCTYPE html><div class="plot" data-figure="f" style="width:370px"></div>'
        f'<script type="application/json" id="figures">{json.dumps({"f": drawn})}</script>'
        "<script>window.Plotly = {react: (node, data, layout) => {node.textContent = JSON.stringify(layout)}}</script>"
        f"<script>{script}</script>",
        encoding="utf-8",
    )
    dom, console, _ = visit(test_page, tmp_path)
    assert console == []
    found = re.search(r'data-drawn="yes"[^>]*>(\{.*?\})</div>', dom)
    assert found is not None
    layout = json.loads(html.unescape(found[1]))
    pixels = layout["height"] - 34 - layout["margin"]["b"]
    places = [layout[f"yaxis{axis}"]["domain"] for axis in ("", "2", "3")]
    gaps = [(above[0] - below[1]) * pixels for above, below in pairwise(places)]
    assert gaps[0] > 7 * len(long[0]) + 20
    assert gaps[1] < 120, "short names need no more room than a title"
    assert places[0][1] == 1.0
    assert abs(places[2][0]) < 1e-9
    tall = 0.68 * drawn["layout"]["meta"]["panel_height"]
    assert [(top - bottom) * pixels for bottom, top in places] == pytest.approx([tall] * 3)


@needs_browser
@pytest.mark.parametrize(("scheme", "colour"), [(0, "#e8e8e8"), (1, None)], ids=["dark", "light"])
def test_numbers_of_a_map_are_read_on_dark_ground(scheme: int, colour: str | None, tmp_path: Path) -> None:
    """Cells near 0 are nearly the page's own colour, so on dark ground their numbers are the page's ink."""
    drawn = heat_maps([HeatMap(title="t", names=["a", "b"], values=[[1.0, 0.01], [0.01, 1.0]])])
    script = resources.files("prismlab.report").joinpath("templates/page.js").read_text(encoding="utf-8")
    test_page = tmp_path / "dark.html"
    test_page.write_text(
        "<!DOCTYPE html><style>:root {--ink: #e8e8e8}</style>"
        '<div class="plot" data-figure="f" style="width:900px"></div>'
        f'<script type="application/json" id="figures">{json.dumps({"f": drawn})}</script>'
        "<script>window.Plotly = {react: (node, data) => {node.textContent = JSON.stringify(data)}}</script>"
        f"<script>{script}</script>",
        encoding="utf-8",
    )
    dom, console, _ = visit(test_page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert console == []
    found = re.search(r'data-drawn="yes"[^>]*>(\[.*?\])</div>', dom)
    assert found is not None
    (trace,) = json.loads(html.unescape(found[1]))
    assert trace.get("textfont", {}).get("color") == colour

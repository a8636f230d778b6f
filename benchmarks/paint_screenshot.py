"""Take the documentation's screenshot of the painting page, in a real browser.

    python benchmarks/paint_screenshot.py --workdir runs/demo --out benchmarks/results/paint.png

Starts `sisma_jax.paint`, chooses a mask, paints over it, makes faces and takes a screenshot. Needs
the extra `browser` and Chromium.
"""

import argparse
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from sisma_jax.common import cli

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
)
"""Flags with which Chromium starts on any machine and makes no requests of its own."""
WIDTH = 1200

Points = Sequence[tuple[float, float]]


@contextmanager
def serving(
    workdir: Path, environment: Mapping[str, str] = os.environ
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run the command on a free port; yields the page's address and the process.

    Raises:
      RuntimeError: if it ends before it serves; the message is its output.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "sisma_jax.paint", "--workdir", workdir, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        output = []
        for line in server.stdout:
            output.append(line)
            if "paint at" in line:
                break
        else:
            raise RuntimeError("".join(output))
        yield f"http://127.0.0.1:{port}/", server
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def choose(page: Any, brush: str) -> None:
    """Pick a class by the name of its brush."""
    page.locator("#easel .brush").get_by_text(brush, exact=True).click()


def stroke(page: Any, size: int, points: Points) -> None:
    """Drag the brush along points (x, y) of a mask of `size` pixels."""
    box = page.locator("#easel canvas").bounding_box()
    places = [(box["x"] + box["width"] * x / size, box["y"] + box["height"] * y / size)
        for x, y in points]  # fmt: skip
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def make_faces(page: Any) -> None:
    """Press the button and wait for the faces."""
    before = page.text_content("#faces-note")
    page.click("#make")
    changed = "before => document.querySelector('#faces-note').textContent !== before"
    page.wait_for_function(changed, arg=before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=cli.path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--out", type=cli.path, required=True, help="PNG file to write")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    parser.add_argument("--mask", type=int, default=4, help="number of the starting mask")
    args = parser.parse_args()
    if args.chromium is None:
        parser.error("there is no chromium on the PATH: give a browser with --chromium")
    from playwright.sync_api import sync_playwright

    with serving(args.workdir) as (address, _), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=args.chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.locator("#starts button").nth(args.mask).click()
        page.wait_for_timeout(2000)
        choose(page, "hat")
        page.fill("#easel .width", "6")
        for y in (7, 11, 15, 18):
            stroke(page, 64, [(23 - y / 3, y), (43 + y / 3, y)])
        choose(page, "glasses")
        page.fill("#easel .width", "4")
        for x in (24, 40):
            stroke(page, 64, [(x - 4, 27), (x + 4, 27), (x + 4, 31), (x - 4, 31), (x - 4, 27)])
        stroke(page, 64, [(28, 28), (36, 28)])
        make_faces(page)
        page.wait_for_timeout(1000)
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        browser.close()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    shot.convert("RGB").save(args.out, optimize=True)
    print(f"wrote {args.out}: {shot.width}x{shot.height}, {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    cli.run(main)

"""The scan's benchmark: what it writes, and that a wrong result is not timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TINY = ["--sizes", "2,8,4,4", "--repeats", "1", "--options", "full"]


def bench(*arguments, preamble=""):
    """Run it as a user does, after `preamble` in the same interpreter."""
    script = ROOT / "benchmarks" / "scan_bench.py"
    code = (
        f"import sys, runpy\nsys.argv = {[str(script), *map(str, arguments)]!r}\n"
        f"sys.path.insert(0, {str(script.parent)!r})\n{preamble}\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_every_implementation_is_measured_with_and_without_several_orders(tmp_path):
    done = bench(*TINY, "--orders", 1, 2, "--lengths", 4, 8, "--out", tmp_path,
        "--implementations", "sequential", "chunked", "--peer", "mamba_ssm")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "scan_cpu.json").read_text())
    status = {(r["implementation"], r["orders"]): r["status"] for r in report["rows"]}
    assert status == {
        (name, k): "not measured" if name == "mamba_ssm" else "measured"
        for name in ("sequential", "chunked", "mamba_ssm")
        for k in (1, 2)
    }
    for row in report["rows"]:
        if row["status"] == "measured":
            assert max(row["errors"].values()) < 1e-5
            assert all(row["device_us"][kind] > 0 for kind in ("forward", "backward", "both"))
    assert [row["size"]["length"] for row in report["over_length"]] == [4, 8] * 2
    assert {"command", "date", "hardware", "versions"} <= report.keys()


def test_a_wrong_implementation_is_not_timed(tmp_path):
    spoil = (
        "from sisma_jax.kernels.selective_scan.api import IMPLEMENTATIONS\n"
        "right = IMPLEMENTATIONS['chunked']\n"
        "def wrong(**options):\n"
        "    y, last_state = right(**options)\n"
        "    return y + 0.1, last_state\n"
        "IMPLEMENTATIONS['chunked'] = wrong"
    )
    done = bench(*TINY, "--implementations", "chunked", "--lengths", "--out", tmp_path,
        preamble=spoil)  # fmt: skip
    assert done.returncode == 1
    assert "WRONG, not timed" in done.stdout
    (row,) = json.loads((tmp_path / "scan_cpu.json").read_text())["rows"]
    assert row["status"] == "wrong" and "device_us" not in row


@pytest.mark.slow
def test_the_plot_is_drawn(tmp_path):
    done = bench(*TINY, "--implementations", "chunked", "--lengths", 4, 8, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "scan_cpu.png") as picture:
        assert picture.size == (1200, 480) and len(picture.convert("RGB").getcolors(10**6)) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "8,8,8"], "size '8,8,8': give batch,length,channels,state"),
        (["--repeats", "0"], "--repeats 0: give whole numbers of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    done = bench(*arguments)
    assert done.returncode == 2 and message in done.stderr

"""The benchmarks that have no test file of their own, at sizes that say nothing of speed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sisma_jax.models.autoencoder.files import save_diffusers
from tests.autoencoders import SMALL_KL, random_params

ROOT = Path(__file__).parents[1]


def run(name, *arguments):
    command = [sys.executable, f"benchmarks/{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_commands_are_recorded_without_absolute_paths(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    portable = importlib.import_module("report").portable
    words = [
        "python",
        "--data",
        "/data/faces",
        "--out=/results/o.json",
        "a=/b/c",
        "--n=4,12",
        "d/e",
    ]
    assert portable(words) == "python --data faces --out=o.json a=c --n=4,12 d/e"


def test_a_mistake_ends_every_command_with_one_sentence():
    command = [sys.executable, "benchmarks/style_bench.py", "--workdirs", "no-run", "--no-pictures"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no-run is not a run folder")
    for script in (ROOT / "benchmarks").glob("*.py"):
        text = script.read_text()
        if "report.parser(" in text and "__main__" in text:
            assert text.endswith("    cli.run(main)\n"), script.name


@pytest.mark.slow
def test_data_bench_measures_every_row(tmp_path):
    out = tmp_path / "data.json"
    options = ("--count", 8, "--size", 32, "--seconds", 0.1, "--repeats", 1)
    told = run("data_bench.py", *options, "--out", out)
    report = json.loads(out.read_text())
    assert {"command", "date", "hardware", "versions"} <= report.keys()
    rows = report["images_per_second"]
    assert {"stream from shards", "stream from cached latents", "prepare"} <= rows.keys()
    assert all(rate > 0 for rates in rows.values() for rate in rates.values())
    assert all(name in told for name in rows)


@pytest.mark.slow
def test_autoencoder_bench_leaves_a_missing_peer_out(tmp_path):
    save_diffusers(tmp_path / "weights", SMALL_KL, random_params(SMALL_KL))
    out, nothing = tmp_path / "out.json", tmp_path / "python"
    nothing.write_text("#!/bin/sh\necho 'no torch here' >&2\nexit 1\n")
    nothing.chmod(0o755)
    options = ("--size", 32, "--batch-sizes", 2, "--seconds", 0.1, "--torch-python", nothing)
    told = run(
        "autoencoder_bench.py", "--autoencoder", tmp_path / "weights", *options, "--out", out
    )
    assert told.count("left out: no torch here") == 2
    ours = [row for row in json.loads(out.read_text())["rows"] if row["side"] == "sisma_jax"]
    assert [row["operation"] for row in ours] == ["encode", "decode"]
    assert all(row["images_per_second"] > 0 and row["peak_mib"] > 0 for row in ours)


@pytest.mark.slow
def test_autoencoder_dtypes_measures_the_error_of_bfloat16(inputs_folder, tmp_path):
    out, folder = tmp_path / "out.json", inputs_folder / "autoencoder"
    options = ("--data", inputs_folder / "data", "--size", 32, "--test-from", 12, "--out", out)
    run("autoencoder_dtypes.py", "--autoencoder", folder, *options)
    report = json.loads(out.read_text())
    assert report["images"] == 4 and report["test_psnr_db"].keys() == {"float32", "bfloat16"}
    assert 0 < report["latents_relative_rms"] < 0.05
    assert 0 < report["decoded"]["mean_levels"] < 5


@pytest.mark.slow
def test_train_bench_measures_steps_and_says_what_did_not_run(tmp_path):
    out = tmp_path / "train.json"
    options = ("--sizes", "tiny", "--batches", 2, "--scans", "chunked", "--seconds", 0.1)
    told = run("train_bench.py", *options, "--out", out)
    report = json.loads(out.read_text())
    assert {"command", "date", "hardware", "versions"} <= report.keys()
    assert [row["source"] for row in report["rows"]] == ["latents", "images"]
    for row in report["rows"]:
        assert row["status"] == "measured" and row["images_per_second"] > 0
        assert 0 < row["mfu"] < 1 and row["peak_gib"] > 0 and row["compile_seconds"] > 0
    assert told.count("chunked") == 2

    # Two rows are not shared by three devices.
    failing = subprocess.run(
        [sys.executable, "benchmarks/train_bench.py", *map(str, options), "--sources", "latents",
         "--compile-only", "--out", out],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_NUM_CPU_DEVICES": "3"},
    )  # fmt: skip
    assert failing.returncode == 1 and "Error: " in failing.stdout
    assert json.loads(out.read_text())["rows"][0]["status"] == "failed"


@pytest.mark.slow
def test_loop_bench_compares_the_loop_with_the_step_alone(tmp_path):
    out = tmp_path / "loop.json"
    options = ("--steps", 6, "--repeats", 1, "--milliseconds", 5, "--parameters", 2000)
    told = run("loop_bench.py", *options, "--batch-size", 4, "--out", out)
    report = json.loads(out.read_text())
    assert report["seconds_per_step"].keys() == {"step", "loop"}
    assert f"overhead {report['overhead']:.2%}" in told


@pytest.mark.slow
def test_sample_bench_measures_a_run_and_random_weights_beside_their_peers(tiny_run, tmp_path):
    out = tmp_path / "sample.json"
    options = ("--steps", 1, "--batches", 1, "--seconds", 0.01, "--out", out)
    told = run("sample_bench.py", "--size", "tiny", "--guidance", 1, 2, *options,
               "--peers", "--tokens", 4, 16, "--systems")  # fmt: skip
    report = json.loads(out.read_text())
    assert {"command", "date", "hardware", "versions"} <= report.keys()
    assert [case["guidance"] for case in report["speed"]["cases"]] == [1, 2]
    assert [case["tokens"] for case in report["peers"]["over_tokens"]] == [4, 4, 16, 16]
    cases = report["speed"]["cases"] + report["peers"]["over_tokens"]
    assert all(case["status"] == "measured" for case in cases)
    assert report["weights"] == "random" and report["peers"]["images"] == []
    assert "### Speed" in told and "### Attention twin" in told

    told = run("sample_bench.py", "--workdir", tiny_run, "--dtype", "bfloat16", *options)
    report = json.loads(out.read_text())
    assert report["weights"] == str(tiny_run) and "peers" not in report
    assert report["speed"]["image_size"] == 32 and report["model"]["dtype"] == "bfloat16"
    assert "in bfloat16" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps [0]: give numbers above 0"),
        (["--guidance", "-1"], "--guidance [-1.0]: give 0 or more"),
        (["--tokens", "250"], "--tokens [250]: give square numbers"),
    ],
)
@pytest.mark.slow
def test_sample_bench_refuses_wrong_arguments(arguments, message):
    command = [sys.executable, "benchmarks/sample_bench.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr

"""Plans of training steps: the defaults of configs/celeba.py fit the cards that they name."""

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sisma_jax.configs import ca2sis, celeba

ROOT = Path(__file__).parent.parent
PLANS = ROOT / "benchmarks" / "results" / "plan.json"


def test_every_default_of_celeba_was_planned_and_fits_its_card():
    planned = {
        (row["variant"], row["card"]): row for row in json.loads(PLANS.read_text())["defaults"]
    }
    for variant, parts in celeba.ACCUMULATE.items():
        config = celeba.get_config(variant)
        assert config.train.accumulate in parts.values()
        for card, accumulate in parts.items():
            row = planned.pop((variant, card))
            assert (row["remat"], row["batch"], row["accumulate"]) == (
                config.model.remat, config.train.batch_size, accumulate,
            )  # fmt: skip
            assert row["needed"] <= row["limit"], (variant, card)
    assert not planned


def test_the_batch_of_ca2sis_was_planned_and_fits_a_card_of_80_gb():
    config = ca2sis.get_config()
    wanted = ("ca2sis", config.model.remat, config.train.batch_size, config.train.accumulate)
    planned = {
        (row["variant"], row["remat"], row["batch"], row.get("accumulate", 1)): row
        for row in json.loads(PLANS.read_text())["planned"]
    }[wanted]
    assert planned["cards"]["A100-80"]["fits"] and planned["cards"]["H200"]["fits"]
    # The state: parameters, moments and average of the generator, the first three of the others.
    assert planned["arguments"] > 16 * 77_229_243
    # The two passes of a generator and the gradient of one are four times its 128 GMAC.
    assert planned["flops"] > 4 * 2 * 128e9 * config.train.batch_size


@pytest.fixture
def plan_bench(monkeypatch):
    """(options) -> runs the benchmark in this process, as if the compiler were installed."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("plan_bench")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(module, "parameters", lambda variant: 10**8)  # tracing takes seconds

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["plan_bench.py", *map(str, options)])
        module.main()

    return run


@pytest.mark.parametrize("content", ['{"rows": []}', "[1]", '{"compiled": [', None])
def test_another_file_is_refused_before_anything_is_compiled(content, plan_bench, tmp_path, capsys):
    out = tmp_path / "plan.json"
    if content is None:
        out.mkdir()
    else:
        out.write_text(content)
    with pytest.raises(SystemExit) as ended:
        plan_bench("--out", out)
    assert ended.value.code == 2
    reason = "is no report of plan_bench.py" if content else "cannot be written (it is a folder)"
    assert f"--out {out} {reason}: name another file" in capsys.readouterr().err
    if content:
        assert out.read_text() == content


def test_other_batches_are_added_to_the_table(plan_bench, tmp_path, capsys):
    out = tmp_path / "plan.json"
    shutil.copy(PLANS, out)
    plan_bench("--variants", "large", "--remat", "dots", "--batches", 48, "--out", out)
    before, after = (json.loads(path.read_text()) for path in (PLANS, out))
    assert after["compiled"] == before["compiled"], "nothing is compiled again"
    batches = lambda report: {row["batch"] for row in report["planned"]}
    assert batches(after) == batches(before) | {48}
    table = capsys.readouterr().out
    assert " dots    48 " in table and " dots    64 " not in table


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the CUDA compiler: pip install -e '.[gpu-check]'",
)
def test_the_plans_of_large_are_still_those_of_the_table(tmp_path):
    """A change that needs more memory makes the table untrue: run plan_bench.py --again."""
    done = subprocess.run(
        [sys.executable, "benchmarks/plan_bench.py", "--variants", "large", "--remat", "dots",
         "names", "--out", tmp_path / "plan.json"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    now = json.loads((tmp_path / "plan.json").read_text())
    key = lambda row: (row["variant"], row["remat"], row["batch"])
    known = {key(row): row for row in json.loads(PLANS.read_text())["planned"]}
    assert {key(row) for row in now["compiled"]} == {
        ("large", remat, batch) for remat in ("dots", "names") for batch in (16, 64)
    }
    for row in now["compiled"]:
        assert row["temporaries"] <= 1.03 * known[key(row)]["temporaries"]
        assert row["flops"] <= 1.01 * known[key(row)]["flops"]
        # Two scans in each of twelve blocks; their forward kernels run once if scans are kept.
        assert row["scans_backward"] == 24
        assert row["scans_forward"] == {"dots": 48, "names": 24}[row["remat"]]
    assert all(row["fits"] for row in now["defaults"] if row["variant"] == "large")


def test_kernels_of_a_loop_are_counted_as_often_as_it_runs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from compiled_text import Program

    program = Program(
        """HloModule example
%body (p: (s32[], bf16[8,16], bf16[5,8,16])) -> (s32[], bf16[8,16], bf16[5,8,16]) {
  %p = (s32[], bf16[8,16]{1,0}, bf16[5,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%p), index=1
  %stack = bf16[5,8,16]{2,1,0} get-tuple-element(%p), index=2
  %slice = bf16[1,8,16]{2,1,0} fusion(%stack, %i), kind=kLoop, calls=%one
  %y = bf16[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %t = (s32[], bf16[8,16]{1,0}, bf16[5,8,16]{2,1,0}) tuple(%i, %x, %stack)
}
%one (a: bf16[5,8,16], b: s32[]) -> bf16[1,8,16] {
  %a = bf16[5,8,16]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = bf16[1,8,16]{2,1,0} dynamic-slice(%a, %b, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %e = bf16[1,8,16]{2,1,0} exponential(%row)
}
ENTRY %main (q: (s32[], bf16[8,16], bf16[5,8,16])) -> (s32[], bf16[8,16], bf16[5,8,16]) {
  %q = (s32[], bf16[8,16]{1,0}, bf16[5,8,16]{2,1,0}) parameter(0)
  ROOT %w = (s32[], bf16[8,16]{1,0}, bf16[5,8,16]{2,1,0}) while(%q), condition=%c, body=%body, """
        """backend_config={"known_trip_count":{"n":"5"}}
}
"""
    )
    found = {kernel.name: kernel for kernel in program.kernels}
    assert found["dot"].runs == found["fusion"].runs == 5
    assert found["dot"].flops == 2 * 8 * 8 * 16 and found["fusion"].special == 8 * 16
    # A slice of the stack and its index are read, a slice is written.
    assert found["fusion"].bytes == 2 * (8 * 16 * 2) + 4

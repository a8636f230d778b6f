"""Plans of training steps: the defaults of configs/celeba.py fit the cards that they name."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sisma_jax.configs import celeba

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


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the CUDA compiler: pip install -e '.[gpu-check]'",
)
def test_the_plan_of_large_is_still_the_step_s(tmp_path):
    """A change that needs more memory makes the table untrue: run plan_bench.py --again."""
    remat = celeba.get_config("large").model.remat
    done = subprocess.run(
        [sys.executable, "benchmarks/plan_bench.py", "--variants", "large", "--remat", remat,
         "--out", tmp_path / "plan.json"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    now = json.loads((tmp_path / "plan.json").read_text())
    assert {row["card"]: row["fits"] for row in now["defaults"] if row["variant"] == "large"} == {
        card: True for card in celeba.ACCUMULATE["large"]
    }
    key = lambda row: (row["variant"], row["remat"], row["batch"])
    known = {key(row): row for row in json.loads(PLANS.read_text())["planned"]}
    for row in now["compiled"]:
        assert row["temporaries"] <= 1.03 * known[key(row)]["temporaries"]
        assert row["flops"] <= 1.01 * known[key(row)]["flops"]
        # With kept scans the forward kernel runs once per scan, else twice; there are two a block.
        assert row["scans_backward"] == 2 * 12
        assert row["scans_forward"] == (1 if remat in ("none", "names") else 2) * 2 * 12


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

"""Kernels are interpreted on a CPU: few unrolled steps, so that they compile in seconds."""

import importlib
import itertools
from pathlib import Path

import jax
import pytest

from sisma_jax.kernels.selective_scan.pallas import mosaic_plan, triton

_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def short_chunks(request, monkeypatch):
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(triton, "longest_chunk", lambda plan: 4)
        monkeypatch.setattr(mosaic_plan, "CHUNKS", (4,))


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module


@pytest.fixture(autouse=True)
def few_programs_at_a_time():
    """Every compiled program maps memory, and a process crashes at some 65,000 mappings."""
    yield
    if next(_tests) % 40 == 0:
        jax.clear_caches()

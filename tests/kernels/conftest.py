"""Kernels are interpreted here: few unrolled steps, so that they compile in seconds."""

import itertools

import jax
import pytest

from sisma_jax.kernels.selective_scan.pallas import launch

_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(launch, "longest_chunk", lambda plan: 4)


@pytest.fixture(autouse=True)
def few_programs_at_a_time():
    """Every compiled program maps memory, and a process crashes at some 65,000 mappings."""
    yield
    if next(_tests) % 40 == 0:
        jax.clear_caches()

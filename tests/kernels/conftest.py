"""Kernels are interpreted here: few unrolled steps, so that they compile in seconds."""

import pytest

from kernels.selective_scan import pallas_triton


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(pallas_triton, "longest_chunk", lambda plan: 4)

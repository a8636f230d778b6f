"""A synthesizer of the tiny run, and label maps for it."""

import numpy as np
import pytest

from sisma_jax import Synthesizer


@pytest.fixture(scope="module")
def synthesizer(tiny_run):
    return Synthesizer.load(tiny_run, batch_size=4)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).integers(0, 19, (5, 32, 32)).astype(np.uint8)

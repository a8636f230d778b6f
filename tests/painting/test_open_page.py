"""The page as others reach it, over HTTP: what it lets in, and what it tells them."""

import json
from contextlib import contextmanager
import socket

import numpy as np
import pytest
from PIL import Image

from sisma_jax.data.classes import CELEBAMASK
from sisma_jax.errors import InputError
from sisma_jax.painting import canvas, limits
from sisma_jax.painting.studio import Studio
from sisma_jax.painting.temporary import temporary_files
from tests.runs import SIZE

gr = pytest.importorskip("gradio", reason="the extra `paint` is not installed")
httpx = pytest.importorskip("httpx")

from sisma_jax.painting import app  # noqa: E402

"""The notebooks: stripped, free of shell, equal where they say the same, and executed."""

import ast
import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sisma_jax.data import synthetic
from sisma_jax.models.autoencoder import save_autoencoder
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from tests.autoencoders import random_params

ROOT = Path(__file__).parent.parent
NAMES = ("colab", "tpu")
OWN = {"title", "device-title", "device-meaning", "parameters", "continue-title", "pods-title"}
"""Cells that differ: the TPU's are named so with "-tpu" behind, or there are none."""
TINY = """
faces, test_faces = 24, 8
first_stage_steps = sisma_steps = 3
more_steps = 2
batch_size = 8
scan_lengths = (16, 32)
celeba, celeba_autoencoder = "faces", "kl-f8"
celeba_variant, celeba_test_from, celeba_steps, celeba_batch_size = "debug", 8, 4, 8
"""
"""Assignments behind those of the cell with parameters."""


def read(name):
    return json.loads((ROOT / "launch" / f"{name}.ipynb").read_text())


def cells_of(name, kind):
    return {
        cell["id"]: "".join(cell["source"])
        for cell in read(name)["cells"]
        if cell["cell_type"] == kind
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_without_outputs(name):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(ROOT / "launch" / f"{name}.ipynb", 4))
    cells = read(name)["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert sum(cell["metadata"].get("tags") == ["parameters"] for cell in cells) == 1


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_plain_python_without_commands_and_links_to_nowhere(name):
    for where, source in cells_of(name, "code").items():
        ast.parse(source)  # no ! and no %
        assert "--config" not in source and "python -m" not in source, where
    text = "\n".join((*cells_of(name, "markdown").values(), *cells_of(name, "code").values()))
    assert "@" not in re.sub(r"git@|@\w+\.setter", "", text), "a figure is not filled in"
    assert re.findall(r"https?://[^\s)]+", text) == [
        "https://github.com/switchablenorms/CelebAMask-HQ"
    ]


def test_what_both_notebooks_say_is_the_same():
    for kind in ("code", "markdown"):
        colab, tpu = cells_of("colab", kind), cells_of("tpu", kind)
        both = colab.keys() & tpu.keys()
        assert colab.keys() - both <= OWN and len(both) >= 10
        for where in both:
            unnumbered = [re.sub(r"^## \d+\. ", "", text[where]) for text in (colab, tpu)]
            assert unnumbered[0] == unnumbered[1], where


@pytest.fixture
def checkout(tmp_path):
    """The files of this checkout, and what a reader brings: an archive and a first stage."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for file in files.splitlines():
        if not file.startswith("tests/"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    synthetic.write_dataset(tmp_path / "faces", count=16, size=256, seed=0, workers=1)
    config = AutoencoderConfig(block_channels=(8,) * 4, layers_per_block=1, norm_groups=4)
    save_autoencoder(tmp_path / "kl-f8", config, random_params(config))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_a_clean_kernel(name, checkout, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8" if name == "tpu" else "1")
    notebook = nbformat.read(checkout / "launch" / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        if cell.metadata.get("tags") == ["parameters"]:
            cell.source += TINY
    place = {"metadata": {"path": str(checkout / "launch")}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()

    def output(where):
        """(text, number of pictures) of a cell."""
        outputs = next(cell.outputs for cell in notebook.cells if cell.id == where)
        data = [one.get("data", {}) for one in outputs]
        text = "".join(one.get("text", "") for one in outputs)
        return text, sum("image/png" in one for one in data)

    assert "all that" in output("install")[0], "nothing was to be installed"
    assert "8 x cpu" in output("device")[0] if name == "tpu" else "1 x cpu" in output("device")[0]
    for where in ("look", "first-stage", "sisma", "sample", "scan-plot", "continue"):
        assert output(where)[1] == 1, where
    for where in ("first-stage", "sisma", "continue", "celeba-train"):
        shown = next(cell.outputs[0] for cell in notebook.cells if cell.id == where)
        png = Image.open(io.BytesIO(base64.b64decode(shown.data["image/png"]))).convert("RGB")
        left, right = np.split(np.asarray(png), [660], axis=1)
        blue = (np.ptp(left.astype(int), axis=-1) > 100).sum()
        assert blue > 20 and (right < 250).any(), f"{where}: a curve and samples"
    edited, elsewhere = map(int, re.findall(r"\d+", output("difference")[0]))
    assert edited >= 0 and elsewhere >= 0
    assert "the same faces: True" in output("restore")[0]
    assert output("celeba-sample")[1] == 1, "photographs were prepared, trained on and sampled"
    if name == "tpu":
        losses = [float(x) for x in re.findall(r"\d\.\d+", output("layouts")[0])]
        np.testing.assert_allclose(*losses, rtol=0.02)
        assert "fsdp" in output("layouts-parameters")[0]

    runs = checkout / ("runs/notebook-tpu" if name == "tpu" else "runs/notebook")
    assert (runs / "restored" / "checkpoints" / "5").is_dir(), "three steps, and two more"
    assert (runs / "celeba" / "checkpoints" / "4").is_dir()
    store = Path(f"{runs}-store")
    assert (store / "export" / "model.safetensors").exists() and (store / "sisma").is_dir()

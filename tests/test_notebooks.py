"""The notebooks: stripped, free of shell, equal where they say the same, and executed."""

import ast
import base64
import io
import json
import os
import re
import shutil
import signal
import threading
import time
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
first_stage_steps, sisma_steps, more_steps = 2, 12, 2
batch_size = 8
scan_lengths = (16, 32)
"""
"""Assignments behind those of the cell with parameters."""
PHOTOGRAPHS = """
celeba, celeba_autoencoder, celeba_variant = "faces", "kl-f8", "debug"
celeba_test_from, celeba_steps, celeba_batch_size = 8, 2, 8
"""


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
    assert "TIME" not in text, "a figure is not filled in"
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
def checkout(tmp_path, monkeypatch):
    """The files of this checkout, and what a reader brings: an archive and a first stage."""
    for module in ("ipykernel", "nbclient", "nbformat"):
        pytest.importorskip(module, reason="install the extra `notebook`")
    monkeypatch.delenv("XLA_FLAGS")  # those of the other tests: the kernel computes more than them
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("sisma_jax", "kernels", "configs", "benchmarks", "launch"):
        unneeded = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unneeded)
    synthetic.write_dataset(tmp_path / "faces", count=16, size=256, seed=0, workers=1)
    config = AutoencoderConfig(block_channels=(8,) * 4, layers_per_block=1, norm_groups=4)
    save_autoencoder(tmp_path / "kl-f8", config, random_params(config))
    return tmp_path


def opened(checkout, name, parameters):
    """The notebook with `parameters` behind its own, and a client to execute it."""
    import nbclient
    import nbformat

    notebook = nbformat.read(checkout / "launch" / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        if cell.metadata.get("tags") == ["parameters"]:
            cell.source += parameters
    place = {"metadata": {"path": str(checkout / "launch")}}
    return notebook, nbclient.NotebookClient(notebook, timeout=600, resources=place)


class Outputs:
    """What stands below the cells."""

    def __init__(self, notebook):
        self._cells = {cell.id: cell for cell in notebook.cells}

    def text(self, where):
        outputs = self._cells[where].outputs
        return "".join(
            one.get("text", one.get("data", {}).get("text/plain", "")) for one in outputs
        )

    def pictures(self, where):
        shown = [one.get("data", {}).get("image/png") for one in self._cells[where].outputs]
        files = [io.BytesIO(base64.b64decode(png)) for png in shown if png is not None]
        return [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files]

    def has_curve_and_samples(self, where):
        (plot,) = self.pictures(where)
        left, right = np.split(plot, [660], axis=1)
        return bool((np.ptp(left, axis=-1) > 100).sum() > 20 and (right < 250).any())


@pytest.mark.slow
def test_the_notebook_for_colab_runs_from_a_clean_kernel(checkout, monkeypatch):
    """Its data is a raw folder of synthetic faces in place of CelebAMask-HQ."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    notebook, client = opened(checkout, "colab", TINY + PHOTOGRAPHS)
    client.execute()
    outputs = Outputs(notebook)

    assert f"all that {checkout}[hub] needs is installed" in outputs.text("install")
    assert "1 x cpu" in outputs.text("device")
    for where in ("look", "sample", "scan-plot", "celeba-sample"):
        assert len(outputs.pictures(where)) == 1, where
    for where in ("first-stage", "sisma", "continue", "celeba-train"):
        assert outputs.has_curve_and_samples(where), where
    edited, elsewhere = map(float, re.findall(r"\d+\.\d", outputs.text("difference")))
    assert edited > 3 * elsewhere, "faces change where the mask was edited"
    assert "the same faces: True" in outputs.text("restore")

    runs = checkout / "runs/notebook"
    assert (runs / "restored" / "checkpoints" / "14").is_dir(), "twelve steps, and two more"
    store = Path(f"{runs}-store")
    assert (store / "export" / "model.safetensors").exists()
    assert (store / "sisma" / "checkpoints" / "12").is_dir()
    assert (runs / "celeba" / "checkpoints" / "2").is_dir()
    assert json.loads((runs / "celeba" / "config.json").read_text())["autoencoder"]["cache"]


@pytest.mark.slow
def test_the_notebook_for_tpus_runs_up_to_the_last_cell_of_its_own(checkout, monkeypatch):
    """The cells after it are those that the notebook for Colab ends with."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    notebook, client = opened(checkout, "tpu", TINY)
    ids = [cell.id for cell in notebook.cells]
    rest = ids.index("layouts-parameters") + 1
    code = {cell.id for cell in notebook.cells if cell.cell_type == "code"}
    assert code & set(ids[rest:]) <= cells_of("colab", "code").keys()
    del notebook.cells[rest:]
    client.execute()
    outputs = Outputs(notebook)

    assert f"all that {checkout}[hub] needs is installed" in outputs.text("install")
    assert "8 x cpu" in outputs.text("device")
    for where in ("first-stage", "sisma"):
        assert outputs.has_curve_and_samples(where), where
    losses = re.search(r"steps: ([\d.]+), and cut ([\d.]+)", outputs.text("layouts"))
    whole, cut = map(float, losses.groups())
    assert cut == pytest.approx(whole, rel=0.02)
    assert "blocks/self_mamba/project_in/kernel" in outputs.text("layouts-parameters")


@pytest.mark.slow
def test_an_interrupted_cell_saves_and_continues_when_it_is_run_again(checkout, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    endless = TINY + "first_stage_steps = 10_000\n"
    notebook, client = opened(checkout, "colab", endless)
    run = checkout / "runs" / "notebook" / "first_stage"
    steps = lambda: [json.loads(row)["step"] for row in (run / "metrics.jsonl").open()]

    def interrupt_once_it_trains():
        deadline = time.monotonic() + 300
        while not (run / "samples").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(client.km.provisioner.pid, signal.SIGINT)

    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.id == "first-stage-config":
                cell.source += "\nfirst_stage.train.log_every = first_stage.train.sample_every = 2"
            if cell.id == "first-stage":
                break
            client.execute_cell(cell, index)
        interrupter = threading.Thread(target=interrupt_once_it_trains)
        interrupter.start()
        client.execute_cell(cell, index)  # it ends without an error
        interrupter.join()
        stopped = steps()[-1]
        assert 2 <= stopped < 10_000
        assert (run / "checkpoints" / str(stopped)).is_dir()
        cell.source = f"first_stage.train.steps = {stopped + 3}\n{cell.source}"
        client.execute_cell(cell, index)
    assert steps()[-1] == stopped + 3 and len(set(steps())) == len(steps())
    outputs = Outputs(notebook)
    assert "first_stage/autoencoder is ready" in outputs.text("first-stage")
    assert outputs.has_curve_and_samples("first-stage")

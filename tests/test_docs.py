"""The README does what it says: its snippets run, its commands and files exist."""

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import sisma_jax
from sisma_jax import prepare
from sisma_jax.commands import COMMANDS
from sisma_jax.data import synthetic
from sisma_jax.data.classes import CLASSES
from sisma_jax.data.label_maps import write_label_map
from tests.runs import SIZE, arguments, call

ROOT = Path(__file__).parent.parent
HAT = CLASSES.index("hat")
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def write_scenes(folder, classes):
    """Images whose labels are `classes` in turn, as the README's own data set has them."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.json").write_text(classes)
    for index in range(12):
        labels = np.random.default_rng(index).integers(0, 3, (SIZE, SIZE)).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"labels/{index}.png")
        Image.fromarray((80 * labels).repeat(3).reshape(SIZE, SIZE, 3)).save(
            folder / f"images/{index}.png"
        )


@pytest.fixture
def user_folder(inputs_folder, tiny_run, tiny_style_run, tmp_path, monkeypatch):
    """Where a reader stands who did what the README says before its snippets, but smaller."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "demo")
    shutil.copytree(tiny_style_run, tmp_path / "runs" / "demo-style")
    for name in ("sd-vae-ft-ema", "runs/autoencoder"):
        shutil.copytree(inputs_folder / "autoencoder", tmp_path / name)
    masks = (synthetic.face(0, index, SIZE)[1] for index in itertools.count())
    write_label_map(tmp_path / "mask.png", next(x for x in masks if (x == HAT).any()))
    write_scenes(tmp_path / "scenes", blocks("json")[0])
    call(prepare.main, *("--source", tmp_path / "scenes", "--out", tmp_path / "data" / "mine"),
         *("--size", SIZE, "--test-from", 8, "--workers", 1))  # fmt: skip
    tiny = [x for x in arguments(inputs_folder, tmp_path) if x.startswith("--config.")]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "synthetic.py").write_text(
        "from sisma_jax.config import load_config\n"
        f"get_config = lambda: load_config({str(ROOT / 'configs' / 'synthetic.py')!r}, {tiny})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.slow
def test_the_snippets_run_one_after_the_other(user_folder):
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for snippet in blocks("python"):
            exec(compile(snippet, "README.md", "exec"), names)
    assert names["faces"].shape == (4, SIZE, SIZE, 3)
    assert names["images"].shape == names["halfway"].shape == (1, SIZE, SIZE, 3)
    assert (names["photos"][0] != names["faces"][0]).any(), "the mask has a hat to be painted over"
    assert (user_folder / "runs/mine/checkpoints").is_dir()
    assert len(list((user_folder / "runs/mine-finer/checkpoints").iterdir())) > 0


def test_commands_and_their_options_exist():
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    told = {}
    for line in lines:
        found = re.search(r"python -m (sisma_jax\S*)(.*)", line)
        if found and found[1] != "sisma_jax":
            told.setdefault(found[1], set()).update(re.findall(r"--[a-z-]+(?!\S*\.)\b", found[2]))
    assert told.keys() <= COMMANDS.keys() and len(told) >= 10
    for module, options in told.items():
        source = importlib.util.find_spec(module)
        path = Path(source.origin)
        path = path.with_name("__main__.py") if path.name == "__init__.py" else path
        shared = "training/setup.py", "references.py"
        text = "".join(x.read_text() for x in (path, *(ROOT / "sisma_jax" / y for y in shared)))
        for option in options - {"--config"}:
            assert f'"{option}"' in text, f"{module} {option}"
    targets = re.findall(r"^make ([a-z-]+)", "\n".join(lines), re.MULTILINE)
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)


def test_files_that_are_named_exist():
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    named = re.findall(r"`((?:benchmarks|launch|configs|tests|sisma_jax|kernels)/[\w./]+)`", README)
    assert len(linked) >= 5
    for name in {*linked, *named}:
        place = ROOT / ("benchmarks" if name.startswith("results/") else "") / name
        assert place.exists(), name


def test_the_version_stands_in_one_place():
    assert sisma_jax.__version__ == version("sisma_jax")
    assert f'version = "{sisma_jax.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {sisma_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()

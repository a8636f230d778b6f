"""The only top-level module that is installed is `sisma_jax`, whatever else lies beside it."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import kernels
import sisma_jax.kernels

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = []
    for top, name in (("sisma_jax", ""), ("kernels", "sisma_jax."), ("configs", "sisma_jax.")):
        for file in (ROOT / top).rglob("__init__.py"):
            found.append(name + ".".join(file.parent.relative_to(ROOT).parts))
    assert sorted(found) == settings["packages"]
    assert settings["package-dir"] == {f"sisma_jax.{x}": x for x in ("kernels", "configs")}


def test_in_a_checkout_kernels_is_the_same_package_by_a_short_name():
    assert kernels is sisma_jax.kernels
    assert kernels.selective_scan is sisma_jax.kernels.selective_scan
    for name in ("selective_scan.api", "selective_scan.pallas.launch"):
        long = importlib.import_module(f"sisma_jax.kernels.{name}")
        assert importlib.import_module(f"kernels.{name}") is long
        assert long.__spec__.name == f"sisma_jax.kernels.{name}"


def test_foreign_packages_of_the_same_names_change_nothing(tmp_path):
    for name in ("kernels", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("from . import selective_scan, celeba\n")
        (tmp_path / name / "selective_scan.py").write_text("")
        (tmp_path / name / "celeba.py").write_text("")
    code = (
        "import kernels, configs\n"
        "from sisma_jax.common.config import load_config\n"
        "from sisma_jax.models.sisma.mamba import selective_scan\n"
        "print(load_config('celeba_style:small').model.width, selective_scan.__module__)\n"
        "print(kernels.__file__, configs.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "384 sisma_jax.kernels.selective_scan.api",
        " ".join(str(tmp_path / name / "__init__.py") for name in ("kernels", "configs")),
    ], done.stderr

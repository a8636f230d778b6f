"""What a notebook installs: the accelerator's extra, what is lacking, and what has to restart."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sisma_jax.common import install
from sisma_jax.common.errors import RunError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine without accelerators and plugins."""
    monkeypatch.setattr(install, "DEVICES", tmp_path / "dev")
    monkeypatch.setattr(install, "PCI_DEVICES", tmp_path / "pci")
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    return tmp_path


def test_an_extra_is_added_to_the_checkout_or_to_the_installed_package(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert install.how_to_install("paint") == "pip install -e '.[paint]'"
    monkeypatch.chdir(tmp_path)
    assert install.how_to_install("paint") == f"pip install -e '{ROOT}[paint]'"
    monkeypatch.setattr(install, "CHECKOUT", tmp_path)
    assert install.how_to_install("paint") == "pip install 'sisma_jax[paint]'"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of distributions, by (name, version, requirements)."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def add(name, version, *requires):
        module = name.replace("-", "_")
        for older in folder.glob(f"{module}-*.dist-info"):
            shutil.rmtree(older)
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", "Provides-Extra: gpu"]
        lines += [f"Requires-Dist: {one}" for one in requires]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
        (info / "top_level.txt").write_text(module)

    return add


def project(folder, *dependencies, **extras):
    """A checkout with these requirements, in lists that TOML writes as JSON does."""
    lines = ["[project]", f"dependencies = {json.dumps(dependencies)}"]
    lines += ["[project.optional-dependencies]"]
    lines += [f"{name} = {json.dumps(extra)}" for name, extra in ({"hub": []} | extras).items()]
    (folder / "pyproject.toml").write_text("\n".join([*lines, ""]))
    return folder


def has_gpu(machine, line, status=0):
    program = machine / "programs" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{line}'\nexit {status}\n")
    program.chmod(0o755)


def has_card_of_google(machine, *nodes):
    (machine / "pci" / "0000:00:04.0").mkdir(parents=True)
    (machine / "pci" / "0000:00:04.0" / "vendor").write_text("0x1ae0\n")
    for node in nodes:
        (machine / "dev" / node).parent.mkdir(parents=True, exist_ok=True)
        (machine / "dev" / node).touch()


@pytest.mark.parametrize(
    ("driver_and_capability", "extra"),
    [
        ("580.65.06, 8.0", "cuda13"),
        ("570.86.10, 9.0", "cuda12"),
        ("590.10, 7.0", "cuda12"),
    ],
)
def test_a_gpu_gets_the_plugin_its_driver_and_its_age_allow(machine, driver_and_capability, extra):
    has_gpu(machine, driver_and_capability)
    assert install.accelerator() == extra


def test_a_plugin_that_is_there_is_kept(machine, site):
    site("jax-cuda12-plugin", "0.7.0")
    assert install.accelerator() == "", "but it is of no use without a GPU"
    has_gpu(machine, "580.65.06, 8.0")
    assert install.accelerator() == "cuda12"


def test_a_driver_without_a_gpu_is_a_cpu(machine):
    has_gpu(machine, "NVIDIA-SMI has failed", status=9)
    assert install.accelerator() == ""


@pytest.mark.parametrize("node", ["accel0", "vfio/0"])
def test_a_tpu_is_found(machine, node):
    has_card_of_google(machine, node)
    assert install.accelerator() == "tpu"


def test_a_network_card_of_googles_is_no_tpu(machine):
    has_card_of_google(machine, "vfio/vfio", "null")
    assert install.accelerator() == ""


def test_what_is_missing_or_too_old_is_named(machine, site):
    site("here", "2.0")
    site("old", "1.0")
    project(machine, "here>=2", "old>=2", "absent", 'absent2; python_version < "3"', hub=["more"])
    assert install.missing(machine, []) == ["old>=2 (here 1.0)", "absent"]
    assert install.missing(machine, ["hub"])[-1] == "more"


def test_a_plugin_of_another_version_is_missing(machine, site):
    project(machine, "jaxx>=1", cuda12=["jaxx[gpu]"])
    site("jaxx", "2.0", 'plugin==2.0; extra == "gpu"', "never-asked-for")
    assert install.missing(machine, ["cuda12"]) == ["plugin==2.0"]
    site("plugin", "1.0")
    assert install.missing(machine, ["cuda12"]) == ["plugin==2.0 (here 1.0)"]
    site("plugin", "2.0")
    assert install.missing(machine, ["cuda12"]) == []


def test_this_checkout_misses_nothing_here():
    assert install.missing(ROOT, ["hub"]) == []


def pip(monkeypatch, what=lambda: None, status=0):
    """A stand-in for pip; returns the commands that it was given."""
    commands = []

    def run(command):
        commands.append(command)
        what()
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_pip_is_not_called_where_nothing_is_missing(machine, monkeypatch, capsys):
    commands = pip(monkeypatch)
    install.install(project(machine))
    assert commands == []
    assert capsys.readouterr().out == f"all that {machine}[hub] needs is installed\n"


def test_one_command_installs_the_checkout_with_its_extras(machine, site, monkeypatch):
    has_gpu(machine, "580.65.06, 8.0")
    monkeypatch.setattr(install, "accelerator", lambda: "cuda13")
    commands = pip(monkeypatch, lambda: site("absent", "1.0"))
    install.install(project(machine, "absent", cuda13=[]))
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == f"{machine}[cuda13,hub]"


def test_a_failure_of_pip_is_one_sentence(machine, monkeypatch):
    pip(monkeypatch, status=1)
    with pytest.raises(RunError, match=r"pip could not install .*fix what it reports above"):
        install.install(project(machine, "absent"))


def test_what_was_loaded_and_replaced_asks_for_a_restart(machine, site, monkeypatch):
    site("oldone", "1.0")
    site("other", "1.0")
    project(machine, "oldone>=2")
    for name in ("oldone", "other"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    pip(monkeypatch, lambda: site("oldone", "2.0"))
    with pytest.raises(RunError, match="had loaded oldone before pip changed it: restart"):
        install.install(machine)
    install.install(machine)  # what the cell does after the restart: nothing


def test_a_plugin_that_comes_behind_jax_asks_for_a_restart(machine, site, monkeypatch):
    project(machine, "jax-plugin-of-a-test")
    pip(monkeypatch, lambda: site("jax-plugin-of-a-test", "1.0"))
    assert "jax" in sys.modules
    with pytest.raises(RunError, match="had loaded jax before"):
        install.install(machine)


def test_it_imports_nothing_that_is_still_to_be_installed():
    code = (
        "import sys, sisma_jax.common.install\n"
        "print(*sorted({'jax', 'numpy', 'flax', 'jaxtyping', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")

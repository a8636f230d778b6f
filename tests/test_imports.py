"""Rooms import only from those below them, also within functions."""

import ast
from pathlib import Path

import pytest

from sisma_jax.common.commands import COMMANDS

ROOT = Path(__file__).parents[1]
LEVELS = (
    {"kernels", "common"},
    {"devices", "flows"},
    {"data"},
    {"models"},
    {"metrics", "runs"},
    {"synthesis"},
    {"evaluation"},
    {"painting", "training"},
    {"commands"},
)
"""Rooms by level, the lowest first. Rooms of one level do not import each other."""
APART = {("training", "synthesis"), ("training", "evaluation")}
"""Above each other, but never imported: training and inference meet in the commands."""


def room(module: str) -> str:
    """The room of a dotted name; loose modules of `sisma_jax`, and itself, are the commands."""
    name = module.removeprefix("sisma_jax.").split(".")[0]
    return name if name in set().union(*LEVELS) else "commands"


def imported(source: str, package: str) -> set[str]:
    """Dotted names of ours that a module of `package` imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("sisma_jax", "kernels", "configs")}


def wrong_arrows(source: str, module: str) -> set[str]:
    """What `module` imports from its own level, from above or from a room that is kept apart."""
    height = {name: i for i, level in enumerate(LEVELS) for name in level}
    here = room(module)
    names = imported(source, module.rpartition(".")[0])
    if foreign := {name for name in names if not name.startswith("sisma_jax")}:
        return foreign  # other distributions have top-level modules of these names
    return {
        name
        for name in names
        if room(name) != here
        and (height[room(name)] >= height[here] or (here, room(name)) in APART)
    }


def modules() -> dict[str, Path]:
    """Files by the names that they have as modules; `configs` are on the level of the commands."""
    found = {}
    for top in ("sisma_jax", "kernels", "configs"):
        for file in (ROOT / top).rglob("*.py"):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[f"sisma_jax.{name}".replace("sisma_jax.sisma_jax", "sisma_jax")] = file
    return found


def test_no_import_points_upwards():
    found = {
        module: wrong
        for module, file in modules().items()
        if (wrong := wrong_arrows(file.read_text("utf-8"), module))
    }
    assert len(modules()) > 150
    assert not found


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("sisma_jax.synthesis.synthesizer", "from sisma_jax.training.state import make_step"),
        ("sisma_jax.training.loop", "def f():\n    from sisma_jax.synthesis import styles"),
        ("sisma_jax.runs.checkpoint", "import sisma_jax.training.state"),
        ("sisma_jax.data.raw", "from sisma_jax import models"),
        ("sisma_jax.common.files", "from ..data import raw"),
        ("sisma_jax.evaluation.peers", "from sisma_jax import Synthesizer"),
        ("sisma_jax.metrics.frechet", "from sisma_jax.runs.folder import RunFolder"),
        ("sisma_jax.models.sisma.mamba", "from kernels import selective_scan"),
        ("sisma_jax.kernels.selective_scan.api", "from ...models import SISMA"),
    ],
)
def test_a_reversed_arrow_is_found(module, statement):
    assert wrong_arrows(statement, module)


def test_only_commands_lie_loose():
    loose = {f"sisma_jax.{file.stem}" for file in (ROOT / "sisma_jax").glob("[!_]*.py")}
    assert loose == {module for module in COMMANDS if module.count(".") == 1}

"""The commands: what each does, and the page of the documentation on it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Command:
    """One `python -m` module, which `sisma` starts by the last part of its name."""

    what: str
    """Short description for the list of commands."""
    page: str
    """Path of its page within the project's sources."""


PACKAGE, PACKAGE_PAGE = "sisma_jax", "README.md"
"""The package, which lists the commands, and its page."""
STYLES_PAGE = "docs/styles.md"
"""The page on the style of reference faces, which several commands take."""

COMMANDS = {
    "sisma_jax.doctor": Command(
        "check this installation, its devices and its weights", "docs/install.md"
    ),
    "sisma_jax.demo": Command("show faces and figures of the demo's model", "docs/demo.md"),
    "sisma_jax.data.synthetic": Command("write procedural faces with their masks", "docs/data.md"),
    "sisma_jax.prepare": Command(
        "prepare a data set of faces and masks for training", "docs/data.md"
    ),
    "sisma_jax.inspect_data": Command("show what a data set holds", "docs/data.md"),
    "sisma_jax.train_autoencoder": Command("train an autoencoder", "docs/autoencoder.md"),
    "sisma_jax.cache_latents": Command(
        "encode a data set once, ahead of training", "docs/autoencoder.md"
    ),
    "sisma_jax.train": Command("train SISMA, SCA-DM or CA2-SIS", "docs/training.md"),
    "sisma_jax.sample": Command("generate faces from masks", "docs/sampling.md"),
    "sisma_jax.paint": Command(
        "paint masks and generate faces, in a browser", "docs/editing_and_painting.md"
    ),
    "sisma_jax.export": Command("write a run's weights as safetensors", "docs/sampling.md"),
    "sisma_jax.train_parser": Command("train a face parser for evaluate", "docs/evaluation.md"),
    "sisma_jax.evaluate": Command(
        "score and time a model, and write the report", "docs/evaluation.md"
    ),
}
"""Commands by module, in the order of use."""


def short_name(module: str) -> str:
    """The name by which `sisma` lists a command."""
    return module.rpartition(".")[2]


MODULES = {short_name(module): module for module in COMMANDS}
"""Modules by the names that `sisma` lists."""


def module_of(name: str) -> str | None:
    """The module of a command by its listed name or by its path within the package
    ("data.synthetic"); None if there is none."""
    module = f"{PACKAGE}.{name}"
    return MODULES.get(name, module if module in COMMANDS else None)

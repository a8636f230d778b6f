"""All commands behind one: `sisma train ...`, which is `python -m sisma_jax.train ...`.

Without a command, `sisma` and `python -m sisma_jax` list them.
"""

import sys

from sisma_jax import __version__
from sisma_jax.common import cli
from sisma_jax.common.commands import COMMANDS, MODULES, module_of
from sisma_jax.common.errors import InputError, did_you_mean


def list_commands(shown: dict[str, str]) -> None:
    """Print the table of commands; `shown` is how each is called, by module."""
    width = max(map(len, shown.values()))
    print("SISMA: semantic face image synthesis with Mamba, in JAX\n")
    for module, command in COMMANDS.items():
        print(f"  {shown[module]:{width}}  {command.what}")
    print(
        "\nEach has --help, and README.md and docs/ in the project's sources explain them. There, "
        "`make demo`\nmakes a picture of faces from nothing in five minutes, and `make paint` then "
        "opens a page to paint on."
    )


def _answer(word: str, *, as_module: bool) -> None:
    if word in ("-h", "--help"):
        by_name = {module: f"sisma {name}" for name, module in MODULES.items()}
        by_module = {module: f"python -m {module}" for module in COMMANDS}
        list_commands(by_module if as_module else by_name)
    elif word == "--version":
        print(f"sisma_jax {__version__}")
    else:
        remedy = did_you_mean(word, MODULES, f"choose one of {', '.join(MODULES)}")
        raise InputError(f"command {word!r} does not exist: {remedy}")


def main(*, as_module: bool = False) -> None:
    """Run the command that the first argument names, with the arguments that follow it."""
    first, *rest = sys.argv[1:] or ["--help"]
    module = module_of(first)
    if module is not None:
        cli.start(module, rest, by_name=not as_module)
    else:
        cli.run(lambda: _answer(first, as_module=as_module))


if __name__ == "__main__":
    main(as_module=True)

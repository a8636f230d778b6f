"""List the commands: `python -m sisma_jax`."""

from sisma_jax.common.commands import COMMANDS


def main() -> None:
    width = max(map(len, COMMANDS))
    print("SISMA: semantic face image synthesis with Mamba, in JAX\n")
    for module, command in COMMANDS.items():
        print(f"  python -m {module:{width}}  {command.what}")
    print(
        "\nEach has --help, and README.md and docs/ in the project's sources explain them. There, "
        "`make demo`\nmakes a picture of faces from nothing in five minutes, and `make paint` then "
        "opens a page to paint on."
    )


if __name__ == "__main__":
    main()

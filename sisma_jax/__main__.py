"""List the commands: `python -m sisma_jax`."""

from sisma_jax.commands import COMMANDS


def main() -> None:
    width = max(map(len, COMMANDS))
    print("SISMA: semantic face image synthesis with Mamba, in JAX\n")
    for module, command in COMMANDS.items():
        print(f"  python -m {module:{width}}  {command.what}")
    print(
        "\nEach has --help. `make demo` goes from nothing to a picture of faces in five minutes, "
        "`make paint`\nfrom there to painting; README.md explains them all."
    )


if __name__ == "__main__":
    main()

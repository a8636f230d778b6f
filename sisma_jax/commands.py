"""The commands: what each does, and where the README speaks of it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Command:
    """One `python -m` module."""

    what: str
    """Short description for the list of commands."""
    section: str
    """Heading in README.md."""


COMMANDS = {
    "sisma_jax.doctor": Command(
        "what is installed and found here, and whether it works", "Install"
    ),
    "sisma_jax.demo": Command("picture and figures of the demo's model", "Demo"),
    "sisma_jax.data.synthetic": Command("write procedural faces with their masks", "Data"),
    "sisma_jax.prepare": Command("make a data set of faces and masks ready for training", "Data"),
    "sisma_jax.inspect_data": Command("show what a data set holds", "Data"),
    "sisma_jax.train_autoencoder": Command("train a first stage", "The autoencoder"),
    "sisma_jax.cache_latents": Command(
        "encode a data set once, ahead of training", "The autoencoder"
    ),
    "sisma_jax.train": Command("train SISMA, or SCA-DM", "Train"),
    "sisma_jax.sample": Command("make faces from masks", "Sample"),
    "sisma_jax.paint": Command("paint masks and see faces, in a browser", "Paint"),
    "sisma_jax.export": Command("write a run's weights as safetensors", "Sample"),
    "sisma_jax.train_parser": Command("train a face parser, which judges for evaluate", "Evaluate"),
    "sisma_jax.evaluate": Command("score and time a model, and write the report", "Evaluate"),
}
"""Commands by module, in the order of use."""

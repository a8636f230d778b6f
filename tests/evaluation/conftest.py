"""Something in the place of Inception's weights."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sisma_jax.evaluation import networks
from sisma_jax.models.judges.inception import SCALINGS, InceptionV3


@dataclasses.dataclass(frozen=True)
class MeanColour(InceptionV3):
    """Three features, of weights that are a number."""

    def features(self, images, resize):
        scale = self.params["scale"] / SCALINGS[resize]
        return scale * jnp.mean(images.astype(jnp.float32), (1, 2))


jax.tree_util.register_dataclass(MeanColour, data_fields=["params"], meta_fields=[])


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A folder with a weight file, which holds only a number."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / networks.INCEPTION.file).write_text("2")
    monkeypatch.setattr(
        networks,
        "load_inception",
        lambda path: MeanColour({"scale": jnp.float32(float(path.read_text()))}),
    )
    return folder

"""The first stage of models that draw images themselves: their latents are the images."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.autoencoder.model import LOGVAR_RANGE, Autoencoder

CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Pixels(Autoencoder):
    """An autoencoder that changes nothing, of factor 1, without parameters."""

    def encode(self, images: Float[Array, "b h w 3"]) -> tuple[Array, Array]:
        return images, jnp.full_like(images, LOGVAR_RANGE[0])

    def decode(self, z: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        return z

    def checksum(self) -> str:
        return "pixels"


jax.tree_util.register_dataclass(Pixels, data_fields=["params"], meta_fields=["config"])

PIXELS = Pixels(
    AutoencoderConfig.tiny(
        latent_channels=CHANNELS, block_channels=(1,), norm_groups=1, fold=1, scaling_factor=1.0
    ),
    {},
)

"""The first-stage autoencoder: Stable Diffusion's KL or latent diffusion's VQ architecture."""

from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.autoencoder.files import load_autoencoder, save_autoencoder
from sisma_jax.models.autoencoder.model import (
    Autoencoder,
    AutoencoderKL,
    parameter_shapes,
    posterior_kl,
    sample_latent,
    to_float,
    to_uint8,
)
from sisma_jax.models.autoencoder.pixels import PIXELS

__all__ = [
    "PIXELS",
    "Autoencoder",
    "AutoencoderConfig",
    "AutoencoderKL",
    "load_autoencoder",
    "parameter_shapes",
    "posterior_kl",
    "sample_latent",
    "save_autoencoder",
    "to_float",
    "to_uint8",
]

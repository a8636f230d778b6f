"""The first-stage autoencoder: Stable Diffusion's AutoencoderKL in Flax Linen.

    images in [-1, 1]  --encode-->  mean, logvar of a diagonal Gaussian            (1)
    latent = scaling_factor * (mean + exp(logvar / 2) * eps),   eps ~ N(0, I)      (2)
    latent / scaling_factor  --decode-->  images                                   (3)

With a codebook, `decode` first replaces each latent by its nearest entry. `encode` returns the
unquantised latents as mean and the smallest logvar allowed: the noise of (2) is then below 2e-6,
the size of float32's rounding in the encoder, so (2) and (3) hold unchanged.

Arrays are NHWC. In this module z is unscaled; generative models see the scaled, sampled latents of
(2). Only `sample_latent` samples and scales.

The architecture is that of Rombach et al., arXiv 2112.10752, as published with the sd-vae-ft
weights. The codebook is that of their VQ-f4, after van den Oord et al., arXiv 1711.00937.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder.config import AutoencoderConfig
from sisma_jax.models.autoencoder.layers import (
    Decoder,
    Encoder,
    Quantiser,
    conv,
    dense,
    fold_pixels,
    unfold_pixels,
)
from sisma_jax.models.weights import tree_checksum

LOGVAR_RANGE = (-30.0, 20.0)
STARTING_LOGVAR = -5.0
"""Initial posterior log-variance of an autoencoder with linear maps: little noise, so that their
output is not drowned."""


def quiet_posterior(key: PRNGKeyArray, shape: tuple[int], dtype: Any) -> Float[Array, " moments"]:
    """Initialise the bias of mean to 0 and that of logvar to STARTING_LOGVAR."""
    del key
    return jnp.repeat(jnp.array([0.0, STARTING_LOGVAR], dtype), shape[0] // 2)


class AutoencoderKL(nn.Module):
    """Maps images to the moments of their latents and back; call it through `method=`.

    With `config.codebook` it is diffusers' VQModel.
    """

    config: AutoencoderConfig

    def setup(self) -> None:
        cfg = self.config
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        has_posterior = cfg.linear_skip and not cfg.codebook
        quiet = quiet_posterior if has_posterior else nn.initializers.zeros
        self.quant_conv = conv(cfg, cfg.moments, size=1, bias_init=quiet)
        if cfg.codebook:
            self.quantize = Quantiser(cfg)
        self.post_quant_conv = conv(cfg, cfg.latent_channels, size=1)
        if cfg.linear_skip:
            exact = dataclasses.replace(cfg, dtype="float32")
            self.linear_encoder = dense(exact, cfg.latent_channels)
            self.linear_decoder = dense(exact, cfg.image_channels * cfg.factor**2)

    def encode(
        self, images: Float[Array, "b h w image_channels"]
    ) -> tuple[Float[Array, "b _ _ latent_channels"], Float[Array, "b _ _ latent_channels"]]:
        """Return mean and log-variance of the unscaled, unquantised latents, float32.

        Args:
          images: in [-1, 1]; height and width multiples of the configuration's `factor`.

        Raises:
          InputError: if height or width is not a multiple of the factor.
        """
        factor = self.config.factor
        height, width = images.shape[1:3]
        if height % factor or width % factor:
            raise InputError(
                f"images of {height} x {width} pixels do not divide into latents: resize both "
                f"sides to a multiple of {factor}"
            )
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        if self.config.codebook:
            mean, logvar = moments, jnp.full_like(moments, LOGVAR_RANGE[0])
        else:
            mean, logvar = jnp.split(moments, 2, axis=-1)
        if self.config.linear_skip:
            mean = mean + self.linear_encoder(fold_pixels(images, factor))
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def quantise(
        self, z: Float[Array, "b h w latent_channels"]
    ) -> tuple[Float[Array, "b h w latent_channels"], Int32[Array, "b h w"]]:
        """Return the nearest codebook entry of each latent, float32, and its index.

        Gradients flow to the entries, not to z.

        Args:
          z: unscaled latents.

        Raises:
          InputError: if the autoencoder has no codebook.
        """
        if not self.config.codebook:
            raise InputError(
                "the autoencoder has no codebook to quantise by: set autoencoder.codebook, or give "
                "weights that have one"
            )
        return self.quantize(z)

    def decode(
        self, z: Float[Array, "b h w latent_channels"]
    ) -> Float[Array, "b _ _ image_channels"]:
        """Return float32 images, about in [-1, 1] and not clipped, of unscaled latents.

        With a codebook, latents are replaced by their nearest entries first.
        """
        return self.decode_entries(self.quantise(z)[0] if self.config.codebook else z)

    def decode_entries(
        self, z: Float[Array, "b h w latent_channels"]
    ) -> Float[Array, "b _ _ image_channels"]:
        """`decode` without quantising, for latents that are codebook entries already."""
        images = self.decoder(self.post_quant_conv(z)).astype(jnp.float32)
        if self.config.linear_skip:
            images = images + unfold_pixels(self.linear_decoder(z), self.config.factor)
        return images

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Reconstruct images from the mean of their latents."""
        return self.decode(self.encode(images)[0])


def to_float(images: UInt8[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """Return uint8 images as float32 in [-1, 1], the autoencoder's input."""
    return jnp.asarray(images).astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Return images in [-1, 1] as uint8; values outside are clipped."""
    return jnp.round(jnp.clip(127.5 * (images + 1.0), 0.0, 255.0)).astype(jnp.uint8)


def sample_latent(
    noise: Float[Array, "*shape"],
    mean: Float[Array, "*shape"],
    logvar: Float[Array, "*shape"],
    scaling_factor: float,
) -> Float[Array, "*shape"]:
    """Draw scaled latents from the posterior, equation (2).

    Args:
      noise: eps ~ N(0, 1), float32.
      mean, logvar: moments before scaling; float16 from a cache is fine.
      scaling_factor: the autoencoder's; 1 returns the z that `decode` expects.

    Returns:
      Latents in float32.
    """
    deviation = jnp.exp(0.5 * logvar.astype(jnp.float32))
    return scaling_factor * (mean.astype(jnp.float32) + deviation * noise)


def posterior_kl(mean: Float[Array, "*shape"], logvar: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Return the KL divergence of N(mean, exp(logvar)) from N(0, 1), averaged over elements."""
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """An autoencoder with its parameters.

    A pytree whose leaves are the parameters: pass it to jitted functions as an argument. With the
    dtype "auto" each program computes in the type of the platform that it is lowered for.
    """

    config: AutoencoderConfig
    params: Any

    @property
    def scaling_factor(self) -> float:
        """Factor that scales z to latents of about unit standard deviation.

        Raises:
          InputError: if the weights came without it.
        """
        if self.config.scaling_factor is None:
            raise InputError(
                "the autoencoder's weights come without a scaling factor: set "
                "autoencoder.scaling_factor"
            )
        return self.config.scaling_factor

    @jax.jit
    def encode(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b _ _ latent_channels"], Float[Array, "b _ _ latent_channels"]]:
        """Return mean and logvar of unscaled latents; see `AutoencoderKL.encode`."""
        return self._apply(images, "encode")

    @jax.jit
    def decode(self, z: Float[Array, "b h w latent_channels"]) -> Float[Array, "b _ _ c"]:
        """Return the images of unscaled z; see `AutoencoderKL.decode`."""
        return self._apply(z, "decode")

    @jax.jit
    def quantise(
        self, z: Float[Array, "b h w latent_channels"]
    ) -> tuple[Float[Array, "b h w latent_channels"], Int32[Array, "b h w"]]:
        """Return the codebook entries and indices of unscaled z; see `AutoencoderKL.quantise`."""
        return self._apply(z, "quantise")

    def _apply(self, x: Array, method: str) -> Any:
        def computing_in(dtype: str) -> Callable[[Any, Array], Any]:
            module = AutoencoderKL(dataclasses.replace(self.config, dtype=dtype))
            return lambda params, x: module.apply({"params": params}, x, method=method)

        if self.config.dtype != "auto":
            return computing_in(self.config.dtype)(self.params, x)
        on_cpu, elsewhere = computing_in("float32"), computing_in("bfloat16")
        return jax.lax.platform_dependent(self.params, x, cpu=on_cpu, default=elsewhere)

    def checksum(self) -> str:
        """SHA-256 of everything that determines the moments of an image: sizes and parameters.

        It does not depend on where the weights were read from, the scaling factor or the dtype.
        """
        sizes = dataclasses.asdict(self.config)
        del sizes["scaling_factor"], sizes["dtype"]
        if not self.config.codebook:  # keeps caches valid that predate codebooks
            del sizes["codebook"]
        both = [sizes, tree_checksum(self.params)]
        return hashlib.sha256(json.dumps(both, sort_keys=True).encode()).hexdigest()

    def to_latents(
        self, noise: Float[Array, "b _ _ latent_channels"], images: Float[Array, "b h w c"]
    ) -> Float[Array, "b _ _ latent_channels"]:
        """Return the scaled latents of images in [-1, 1], equation (2); `noise` is eps."""
        return sample_latent(noise, *self.encode(images), self.scaling_factor)

    def from_latents(
        self, latents: Float[Array, "b h w latent_channels"]
    ) -> Float[Array, "b _ _ c"]:
        """Return the images of scaled latents, equation (3)."""
        return self.decode(latents / self.scaling_factor)


jax.tree_util.register_dataclass(Autoencoder, data_fields=["params"], meta_fields=["config"])


def parameter_shapes(config: AutoencoderConfig) -> Any:
    """Return the parameter tree of a configuration as shapes and dtypes, without computing it."""
    image = jnp.zeros((1, config.factor, config.factor, config.image_channels))
    module = AutoencoderKL(dataclasses.replace(config, dtype="float32"))
    return jax.eval_shape(module.init, jax.random.key(0), image)["params"]

"""SISMA's training objective: what is drawn for a batch, and the loss of each of its rows.

Everything random is drawn for the whole batch and by row, ahead of the loss. So the loss of a row
does not depend on the devices that share the batch, nor on the parts it is gone through in.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sisma_jax import flow
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.errors import InputError
from sisma_jax.models import SISMA, SISMAConfig
from sisma_jax.models.autoencoder import Autoencoder, sample_latent, to_float
from sisma_jax.models.sisma import gathered


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The config's section `flow`."""

    sampling: str
    """Distribution of training times: "logit_normal" or "uniform"."""
    drop: float
    """Share of masks replaced by the null mask, for guidance."""

    def __post_init__(self) -> None:
        if self.sampling not in flow.TIME_SAMPLINGS:
            raise InputError(
                f"flow.sampling is {self.sampling!r}: choose 'logit_normal' or 'uniform'"
            )
        if not 0 <= self.drop <= 1:
            raise InputError(f"flow.drop is {self.drop}: choose a share in [0, 1]")


def latent_noise(config: SISMAConfig, key: PRNGKeyArray, count: int) -> dict[str, Array]:
    """Draw "posterior" and "noise", both like `count` latents, N(0, 1)."""
    shape = (count, config.latent_size, config.latent_size, config.latent_channels)
    posterior, noise = jax.random.normal(key, (2, *shape))
    return {"posterior": posterior, "noise": noise}


def draw(
    key: PRNGKeyArray, batch: dict[str, Array], *, config: SISMAConfig, flow_config: FlowConfig
) -> dict[str, Array]:
    """Everything random of a training batch: `latent_noise`, "time" (b,) and "dropped" (b,)."""
    noise_key, time_key, drop_key = jax.random.split(key, 3)
    count = len(batch["labels"])
    return latent_noise(config, noise_key, count) | {
        "time": flow.sample_time(time_key, count, flow_config.sampling),
        "dropped": jax.random.bernoulli(drop_key, flow_config.drop, (count,)),
    }


def latents_of(batch: dict[str, Array], autoencoder: Autoencoder) -> Float[Array, "b h w c"]:
    """Scaled latents of a batch at its "posterior" noise.

    Args:
      batch: "image" uint8 (b, H, W, 3), or "moments" (b, h, w, 2 c) of cached latents.
      autoencoder: frozen; of cached latents it need not have parameters.
    """
    if "moments" not in batch:
        return autoencoder.to_latents(batch["posterior"], to_float(batch["image"]))
    mean, logvar = jnp.split(batch["moments"], 2, axis=-1)
    return sample_latent(batch["posterior"], mean, logvar, autoencoder.scaling_factor)


def losses(
    params: dict, latents: Float[Array, "b h w c"], batch: dict[str, Array], *, config: SISMAConfig
) -> Float[Array, " b"]:
    """Flow-matching loss of every row.

    Args:
      params: of SISMA.
      latents: scaled.
      batch: "labels" uint8 (b, H, W), and what `draw` gives.
      config: of SISMA.
    """
    labels = flow.drop_condition(batch["dropped"], batch["labels"], UNLABELLED)
    params = gathered(params)
    velocity = lambda z, t: SISMA(config).apply({"params": params}, z, t, labels)
    return flow.loss_at(velocity, latents, batch["noise"], batch["time"])


def mean_loss(
    params: dict, batch: dict[str, Array], autoencoder: Autoencoder, *, config: SISMAConfig
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The training loss of a batch, see `losses`; it has no parts."""
    latents = latents_of(batch, autoencoder)
    return jnp.mean(losses(params, latents, batch, config=config)), {}

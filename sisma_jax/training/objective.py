"""The training objective of SISMA and SCA-DM: random draws for a batch, and the loss of each row.

A model with style conditioning is trained to reconstruct each face given its own style. For a share
of the rows the style is dropped, and for others that of some classes, so that one model can
synthesise faces with a reference, without one, and with one for some parts.

All random numbers are drawn per row for the whole batch before the loss. So the loss of a row does
not depend on how the batch is distributed over devices or split for accumulation.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from sisma_jax.common.config import check_choice, check_shares, section
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.flows import rectified
from sisma_jax.models.autoencoder import Autoencoder, sample_latent, to_float
from sisma_jax.models.generators import Config, flow_keys, generator
from sisma_jax.models.layers.style_encoder import without
from sisma_jax.models.sisma.model import gather_parameters
from sisma_jax.training.class_balance import class_weights
from sisma_jax.training.program import Trainable
from sisma_jax.training.state import TrainConfig, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The config's section `flow`, without the `flow_keys` of the generator."""

    sampling: str
    """Distribution of training times: "logit_normal" or "uniform"."""
    drop: float
    """Share of masks replaced by the null mask, for guidance."""
    style_drop: float = 0.5
    """Share of rows whose style is dropped, for models with style conditioning."""
    style_class_drop: float = 0.1
    """Share of classes whose style is dropped in the other rows."""
    class_balance: float = 0.0
    """Balance between small and large classes in the loss, 0 to 1; see `class_weights`."""

    def __post_init__(self) -> None:
        check_choice(self, "flow", "sampling", rectified.TIME_SAMPLINGS)
        check_shares(self, "flow", "drop", "style_drop", "style_class_drop", "class_balance")

    @classmethod
    def of(cls, config: ConfigDict) -> "FlowConfig":
        """Read it from a config; raises InputError as `section`."""
        sections, others = dict(config), flow_keys(config)
        if "flow" in sections:
            sections["flow"] = {k: v for k, v in config.flow.items() if k not in others}
        return section(cls, sections, "flow")


def latent_noise(config: Config, key: PRNGKeyArray, count: int) -> dict[str, Array]:
    """Draw "posterior" and "noise", both N(0, 1) with the shape of `count` latents."""
    shape = (count, config.latent_size, config.latent_size, config.latent_channels)
    posterior, noise = jax.random.normal(key, (2, *shape))
    return {"posterior": posterior, "noise": noise}


def draw(
    key: PRNGKeyArray, batch: dict[str, Array], *, config: Config, flow_config: FlowConfig
) -> dict[str, Array]:
    """Draw all random numbers of a batch: `latent_noise`, "time" (b,) and "dropped" (b,).

    With style conditioning also "styleless" (b, k), the classes whose style is dropped.
    """
    noise_key, time_key, drop_key = jax.random.split(key, 3)
    count = len(batch["labels"])
    drawn = latent_noise(config, noise_key, count) | {
        "time": rectified.sample_time(time_key, count, flow_config.sampling),
        "dropped": jax.random.bernoulli(drop_key, flow_config.drop, (count,)),
    }
    if not generator(config).has_style:
        return drawn
    all_key, class_key = jax.random.split(jax.random.fold_in(key, 3))
    rows = jax.random.bernoulli(all_key, flow_config.style_drop, (count, 1))
    shape = (count, config.num_classes)
    return drawn | {
        "styleless": rows | jax.random.bernoulli(class_key, flow_config.style_class_drop, shape)
    }


def nothing_dropped(config: Config, count: int, *, style: bool = True) -> dict[str, Array]:
    """What `draw` returns besides noise and time if no masks are dropped, and no styles either, or
    all of them if `style` is False."""
    given = {"dropped": jnp.zeros(count, bool)}
    if generator(config).has_style:
        given["styleless"] = jnp.full((count, config.num_classes), not style)
    return given


def latents_of(batch: dict[str, Array], autoencoder: Autoencoder) -> Float[Array, "b h w c"]:
    """Scaled latents of a batch at its "posterior" noise.

    Args:
      batch: "moments" (b, h, w, 2 c) of cached latents, or else "image" uint8 (b, H, W, 3).
      autoencoder: the frozen autoencoder; it needs no parameters for cached latents.
    """
    if "moments" not in batch:
        return autoencoder.to_latents(batch["posterior"], to_float(batch["image"]))
    mean, logvar = jnp.split(batch["moments"], 2, axis=-1)
    return sample_latent(batch["posterior"], mean, logvar, autoencoder.scaling_factor)


def losses(
    params: dict,
    latents: Float[Array, "b h w c"],
    batch: dict[str, Array],
    *,
    config: Config,
    balance: float = 0.0,
) -> Float[Array, " b"]:
    """Return the loss of every row.

    Args:
      params: parameters of the generator.
      latents: scaled latents.
      batch: "labels" uint8 (b, H, W), "image" uint8 (b, H, W, 3) with style conditioning, and the
        result of `draw`.
      config: configuration of the generator.
      balance: see `class_weights`.
    """
    model, params = generator(config), gather_parameters(params)
    labels = rectified.drop_condition(batch["dropped"], batch["labels"], UNLABELLED)
    style = None
    if model.has_style:
        reference = without(labels, batch["styleless"])  # a face without its mask has no style
        style = model.encode_style(params, to_float(batch["image"]), reference)
    weight = None
    if balance:
        weight = class_weights(batch["labels"], config.latent_size, config.num_classes, balance)
    return model.losses(params, latents, batch["noise"], batch["time"], labels, style, weight)


def mean_loss(
    params: dict,
    batch: dict[str, Array],
    autoencoder: Autoencoder,
    *,
    config: Config,
    flow_config: FlowConfig,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return the training loss of a batch (see `losses`) and no metrics."""
    latents, balance = latents_of(batch, autoencoder), flow_config.class_balance
    return jnp.mean(losses(params, latents, batch, config=config, balance=balance)), {}


def trainable_generator(
    config: Config, flow_config: FlowConfig, settings: TrainConfig, seed: int
) -> Trainable:
    """Return a new generator with its objective and its optimizer.

    Args:
      config: configuration of the generator.
      flow_config, settings: the config's sections `flow` and `train`.
      seed: determines the weights.
    """
    model, sections = generator(config), {"config": config, "flow_config": flow_config}
    return Trainable(
        init_params=lambda: model.init_params(jax.random.key(seed)),
        optimizer=make_optimizer(settings, model.matrix_axes),
        draw=partial(draw, **sections),
        loss_fn=partial(mean_loss, **sections),
    )

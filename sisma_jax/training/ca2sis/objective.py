"""The training objective of CA2-SIS: its generator against a discriminator of patches.

In the first stage the generator draws each face from its mask in its own style, and learns by the
losses of `adversarial`. In the second one styles are random: the mapping network alone is trained,
to make styles from noise with which the finished generator's faces pass for real. There the
generator's loss has no terms that compare with the mask's own face, and with a `diversity` weight d

    - d mean |G(noise) - sg G(other noise)|

in addition, which draws the faces of one mask apart, as in the authors' code.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from sisma_jax.common.config import check_choice, check_least
from sisma_jax.common.errors import InputError, naming
from sisma_jax.common.files import local_path
from sisma_jax.devices.placement import replicate
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.ca2sis import model as ca2sis
from sisma_jax.models.ca2sis.config import CA2SISConfig
from sisma_jax.models.judges.backbones import VGG19
from sisma_jax.models.judges.vgg19 import Vgg19, load_vgg19
from sisma_jax.models.layers.patch_discriminator import PatchDiscriminator
from sisma_jax.runs.state import OpponentState, Params
from sisma_jax.training.adversarial import (
    DISCRIMINATOR,
    AdversarialWeights,
    Discriminator,
    DiscriminatorSection,
    attention_loss,
    discriminator_loss,
    distance,
    generator_loss,
    nearest,
    vgg_distance,
)
from sisma_jax.training.program import Trainable
from sisma_jax.training.state import (
    Batch,
    Metrics,
    TrainConfig,
    make_optimizer,
)

STYLES = ("own", "random")
MAPPING = "mapping"
"""The part of the parameters that makes random styles."""

Logits = tuple[Float[Array, "b _ _ k"], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSection(AdversarialWeights):
    """The config's section `loss`: the weights of the terms, and what they are computed from."""

    perceptual_network: str = ""
    """Path of torchvision's VGG-19 as safetensors; "" leaves the perceptual term out."""
    styles: str = "own"
    """Styles of the faces that are drawn: "own" (the first stage), or "random"."""
    diversity: float = 0.0
    """d of the module docstring, for random styles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "loss", "styles", STYLES)
        check_least(self, "loss", 0, "diversity")
        if self.perceptual_network and not (self.perceptual and self.compares):
            why = "loss.perceptual 0" if self.compares else "loss.styles 'random'"
            raise InputError(
                f"loss.perceptual_network is {self.perceptual_network!r}, which {why} does not "
                "use: leave the path empty"
            )
        if self.diversity and self.compares:
            raise InputError(
                f"loss.diversity is {self.diversity}, but faces are drawn in their own styles, "
                "one for each mask: set it to 0, or loss.styles to 'random'"
            )

        self._refuse_no_terms()

    def _refuse_no_terms(self) -> None:
        if self.compares:
            names = ["adversarial", "feature_matching", "attention", "reconstruction"]
            names += ["perceptual"] if self.perceptual_network else []
            why = "" if self.perceptual_network else " and loss.perceptual_network is empty"
        else:
            names, why = ["adversarial", "attention", "diversity"], " with loss.styles 'random'"
        if not any(getattr(self, name) for name in names):
            listed = ", ".join(f"loss.{name}" for name in names)
            raise InputError(
                f"the generator has no loss, since {listed} are all 0{why}: set one of them above 0"
            )

    @property
    def compares(self) -> bool:
        """Whether what is drawn is to equal the mask's own face."""
        return self.styles == "own"

    def network(self, size: int) -> Vgg19 | None:
        """Read VGG-19; None if the loss has no perceptual term.

        Args:
          size: side of the images in pixels.

        Raises:
          InputError: if the file cannot be used, or the images are too small.
        """
        if not self.perceptual_network:
            return None
        if size < VGG19.smallest:
            raise InputError(
                f"data.size is {size}, but the perceptual term needs {VGG19.smallest} pixels: "
                "choose a larger size, or set loss.perceptual to 0"
            )
        with naming("loss.perceptual_network"):
            return load_vgg19(local_path(self.perceptual_network))


def trainable_ca2sis(
    config: CA2SISConfig,
    discriminator: DiscriminatorSection,
    loss: LossSection,
    settings: TrainConfig,
    seed: int,
) -> Trainable:
    """Return a new generator with its discriminator, both objectives and both optimizers.

    The constant of the losses is `loss.network`, unless that is None. Batches hold "image" uint8
    (b, H, W, 3) and "labels" uint8 (b, H, W).

    Args:
      config: sizes of the generator.
      discriminator, loss, settings: the config's sections `discriminator`, `loss` and `train`.
      seed: determines the weights.
    """
    against = Discriminator(
        PatchDiscriminator(discriminator.network(config.num_classes)), config.image_size, seed
    )
    faces = partial(_faces, config, loss)
    optimizer = make_optimizer(settings, ca2sis.matrix_axes)
    return Trainable(
        init_params=lambda: ca2sis.init_params(config, jax.random.key(seed)),
        optimizer=optimizer if loss.compares else only_mapping(optimizer),
        draw=partial(draw, config, loss),
        loss_fn=partial(_generator_loss, faces, against, loss),
        opponents={
            DISCRIMINATOR: against.opponent(
                discriminator, settings, partial(_discriminator_loss, faces, against)
            )
        },
    )


def draw(config: CA2SISConfig, loss: LossSection, key: PRNGKeyArray, batch: Batch) -> Batch:
    """Draw "noise" and "other_noise" (b, noise_width) of random styles; nothing for own styles."""
    if loss.compares:
        return {}
    noise = jax.random.normal(key, (2, len(batch["labels"]), config.noise_width))
    return {"noise": noise[0], "other_noise": noise[1]}


def only_mapping(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that changes the mapping network alone."""

    def parts(params: Params) -> Params:
        part = lambda name: MAPPING if name == MAPPING else "frozen"
        return {name: jax.tree.map(lambda _, n=name: part(n), x) for name, x in params.items()}

    return optax.multi_transform({MAPPING: optimizer, "frozen": optax.set_to_zero()}, parts)


def own_attention(
    logits: Sequence[Float[Array, "b _ _ k"]], labels: UInt8[Array, "b H W"]
) -> Float[Array, ""]:
    """The share that a pixel's own class has in the attention to all classes, on average.

    Args:
      logits: by stage, those of the attention averaged over heads, as `attention_loss` takes them.
      labels: class ids of the pixels; those of no class are left out.
    """

    def of_stage(x: Array) -> Array:
        ids = nearest(labels, *x.shape[1:3])
        own = jax.nn.one_hot(ids, x.shape[-1], dtype=x.dtype)
        return jnp.sum(own * jax.nn.softmax(x, axis=-1)) / jnp.maximum(jnp.sum(own), 1.0)

    return sum(map(of_stage, logits)) / len(logits)


def _faces(
    config: CA2SISConfig, loss: LossSection, params: Params, batch: Batch, noise: str = "noise"
) -> tuple[Float[Array, "b H W 3"], Logits]:
    """The drawn faces of a batch in [-1, 1], and the logits of their attention."""
    apply = partial(ca2sis.CA2SIS(config).apply, {"params": replicate(params)})
    if loss.compares:
        styles = apply(to_float(batch["image"]), batch["labels"], method="styles")
    else:
        styles = apply(batch[noise], batch["labels"], method="random_styles")
    return apply(apply(batch["labels"], method="mask_codes"), styles, method="draw_with_attention")


def _generator_loss(
    faces: Callable,
    against: Discriminator,
    loss: LossSection,
    params: Params,
    batch: Batch,
    opponents: dict[str, OpponentState],
    network: Vgg19 | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    if not loss.compares:
        params = {name: x if name == MAPPING else jax.lax.stop_gradient(x)
            for name, x in params.items()}  # fmt: skip
    fake, logits = faces(params, batch)
    real, weights = to_float(batch["image"]).astype(fake.dtype), loss
    state, terms = opponents[DISCRIMINATOR], {}
    if network is not None:
        wanted = jax.lax.stop_gradient(network.features(real))
        terms["perceptual"] = vgg_distance(network.features(fake), wanted)
    if weights.attention:
        terms["attention"] = attention_loss(logits, batch["labels"])
    if weights.reconstruction and loss.compares:
        terms["reconstruction"] = distance(fake, real)
    of_fake, of_real = against.judge(state.params, state.variables, fake, real, batch["labels"])
    if not loss.compares:
        weights = dataclasses.replace(weights, feature_matching=0.0)
    total, metrics = generator_loss(of_fake, of_real, weights, **terms)
    metrics["own_attention"] = own_attention(logits, batch["labels"])
    if loss.diversity:
        other, _ = faces(params, batch, "other_noise")
        metrics["diversity"] = distance(fake, other)
        total = total - loss.diversity * metrics["diversity"]
    return total, metrics


def _discriminator_loss(
    faces: Callable,
    against: Discriminator,
    params: Params,
    batch: Batch,
    spectral: Params,
    generator: Params,
    *unused: Vgg19,
) -> tuple[Float[Array, ""], Metrics]:
    fake = jax.lax.stop_gradient(faces(generator, batch)[0])
    real = to_float(batch["image"]).astype(fake.dtype)
    return discriminator_loss(*against.judge(params, spectral, fake, real, batch["labels"]))

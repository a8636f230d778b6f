"""Losses of adversarial training: a generator against a discriminator of patches at several scales.

With D_s(x) the predictions of scale s of the discriminator, D_sl(x) its features of layer l, F_l(x)
those of VGG-19, sg the stop-gradient, and "mean" over rows, positions and channels,

    L_D = mean_s mean max(0, 1 + D_s(fake)) + mean_s mean max(0, 1 - D_s(real))                  (1)

    L_G = a mean_s mean -D_s(fake)                                                               (2)
        + f mean_s sum_l mean |D_sl(fake) - sg D_sl(real)|                                       (3)
        + p sum_l w_l mean |F_l(fake) - F_l(real)|                                               (4)
        + t mean over stages of mean BCE(logits of the cross-attention, own class)               (5)
        + r mean |fake - real|                                                                   (6)

(1) and (2) are the hinge losses of Lim and Ye (arXiv 1705.02894); (3) and (4) are feature matching
and the perceptual loss of pix2pixHD (Wang et al., arXiv 1711.11585), whose w_l are `VGG_WEIGHTS`.
(5) is CA2-SIS's attention loss (arXiv 2308.16071): each class's logit is trained, as in a binary
classification, to be large at the pixels of that class only. SPADE (arXiv 1903.07291) has (1) to
(4) with the same weights.

Every term is a mean over rows, so the mean over equal parts of a batch is that of the batch, if all
parts are judged with the same state of the spectral normalisation (see `patch_discriminator`).
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sisma_jax.common.config import check_least
from sisma_jax.common.errors import InputError
from sisma_jax.devices.placement import replicate
from sisma_jax.models.layers.patch_discriminator import (
    DiscriminatorConfig,
    Judgement,
    PatchDiscriminator,
    advanced,
)
from sisma_jax.runs.state import Params
from sisma_jax.training.state import (
    Metrics,
    Opponent,
    TrainConfig,
    kernel_axes,
    make_optimizer,
)

DISCRIMINATOR = "discriminator"
"""Its name among the opponents."""

VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Weights in (4) of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialWeights:
    """Weights of the terms of a generator's loss; the defaults are CA2-SIS's."""

    adversarial: float = 1.0
    """a in (2)."""
    feature_matching: float = 10.0
    """f in (3)."""
    perceptual: float = 10.0
    """p in (4)."""
    attention: float = 1.0
    """t in (5)."""
    reconstruction: float = 0.0
    """r in (6), which is ours: short trainings learn colours by it."""

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(AdversarialWeights)]
        check_least(self, "loss", 0, *names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorSection:
    """The config's section `discriminator`; the defaults are CA2-SIS's. It computes in float32."""

    learning_rate: float = 4e-4
    """Its own, with the schedule and the optimizer of `train`."""
    channels: int = DiscriminatorConfig.channels
    layers: int = DiscriminatorConfig.layers
    scales: int = DiscriminatorConfig.scales
    """These three as in `DiscriminatorConfig`."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise InputError(
                f"discriminator.learning_rate is {self.learning_rate}: it must be positive"
            )
        self.network(1)  # raises if a size is out of range

    def check_size(self, size: int) -> None:
        """Raise InputError if images of `size` pixels a side cannot be halved by all scales and
        layers."""
        halvings = self.scales - 1 + self.layers
        if size >> halvings < 1:
            most = size.bit_length() - 1
            raise InputError(
                f"discriminator.scales {self.scales} and discriminator.layers {self.layers} halve "
                f"images {halvings} times, but those of data.size {size} can be halved {most} "
                "times: choose fewer scales or layers"
            )

    def network(self, num_classes: int) -> DiscriminatorConfig:
        """The sizes of the network that reads label maps of `num_classes` classes; 0 for none."""
        return DiscriminatorConfig(
            num_classes=num_classes,
            channels=self.channels,
            layers=self.layers,
            scales=self.scales,
        )


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """A discriminator in training."""

    module: PatchDiscriminator
    image_size: int
    seed: int
    """Determines its first weights."""

    def init_params(self) -> Params:
        return self._init()["params"]

    def init_spectral(self, params: Params) -> Params:
        """The first vectors of the spectral normalisation, which do not depend on the weights."""
        return self._init()["spectral"]

    def _init(self) -> dict[str, Params]:
        config, side = self.module.config, self.image_size
        images = jnp.zeros((1, side, side, config.image_channels))
        labels = jnp.zeros((1, side, side), jnp.uint8) if config.num_classes else None
        key = jax.random.fold_in(jax.random.key(self.seed), 1)  # not the generator's numbers
        return self.module.init(key, [images], labels)

    def judge(
        self,
        params: Params,
        spectral: Params,
        fake: Float[Array, "b h w c"],
        real: Float[Array, "b h w c"],
        labels: UInt8[Array, "b h w"] | None = None,
    ) -> tuple[Judgement, Judgement]:
        """Judge generated pictures and those of the data, both with the same label maps."""
        variables = replicate({"params": params, "spectral": spectral})
        of_fake, of_real = self.module.apply(variables, [fake, real], labels)
        return of_fake, of_real

    def opponent(
        self, section: DiscriminatorSection, settings: TrainConfig, loss_fn: Callable
    ) -> Opponent:
        """Return it as an opponent of the run's network.

        Args:
          section: the config's section `discriminator`.
          settings: the config's section `train`.
          loss_fn: see `Opponent`; its variables are the vectors of the spectral normalisation.
        """
        settings = dataclasses.replace(settings, learning_rate=section.learning_rate)
        return Opponent(
            init_params=self.init_params,
            init_variables=self.init_spectral,
            advance=advanced,
            optimizer=make_optimizer(settings, kernel_axes),
            loss_fn=loss_fn,
        )


def discriminator_loss(fake: Judgement, real: Judgement) -> tuple[Float[Array, ""], Metrics]:
    """Return the discriminator's loss (1) and its parts.

    Args:
      fake: its judgement of generated pictures, through which the generator must not be trained.
      real: its judgement of the data's pictures.

    Returns:
      The loss; `discriminator_fake` and `discriminator_real`, whose sum it is; `saturated_fake` and
      `saturated_real`, the shares of the patches that are judged right by the margin, where the
      hinge is 0. If both stay near 1, the discriminator has won and learns nothing any more.
    """
    metrics = {}
    for name, judgement, sign in (("fake", fake, 1.0), ("real", real, -1.0)):
        hinges = [jnp.maximum(0.0, 1.0 + sign * x) for x in judgement.predictions]
        metrics[f"discriminator_{name}"] = mean_of(jnp.mean, hinges)
        metrics[f"saturated_{name}"] = mean_of(lambda x: jnp.mean(x == 0, dtype=x.dtype), hinges)
    return metrics["discriminator_fake"] + metrics["discriminator_real"], metrics


def generator_loss(
    fake: Judgement,
    real: Judgement,
    weights: AdversarialWeights,
    *,
    perceptual: Float[Array, ""] | None = None,
    attention: Float[Array, ""] | None = None,
    reconstruction: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Return the generator's loss and its parts.

    Args:
      fake, real: the discriminator's judgements of generated pictures and of those of the data, of
        which the latter get no gradient.
      weights: weights of the terms.
      perceptual: `vgg_distance`; None leaves (4) out.
      attention: `attention_loss`; None leaves (5) out.
      reconstruction: `distance` of the pictures; None leaves (6) out.

    Returns:
      The loss, and the terms of weights above 0 without these: `adversarial`, `feature_matching`,
      `perceptual`, `attention` and `reconstruction`.
    """
    terms = {
        "adversarial": hinge_of_generator(fake) if weights.adversarial else None,
        "feature_matching": feature_matching(fake, real) if weights.feature_matching else None,
        "perceptual": perceptual,
        "attention": attention,
        "reconstruction": reconstruction,
    }
    metrics = {name: term for name, term in terms.items() if term is not None}
    return sum(getattr(weights, name) * term for name, term in metrics.items()), metrics


def hinge_of_generator(fake: Judgement) -> Float[Array, ""]:
    """Return the term (2), without its weight."""
    return mean_of(lambda x: -jnp.mean(x), fake.predictions)


def feature_matching(fake: Judgement, real: Judgement) -> Float[Array, ""]:
    """Return the distance (3), without its weight and without a gradient to `real`."""
    distances = [
        sum(distance(x, y) for x, y in zip(of_fake, of_real, strict=True))
        for of_fake, of_real in zip(fake.features, real.features, strict=True)
    ]
    return sum(distances) / len(distances)


def vgg_distance(
    fake: Sequence[Float[Array, "b _ _ _"]], real: Sequence[Float[Array, "b _ _ _"]]
) -> Float[Array, ""]:
    """Return the distance (4), without its weight and without a gradient to `real`.

    Args:
      fake, real: results of `Vgg19.features` for generated pictures and for those of the data.
    """
    levels = zip(VGG_WEIGHTS, fake, real, strict=True)
    return sum(weight * distance(x, y) for weight, x, y in levels)


def attention_loss(
    logits: Sequence[Float[Array, "b _ _ k"]], labels: UInt8[Array, "b H W"]
) -> Float[Array, ""]:
    """Return the attention loss (5), without its weight.

    With x_k the K logits of a pixel of class c, the mean over classes of the binary cross-entropies
    is (sum_k softplus(x_k) - x_c) / K.

    Args:
      logits: by stage, one logit per pixel and class: those of a cross-attention after scaling and
        before the softmax, averaged over heads.
      labels: class ids of the pixels of the styles' pictures, background included; each pixel of a
        stage takes the first that it covers. Pixels of other values (255: unlabelled) are those of
        no class.

    Raises:
      InputError: if the sides of a stage do not divide those of the label maps.
    """

    def of_stage(x: Array) -> Array:
        x = x.astype(np.promote_types(x.dtype, np.float32))
        own = jax.nn.one_hot(nearest(labels, *x.shape[1:3]), x.shape[-1], dtype=bool)
        return jnp.mean(jax.nn.softplus(x) - jnp.where(own, x, 0.0))

    return mean_of(of_stage, logits)


def nearest(labels: UInt8[Array, "b H W"], height: int, width: int) -> UInt8[Array, "b h w"]:
    """Return label maps at a coarser size, as PyTorch's nearest interpolation does."""
    sides = labels.shape[1:]
    if sides[0] % height or sides[1] % width:
        raise InputError(
            f"label maps of {sides[0]} x {sides[1]} pixels cannot be reduced to {height} x {width}"
            ": choose a size whose sides divide theirs"
        )
    return labels[:, :: sides[0] // height, :: sides[1] // width]


def distance(fake: Array, real: Array) -> Float[Array, ""]:
    """The mean absolute difference, in float32 at the least and without a gradient to `real`."""
    difference = fake - jax.lax.stop_gradient(real)
    return jnp.mean(jnp.abs(difference), dtype=np.promote_types(difference.dtype, np.float32))


def mean_of(term: Callable[[Array], Array], arrays: Sequence[Array]) -> Float[Array, ""]:
    """The mean of a term over arrays of different sizes, each of which counts alike."""
    return sum(map(term, arrays)) / len(arrays)

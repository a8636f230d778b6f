"""The common interface of the generative models, for training, synthesis and evaluation.

A generator is identified by its configuration, a static argument of compiled programs; `generator`
returns its functions. Whatever the model predicts, the interface is a velocity in `rectified`'s
convention, which any solver can integrate. A model that draws in one pass is one step of Euler's
method from zeros; its latents are the pixels.

Conditions are a label map (255 everywhere is the null mask) and a style: one token per class, or
None for no reference. A model with `soft_masks` also takes one channel per class in place of a
label map.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from sisma_jax.common.config import section
from sisma_jax.common.errors import InputError
from sisma_jax.flows import diffusion, rectified
from sisma_jax.flows.diffusion import Diffusion
from sisma_jax.models import SISMAConfig
from sisma_jax.models.ca2sis import model as ca2sis
from sisma_jax.models.ca2sis.config import CA2SISConfig
from sisma_jax.models.cost.by_hand import mask_macs, style_macs, velocity_macs
from sisma_jax.models.layers.unet import in_compute_type
from sisma_jax.models.scadm import model as scadm
from sisma_jax.models.scadm.config import SCADMConfig
from sisma_jax.models.sisma import model as sisma

Config = SISMAConfig | SCADMConfig | CA2SISConfig
"""The configuration of a generator."""
Params = dict[str, Any]
Tokens = Float[Array, "b k token"]
"""Style tokens, one per class."""
Masks = UInt8[Array, "b H W"] | Float[Array, "b H W k"]
"""Label maps, or one channel per class, which may be soft and may overlap."""


@runtime_checkable
class Generator(Protocol):
    """The functions of a generator with one configuration."""

    name: str
    has_style: bool
    """Whether the model has style conditioning."""
    most_steps: int | None
    """The most solver steps; None for any number."""
    any_times: bool
    """Whether a solver may step from any time to any other, and not at `times` alone."""
    one_pass: bool
    """Whether the model draws images, not latents, in one pass: in one step of Euler's method, from
    whatever noise and without guidance, and in the style of a reference or in a random one
    (`random_style`)."""
    soft_masks: bool
    """Whether the mask may be one channel per class, which may be soft and may overlap. Then shapes
    of parts are exchanged without repairing the mask."""

    def init_params(self, key: PRNGKeyArray) -> Params: ...

    def in_compute_type(self, params: Params) -> Params:
        """The parameters, with those of each step rounded in advance to the type that they compute
        in; `encode` and `velocity` return with them what they return without."""

    def encode_style(
        self, params: Params, images: Float[Array, "b H W 3"], labels: UInt8[Array, "b H W"]
    ) -> Tokens:
        """Style tokens of references, images in [-1, 1]; a class without pixels gets "no style"."""

    def no_style(self, params: Params) -> Float[Array, "1 k token"]:
        """The tokens of no reference."""

    def encode(self, params: Params, labels: Masks, style: Tokens | None) -> Any:
        """Everything that can be computed before the solver starts, a tree of arrays."""

    def velocity(
        self, params: Params, z: Float[Array, "b h w c"], t: Float[Array, " b"], encoded: Any
    ) -> Float[Array, "b h w c"]: ...

    def times(self, steps: int) -> Float[np.ndarray, " steps_and_one"] | None:
        """The solver's times unless others are asked for; None for equal steps."""

    def start(self, noise: Float[Array, "b h w c"], steps: int) -> Float[Array, "b h w c"]:
        """The initial value of a solver, z at the first of `times`, from `noise` ~ N(0, I)."""

    def losses(
        self,
        params: Params,
        latents: Float[Array, "b h w c"],
        noise: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        labels: UInt8[Array, "b H W"],
        style: Tokens | None,
        weight: Float[Array, "b h w 1"] | None,
    ) -> Float[Array, " b"]:
        """The training loss of each row; `weight` multiplies squared errors, None for 1."""

    def matrix_axes(self, path: tuple, leaf: Array) -> Any:
        """See `training.state.MatrixAxes`."""

    def macs(self) -> "Macs":
        """Multiply-accumulates of one image."""


class Macs(NamedTuple):
    """Multiply-accumulates of one image, counted by hand."""

    velocity: int
    mask: int
    """Encoding before the solver starts, once per image."""
    style: int
    """Encoding of a reference."""


@dataclasses.dataclass(frozen=True)
class _FlaxGenerator:
    """The functions that every generator takes from its Flax module unchanged."""

    config: Config
    one_pass: ClassVar[bool] = False
    soft_masks: ClassVar[bool] = False
    network: ClassVar[type[nn.Module]]
    source: ClassVar[ModuleType]
    """The Python module of `network`, with `init_params` and `matrix_axes`."""

    def init_params(self, key: PRNGKeyArray) -> Params:
        return self.source.init_params(self.config, key)

    def encode_style(self, params: Params, images: Array, labels: Array) -> Tokens:
        return self._apply(params, images, labels, method="encode_style")

    def no_style(self, params: Params) -> Tokens:
        return self._apply(params, method="no_style")

    def times(self, steps: int) -> Float[np.ndarray, " steps_and_one"] | None:
        return None

    def matrix_axes(self, path: tuple, leaf: Array) -> Any:
        return self.source.matrix_axes(path, leaf)

    def _given_or_none(self, params: Params, count: int, style: Tokens | None) -> Tokens:
        return jnp.repeat(self.no_style(params), count, axis=0) if style is None else style

    def _apply(self, params: Params, *arguments: Any, **options: Any) -> Any:
        return self.network(self.config).apply({"params": params}, *arguments, **options)


@dataclasses.dataclass(frozen=True)
class CA2SISGenerator(_FlaxGenerator):
    """CA2-SIS: draws the image itself, in one pass and without noise."""

    config: CA2SISConfig
    network, source = ca2sis.CA2SIS, ca2sis
    name = "CA2-SIS"
    one_pass = True
    soft_masks = True
    has_style = True
    most_steps = 1
    any_times = False

    def in_compute_type(self, params: Params) -> Params:
        return params

    def encode_style(self, params: Params, images: Array, labels: Array) -> Tokens:
        return self._apply(params, images, labels, method="styles")

    def random_style(self, params: Params, keys: Key[Array, " b"], masks: Masks) -> Tokens:
        """Style tokens from noise for masks; zeros for classes that they do not have."""
        normal = lambda key: jax.random.normal(key, (self.config.noise_width,))
        return self._apply(params, jax.vmap(normal)(keys), masks, method="random_styles")

    def encode(self, params: Params, labels: Masks, style: Tokens | None) -> tuple[Array, Tokens]:
        c, masks = self.config, labels
        if masks.ndim == 4:
            masks = masks[..., c.num_classes - c.drawn_classes :]
        codes = self._apply(params, masks, method="mask_codes")
        return codes, self._given_or_none(params, len(labels), style)

    def velocity(self, params: Params, z: Array, t: Array, encoded: Any) -> Array:
        return self._apply(params, *encoded, method="draw") - z

    def start(self, noise: Array, steps: int) -> Array:
        return jnp.zeros_like(noise)

    def losses(self, *arguments: Any) -> Array:
        raise NotImplementedError("CA2-SIS is trained against a discriminator")

    def macs(self) -> Macs:
        counts = ca2sis.draw_macs, ca2sis.mask_code_macs, ca2sis.style_macs
        return Macs(*(count(self.config) for count in counts))


@dataclasses.dataclass(frozen=True)
class SISMAGenerator(_FlaxGenerator):
    """SISMA: predicts the velocity itself."""

    config: SISMAConfig
    network, source = sisma.SISMA, sisma
    name = "SISMA"
    most_steps = None
    any_times = True

    @property
    def has_style(self) -> bool:
        return self.config.style != "none"

    def in_compute_type(self, params: Params) -> Params:
        return sisma.in_compute_type(self.config, params)

    def encode(self, params: Params, labels: Array, style: Tokens | None) -> Any:
        return self._apply(params, labels, style, method="encode_mask")

    def velocity(self, params: Params, z: Array, t: Array, encoded: Any) -> Array:
        return self._apply(params, z, t, encoded, method="velocity")

    def start(self, noise: Array, steps: int) -> Array:
        return noise

    def losses(
        self, params: Params, latents: Array, noise: Array, time: Array, labels: Array,
        style: Tokens | None, weight: Array | None,
    ) -> Array:  # fmt: skip
        velocity = lambda z, t: self._apply(params, z, t, labels, style)
        return rectified.loss_at(velocity, latents, noise, time, weight)

    def macs(self) -> Macs:
        return Macs(*(f(self.config) for f in (velocity_macs, mask_macs, style_macs)))


@dataclasses.dataclass(frozen=True)
class SCADMGenerator(_FlaxGenerator):
    """SCA-DM: a model of a diffusion; DDIM is Euler's method here (`diffusion`)."""

    config: SCADMConfig
    network, source = scadm.SCADM, scadm
    name = "SCA-DM"
    most_steps = diffusion.STEPS - 1
    any_times = False
    has_style = True

    def in_compute_type(self, params: Params) -> Params:
        return params | {"unet": in_compute_type(self.config, params["unet"])}

    def encode(
        self, params: Params, labels: Array, style: Tokens | None
    ) -> tuple[scadm.MaskFeatures, Tokens]:
        mask = scadm.encode_mask(self.config, params, labels)
        return mask, self._given_or_none(params, len(labels), style)

    def velocity(self, params: Params, z: Array, t: Array, encoded: Any) -> Array:
        predict = lambda x, step: self._apply(params, x, step, *encoded, method="with_mask")
        return self.config.diffusion.velocity(predict, z, t)

    def times(self, steps: int) -> np.ndarray:
        return self.config.diffusion.ddim_times(steps)

    def start(self, noise: Array, steps: int) -> Array:
        return diffusion.to_flow(noise, jnp.full(len(noise), self.times(steps)[0]))

    def losses(
        self, params: Params, latents: Array, noise: Array, time: Array, labels: Array,
        style: Tokens | None, weight: Array | None,
    ) -> Array:  # fmt: skip
        style = self._given_or_none(params, len(labels), style)
        predict = lambda x, step: self._apply(params, x, step, labels, style)
        return self.config.diffusion.loss_at(predict, latents, noise, time, weight)

    def macs(self) -> Macs:
        mask = scadm.scadm_mask_macs(self.config)
        return Macs(scadm.scadm_macs(self.config) - mask, mask, scadm.style_macs(self.config))


KINDS: dict[str, type] = {
    "sisma": SISMAConfig,
    "scadm": SCADMConfig,
    "ca2sis": CA2SISConfig,
}
"""Configurations by `model.kind` of the config; the default is "sisma"."""
GENERATORS: dict[type, Callable[[Any], Generator]] = {
    SISMAConfig: SISMAGenerator,
    SCADMConfig: SCADMGenerator,
    CA2SISConfig: CA2SISGenerator,
}


def generator(config: Config) -> Generator:
    """The generator of a configuration."""
    return GENERATORS[type(config)](config)


def model_config(config: ConfigDict) -> Config:
    """The section `model` of a config, and the `flow_keys`, as a configuration of its kind.

    Raises:
      InputError: if it is missing, its kind is unknown, or a value is invalid.
    """
    fields = dict(config.get("model", {}))
    kind = fields.pop("kind", "sisma")
    if kind not in KINDS:
        raise InputError(f"model.kind is {kind!r}: choose one of {', '.join(KINDS)}")
    model = section(KINDS[kind], {"model": fields} if "model" in config else {}, "model")
    flow = config.get("flow", {})
    given = {key: flow[key] for key in flow_keys(config) if key in flow}  # older runs have none
    if not given:
        return model
    return dataclasses.replace(model, diffusion=section(Diffusion, {"flow": given}, "flow"))


def draws_styles(config: ConfigDict) -> bool:
    """Whether the model of a run's config draws what no reference shows: all but a model that draws
    in one pass and was not trained with random styles."""
    one_pass = generator(model_config(config)).one_pass
    return not one_pass or config.get("loss", {}).get("styles") == "random"


def learns_null_mask(config: ConfigDict) -> bool:
    """Whether the training of a run's config sometimes drops the mask, as guidance by the mask
    needs."""
    one_pass = generator(model_config(config)).one_pass
    return not one_pass and config.get("flow", {}).get("drop", 0.0) > 0


def flow_keys(config: ConfigDict) -> tuple[str, ...]:
    """The keys of the section `flow` that determine what a generator is, and not only how it is
    trained: the fields of `Diffusion` for SCA-DM, none for the others."""
    if config.get("model", {}).get("kind") != "scadm":
        return ()
    return tuple(field.name for field in dataclasses.fields(Diffusion))


def parameter_shapes(config: Config) -> Params:
    """Shapes and dtypes of a generator's parameters."""
    return jax.eval_shape(generator(config).init_params, jax.random.key(0))

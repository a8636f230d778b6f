"""Random changes of faces and their label maps, for networks that read pictures.

A picture is turned about its centre, zoomed and shifted, and its brightness, contrast and
saturation are changed. All numbers are drawn per row ahead of the loss (`draw`), so that parts of a
batch are changed as the whole is.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from sisma_jax.common.config import check_shares
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import UNLABELLED

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


MOST_ZOOM = 3
"""Largest `zoom`, our choice: at four times its size a face shows a sixteenth of itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The config's section `augment`: the largest changes, 0 for none; each is drawn uniformly."""

    turn: float = 0.0
    """Angle in degrees, to either side."""
    zoom: float = 0.0
    """Change of the scale: factors are drawn between 1 / (1 + zoom) and 1 + zoom, uniformly in
    their logarithms; at most `MOST_ZOOM`."""
    shift: float = 0.0
    """Shift in both directions, as a share of the picture's side, in [0, 1]."""
    brightness: float = 0.0
    """Number added to all pixels, of a range of 1 from black to white, in [0, 1]."""
    contrast: float = 0.0
    """Change of the factor of all pixels' distances from the picture's mean, in [0, 1]."""
    saturation: float = 0.0
    """Change of the factor of all pixels' distances from their grey values, in [0, 1]."""

    def __post_init__(self) -> None:
        check_shares(self, "augment", "shift", "brightness", "contrast", "saturation")
        if not 0 <= self.turn <= 180:
            raise InputError(f"augment.turn is {self.turn}: use 0 to 180 degrees")
        if not 0 <= self.zoom <= MOST_ZOOM:
            raise InputError(
                f"augment.zoom is {self.zoom}: use 0 to {MOST_ZOOM}, with which scales are up to "
                f"{1 + MOST_ZOOM}"
            )

    @property
    def moves(self) -> bool:
        return bool(self.turn or self.zoom or self.shift)

    @property
    def colours(self) -> bool:
        return bool(self.brightness or self.contrast or self.saturation)


def draw(config: AugmentConfig, key: PRNGKeyArray, count: int) -> dict[str, Float[Array, "b n"]]:
    """Draw the changes of `count` rows: "moves" (b, 4) and "colours" (b, 3), each if there are any.

    "moves" are angle in radians, logarithm of the scale, and shifts down and to the right as shares
    of the side; "colours" are those of brightness, contrast and saturation.
    """
    drawn = {}
    if config.moves:
        most = (np.deg2rad(config.turn), np.log1p(config.zoom), config.shift, config.shift)
        drawn["moves"] = _uniform(jax.random.fold_in(key, 0), count, most)
    if config.colours:
        most = (config.brightness, config.contrast, config.saturation)
        drawn["colours"] = _uniform(jax.random.fold_in(key, 1), count, most)
    return drawn


def _uniform(key: PRNGKeyArray, count: int, most: tuple[float, ...]) -> Float[Array, "b n"]:
    limits = jnp.asarray(most, jnp.float32)[None]
    return limits * jax.random.uniform(key, (count, len(most)), minval=-1.0, maxval=1.0)


def moved(
    images: Float[Array, "b h w c"], labels: UInt8[Array, "b h w"], moves: Float[Array, "b 4"]
) -> tuple[Float[Array, "b h w c"], UInt8[Array, "b h w"]]:
    """Return pictures and label maps after the same turns, zooms and shifts.

    Pictures are interpolated linearly and repeat their border; labels are those of the nearest
    pixels, and unlabelled beyond the border.
    """
    places = jax.vmap(partial(_sources, *labels.shape[1:]))(moves)

    def channel(picture: Float[Array, "h w"], at: Float[Array, "2 h w"]) -> Float[Array, "h w"]:
        return map_coordinates(picture, [*at], order=1, mode="nearest")

    def of_labels(ids: UInt8[Array, "h w"], at: Float[Array, "2 h w"]) -> UInt8[Array, "h w"]:
        found = map_coordinates(
            ids.astype(jnp.float32), [*at], order=0, mode="constant", cval=UNLABELLED
        )
        return found.astype(jnp.uint8)

    pictures = jax.vmap(jax.vmap(channel, (-1, None), -1))(images, places)
    return pictures, jax.vmap(of_labels)(labels, places)


def _sources(height: int, width: int, moves: Float[Array, " 4"]) -> Float[Array, "2 h w"]:
    """Rows and columns that the pixels of a changed picture come from."""
    angle, scale, down, right = moves
    y, x = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2 - down * height,
        jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2 - right * width,
        indexing="ij",
    )
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    rows, columns = cosine * y - sine * x, sine * y + cosine * x
    smaller = jnp.exp(-scale)
    return jnp.stack([smaller * rows + (height - 1) / 2, smaller * columns + (width - 1) / 2])


def recoloured(
    images: Float[Array, "b h w 3"], colours: Float[Array, "b 3"]
) -> Float[Array, "b h w 3"]:
    """Return pictures in [-1, 1] with changed saturation, contrast and brightness, clipped."""
    brightness, contrast, saturation = (x[:, None, None, None] for x in colours.T)
    grey = jnp.sum(images * jnp.asarray(LUMA)[None, None, None], -1, keepdims=True)
    images = grey + (1 + saturation) * (images - grey)
    mean = jnp.mean(images, (1, 2, 3), keepdims=True)
    images = mean + (1 + contrast) * (images - mean)
    return jnp.clip(images + 2 * brightness, -1.0, 1.0)


def augmented(
    images: Float[Array, "b h w 3"], labels: UInt8[Array, "b h w"], batch: dict[str, Array]
) -> tuple[Float[Array, "b h w 3"], UInt8[Array, "b h w"]]:
    """Return pictures in [-1, 1] and label maps, changed as a batch's draws say."""
    if "moves" in batch:
        images, labels = moved(images, labels, batch["moves"])
    if "colours" in batch:
        images = recoloured(images, batch["colours"])
    return images, labels

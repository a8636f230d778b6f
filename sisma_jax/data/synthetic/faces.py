"""One synthetic face at a time: picture, label map, part masks."""

import numpy as np
from jaxtyping import Bool, UInt8

from sisma_jax.data.synthetic.appearance import sample_look
from sisma_jax.data.synthetic.figure import (
    APPEARANCE,
    generator,
    majority,
    part_masks,
    sample_figure,
)
from sisma_jax.data.synthetic.render import render


def face(
    seed: int, index: int, size: int, *, look: int = 0
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """Face `index` of the endless set `seed` at `size` pixels: (RGB image, label map).

    The label map (ids of `sisma_jax.data.classes`) is the same for every `look`; the image differs.
    The result depends on the arguments only. Intended sizes are 32 to 1024.
    """
    figure = sample_figure(seed, index, size)
    samples = figure.label_samples(size)
    appearance = sample_look(generator(seed, index, APPEARANCE, look))
    return render(figure, appearance, size, samples), majority(samples)


def face_parts(
    seed: int, index: int, size: int, mask_size: int | None = None
) -> dict[str, Bool[np.ndarray, "m m"]]:
    """Part masks of face `index` by class name, in index order, absent parts left out.

    Painted in that order, each over those before, they give the label map of `face`. `mask_size`
    (default `size`) is the masks' own resolution, `size` that of the image they belong to.
    """
    figure = sample_figure(seed, index, size)
    return part_masks(figure, figure.label_samples(mask_size or size))

"""Procedural faces with their label maps: the data set that needs no download.

A face has two independent halves. Its geometry (pose, proportions, hair style, expression, what is
worn) comes from (seed, index) and fixes the label map; its look (colours, light, make-up, beard,
patterns, background) comes from (seed, index, look) and is independent of the geometry. So one
label map has many correct pictures, one per look, which is what a generative model has to learn.

    python -m sisma_jax.data.synthetic --out data/synthetic --count 2000 --size 64 --seed 0

writes look 0 of the faces 0 to count - 1 in the raw layout of CelebAMask-HQ (`writer`).

Geometry: `curves`, `head` (pose), `features`, `hair`, `attire` (outlines), `figure` (depth order).
Look: `appearance`, `plate`, `colouring`, `lighting`, `details`, `render`. Nothing here imports jax,
so that workers start quickly.
"""

from sisma_jax.data.synthetic.faces import face, face_parts
from sisma_jax.data.synthetic.writer import (
    read_settings,
    read_unfinished_settings,
    write_dataset,
)

__all__ = ["face", "face_parts", "read_settings", "read_unfinished_settings", "write_dataset"]

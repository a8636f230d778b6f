"""The nineteen CelebAMask-HQ classes: names, colours and left-right pairs.

The index of a name is its class id and also its place in the merge order: part masks are painted
from 1 to 18 and a later class overwrites an earlier one. `l_` and `r_` are the subject's left and
right, so `l_eye` lies on the viewer's right.

Source: Lee et al., "MaskGAN: Towards Diverse and Interactive Facial Image Manipulation", CVPR 2020,
and the scripts of its CelebAMask-HQ repository.
"""

import numpy as np

CLASSES: tuple[str, ...] = (
    "background",
    "skin",
    "nose",
    "eye_g",
    "l_eye",
    "r_eye",
    "l_brow",
    "r_brow",
    "l_ear",
    "r_ear",
    "mouth",
    "u_lip",
    "l_lip",
    "hair",
    "hat",
    "ear_r",
    "neck_l",
    "neck",
    "cloth",
)
"""`CLASSES[i]` names id `i`; `eye_g` is glasses, `ear_r` an earring, `neck_l` a necklace."""

PALETTE: np.ndarray = np.array(
    [
        (0, 0, 0),
        (204, 0, 0),
        (76, 153, 0),
        (204, 204, 0),
        (51, 51, 255),
        (204, 0, 204),
        (0, 255, 255),
        (255, 204, 204),
        (102, 51, 0),
        (255, 0, 0),
        (102, 204, 0),
        (255, 255, 0),
        (0, 0, 153),
        (0, 0, 204),
        (255, 51, 153),
        (0, 204, 204),
        (0, 51, 0),
        (255, 153, 51),
        (0, 204, 0),
    ],
    dtype=np.uint8,
)
"""RGB colours by class id, uint8 (19, 3), read-only: those of the data set's own figures."""
PALETTE.setflags(write=False)

FLIP_PAIRS: tuple[tuple[int, int], ...] = ((4, 5), (6, 7), (8, 9))
"""Class ids that trade places when an image is mirrored: eyes, brows, ears."""

UNLABELLED: int = 255
"""Label of a pixel without a class; losses and metrics leave such pixels out."""

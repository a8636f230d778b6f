"""CelebAMask-HQ's class names by id, in the two published orders.

Both `data` and `models` (for published networks) read them here. `l_` and `r_` are the subject's
left and right; `eye_g` is glasses, `ear_r` an earring, `neck_l` a necklace.
"""

CANONICAL: tuple[str, ...] = (
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
"""The data set's order, in which its part masks are also painted (Lee et al., CVPR 2020, and the
scripts of the CelebAMask-HQ repository)."""

BISENET: tuple[str, ...] = (
    "background",
    "skin",
    "l_brow",
    "r_brow",
    "l_eye",
    "r_eye",
    "eye_g",
    "l_ear",
    "r_ear",
    "ear_r",
    "nose",
    "mouth",
    "u_lip",
    "l_lip",
    "neck",
    "neck_l",
    "cloth",
    "hair",
    "hat",
)
"""Order of face-parsing.PyTorch (a BiSeNet), which much other software writes."""

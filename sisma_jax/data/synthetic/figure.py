"""One face's geometry: every outline in depth order, sampled from (seed, index) alone."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from sisma_jax.data.classes import CLASSES
from sisma_jax.data.synthetic import attire, features, hair
from sisma_jax.data.synthetic.curves import Canvas, Points, ribbon
from sisma_jax.data.synthetic.head import Chance, Pose

CLASS_ID = {name: index for index, name in enumerate(CLASSES)}

GEOMETRY, APPEARANCE = 0, 1
"""Streams of random numbers of one face."""


def generator(seed: int, index: int, stream: int, look: int = 0) -> np.random.Generator:
    """Random generator for the geometry of one face, or for one of its looks."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, stream, look)))


def majority(samples: UInt8[np.ndarray, "m m"]) -> UInt8[np.ndarray, "h w"]:
    """The most frequent id of each 2 x 2 block of samples; the higher of two equally frequent."""
    a, b = samples[0::2, 0::2], samples[0::2, 1::2]
    c, d = samples[1::2, 0::2], samples[1::2, 1::2]
    low, high = np.minimum(a, b), np.maximum(a, b)
    low_, high_ = np.minimum(c, d), np.maximum(c, d)
    least, most = np.minimum(low, low_), np.maximum(high, high_)
    inner, outer = np.maximum(low, low_), np.minimum(high, high_)
    second, third = np.minimum(inner, outer), np.maximum(inner, outer)
    below = np.where((least == second) & (third != most), least, third)
    return np.where(second == third, second, below)


_FEATURES = ("l_eye", "r_eye", "l_brow", "r_brow")
_ABOVE = {
    "skin": np.isin(CLASSES, ("nose", "eye_g", *_FEATURES, "mouth", "u_lip", "l_lip")),
    "eye_g": np.isin(CLASSES, _FEATURES),
}
"""Classes that cover a part, by its name; its mask continues below them, as in the real data."""


@dataclass(frozen=True)
class Figure:
    """A face without colours. `layers` are (class name, outline) from back to front."""

    pose: Pose
    build: features.Build
    layers: list[tuple[str, Points]]
    outline: Points
    ears: list[features.Ear]
    eyes: dict[int, features.Eye]
    nostrils: tuple[Points, Points]
    wings: tuple[Points, Points]
    folds: tuple[Points, Points]
    mouth: features.Mouth
    style: hair.Style
    hat: hair.Hat | None
    glasses: attire.Glasses | None
    body: attire.Body

    def label_samples(self, size: int) -> UInt8[np.ndarray, "m m"]:
        """Class ids at twice the resolution of a picture of `size` pixels."""
        canvas = Canvas(size)
        for name, polygon in self.layers:
            canvas.fill(polygon, CLASS_ID[name])
        return canvas.samples()

    def covers(self, polygons: list[Points], size: int) -> Bool[np.ndarray, "h w"]:
        """Pixels of a picture of `size` whose centre lies in one of the polygons."""
        canvas = Canvas(size)
        for polygon in polygons:
            canvas.fill(polygon, 1)
        return canvas.samples()[::2, ::2] > 0


def sample_figure(seed: int, index: int, size: int) -> Figure:
    """The geometry of face `index`; `size` only keeps thin parts at least one pixel wide."""
    chance = Chance(generator(seed, index, GEOMETRY))
    pixel = 2 / size
    pose = Pose(
        x=chance.about(0.0, 0.02),
        y=chance.between(-0.10, -0.04),
        scale=chance.about(0.545, 0.020),
        yaw=math.radians(chance.about(0.0, 14.0, limit=2.3)),
        pitch=math.radians(chance.about(0.0, 6.0)),
        roll=math.radians(chance.about(0.0, 3.5)),
    )
    build = features.sample_build(chance)
    hatted = chance.happens(0.12)
    style = hair.sample_style(chance, hatted)
    outline = features.face_outline(chance, pose, build)
    ear_size = chance.about(1.0, 0.12)
    ears = {side: features.ear(pose, build, side, ear_size) for side in (-1, 1)}
    mouth = features.mouth(chance, pose, build)
    gaze = features.sample_gaze(chance, pose, build)
    eyes = {side: features.eye(pose, build, gaze, side) for side in (-1, 1)}
    brow, brow_width = features.brow_line(chance)
    body = attire.sample_body(chance, pose, build)
    glasses = attire.sample_glasses(chance, pose, build) if chance.happens(0.18) else None
    earrings = chance.pick({"none": 0.80, "stud": 0.07, "drop": 0.08, "hoop": 0.05})
    has_necklace = chance.happens(0.17)
    hat = hair.sample_hat(chance, pose) if hatted else None

    layers: list[tuple[str, Points]] = []

    def paint(name: str, *polygons: Points) -> None:
        layers.extend((name, polygon) for polygon in polygons)

    paint("hair", *hair.back_of_hair(pose, style))
    paint("neck", body.neck)
    paint("cloth", *body.cloth)
    if has_necklace:
        paint("neck_l", *attire.necklace(chance, pose, build, body, pixel))
    shown = {side: ears[side].facing and not style.covers_ears[side > 0] for side in (-1, 1)}
    for side, name in ((1, "l_ear"), (-1, "r_ear")):
        if shown[side] and not ears[side].in_front:
            paint(name, ears[side].outline)
    paint("skin", outline)
    for side, name in ((1, "l_ear"), (-1, "r_ear")):
        if shown[side] and ears[side].in_front:
            paint(name, ears[side].outline)
    paint("nose", features.nose_outline(pose, build))
    paint("u_lip", mouth.upper)
    paint("l_lip", mouth.lower)
    if mouth.opening is not None:
        paint("mouth", mouth.opening)
    if glasses is not None:
        paint("eye_g", *glasses.shapes)
    for side, name in ((1, "l_eye"), (-1, "r_eye")):
        if glasses is None or not glasses.dark:
            paint(name, eyes[side].opening)
    left_brow, right_brow = pose.on_both_sides(ribbon(brow, brow_width))
    paint("l_brow", left_brow)
    paint("r_brow", right_brow)
    paint("hair", *hair.front_of_hair(pose, style))
    for ear in ears.values():
        if earrings != "none" and ear.facing:
            paint("ear_r", *attire.earring(earrings, ear, pose.scale, pixel))
    if hat is not None:
        paint("hat", *hat.shapes)
    return Figure(
        pose=pose,
        build=build,
        layers=layers,
        outline=outline,
        ears=[ear for side, ear in ears.items() if shown[side]],
        eyes=eyes,
        nostrils=features.nostrils(pose, build),
        wings=features.nose_wings(pose, build),
        folds=features.smile_folds(pose, build),
        mouth=mouth,
        style=style,
        hat=hat,
        glasses=glasses,
        body=body,
    )


def part_masks(
    figure: Figure, samples: UInt8[np.ndarray, "n n"]
) -> dict[str, Bool[np.ndarray, "m m"]]:
    """`face_parts` of a figure, from its label samples at twice the masks' size."""
    labels = majority(samples)
    parts = {name: labels == index for index, name in enumerate(CLASSES) if index}
    outlines = {"skin": [figure.outline], "eye_g": figure.glasses.shapes if figure.glasses else []}
    for name, above in _ABOVE.items():
        if outlines[name]:
            parts[name] |= above[labels] & figure.covers(outlines[name], len(labels))
    return {name: mask for name, mask in parts.items() if mask.any()}

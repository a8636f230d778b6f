"""Colours before light: regions, backdrop, complexion, beard, hair, hat, cloth and teeth."""

import numpy as np

from sisma_jax.data.synthetic.curves import ribbon
from sisma_jax.data.synthetic.figure import CLASS_ID
from sisma_jax.data.synthetic.plate import Plate

_WHITE_OF_EYE = np.array((0.92, 0.89, 0.87))


def regions(plate: Plate) -> None:
    """The plain colour of every class; below glasses it is skin."""
    look = plate.look
    ear = look.skin * (1.0, 0.95, 0.94)
    brow = 0.82 * look.brow + 0.18 * look.skin
    table = np.zeros((3, 256), np.float32)
    for name, colour in {
        "skin": look.skin,
        "nose": look.skin * (1.0, 0.985, 0.98),
        "eye_g": look.skin,
        "l_eye": _WHITE_OF_EYE,
        "r_eye": _WHITE_OF_EYE,
        "l_brow": brow,
        "r_brow": brow,
        "l_ear": ear,
        "r_ear": ear,
        "mouth": (0.30, 0.09, 0.09),
        "u_lip": look.lips * 0.90,
        "l_lip": look.lips,
        "hair": look.hair,
        "hat": look.hat,
        "ear_r": look.earring,
        "neck_l": look.necklace,
        "neck": look.skin * 0.97,
        "cloth": look.cloth,
    }.items():
        table[:, CLASS_ID[name]] = colour
    plate.rgb = np.take(table, plate.labels, axis=1)


def backdrop(plate: Plate) -> None:
    """Two colours across the picture or around the head, at times with soft lights."""
    look = plate.look
    x, y = plate.soft_axis[None, :], plate.soft_axis[:, None]
    if look.backdrop == "glow":
        mix = 1 - np.exp(-0.9 * ((x - 0.2 * look.light[0]) ** 2 + (y + 0.15) ** 2))
    else:
        mix = np.clip(0.5 + 0.45 * (look.slant[0] * x + look.slant[1] * y), 0, 1)
        mix = mix * mix * (3 - 2 * mix)
    first, second = (np.asarray(colour, np.float32)[:, None, None] for colour in look.background)
    planes = first + mix * (second - first)
    if look.backdrop == "bokeh":
        spread = 0.1 + 0.2 * look.spots[:, 2:3].repeat(2, axis=1)
        centre = look.spots[:, :2] * (2.2, 2.0) - 1.1
        for part, plane in enumerate(planes):
            tint = 1 + 0.3 * (look.spots[:, 4] - 0.5) * (part - 1)
            heights = 0.35 * (look.spots[:, 3] - 0.35) * tint
            plane += plate.blobs(centre, spread, heights)
    behind = plate.labels == 0
    for plane, colour in zip(plate.rgb, planes, strict=True):
        np.copyto(plane, plate.sharp(colour), where=behind)


def complexion(plate: Plate) -> None:
    """Blush on cheeks and nose, eye shadow."""
    look, figure = plate.look, plate.figure
    pose, build, scale = figure.pose, figure.build, figure.pose.scale
    at = np.array([(-0.58, 0.46), (0.58, 0.46), (0.0, build.nose_base - 0.06)])
    places = pose.on_face(at, np.array([0, 0, 0.15]))
    spreads = np.array([(0.24, 0.18), (0.24, 0.18), (0.12, 0.09)]) * scale
    red = plate.blobs(places, spreads, look.blush * np.array([1, 1, 0.5]))
    bare = (plate.labels >= CLASS_ID["skin"]) & (plate.labels <= CLASS_ID["eye_g"])
    plate.blend(plate.sharp(red) * bare, look.skin * (0.98, 0.66, 0.66))
    lids = np.array([eye.crease.mean(0) for eye in figure.eyes.values()])
    lids[:, 1] += 0.02 * scale
    shade = plate.blobs(lids, np.full((2, 2), (0.20, 0.07)) * scale, np.ones(2))
    shade *= look.eyeshadow_opacity
    plate.blend(plate.sharp(shade) * (plate.labels == CLASS_ID["skin"]), look.eyeshadow)


def beard(plate: Plate) -> None:
    """Hair of the lower face, from stubble to a full beard; it is part of the look."""
    look, build, pose = plate.look, plate.figure.build, plate.figure.pose
    if look.beard == "none":
        return
    spots = [  # x, y, spread x, spread y, density: the moustache
        (x, build.mouth - 0.19 + 0.25 * x * x, 0.10, 0.065, 0.7) for x in (0.06, 0.2, 0.34)
    ]
    if look.beard != "moustache":
        chin = build.chin - 0.12
        spots += [(0, chin, 0.14, 0.15, 0.85), (0.2, chin, 0.14, 0.15, 0.85)]
        spots += [(0.30, 1.12, 0.10, 0.12, 0.6), (0.38, 1.0, 0.10, 0.12, 0.6)]
    if look.beard in ("stubble", "full"):
        jaw = [(0.93, 0.42), (0.90, 0.66), (0.82, 0.90), (0.66, 1.14), (0.42, build.chin - 0.16)]
        spots += [(x, y, 0.14, 0.15, 0.85) for x, y in jaw]
    half = np.array(spots)
    both = np.concatenate([half, half[half[:, 0] > 0] * (-1, 1, 1, 1, 1)])
    places = pose.on_face(both[:, :2], 0.03)
    density = plate.blobs(places, both[:, 2:4] * pose.scale, both[:, 4])
    strength = 0.32 if look.beard == "stubble" else 0.85
    grown = plate.sharp(np.clip(1.5 * density - 0.2, 0, 1) * np.float32(strength))
    plate.blend(grown * (plate.labels == CLASS_ID["skin"]), look.brow)


def hair(plate: Plate) -> None:
    """Strands that fall from the parting, winding where the style does, and a sheen across them."""
    look, style, pose = plate.look, plate.figure.style, plate.figure.pose
    px, py = pose.outer(np.array([(style.parting, -1.25)]))[0].tolist()
    x = (plate.axis[None, :] - px) / pose.scale
    y = (plate.axis[:, None] - py) / pose.scale
    across = x / (0.5 + 0.55 * np.clip(y, 0, 1.6))
    wave, _, phase = style.waves
    if wave > 0.02:
        across = across + 1.2 * wave * np.sin(5.5 * y + 2 * np.abs(x) + phase)
    strands = np.take(look.strands, (across * 190).astype(np.int32) & 1023)
    sheen = np.exp(-(((y - 0.42 - 0.35 * x * x) / 0.20) ** 2))
    sheen += 0.5 * np.exp(-(((y - 1.75) / 0.35) ** 2))
    gain = 1 + (0.07 if wave > 0.02 else 0.055) * strands
    gain *= 0.92 + sheen * (1 + 0.25 * strands) * look.sheen
    worn = plate.labels == CLASS_ID["hair"]
    plate.rgb *= np.where(worn, gain, np.float32(1))
    plate.rgb += sheen * worn * np.float32(0.10 * look.sheen)


def hat(plate: Plate) -> None:
    """Band, cuff or visor, and the ribs of a knitted hat."""
    look, worn = plate.look, plate.figure.hat
    if worn is None:
        return
    region = plate.labels == CLASS_ID["hat"]
    plate.blend(plate.drawing(worn.details) * region, look.hat_band)
    if worn.kind == "beanie":
        pose = plate.figure.pose
        ribs = 1 + 0.07 * np.sin(26 * (plate.axis - pose.x) / pose.scale)
        plate.rgb *= np.where(region, ribs, np.float32(1))


def cloth(plate: Plate) -> None:
    """Pattern, hem of the neckline and edges of the collar."""
    look, figure = plate.look, plate.figure
    scale = figure.pose.scale
    cx, cy = figure.pose.body(np.array([(0.0, figure.build.chin)]))[0].tolist()
    x, y = (plate.axis - cx) / scale, (plate.axis - cy) / scale
    worn = plate.labels == CLASS_ID["cloth"]
    wave = {
        "bands": np.sin(17 * y + look.pattern_phase)[:, None],
        "stripes": np.sin(15 * x + look.pattern_phase)[None, :],
        "yoke": ((y - 0.42) * 12)[:, None],
    }.get(look.pattern)
    if wave is not None:
        plate.blend(np.clip(0.3 + 0.9 * wave, 0, 0.6) * worn, look.cloth_second)
    hem = [(ribbon(figure.body.neckline, 0.07 * scale), 0.4)]
    hem += [(ribbon(flap[1:], 0.045 * scale), 0.5) for flap in figure.body.collar]
    plate.blend(plate.drawing(hem) * worn, look.cloth * 0.45)


def teeth(plate: Plate) -> None:
    mouth = plate.figure.mouth
    if mouth.teeth is None:
        return
    shown = plate.drawing([(mouth.teeth, 1.0)])
    shown *= plate.labels == CLASS_ID["mouth"]
    away = (plate.axis - float(mouth.centre[0])) / mouth.half_width
    tone = 1.0 - 0.45 * away * away
    for plane, value in zip(plate.rgb, (0.95, 0.93, 0.89), strict=True):
        plane += shown * (value * tone - plane)

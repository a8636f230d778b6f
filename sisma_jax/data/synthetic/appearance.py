"""Looks of a face: colours, light, make-up, beard, background.

A look is sampled from (seed, index, look), independently of the geometry, so that any mask can have
any look. Colours are RGB float arrays in [0, 1].
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sisma_jax.data.synthetic.head import Chance

Colour = Float[np.ndarray, "3"]

_SKIN = np.array(
    [(240, 206, 186), (230, 186, 158), (214, 164, 132), (182, 130, 97), (136, 92, 68), (92, 60, 46)]
)
_HAIR = {
    "black": (0.24, (30, 26, 26)),
    "dark brown": (0.22, (58, 38, 28)),
    "brown": (0.17, (98, 64, 42)),
    "auburn": (0.08, (128, 62, 36)),
    "dark blond": (0.10, (158, 118, 76)),
    "blond": (0.09, (212, 174, 116)),
    "grey": (0.05, (150, 148, 146)),
    "white": (0.03, (214, 212, 208)),
    "dyed": (0.02, (150, 60, 96)),
}
_IRIS = {
    "brown": (0.5, (84, 52, 30)),
    "hazel": (0.15, (122, 96, 52)),
    "green": (0.12, (92, 122, 84)),
    "blue": (0.15, (86, 128, 168)),
    "grey": (0.08, (128, 140, 150)),
}
_METAL = {"gold": (0.5, (222, 176, 84)), "silver": (0.35, (206, 210, 216)),
          "gem": (0.15, (70, 150, 170))}  # fmt: skip
_FRAME = {
    "black": (0.45, (26, 24, 26)),
    "tortoise": (0.2, (92, 54, 30)),
    "gold": (0.12, (190, 150, 82)),
    "silver": (0.11, (168, 172, 178)),
    "red": (0.06, (140, 34, 42)),
    "blue": (0.06, (38, 58, 110)),
}
BEARDS = {"none": 0.74, "stubble": 0.10, "moustache": 0.03, "goatee": 0.05, "full": 0.08}
PATTERNS = {"plain": 0.68, "bands": 0.12, "stripes": 0.10, "yoke": 0.10}
BACKDROPS = {"gradient": 0.5, "glow": 0.36, "bokeh": 0.14}


@dataclass(frozen=True)
class Look:
    """One appearance. `light` points to the lamp (x right, y down, z to the viewer)."""

    skin: Colour
    lips: Colour
    hair: Colour
    strands: Float[np.ndarray, "1024"]
    sheen: float
    brow: Colour
    iris: Colour
    frame: Colour
    lens: Colour
    lens_opacity: float
    earring: Colour
    necklace: Colour
    hat: Colour
    hat_band: Colour
    cloth: Colour
    cloth_second: Colour
    pattern: str
    pattern_phase: float
    blush: float
    eyeshadow: Colour
    eyeshadow_opacity: float
    liner: float
    beard: str
    backdrop: str
    background: tuple[Colour, Colour]
    slant: tuple[float, float]
    spots: Float[np.ndarray, "n 6"]
    light: tuple[float, float, float]
    ambient: float
    warmth: float
    gloss: float
    lines: float


def _rgb(colour: tuple[int, int, int]) -> Colour:
    return np.array(colour) / 255


def _named(chance: Chance, table: dict[str, tuple[float, tuple[int, int, int]]]) -> Colour:
    name = chance.pick({key: weight for key, (weight, _) in table.items()})
    return _rgb(table[name][1])


def _jitter(chance: Chance, colour: Colour, amount: float) -> Colour:
    """Brightness and tint varied by about `amount`, brightness more than tint."""
    tint = 0.4 * amount * np.clip(chance.rng.standard_normal(3), -2, 2)
    return np.clip(colour * (1 + chance.about(0.0, amount)) * (1 + tint), 0.02, 0.98)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1)))


def _fabric(chance: Chance) -> Colour:
    if chance.happens(0.4):  # black, white, grey, beige
        return _hsv(
            chance.between(0.05, 0.12), chance.between(0.0, 0.2), chance.between(0.10, 0.95)
        )
    return _hsv(chance.rng.random(), chance.between(0.3, 0.8), chance.between(0.25, 0.85))


def _skin_tone(chance: Chance) -> Colour:
    at = chance.rng.random() ** 1.25 * (len(_SKIN) - 1)
    tone = [np.interp(at, np.arange(len(_SKIN)), _SKIN[:, k]) for k in range(3)]
    return _jitter(chance, np.array(tone) / 255, 0.035)


def _strand_profile(chance: Chance) -> Float[np.ndarray, "1024"]:
    """Brightness of hair across its strands: zero-mean, smooth, unit spread."""
    at = np.linspace(0, 2 * np.pi, 1024, endpoint=False)
    profile = np.zeros(1024)
    for count, amount in ((2, 0.7), (5, 0.8), (11, 0.7), (19, 0.45), (37, 0.3)):
        profile += amount * np.sin(
            (count + chance.rng.integers(3)) * at + chance.between(0.0, 6.28)
        )
    return (profile / profile.std()).astype(np.float32)


def sample_look(rng: np.random.Generator) -> Look:
    chance = Chance(rng)
    skin = _skin_tone(chance)
    hair = _jitter(chance, _named(chance, _HAIR), 0.08)
    natural = skin * (0.90, 0.62, 0.60) + (0.03, 0.0, 0.01)
    lipstick = _hsv(
        chance.between(-0.06, 0.03), chance.between(0.55, 0.8), chance.between(0.5, 0.8)
    )
    made_up = chance.happens(0.45)
    paint = chance.between(0.35, 0.85) if made_up else 0.0
    hue, shift = (
        chance.about(0.58, 0.06) if chance.happens(0.5) else chance.rng.random(),
        chance.about(0.0, 0.04),
    )
    saturation, value = chance.between(0.02, 0.42), chance.between(0.22, 0.95)
    angle = chance.between(0.0, 6.28)
    azimuth = math.radians(chance.about(0.0, 32.0))
    elevation = math.radians(chance.between(12.0, 50.0))
    cloth = _fabric(chance)
    hat = _fabric(chance)
    count = int(chance.rng.integers(5, 10))
    spots = chance.rng.random((count, 6))
    return Look(
        skin=skin,
        lips=np.clip(natural * (1 - paint) + lipstick * paint, 0, 1),
        hair=hair,
        strands=_strand_profile(chance),
        sheen=chance.between(0.05, 0.35),
        brow=np.minimum(np.minimum(hair, 0.6) * (0.66, 0.58, 0.54) + 0.12 * skin, 0.8 * skin),
        iris=_jitter(chance, _named(chance, _IRIS), 0.12),
        frame=_jitter(chance, _named(chance, _FRAME), 0.10),
        lens=_hsv(chance.rng.random(), 0.35, chance.between(0.2, 0.6)),
        lens_opacity=chance.between(0.02, 0.20),
        earring=_jitter(chance, _named(chance, _METAL), 0.08),
        necklace=_jitter(chance, _named(chance, _METAL), 0.08),
        hat=hat,
        hat_band=np.clip(hat * 0.55 if chance.happens(0.6) else _fabric(chance), 0, 1),
        cloth=cloth,
        cloth_second=_fabric(chance),
        pattern=chance.pick(PATTERNS),
        pattern_phase=chance.between(0.0, 6.28),
        blush=chance.between(0.05, 0.30) + 0.15 * made_up,
        eyeshadow=_hsv(chance.between(-0.25, 0.08), 0.40, chance.between(0.25, 0.55)),
        eyeshadow_opacity=chance.between(0.15, 0.45) if made_up else 0.08,
        liner=chance.between(0.75, 1.0) if made_up else chance.between(0.45, 0.7),
        beard=chance.pick(BEARDS) if not made_up else "none",
        backdrop=chance.pick(BACKDROPS),
        background=(
            _hsv(hue, saturation, value),
            _hsv(
                hue + shift,
                saturation * 0.9,
                float(np.clip(value + chance.about(0.0, 0.2), 0.1, 1)),
            ),
        ),
        slant=(math.cos(angle), math.sin(angle)),
        spots=spots,
        light=(
            math.sin(azimuth) * math.cos(elevation),
            -math.sin(elevation),
            math.cos(azimuth) * math.cos(elevation),
        ),
        ambient=chance.between(0.50, 0.70),
        warmth=chance.about(0.01, 0.03),
        gloss=chance.between(0.03, 0.14),
        lines=chance.between(0.08, 0.20) if chance.happens(0.25) else chance.between(0.0, 0.07),
    )

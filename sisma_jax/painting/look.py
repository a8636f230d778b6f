"""Texts of the page, and its style."""

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sisma_jax.data.classes import CELEBAMASK, FLIP_PAIRS, ClassSet

FONT = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")
"""Fonts of the visitor's machine: the page loads none."""

_HERE = Path(__file__).parent
STYLE = (_HERE / "page.css").read_text("utf-8")
EASEL = (_HERE / "easel.js").read_text("utf-8")

FETCH = "() => setTimeout(() => document.querySelector('#download').click(), 200)"
"""Click the hidden button, which by then holds the file."""

_HOW_TO_START = (
    "Upload a photo, or take a face of this page. Its mask appears on the canvas; paint over it "
    "the parts to change. The rest of the photo stays."
)
_NO_PARSER = (
    "There is no face parser to find a photo's mask (the server's terminal says why): upload it, "
    "or paint it over the photo."
)
FOUND_MASK = (
    "The face parser has found this mask. If it is wrong, correct it and press *The painting is "
    "its mask*. Then paint the parts to change, and press *Edit the photo*."
)
NEEDS_MASK = (
    "Upload the photo's mask, or paint it over the photo and press *The painting is its mask*. "
    "Then paint the parts to change, and press *Edit the photo*."
)
SERVER_FAILED = (
    "This failed on the server; its terminal has the details: try again, or with other settings."
)
READY = "Paint the parts to change over the mask, and press *Edit the photo*."

REFERENCES_GIVE_ALL = "References give the style of all painted classes."
FOUND_REFERENCE = "The face parser has found the reference's mask."
PAINTED_REFERENCE = (
    "There is no face parser, so the painting is the reference's mask. To paint its own, upload it "
    "in *Edit a photo*, and when it has its mask there, press *Take the mask's own face* here."
)

NO_SHAPE = (
    "Parts have the shapes that are painted. To give them those of another mask, take it here, "
    "then choose or paint the mask that changes."
)

_SPOKEN = {
    "l_eye": "left eye",
    "r_eye": "right eye",
    "l_brow": "left brow",
    "r_brow": "right brow",
    "l_ear": "left ear",
    "r_ear": "right ear",
    "u_lip": "upper lip",
    "l_lip": "lower lip",
    "eye_g": "glasses",
    "ear_r": "earring",
    "neck_l": "necklace",
    "cloth": "clothes",
}
"""Names on the page for CelebAMask-HQ's short names."""


def spoken(names: Iterable[str]) -> list[str]:
    """Names of classes on the page."""
    return [_SPOKEN.get(name, name.replace("_", " ")) for name in names]


def caption(parts: Iterable[str]) -> str:
    """Caption of a reference, from the classes that are taken from it."""
    return ", ".join(spoken(parts)) or "all parts"


def first_faces(count: int) -> str:
    """The note below the faces that the page opens with."""
    if count > 1:
        return "Faces of this mask, each with other noise."
    return "The face of this mask in its own style." if count else "There is no face yet."


def shapes_taken(*, repaired: bool) -> str:
    """A note on how faces take the shapes of the other mask."""
    how = (
        "the nearest parts fill the places that a part leaves"
        if repaired
        else "parts may overlap, and nothing fills the places that they leave"
    )
    return (
        "Faces take the shapes of this mask: those of the chosen parts where both masks have them, "
        f"or those of all parts. The painting stays as it is. For this model {how}."
    )


def no_reference(*, draws_styles: bool) -> str:
    """A sentence on faces without a reference."""
    if draws_styles:
        return "There is no reference: the style of faces is drawn from noise."
    return (
        "There is no reference, and this model draws faces in the style of one only: take the "
        "mask's own face, or upload one."
    )


def not_given(names: Iterable[str], instead: str) -> str:
    """A sentence on the painted classes that no reference gives, and how they are drawn instead."""
    parts = html.escape(", ".join(spoken(names)))
    if not parts:
        return REFERENCES_GIVE_ALL
    return f"No reference gives {parts}: {instead}."


def easel(classes: ClassSet, size: int) -> dict[str, Any]:
    """Data on brushes for `easel.js`."""
    names = spoken(classes.names)
    pairs = FLIP_PAIRS if classes == CELEBAMASK else ()
    sided = {label for pair in pairs for label in pair}
    return {
        "size": size,
        "names": names,
        "titles": ["left and right are the person's" * (i in sided) for i in range(len(names))],
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in classes.colours],
    }


def how_to_start(has_parser: bool) -> str:
    """The first note beside a photo; the terminal says why there is no face parser."""
    return _HOW_TO_START if has_parser else f"{_HOW_TO_START}\n\n{_NO_PARSER}"


def title(name: str, size: int, classes: ClassSet) -> str:
    """The head of the page."""
    return (
        "<h1>Paint a mask, see faces</h1>"
        f"<p>{html.escape(name)} · {size} × {size} pixels · {len(classes)} classes</p>"
    )

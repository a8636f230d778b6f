"""Event handlers of the page.

A visitor's state is on the canvas and in the page's states: the sheet (the mask that the painting
began with, and the face it came with), the subject (the photo that is edited, with its own mask),
the result of editing it, and the last faces made.
"""

import dataclasses
import functools
import html
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.models.generators import generator
from sisma_jax.painting import canvas, limits, look
from sisma_jax.painting.starts import Subject
from sisma_jax.painting.studio import Reference, Shape, Studio, write_faces, write_photo
from sisma_jax.painting.temporary import TemporaryFiles
from sisma_jax.synthesis.options import SamplingOptions

PHOTO_TAB = "photo"
THUMBNAILS = 6
"""Starting masks shown at a time."""
_THUMBNAIL_SIDE, _FACE_SIDE = 96, 256
"""Least side in pixels at which thumbnails, and faces, are shown."""


@dataclasses.dataclass(frozen=True)
class Made:
    """The last faces made."""

    faces: np.ndarray
    labels: np.ndarray
    seed: int
    chosen: int | None = None


def show_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: show InputError as a sentence on the page, and other errors without details."""

    @functools.wraps(handler)
    def wrapped(*args: Any, **options: Any) -> Any:
        try:
            return handler(*args, **options)
        except InputError as error:
            sentence = html.escape(str(error))
            raise gr.Error(sentence, duration=15, print_exception=False) from None
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(look.SERVER_FAILED, duration=15, print_exception=True) from error

    return wrapped


def viewed(face: np.ndarray) -> np.ndarray:
    """A face, enlarged to the size at which it is shown."""
    side = max(len(face), _FACE_SIDE)
    return np.asarray(Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC))


def gallery(made: Made) -> dict[str, Any]:
    """Properties of the gallery of faces."""
    count = len(made.faces)
    columns = 2 if count <= 4 else 3 if count <= 9 else 4
    return {"value": [viewed(face) for face in made.faces], "columns": columns}


def note(made: Made, seconds: float) -> str:
    """The line below the gallery."""
    what = f"{len(made.faces)} faces" if len(made.faces) > 1 else "One face"
    return f"{what} of seed {made.seed} in {seconds:.1f} s."


def with_face(sheet: Subject) -> Subject:
    """Return the sheet; raises InputError unless its mask came with a face."""
    if sheet.photo is None:
        raise InputError("this mask came without a face: choose one that has it, or upload a photo")
    return sheet


def chosen_face(made: Made) -> Subject:
    """The face that was clicked, or the only one, with its mask.

    Raises:
      InputError: if none of several faces was clicked.
    """
    if not len(made.faces):
        raise InputError("there is no face yet: make one first")
    if made.chosen is None and len(made.faces) > 1:
        raise InputError("no face is chosen: click one of them first")
    return Subject(made.labels, made.faces[made.chosen or 0])


class Handlers:
    """Handlers for a studio, with `files` for uploads and downloads.

    `easel` is the canvas's value as an argument, and its new value in a result.
    """

    def __init__(self, studio: Studio, files: TemporaryFiles):
        self.studio, self.files = studio, files
        self.one_pass = generator(studio.synthesizer.config).one_pass
        """Whether the model has no solver and no guidance."""
        self.most_steps = 1 if self.one_pass else max(limits.MOST_STEPS, studio.options.steps)
        self.most_guidance = max(limits.MOST_GUIDANCE, studio.options.guidance)
        self.most_faces = limits.MOST_FACES if studio.draws_styles else 1
        """The most faces of a request: without random styles or noise all would be equal."""

    def labels(self, easel: Any) -> np.ndarray:
        """The painted label map."""
        return canvas.unpacked(easel, self.studio.size, self.studio.classes)

    def options(self, steps: Any, guidance: Any, style_guidance: Any = 1.0) -> SamplingOptions:
        """The options of a request, within the page's limits; the solver is the run's."""
        return SamplingOptions(
            solver=self.studio.options.solver,
            steps=limits.integer("steps", steps, 1, self.most_steps),
            guidance=limits.number("guidance", guidance, 0, self.most_guidance),
            style_guidance=limits.number(
                "style guidance", style_guidance, 0, limits.MOST_STYLE_GUIDANCE
            ),
        )

    def shape(self, other: np.ndarray | None, parts: Sequence[str], share: Any) -> Shape | None:
        """What parts take the shapes of another mask; None without one."""
        share = limits.number("share", share, 0, 1)
        return None if other is None else Shape(other, tuple(parts), share)

    # --- The sheet

    def thumbnails(self, first: int) -> list[np.ndarray]:
        """Thumbnails of the masks from `first` on; grey if one cannot be read."""
        masks = []
        for i in range(first, min(first + THUMBNAILS, self.studio.starts.count)):
            try:
                masks.append(self.read_start(i).labels)
            except InputError:
                masks.append(np.full((self.studio.size,) * 2, UNLABELLED, np.uint8))
        return [canvas.thumbnail(mask, self.studio.classes, _THUMBNAIL_SIDE) for mask in masks]

    def read_start(self, index: int) -> Subject:
        """Read a starting mask.

        Raises:
          InputError: if it cannot be read; the reason, with file names, is printed in the terminal.
        """
        try:
            return self.studio.starts.read(index)
        except InputError as error:
            print(f"mask {index} to begin with: {error}", file=sys.stderr, flush=True)
            raise InputError(f"mask {index} cannot be read on the server: take another") from error

    def put_up(self, sheet: Subject) -> tuple:
        """-> sheet, easel"""
        return sheet, gr.HTML(canvas.packed(sheet.labels), photo=None)

    @show_errors
    def more(self, first: int) -> tuple:
        """-> number of the first thumbnail, thumbnails"""
        first = first + THUMBNAILS if first + THUMBNAILS < self.studio.starts.count else 0
        return first, gr.Gallery(self.thumbnails(first), selected_index=None)

    @show_errors
    def start(self, first: int, event: gr.SelectData) -> tuple:
        """-> sheet, easel"""
        shown = min(THUMBNAILS, self.studio.starts.count - first)
        return self.put_up(self.read_start(first + limits.place("mask", event.index, shown)))

    @show_errors
    def upload_mask(self, path: str | None) -> tuple:
        """-> sheet, easel"""
        return self.put_up(Subject(self.studio.read_mask(self.files.uploaded(path)), None))

    @show_errors
    def download_mask(self, easel: Any) -> str:
        return str(self.studio.write_mask(self.files.new_folder(), self.labels(easel)))

    # --- New faces

    @show_errors
    def make(
        self, easel, count, seed, steps, guidance, other, parts, share,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        references: Sequence[Reference] = (), between: float = 1.0, style_guidance: float = 1.0,
    ) -> tuple:  # fmt: skip
        """-> made, gallery, note"""
        begun = time.perf_counter()
        labels = self.labels(easel)
        seed = limits.integer("seed", seed, 0, limits.MOST_SEED)
        count = limits.integer("the number of faces", count, 1, self.most_faces)
        options = self.options(steps, guidance, style_guidance)
        between = limits.number("between", between, 0, 1)
        shape = self.shape(other, parts, share)
        progress(0, desc="making faces (longer the first time with other settings)")
        faces = self.studio.faces(
            labels,
            options,
            count=count,
            seed=seed,
            style=self.studio.style_of(references, between),
            shape=shape,
            report=lambda done, count: progress((done, count), desc="making faces", unit="faces"),
        )
        made = Made(faces, self.studio.shaped(labels, shape, repair=True)[0], seed)
        return made, gr.Gallery(**gallery(made)), note(made, time.perf_counter() - begun)

    @show_errors
    def choose(self, made: Made, event: gr.SelectData) -> Made:
        return dataclasses.replace(made, chosen=limits.place("face", event.index, len(made.faces)))

    @show_errors
    def download_faces(self, made: Made) -> str:
        return str(write_faces(self.files.new_folder(), made.faces, made.seed))

    # --- A photo; -> tabs, subject, its picture, no result, no picture of it, sheet, easel, note

    def take(self, subject: Subject, note: str) -> tuple:
        easel = gr.HTML(canvas.packed(subject.labels), photo=canvas.data_url(subject.photo))
        tabs = gr.Tabs(selected=PHOTO_TAB)
        return tabs, subject, viewed(subject.photo), None, None, subject, easel, note

    @show_errors
    def upload_photo(self, path: str | None, easel: Any) -> tuple:
        photo = self.studio.read_photo(self.files.uploaded(path))
        if self.studio.parser is None:
            return self.take(Subject(self.labels(easel), photo), look.NEEDS_MASK)
        return self.take(Subject(self.studio.find_mask(photo), photo), look.FOUND_MASK)

    @show_errors
    def use_sheet(self, sheet: Subject) -> tuple:
        return self.take(with_face(sheet), look.READY)

    @show_errors
    def use_made(self, made: Made) -> tuple:
        return self.take(chosen_face(made), look.READY)

    @show_errors
    def use_result(self, result: Subject | None) -> tuple:
        return self.take(_edited(result), look.READY)

    @show_errors
    def upload_own(self, path: str | None, subject: Subject | None) -> tuple:
        photo = _needed(subject).photo
        labels = self.studio.read_mask(self.files.uploaded(path))
        return self.take(Subject(labels, photo), look.READY)

    @show_errors
    def own_as_painted(self, easel: Any, subject: Subject | None) -> tuple:
        return self.take(Subject(self.labels(easel), _needed(subject).photo), look.READY)

    @show_errors
    def back(self, subject: Subject | None) -> tuple:
        return self.take(_needed(subject), look.READY)

    @show_errors
    def edit(
        self, easel, subject, steps, guidance, other, parts, share,
        references: Sequence[Reference] = (), between: float = 1.0,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple:  # fmt: skip
        """-> result, its picture, note"""
        begun = time.perf_counter()
        subject, labels = _needed(subject), self.labels(easel)
        options, shape = self.options(steps, guidance), self.shape(other, parts, share)
        progress(0, desc="editing (longer the first time with other settings)")
        photo = self.studio.edited(
            subject, labels, options, references=references,
            between=limits.number("between", between, 0, 1), shape=shape,
        )  # fmt: skip
        note = f"Edited in {time.perf_counter() - begun:.1f} s."
        shaped = self.studio.shaped(labels, shape, repair=True)[0]
        return Subject(shaped, photo), viewed(photo), note

    @show_errors
    def download_result(self, result: Subject | None) -> str:
        return str(write_photo(self.files.new_folder(), _edited(result).photo))


def _needed(subject: Subject | None) -> Subject:
    if subject is None:
        raise InputError("there is no photo yet: upload one, or take a face of this page")
    return subject


def _edited(result: Subject | None) -> Subject:
    if result is None:
        raise InputError("nothing has been edited yet: paint, then press Edit the photo")
    return result

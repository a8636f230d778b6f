"""Functions behind the page: faces from a mask and a style, edited photos, files."""

import dataclasses
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import write_atomically
from sisma_jax.data import image_files
from sisma_jax.data.classes import UNLABELLED, ClassSet
from sisma_jax.data.label_maps import read_with_share, resize_nearest, write_label_map
from sisma_jax.data.label_values import LENIENT, Reading
from sisma_jax.evaluation.networks import DEFAULT_PARSER, TRAIN_PARSER, check_parser
from sisma_jax.models.face_parser import FaceParser, load_parser
from sisma_jax.models.generators import generator
from sisma_jax.painting.starts import Starts, Subject, find_starts
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.editing import edit
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.shapes import transfer
from sisma_jax.synthesis.soft_masks import SoftMasks
from sisma_jax.synthesis.styles import Style
from sisma_jax.synthesis.synthesizer import Synthesizer

FACES = 4
"""Faces per batch, and the number that the page makes at first."""

Report = Callable[[int, int], None]
"""Function of (faces done, faces in all), called for progress."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A face whose style is taken, and its mask."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    parts: tuple[str, ...] = ()
    """Names of the classes that are taken from it; empty for all."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Another mask, whose shapes parts take."""

    labels: UInt8[np.ndarray, "h w"]
    parts: tuple[str, ...] = ()
    """Names of the classes that take its shapes; empty for all."""
    share: float = 1.0
    """0 for the painted shapes to 1 for those of the other mask."""


def between_two(references: Sequence[Reference]) -> bool:
    """Whether styles are interpolated: between two references, both taken for all parts."""
    return len(references) == 2 and not any(reference.parts for reference in references)


@dataclasses.dataclass(frozen=True)
class Studio:
    """A trained model, with starting masks and a face parser."""

    name: str
    """Name of the run without its folder, since the page shows it."""
    synthesizer: Synthesizer
    starts: Starts
    parser: FaceParser | None
    no_parser: str
    """Why there is no parser; "" if there is one."""
    options: SamplingOptions
    """Solver, and initial steps and guidance: the run's own for its sample grids."""
    reading: Reading = LENIENT
    """Options for reading masks."""

    @classmethod
    def open(
        cls,
        workdir: Path,
        parser: Path | None = None,
        reading: Reading = LENIENT,
    ) -> "Studio":
        """Read a run folder or an export.

        Args:
          workdir: the folder.
          parser: a path that `load_parser` reads; None for `DEFAULT_PARSER` if it exists and fits.
          reading: options for reading masks.

        Raises:
          InputError: if the folder holds no trained SISMA, or `parser` or `reading` does not fit
            its classes.
        """
        synthesizer = Synthesizer.load(workdir, batch_size=FACES)
        run = RunFolder(workdir)
        size, classes = synthesizer.config.image_size, synthesizer.classes
        reading.check(classes)
        loaded, reason = _find_parser(parser, classes, size)
        options = SamplingOptions(steps=1)
        if not generator(synthesizer.config).one_pass:
            samples = run.config().samples
            options = SamplingOptions(
                steps=samples.steps, solver=samples.solver, guidance=samples.guidance
            )
        return cls(
            name=f"{workdir.resolve().name}, step {synthesizer.step}",
            synthesizer=synthesizer,
            starts=find_starts(run, classes, size),
            parser=loaded,
            no_parser=reason,
            options=options,
            reading=reading,
        )

    @property
    def classes(self) -> ClassSet:
        return self.synthesizer.classes

    @property
    def size(self) -> int:
        """Side of masks and faces in pixels."""
        return self.synthesizer.config.image_size

    @property
    def has_style(self) -> bool:
        """Whether the model takes the style of references."""
        return self.synthesizer.has_style

    @property
    def draws_styles(self) -> bool:
        """Whether faces without a reference have random styles, so that they differ."""
        return self.synthesizer.draws_styles

    @property
    def soft_masks(self) -> bool:
        """Whether parts take other shapes without a repaired mask."""
        return generator(self.synthesizer.config).soft_masks

    def first_references(self, sheet: Subject) -> tuple[Reference, ...]:
        """The references that the page opens with: the face of the first mask, for a model that
        draws no face without a reference."""
        if self.draws_styles or sheet.photo is None:
            return ()
        return (Reference(sheet.photo, sheet.labels),)

    def shaped(
        self, labels: UInt8[np.ndarray, "h w"], shape: Shape | None, *, repair: bool = False
    ) -> UInt8[np.ndarray, "1 h w"] | SoftMasks:
        """Return a mask with the shapes of another one; as a label map with `repair`.

        Raises:
          InputError: if one of the two masks lacks a part, or the share is not in [0, 1].
        """
        if shape is None:
            return labels[None]
        return transfer(
            self.synthesizer, labels[None], shape.labels[None], shape.parts or None, shape.share,
            repair=repair,
        )  # fmt: skip

    def faces(
        self,
        labels: UInt8[np.ndarray, "h w"],
        options: SamplingOptions,
        *,
        count: int,
        seed: int,
        style: Style | None = None,
        shape: Shape | None = None,
        report: Report = lambda done, count: None,
    ) -> UInt8[np.ndarray, "count h w 3"]:
        """Return `count` faces of one mask, with the shapes of another one if `shape` says so.

        Face i has the noise of (seed, i). Style guidance has no effect without a style.

        Raises:
          InputError: if an argument is out of range.
        """
        if count < 1:
            raise InputError(f"{count} faces are asked for: use at least 1")
        again = lambda x: np.repeat(x, count, axis=0)
        masks = jax.tree.map(again, self.shaped(labels, shape))
        made: list[np.ndarray] = []
        if style is None:
            options = options.without_style()
        for batch in self.synthesizer.batches(masks, options, seed=seed, style=style):
            made.extend(batch)
            report(len(made), count)
        return np.stack(made)

    def shown_on(self, labels: UInt8[np.ndarray, "h w"]) -> list[str]:
        """The classes of a mask, by name."""
        return [self.classes.names[i] for i in np.unique(labels) if i != UNLABELLED]

    def given_by(self, reference: Reference) -> list[str]:
        """The classes whose style is taken from a reference: those of its parts that it shows."""
        shown = self.shown_on(reference.labels)
        return [name for name in shown if name in (reference.parts or shown)]

    def style_of(self, references: Sequence[Reference], between: float) -> Style | None:
        """Return the combined style of references; None without any.

        If several references give a class, the last one is used. If there are two and both give all
        parts, `between` interpolates from the first (0) to the second (1); a class that only one of
        them shows has the style of that one.

        Raises:
          InputError: if the model has no style conditioning, or `between` is used but not in
            [0, 1].
        """
        if not references:
            return None
        faces = [self.synthesizer.style(x.image[None], x.labels[None]) for x in references]
        style = self.synthesizer.no_style()
        for face, reference in zip(faces, references, strict=True):
            style = style.take(face, self.given_by(reference))
        return style.blend(faces[0], 1 - between) if between_two(references) else style

    def not_given(
        self, references: Sequence[Reference], labels: UInt8[np.ndarray, "h w"]
    ) -> list[str]:
        """The classes of a mask whose style no reference gives."""
        given = {name for reference in references for name in self.given_by(reference)}
        return [name for name in self.shown_on(labels) if name not in given]

    def edited(
        self,
        subject: Subject,
        labels: UInt8[np.ndarray, "h w"],
        options: SamplingOptions,
        *,
        references: Sequence[Reference] = (),
        between: float = 1.0,
        shape: Shape | None = None,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return a photo under the mask `labels`, with the shapes of another one if `shape` says
        so.

        Only the steps and guidance of `options` are used; the solver is that of editing. With style
        conditioning the photo keeps its own style, except for parts that references give.

        Raises:
          InputError: if `labels` is its own mask, or an argument is out of range.
        """
        if (subject.labels == labels).all() and shape is None:
            raise InputError(
                "the painting is the photo's own mask, so there is nothing to change: paint first"
            )
        photo, own = subject.photo[None], subject.labels[None]
        wanted = self.shaped(labels, shape)
        style = self.style_of(references, between)
        if style is not None:
            given = set(self.classes.names) - set(style.missing())
            style = self.synthesizer.style(photo, own).take(style, given)
        how = {"steps": options.steps, "guidance": options.guidance, "style": style}
        return edit(self.synthesizer, photo, own, wanted, **how)[0]

    def read_mask(self, path: Path) -> UInt8[np.ndarray, "h w"]:
        """Read a label map, crop it to its central square, and resize it (nearest).

        Raises:
          InputError: if it is not a mask of the run's classes; the message names no folder.
        """
        try:
            labels, share = read_with_share(path, self.classes, self.reading)
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from error
        if share:
            print(f"{share:.2%} of the pixels of an uploaded mask took the nearest class colour")
        height, width = labels.shape
        side = min(height, width)
        y, x = (height - side) // 2, (width - side) // 2
        return resize_nearest(labels[y : y + side, x : x + side], self.size)

    def read_photo(self, path: Path) -> UInt8[np.ndarray, "h w 3"]:
        """Read a photo (`image_files.read_picture`), cropped to its central square, at the model's
        size.

        Raises:
          InputError: if it cannot be read; the message has only the file's name.
        """
        try:
            image = image_files.read_picture(path, draft=2 * self.size)
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from error
        side = (self.size, self.size)
        return np.asarray(ImageOps.fit(image, side, Image.Resampling.LANCZOS))

    def find_mask(self, photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """The mask that the face parser predicts for a photo.

        Raises:
          InputError: if there is no parser.
        """
        if self.parser is None:
            raise InputError(self.no_parser)
        return np.asarray(self.parser.labels(photo[None])[0])

    def write_mask(self, folder: Path, labels: UInt8[np.ndarray, "h w"]) -> Path:
        """Write a label map that `sample` reads."""
        path = folder / "mask.png"
        write_label_map(path, labels, self.classes)
        return path


def write_photo(folder: Path, photo: UInt8[np.ndarray, "h w 3"]) -> Path:
    """Write an edited photo as a PNG file."""
    path = folder / "edited.png"
    image_files.save_png(Image.fromarray(photo), path)
    return path


def write_faces(folder: Path, faces: UInt8[np.ndarray, "n h w 3"], seed: int) -> Path:
    """Write faces as PNG files in a zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for i, face in enumerate(faces):
            file = io.BytesIO()
            Image.fromarray(face).save(file, "PNG")
            archive.writestr(f"seed{seed}_{i}.png", file.getvalue())
    path = folder / "faces.zip"
    write_atomically(path, packed.getvalue())
    return path


def _find_parser(path: Path | None, classes: ClassSet, size: int) -> tuple[FaceParser | None, str]:
    """The parser at `path`, or else at `DEFAULT_PARSER`, or None and the reason."""
    try:
        parser = load_parser(path or DEFAULT_PARSER)
        check_parser(parser, classes.names, size, named=path is not None)
    except InputError as error:
        if path is not None:
            raise
        return None, (
            f"{DEFAULT_PARSER} cannot be used to find a photo's mask ({error}): train a parser "
            f"({TRAIN_PARSER}), start with --parser, or upload or paint the photo's mask"
        )
    return parser, ""

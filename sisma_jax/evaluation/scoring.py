"""The rows of the table: one set of pictures each, scored against one reference set.

fid          Fréchet distance of Inception-v3's pooled features (Heusel et al., arXiv 1706.08500)
fd_parser    the same for the face parser's deepest features: this project's own score,
             comparable only between reports with the same parser
miou, accuracy   the face parser's labels against the masks, from one pooled confusion matrix;
             classes that occur nowhere are left out of the mean
ssim, psnr_db    against the reference picture of the same name, uint8, data range 255
lpips_diversity  mean LPIPS of all pairs of the samples of one mask, averaged over masks
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from sisma_jax.common.files import read_json, write_json
from sisma_jax.common.progress import over
from sisma_jax.evaluation.generation import GeneratedFaces
from sisma_jax.evaluation.judges import Judge, measure
from sisma_jax.evaluation.networks import OF_PARSER
from sisma_jax.evaluation.pictures import Pictures, batches, digest
from sisma_jax.metrics import class_iou, frechet_distance, mean_iou, pixel_accuracy, psnr, ssim
from sisma_jax.metrics.frechet import Statistics
from sisma_jax.metrics.perceptual import diversity
from sisma_jax.models.judges.lpips import Lpips
from sisma_jax.models.weights import tree_checksum

ENOUGH = 2000
"""Pictures (the papers' test split) below which a Fréchet distance is strongly biased upwards."""

SCORES = {
    "fid": "FID",
    "fd_parser": "FD-parser",
    "miou": "mIoU",
    "accuracy": "accuracy",
    "lpips_diversity": "LPIPS diversity",
    "ssim": "SSIM",
    "psnr_db": "PSNR (dB)",
}
"""Headings by name, in the order of the table's columns."""
LOWER_IS_BETTER = ("fid", "fd_parser")
NOISE = "noise"
"""Kind of rows of noisy masks, which have tables of their own (`robustness`)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table, as in the report's JSON."""

    name: str
    kind: str
    """"real", "reconstruction", "synthesis", "pictures" or NOISE."""
    count: int
    key: str
    """Digest of the pictures."""
    scores: dict[str, float]
    """Values by name in SCORES; scores that were not measured are missing."""
    class_iou: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """IoU by class; None if it occurs neither in masks nor in predictions."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    """Sentences that a reader needs to compare the scores."""
    conventions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Variant of a score by name in SCORES, for its heading."""

    def over(self, before: "Row") -> "Row":
        """This row, completed by the scores of an earlier row of the same pictures."""
        if before.key != self.key:
            return self
        scores = before.scores | self.scores
        # Notes begin with the name of their score.
        replaced = tuple(f"{SCORES[key]}:" for key in self.scores)
        kept = [
            note for note in before.notes if note in self.notes or not note.startswith(replaced)
        ]
        return dataclasses.replace(
            self,
            scores={key: scores[key] for key in SCORES if key in scores},
            class_iou=self.class_iou or before.class_iou,
            settings=before.settings | self.settings,
            notes=list(dict.fromkeys(kept + self.notes)),
            conventions=before.conventions | self.conventions,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores sets of pictures against one reference, with measurements cached in `folder`."""

    folder: Path
    metrics: frozenset[str]
    """Requested names of SCORES."""
    classes: Sequence[str]
    reference: Pictures | None
    """None if only its statistics are available."""
    parser: Judge | None = None
    inception: Judge | None = None
    inception_statistics: Statistics | None = None
    """Statistics of the reference from a file, in place of computed ones."""
    lpips: Lpips | None = None

    def row(
        self,
        name: str,
        kind: str,
        pictures: Pictures,
        *,
        labels: UInt8[np.ndarray, "n h w"] | None = None,
        pairs: Pictures | None = None,
        settings: dict[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Row:
        """Score a set of pictures, without distances (which are zero) for the reference itself.

        Args:
          name, kind, settings, notes: fields of the row.
          pictures: the set.
          labels: masks that the pictures should follow.
          pairs: as many reference pictures, to compare one by one.
        """
        scores: dict[str, float] = {}
        notes = list(notes)
        by_class: dict[str, float | None] = {}
        if self.inception is not None and "fid" in self.metrics and pictures is not self.reference:
            measured = measure(self.folder, self.inception, pictures, None)
            reference = self.inception_statistics or self._of_reference(self.inception)
            self._frechet("fid", measured.statistics, reference, scores, notes)
        if self.parser is not None and self.metrics & OF_PARSER:
            measured = measure(self.folder, self.parser, pictures, labels)
            if "fd_parser" in self.metrics and self.reference not in (None, pictures):
                self._frechet(
                    "fd_parser", measured.statistics, self._of_reference(self.parser), scores, notes
                )
            if measured.confusion is not None:
                agreement, by_class = self.agreement(measured.confusion)
                scores |= agreement
            if scores.keys() & OF_PARSER:
                notes.append(f"the face parser is {self.parser.convention}")
        if pairs is not None and self.metrics & {"ssim", "psnr_db"}:
            key = digest("closeness", pictures.key, pairs.key)
            scores |= self.once(key, lambda: _closeness(pictures, pairs))
            if scores["psnr_db"] is None:
                del scores["psnr_db"]
                notes.append(f"PSNR of {name} is infinite: pictures equal their reference")
        return Row(
            name=name,
            kind=kind,
            count=len(pictures),
            key=pictures.key,
            scores={key: scores[key] for key in SCORES if key in scores.keys() & self.metrics},
            class_iou=by_class,
            settings=settings or {},
            notes=notes,
            conventions={"fid": self.inception.convention} if "fid" in scores else {},
        )

    def with_diversity(self, row: Row, faces: GeneratedFaces, masks: int, samples: int) -> Row:
        """Add the LPIPS diversity of existing faces to their row."""

        def measure_diversity() -> dict[str, float]:
            order = over(range(masks), unit="mask", desc="diversity")
            of_mask = [diversity(faces.samples(mask, samples), self.lpips) for mask in order]
            return {"lpips_diversity": float(np.mean(of_mask))}

        key = digest("diversity", faces.key, masks, samples, lpips_key(self.lpips))
        scores = row.scores | self.once(key, measure_diversity)
        return dataclasses.replace(
            row,
            scores={key: scores[key] for key in SCORES if key in scores},
            settings=row.settings | {"diversity_masks": masks, "diversity_samples": samples},
            notes=[*row.notes, f"LPIPS diversity: {samples} samples of each of {masks} masks"],
            conventions=row.conventions
            | {"lpips_diversity": f"{self.lpips.backbone.name}, {masks} x {samples}"},
        )

    def _of_reference(self, judge: Judge) -> Statistics:
        labels = getattr(self.reference, "labels", None)  # as in its own row, if it has masks
        return measure(self.folder, judge, self.reference, labels).statistics

    def once(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The numbers that `compute` returns, cached under `key`."""
        file = self.folder / f"{key[:32]}.json"
        numbers = read_json(file)
        if numbers is None:
            numbers = compute()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(file, numbers)
        return numbers

    def _frechet(
        self,
        key: str,
        stats: Statistics,
        reference: Statistics,
        scores: dict[str, float],
        notes: list[str],
    ) -> None:
        scores[key] = frechet_distance(stats.mean, stats.cov, reference.mean, reference.cov)
        ours, theirs = stats.count, reference.count
        note = f"{SCORES[key]}: {ours} pictures against {theirs or 'an unknown number'}"
        if ours != theirs:
            note += "; the counts differ, which changes the distance"
        if min(ours, theirs or ours) < ENOUGH:
            note += f"; under {ENOUGH:,} pictures it is biased upwards"
        notes.append(note)

    def agreement(
        self, confusion: Int64[np.ndarray, "classes classes"]
    ) -> tuple[dict[str, float], dict[str, float | None]]:
        """Return the requested scores of a confusion matrix and, with any of them, IoU by class."""
        found = {"miou": mean_iou(confusion), "accuracy": pixel_accuracy(confusion)}
        scores = {key: value for key, value in found.items() if key in self.metrics}
        if not scores:
            return {}, {}
        iou = class_iou(confusion)
        return scores, {
            name: None if math.isnan(value) else float(value)
            for name, value in zip(self.classes, iou, strict=True)
        }


def heading(key: str, rows: Sequence[Row]) -> str:
    """A score's name, with the conventions of the rows, if any."""
    conventions = dict.fromkeys(row.conventions[key] for row in rows if key in row.conventions)
    return f"{SCORES[key]} ({', '.join(conventions)})" if conventions else SCORES[key]


def lpips_key(lpips: Lpips) -> str:
    """Digest of everything that determines a distance."""
    return digest(lpips.backbone.name, tree_checksum(lpips.params))


def _closeness(pictures: Pictures, pairs: Pictures) -> dict[str, float | None]:
    """Means over pairs; PSNR is None if infinite."""
    values: dict[str, list[np.ndarray]] = {"ssim": [], "psnr_db": []}
    for indices, images in batches(pictures):
        reference = pairs.read(indices)
        values["ssim"].append(ssim(images, reference, 255))
        values["psnr_db"].append(psnr(images, reference, 255))
    means = {key: float(np.mean(np.concatenate(x))) for key, x in values.items()}
    return {key: None if math.isinf(mean) else mean for key, mean in means.items()}

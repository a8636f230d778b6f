"""Robustness to noise in masks: faces of noisy masks, scored against the clean ones.

A curve belongs to one model, one sampling and one noise, and has a point for each strength; at
strength 0 the faces are those of the clean masks. The noisy masks themselves are scored against the
clean ones, too, which says how much the noise has spoiled: a model whose faces agree better with
the clean masks than the masks that it drew has undone some of the noise.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sisma_jax.data.classes import UNLABELLED
from sisma_jax.data.mask_noise import ABOUT, MaskNoise
from sisma_jax.evaluation.generation import GeneratedFaces, Sampling
from sisma_jax.evaluation.noisy_masks import NoisyMasks
from sisma_jax.evaluation.pictures import SplitPictures
from sisma_jax.evaluation.scoring import NOISE, SCORES, Row, Scorer, heading
from sisma_jax.evaluation.tables import Table, score
from sisma_jax.metrics import confusion_matrix
from sisma_jax.synthesis.synthesizer import Synthesizer


def score_noise(
    put: Callable[[Row], None],
    scorer: Scorer,
    images: Path,
    synthesizer: Synthesizer,
    weights: str,
    reference: SplitPictures,
    *,
    name: str,
    samplings: Sequence[Sampling],
    noises: Sequence[MaskNoise],
) -> None:
    """Score the noisy masks and a model's faces of them.

    Args:
      put: takes the rows.
      scorer: scores pictures; with a parser.
      images: parent of the folders of faces.
      synthesizer: the model.
      weights: checksum of its weights and its autoencoder.
      reference: real faces with their clean masks.
      name: name of the model in the table.
      samplings: samplings of one seed, which is also that of the noise in masks.
      noises: noises in masks.
    """
    seed = samplings[0].seed
    for noise in noises:
        noisy = NoisyMasks(reference, noise, len(scorer.classes), seed)
        put(masks_row(scorer, noisy))
        for sampling in samplings:
            faces = GeneratedFaces(images, synthesizer, weights, reference, sampling, noisy)
            faces.make(range(len(faces)))
            settings = {"model": name, "step": synthesizer.step}
            put(
                scorer.row(
                    f"{name}, {sampling.in_words}, {noisy.in_words}",
                    NOISE,
                    faces,
                    labels=reference.labels,
                    settings=settings | sampling.settings | noisy.settings,
                )
            )


def masks_row(scorer: Scorer, noisy: NoisyMasks) -> Row:
    """Score noisy masks, as if a parser had predicted them, against the clean ones."""

    def count() -> dict[str, list[list[int]]]:
        confusion = sum(
            confusion_matrix(clean, labels, len(scorer.classes), UNLABELLED)
            for clean, labels in zip(noisy.reference.labels, noisy.labels, strict=True)
        )
        return {"confusion": confusion.tolist()}

    confusion = np.array(scorer.once(noisy.key, count)["confusion"], np.int64)
    scores, of_class = scorer.agreement(confusion)
    seed = f", seed {noisy.seed}" if noisy.seed else ""
    return Row(
        name=f"the masks themselves{seed}, {noisy.in_words}",
        kind=NOISE,
        count=len(noisy.reference),
        key=noisy.key,
        scores=scores,
        class_iou=of_class,
        settings=noisy.settings,
    )


def curves(rows: Sequence[Row]) -> dict[str, dict[str, dict[float, Row]]]:
    """The rows by noise, by whose faces they are (or the masks themselves), and by strength."""
    found: dict[str, dict[str, dict[float, Row]]] = {}
    masks_first = sorted(rows, key=lambda row: "model" in row.settings)
    for row in masks_first:
        if row.kind == NOISE:
            whose, _, _ = row.name.rpartition(", ")
            lines = found.setdefault(row.settings["mask_noise"], {})
            lines.setdefault(whose, {})[row.settings["noise_strength"]] = row
    return found


def noise_tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each noise, with a column for each strength."""
    tables = []
    for noise, lines in curves(rows).items():
        strengths = sorted({strength for line in lines.values() for strength in line})
        every = [row for line in lines.values() for row in line.values()]
        cells = [
            [whose, heading(key, every)]
            + [score(key, line[x].scores.get(key) if x in line else None) for x in strengths]
            for whose, line in lines.items()
            for key in SCORES
            if any(key in row.scores for row in line.values())
        ]
        strongest = "; ".join(f"{kind}: {ABOUT[kind]}" for kind in noise.split("+"))
        tables.append(
            Table(
                f"Noise in masks: {noise}",
                ["faces", "score", *(f"strength {x:g}" for x in strengths)],
                cells,
                f"Against the clean masks. Strength 1 of {strongest}.",
            )
        )
    return tables

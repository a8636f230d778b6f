"""What photo_bench.py measures of a run, and how trainings of one model are joined."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from sisma_jax import Synthesizer
from sisma_jax.common.config import flatten
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.input_pipeline import Source
from sisma_jax.data.thumbnails import shrunk
from sisma_jax.evaluation.evaluator import Diversity, Evaluation, evaluate_run, weights_key
from sisma_jax.evaluation.generation import GeneratedFaces, Sampling
from sisma_jax.evaluation.nearest import nearest, quantiles
from sisma_jax.evaluation.pictures import (
    Reconstructions,
    SourcePictures,
    SplitPictures,
    digest,
)
from sisma_jax.evaluation.speed import count as count_parameters
from sisma_jax.metrics.regions import colour_coherence, explained_variance, spread
from sisma_jax.models.generators import generator
from sisma_jax.runs.folder import RunFolder
from sisma_jax.synthesis.options import SamplingOptions

NOT_THE_MODELS = (
    "autoencoder.cache", "autoencoder.path", "checkpoint.", "data.path", "data.threads",
    "evaluation.", "mesh.", "model.remat", "model.scan", "samples.", "seed", "train.log_every",
    "train.profile_", "train.sample_every", "train.skip_limit",
)  # fmt: skip
"""Config keys, or beginnings of them, in which trainings of one model may differ. The autoencoders
are compared by their weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A run, with its weights loaded."""

    name: str
    run: RunFolder
    config: ConfigDict
    synthesizer: Synthesizer

    @property
    def model(self) -> str:
        """Digest of what the run shares with the trainings of the same model."""
        shared = {
            key: value
            for key, value in sorted(flatten(self.config).items())
            if not key.startswith(NOT_THE_MODELS)
        }
        checksum = self.synthesizer.autoencoder.checksum()
        return digest(json.dumps(shared), self.synthesizer.step, checksum)

    def described(self) -> dict[str, Any]:
        """Sizes and training, as JSON."""
        macs = generator(self.synthesizer.config).macs()
        autoencoder = self.synthesizer.autoencoder
        about = {
            "architecture": generator(self.synthesizer.config).name,
            "parameters": count_parameters(self.synthesizer.params),
            "gmac_of_a_velocity": macs.velocity / 1e9,
            "gmac_of_a_mask": macs.mask / 1e9,
            "autoencoder_parameters": count_parameters(autoencoder),
            "model": self.config.model.to_dict(),
            "training_steps": self.synthesizer.step,
            "batch_size": self.config.train.batch_size,
            "seed": self.config.seed,
        }
        hours = training_hours(self.run.metrics_file, self.config.train.batch_size)
        return about | ({} if hours is None else {"training_hours": hours})


def training_hours(metrics: Path, batch_size: int) -> float | None:
    """Hours of training steps by the speeds in a run's metrics.jsonl, which exclude compilation,
    evaluation and sample pictures; None if it has none."""
    seconds, before = 0.0, 0
    for line in metrics.read_text("utf-8").splitlines() if metrics.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # a row that is just being written
            row = json.loads(line)
            if row.get("images_per_second"):
                seconds += (row["step"] - before) * batch_size / row["images_per_second"]
                before = row["step"]
    return seconds / 3600 if seconds else None


def combinations(
    steps: Sequence[int], guidances: Sequence[float], at_steps: int, at_guidances: Sequence[float]
) -> list[tuple[int, float]]:
    """Steps and guidance of every sampling, each pair once: the sweep of guidance comes first."""
    swept = [(at_steps, guidance) for guidance in guidances]
    swept += [(number, guidance) for guidance in at_guidances for number in steps]
    return list(dict.fromkeys(swept))


def combined(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`report.over_seeds` of every number of nested dictionaries; a key that some of them lack is
    averaged over the others."""
    together = {}
    for key in dict.fromkeys(key for one in results for key in one):
        values = [one[key] for one in results if key in one]
        summary = combined if isinstance(values[0], dict) else report.over_seeds
        together[key] = summary(values)
    return together


def of_regions(
    images: UInt8[np.ndarray, "n h w 3"], labels: UInt8[np.ndarray, "n h w"], classes: ClassSet
) -> dict[str, Any]:
    """Scores of pictures that need their masks alone: "explained_variance", and "coherence" by pair
    of classes."""
    pairs = colour_coherence(images, labels, classes.names)
    return {
        "explained_variance": float(explained_variance(images, labels).mean()),
        "coherence": {"/".join(pair): levels for pair, levels in pairs.items()},
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The data, the report and the settings that all runs share."""

    evaluation: Evaluation
    train: Source
    """Training images."""
    spread_masks: int
    spread_samples: int

    @property
    def reference(self) -> SplitPictures:
        return self.evaluation.reference

    def real(
        self, labelled: Source, distances: Float[np.ndarray, " n"]
    ) -> dict[str, dict[str, Any]]:
        """Scores of the test faces and of as many training faces, after those of a run.

        Args:
          labelled: the training split with its masks.
          distances: those of the test faces to their nearest training faces.
        """
        reference, classes = self.reference, self.evaluation.classes
        images = reference.read(range(len(reference)))
        k = min(self.spread_samples, len(images))
        some = min(self.spread_masks, len(images) // k)
        different = images[: some * k].reshape(some, k, *images.shape[1:])
        test = of_regions(images, reference.labels, classes)
        test["spread_of_different_faces"] = float(spread(different).mean())
        test["nearest"] = quantiles(distances)
        training = SplitPictures(labelled, min(len(labelled), len(reference)))
        key = SourcePictures(self.train, len(training)).key
        return {
            "test faces": self.scores()[reference.key] | test,
            "training faces": self.scores()[key]
            | of_regions(training.read(range(len(training))), training.labels, classes),
        }

    def distances(self, shrunken: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Distances of pictures, as `shrunk` returns them, to their nearest training faces."""
        return nearest(shrunken, SourcePictures(self.train, len(self.train))).distance

    def scores(self) -> dict[str, dict[str, float]]:
        """Scores in the report's table by the key of the pictures."""
        return {row.key: dict(row.scores) for row in self.evaluation.report.table()}

    def of_run(
        self, trained: Trained, samplings: Sequence[Sampling], *, speed: bool
    ) -> dict[str, Any]:
        """Scores of a run.

        Returns:
          "samplings": "settings" and "scores" of each of `samplings`, of none for a model that only
          draws in the style of references; "own_style": those of the first sampling in the style of
          each mask's own face, for a model with a style; "reconstructions": scores, for a model
          with an autoencoder.
        """
        folder, reference = self.evaluation.report, self.reference
        synthesizer, classes = trained.synthesizer, self.evaluation.classes
        evaluate_run(
            self.evaluation, synthesizer, self.train,
            name=trained.name, samplings=samplings,
            diversity=Diversity(masks=self.spread_masks, samples=self.spread_samples),
            speed=speed, peers=False, style=synthesizer.has_style,
        )  # fmt: skip
        weights, scores = weights_key(synthesizer), self.scores()
        found: dict[str, Any] = {}
        if not generator(synthesizer.config).one_pass:
            rebuilt = Reconstructions(reference, synthesizer.autoencoder)
            found["reconstructions"] = scores[rebuilt.key] | of_regions(
                rebuilt.read(range(len(reference))), reference.labels, classes
            )

        ways = list(samplings) if synthesizer.draws_styles else []
        if synthesizer.has_style:
            ways.append(dataclasses.replace(samplings[0], own_style=True))
        times = folder.findings("speed")[trained.name]["cases"] if speed else []
        scored, queries = [], []
        for sampling in ways:
            faces = GeneratedFaces(folder.images, synthesizer, weights, reference, sampling)
            images = faces.read(range(len(faces)))
            queries.append(shrunk(images))
            one = scores[faces.key] | of_regions(images, reference.labels, classes)
            if not sampling.own_style:
                some = range(min(self.spread_masks, len(faces)))
                faces.make(some, self.spread_samples)
                samples = np.stack([faces.samples(mask, self.spread_samples) for mask in some])
                one["spread"] = float(spread(samples).mean())
            one |= seconds_per_image(times, sampling.options)
            scored.append({"settings": sampling.settings, "scores": one})
        distances = self.distances(np.concatenate(queries)).reshape(len(queries), -1)
        for one, near in zip(scored, distances, strict=True):
            one["scores"]["nearest"] = quantiles(near)
        if synthesizer.has_style:
            found["own_style"] = scored.pop()
        return found | {"samplings": scored}


def samplings_of(trained: Trained, samplings: Sequence[Sampling], count: int) -> list[Sampling]:
    """Those of `samplings` in which a run can make `count` faces, each of the others with a note.

    A model that draws in one pass has a single one, whatever is asked for.

    Raises:
      InputError: if none is left.
    """
    synthesizer = trained.synthesizer
    if generator(synthesizer.config).one_pass:
        options = SamplingOptions(steps=1)
        return [Sampling(options=options, seed=samplings[0].seed, one_pass=True)]
    possible = []
    for sampling in samplings:
        try:
            synthesizer.check_options(sampling.options, None, count)
        except InputError as error:
            if sampling is samplings[-1] and not possible:
                raise
            print(f"note: {trained.name} is not measured with {sampling.in_words}: {error}")
        else:
            possible.append(sampling)
    return possible


def seconds_per_image(cases: Sequence[dict[str, Any]], options: SamplingOptions) -> dict[str, Any]:
    """The "seconds_per_image" by batch, from cases of `measure_speed`; {} if there are none.

    Every guidance other than 1 costs the same.
    """
    seconds = {
        f"batch {case['batch']}": case["seconds_per_image"]
        for case in cases
        if (case["solver"], case["steps"]) == (options.solver, options.steps)
        and (case["guidance"] != 1) == options.guided
        and "seconds_per_image" in case
    }
    return {"seconds_per_image": seconds} if seconds else {}


def over_trainings(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of one model, as `combined` joins those that `of_run` returns of its trainings."""

    def joined(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
        scores = combined([one["scores"] for one in measured])
        return {"settings": measured[0]["settings"], "scores": scores}

    samplings = zip(*(one["samplings"] for one in found), strict=True)
    model: dict[str, Any] = {"samplings": [joined(same) for same in samplings]}
    if "own_style" in found[0]:
        model["own_style"] = joined([one["own_style"] for one in found])
    if "reconstructions" in found[0]:
        model["reconstructions"] = combined([one["reconstructions"] for one in found])
    return model


def models_of(runs: Sequence[Trained]) -> list[list[Trained]]:
    """Runs of one model together.

    Raises:
      InputError: if two of them have the same seed.
    """
    together: dict[str, list[Trained]] = {}
    for trained in runs:
        for other in together.setdefault(trained.model, []):
            if other.config.seed == trained.config.seed:
                raise InputError(
                    f"{other.run.path} and {trained.run.path} are one model with the same seed "
                    f"{trained.config.seed}: give one of them"
                )
        together[trained.model].append(trained)
    return list(together.values())

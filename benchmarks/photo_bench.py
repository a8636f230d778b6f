"""Scores of trained models on the unseen masks of a data set, beside those of its real faces.

    python benchmarks/photo_bench.py --data data/celeba-64 --parser runs/parser --workdirs runs/a

For each run and each sampling: FD-parser, mIoU and accuracy (`sisma_jax.evaluate`), the variance
that the regions of the mask explain, the spread over the faces of one mask, colour coherence
(`sisma_jax.metrics.regions`), the distance to the nearest training face
(`sisma_jax.evaluation.nearest`), and seconds an image. The same scores of the real test faces, of
training faces and of the reconstructions by the run's autoencoder bound them. A model with a style
is also scored with the style of each mask's own face, with SSIM. Guidance is swept at --at-steps
steps, steps are swept at the guidances of --at-guidance.

Runs whose configs differ only by their seed are one model: means and standard deviations over
trainings. Generated faces and their scores are kept in --report, so that an interrupted command
continues. That folder holds pictures of the data set; the JSON file of --out holds figures only.

--sheet writes one picture of faces from masks that are not of the data set, in the first run's
sampling with --at-steps steps and the last guidance of --at-guidance. It is refused if a face is
nearer to a training face than all unseen test faces are.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from sisma_jax import Synthesizer
from sisma_jax.common import cli
from sisma_jax.common.config import flatten
from sisma_jax.common.errors import InputError
from sisma_jax.common.files import check_output_file, read_json
from sisma_jax.data import synthetic
from sisma_jax.data.checksums import differ
from sisma_jax.data.classes import CELEBAMASK, ClassSet
from sisma_jax.data.contact_sheet import mask_sheet
from sisma_jax.data.image_files import save_png
from sisma_jax.data.input_pipeline import Source
from sisma_jax.data.label_maps import collect_masks, flip
from sisma_jax.data.thumbnails import SIDE, shrunk
from sisma_jax.devices.compilation_cache import keep_compiled_programs
from sisma_jax.evaluate import DEFAULT_RESIZE, comma_list, first_of, open_split
from sisma_jax.evaluation.evaluator import Diversity, Evaluation, evaluate_run, weights_key
from sisma_jax.evaluation.generation import MOST_MASKS, MOST_SAMPLES, GeneratedFaces, Sampling
from sisma_jax.evaluation.nearest import nearest, quantiles
from sisma_jax.evaluation.networks import DEFAULT_PARSER, OF_PARSER, load_networks
from sisma_jax.evaluation.pictures import (
    Reconstructions,
    SourcePictures,
    SplitPictures,
    digest,
)
from sisma_jax.evaluation.report import ReportFolder
from sisma_jax.evaluation.speed import count as count_parameters
from sisma_jax.evaluation.tables import Table
from sisma_jax.flows import rectified
from sisma_jax.metrics.regions import colour_coherence, explained_variance, spread
from sisma_jax.models.generators import generator, model_config
from sisma_jax.runs.folder import RunFolder
from sisma_jax.sample import read_masks
from sisma_jax.synthesis.options import SamplingOptions, name_fields

SCORES = OF_PARSER | {"ssim", "psnr_db"}
"""The scores of `sisma_jax.evaluate` that are measured."""
SYNTHETIC = "synthetic"
"""The value of --sheet-masks that stands for masks of procedural faces."""
SHEET_SEED = 7
"""A seed of procedural faces that no config trains on."""
TIMED_BATCH = 16
"""Batch of the seconds an image in the table."""
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
    samplings: Sequence[Sampling]
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

    def of_run(self, trained: Trained, *, speed: bool) -> dict[str, Any]:
        """Scores of a run: "reconstructions", "samplings" in their order, perhaps "own_style"."""
        folder, reference = self.evaluation.report, self.reference
        synthesizer, classes = trained.synthesizer, self.evaluation.classes
        evaluate_run(
            self.evaluation, synthesizer, self.train,
            name=trained.name, samplings=self.samplings,
            diversity=Diversity(masks=self.spread_masks, samples=self.spread_samples),
            speed=speed, peers=False, style=synthesizer.has_style,
        )  # fmt: skip
        weights, scores = weights_key(synthesizer), self.scores()
        rebuilt = Reconstructions(reference, synthesizer.autoencoder)
        found = {
            "reconstructions": scores[rebuilt.key]
            | of_regions(rebuilt.read(range(len(reference))), reference.labels, classes),
            "samplings": [],
        }
        faces_of = lambda sampling: GeneratedFaces(
            folder.images, synthesizer, weights, reference, sampling
        )
        queries = []
        for sampling in self.samplings:
            faces = faces_of(sampling)
            some = range(min(self.spread_masks, len(faces)))
            faces.make(some, self.spread_samples)
            samples = np.stack([faces.samples(mask, self.spread_samples) for mask in some])
            images = faces.read(range(len(faces)))
            queries.append(shrunk(images))
            scored = scores[faces.key] | of_regions(images, reference.labels, classes)
            scored["spread"] = float(spread(samples).mean())
            found["samplings"].append(scored)
        distances = self.distances(np.concatenate(queries)).reshape(len(queries), -1)
        times = folder.findings("speed")[trained.name]["cases"] if speed else []
        of_samplings = zip(found["samplings"], self.samplings, distances, strict=True)
        for scored, sampling, near in of_samplings:
            scored["nearest"] = quantiles(near)
            scored |= seconds_per_image(times, sampling.options)
        if synthesizer.has_style:
            own = dataclasses.replace(self.samplings[0], own_style=True)
            found["own_style"] = scores[faces_of(own).key]
        return found


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


def over_trainings(
    found: Sequence[dict[str, Any]], samplings: Sequence[Sampling]
) -> dict[str, Any]:
    """The scores of one model, as `combined` joins those of its trainings."""
    of = lambda key: combined([one[key] for one in found])
    model = {
        "reconstructions": of("reconstructions"),
        "samplings": [
            {
                "settings": sampling.settings,
                "scores": combined([one["samplings"][k] for one in found]),
            }
            for k, sampling in enumerate(samplings)
        ],
    }
    return model | ({"own_style": of("own_style")} if "own_style" in found[0] else {})


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


def tables(results: dict[str, Any]) -> list[Table]:
    """Tables of the models, of their scores, and of colour coherence."""
    return [_of_models(results), _of_scores(results), _of_coherence(results)]


def _of_models(results: dict[str, Any]) -> Table:
    lines = []
    for name, model in results["models"].items():
        runs = [results["runs"][run] for run in model["runs"]]
        hours = [run["training_hours"] for run in runs if "training_hours" in run]
        one = runs[0]
        lines.append(
            [
                name, one["architecture"], f"{one['parameters']:,}",
                f"{one['gmac_of_a_velocity']:.3f}", f"{one['gmac_of_a_mask']:.3f}",
                one["training_steps"], one["batch_size"],
                f"{np.mean(hours):.2f}" if hours else None, len(runs),
            ]
        )  # fmt: skip
    columns = ["model", "architecture", "parameters", "GMAC of a velocity", "GMAC of a mask",
               "training steps", "batch", "hours", "trainings"]  # fmt: skip
    note = "Hours are those of training steps, without compilation and evaluation."
    return Table("Models", columns, lines, note)


def _lines(results: dict[str, Any]) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The first cells of each line of the tables, and its scores as `combined` returns them."""
    for name, scores in results["real"].items():
        yield [name, None, None], combined([scores])
    shown = []  # models of one autoencoder have the same reconstructions
    for name, model in results["models"].items():
        if model["reconstructions"] not in shown:
            shown.append(model["reconstructions"])
            yield [f"reconstructions, {name}", None, None], model["reconstructions"]
    for name, model in results["models"].items():
        for sampling in model["samplings"]:
            how = [sampling["settings"]["steps"], f"{sampling['settings']['guidance']:g}"]
            yield [name, *how], sampling["scores"]
        if "own_style" in model:
            first = model["samplings"][0]["settings"]
            how = [first["steps"], f"{first['guidance']:g}"]
            yield [f"{name}, own style", *how], model["own_style"]


def _cell(scores: dict[str, Any], *path: str, digits: int = 3) -> str | None:
    """The mean, and the deviation, of the score at `path`; None if it was not measured."""
    for key in path:
        scores = scores.get(key, {})
    return report.with_deviation(scores, digits) if scores else None


def _of_scores(results: dict[str, Any]) -> Table:
    def line(scores: dict[str, Any]) -> list[str | None]:
        pairs = [pair["mean"] for pair in scores.get("coherence", {}).values()]
        over_masks = _cell(scores, "spread") or _cell(scores, "spread_of_different_faces")
        return [
            *(_cell(scores, key) for key in ("fd_parser", "miou", "accuracy", "ssim")),
            _cell(scores, "explained_variance"), over_masks,
            f"{np.mean(pairs):.1f}" if pairs else None,
            *(_cell(scores, "nearest", key) for key in ("least", "percent_1", "median")),
            _cell(scores, "seconds_per_image", f"batch {TIMED_BATCH}"),
        ]  # fmt: skip

    measured = results["measured"]
    return Table(
        "Scores",
        ["faces", "steps", "guidance", "FD-parser ↓", "mIoU ↑", "accuracy ↑", "SSIM ↑", "regions",
         "spread", "coherence", "nearest, least", "nearest, 1 %", "nearest, median", "s/image"],
        [[*start, *line(scores)] for start, scores in _lines(results)],
        f"{measured['faces']} test faces and as many masks, solver {measured['solver']}. Regions: "
        "share of the variance of pixels that the regions of the mask explain. Spread: standard "
        f"deviation of pixels over {measured['spread_samples']} faces of each of "
        f"{measured['spread_masks']} masks, as a share of the range; in the line of the test "
        "faces, over faces of different masks. Coherence: distance in grey levels between the "
        "colours of parts that belong together, averaged over pairs. Regions and coherence are to "
        "be compared with those of the test faces. Nearest: distance to the nearest of "
        f"{measured['training_faces']} training faces, over {SIDE} x {SIDE} averaged pixels; "
        "samples nearer than unseen test faces indicate memorisation. Seconds an image in batches "
        f"of {TIMED_BATCH}, with the decoder.",
    )  # fmt: skip


def _of_coherence(results: dict[str, Any]) -> Table:
    pairs = list(results["real"]["test faces"]["coherence"])
    return Table(
        "Colour coherence by pair of regions, in grey levels",
        ["faces", "steps", "guidance", *pairs],
        [
            [*start, *(_cell(scores, "coherence", pair, digits=1) for pair in pairs)]
            for start, scores in _lines(results)
            if "coherence" in scores
        ],
        "To be compared with the line of the test faces, not with 0.",
    )


def sheet_masks(
    asked: str, count: int, seed: int, size: int, classes: ClassSet
) -> UInt8[np.ndarray, "n size size"]:
    """The masks of the sheet, from procedural faces or a folder.

    Raises:
      InputError: if procedural faces do not have these classes, or the folder cannot be read.
    """
    if asked != SYNTHETIC:
        return read_masks(collect_masks([Path(asked)])[:count], size, classes=classes)
    if classes != CELEBAMASK:
        raise InputError(
            f"--sheet-masks {SYNTHETIC} has the classes of CelebAMask-HQ, but the model has "
            f"{', '.join(classes.names)}: give a folder of masks"
        )
    return np.stack([synthetic.face(seed, index, size)[1] for index in range(count)])


def refuse_masks_of_data(
    masks: UInt8[np.ndarray, "n h w"], splits: Sequence[Source], classes: ClassSet
) -> None:
    """Raises InputError if a mask, or its mirror image, is one of the data set's."""
    own = {
        one.tobytes(): row for row, mask in enumerate(masks) for one in (mask, flip(mask, classes))
    }
    for split in splits:
        for index in range(len(split)):
            row = own.get(split[index]["labels"].tobytes())
            if row is not None:
                raise InputError(
                    f"mask {row + 1} of --sheet-masks is that of face {split.ids[index]} of the "
                    "data set, nothing of which may be on the sheet: give masks of your own"
                )


def refuse_near_faces(
    distances: Float[np.ndarray, "masks k"], unseen: Float[np.ndarray, " n"]
) -> None:
    """Refuse a sheet with a face that is nearer to a training face than all unseen faces are.

    Args:
      distances: those of the sheet's faces to their nearest training faces.
      unseen: those of the test faces.

    Raises:
      InputError: if there is such a face, or a test face is a training face, so that no face could
        be nearer.
    """
    least = unseen.min()
    if least == 0:
        raise InputError(
            "--sheet is not written: a test face is the same as a training face, so distances of "
            "test faces are no measure; give --data without faces that are in both splits"
        )
    mask, column = np.unravel_index(distances.argmin(), distances.shape)
    if distances[mask, column] < least:
        raise InputError(
            f"--sheet is not written: face {column + 1} of mask {mask + 1} is at a distance of "
            f"{distances[mask, column]:.4f} from its nearest training face, nearer than each of "
            f"{len(unseen)} unseen test faces (at least {least:.4f}), so it may show a training "
            "face; give another --sheet-seed, or --sheet-masks with other masks"
        )


def sheet_faces(
    synthesizer: Synthesizer,
    masks: UInt8[np.ndarray, "n h w"],
    columns: int,
    sampling: Sampling,
) -> UInt8[np.ndarray, "n columns h w 3"]:
    """Faces of each mask, with their own noise."""
    seeds = [
        sampling.seed_of(row, column) for row in range(len(masks)) for column in range(columns)
    ]
    faces = synthesizer.images(np.repeat(masks, columns, axis=0), sampling.options, seed=seeds)
    return faces.reshape(len(masks), columns, *faces.shape[1:])


def sheet_table(distances: Float[np.ndarray, "masks k"], unseen: Float[np.ndarray, " n"]) -> Table:
    """Distance of every face on the sheet to its nearest training face."""
    figures = quantiles(unseen)
    return Table(
        "Distances of the sheet's faces to the nearest training face",
        ["mask", *(f"face {column + 1}" for column in range(distances.shape[1]))],
        [[row + 1, *(f"{x:.3f}" for x in line)] for row, line in enumerate(distances)],
        f"Unseen test faces: 1 % quantile {figures['percent_1']:.3f}, least "
        f"{figures['least']:.3f}.",
    )


def portable(words: Sequence[str]) -> str:
    """A command line whose absolute paths are reduced to their names."""
    shown = []
    for word in words:
        option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        shown.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return " ".join(shown)


def parse_arguments() -> argparse.Namespace:
    parser = report.parser("photo_bench.py", __doc__)
    add = parser.add_argument
    add("--data", help="data set that the runs were trained on (default: the first run's)")
    add("--parser", type=cli.path, default=DEFAULT_PARSER,
        help=f"face parser, as for sisma_jax.evaluate (default: {DEFAULT_PARSER})")  # fmt: skip
    add("--workdirs", type=cli.path, nargs="+", required=True, metavar="RUN",
        help="runs of sisma_jax.train of one image size")  # fmt: skip
    add("--steps", type=comma_list(int), default="4,12,25,50",
        help="numbers of solver steps (default: 4,12,25,50)")  # fmt: skip
    add("--guidance", type=comma_list(float), default="1,1.25,1.5,2",
        help="guidances (default: 1,1.25,1.5,2)")  # fmt: skip
    add("--at-steps", type=int,
        help="steps of the sweep of guidance (default: the second of --steps)")  # fmt: skip
    add("--at-guidance", type=comma_list(float),
        help="guidances of the sweep of steps (default: the first two of --guidance)")  # fmt: skip
    add("--solver", default=SamplingOptions.solver, choices=rectified.SOLVERS,
        help=f"(default: {SamplingOptions.solver})")  # fmt: skip
    add("--count", type=int, default=1000, help="test faces and masks (default: 1000)")
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add("--spread-masks", type=int, default=50, help="masks of the spread (default: 50)")
    add("--spread-samples", type=int, default=4, help="faces of each of them (default: 4)")
    add("--speed", action=argparse.BooleanOptionalAction, default=True,
        help="whether synthesis is timed, once for each model (default: it is)")  # fmt: skip
    add("--batch-size", type=int, default=16, help="faces per batch (default: 16)")
    add("--report", type=cli.path, default=Path("runs/photographs"), metavar="FOLDER",
        help="folder of generated faces and scores (default: runs/photographs)")  # fmt: skip
    add("--sheet", type=cli.path, metavar="FILE.png", help="picture of generated faces")
    add("--sheet-masks", default=SYNTHETIC, metavar="FOLDER",
        help=f"its masks; {SYNTHETIC!r}, the default, for those of procedural faces")  # fmt: skip
    add("--sheet-rows", type=int, default=6, help="masks on the sheet, at most (default: 6)")
    add("--sheet-columns", type=int, default=6, help="faces of each mask (default: 6)")
    add("--sheet-seed", type=int, default=SHEET_SEED,
        help=f"seed of procedural faces and of the noise (default: {SHEET_SEED})")  # fmt: skip
    add("--out", type=cli.path, default=report.RESULTS / "photographs_cpu.json", help="JSON file")
    args = parser.parse_args()
    report.check_positive(
        parser, args, "count", "batch_size", "sheet_rows", "sheet_columns", "spread_masks"
    )
    if not 2 <= args.count <= MOST_MASKS:
        parser.error(f"--count {args.count}: give 2 to {MOST_MASKS:,}")
    if not 2 <= args.spread_samples <= MOST_SAMPLES:
        parser.error(f"--spread-samples {args.spread_samples}: give 2 to {MOST_SAMPLES:,}")
    for name in ("seed", "sheet_seed"):
        if not 0 <= getattr(args, name) < 2**32:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: give 0..{2**32 - 1}")
    if args.at_steps is None:
        args.at_steps = args.steps[:2][-1]
    report.check_positive(parser, args, "at_steps")
    args.at_guidance = args.at_guidance or args.guidance[:2]
    return args


def load(workdirs: Sequence[Path], batch_size: int) -> list[Trained]:
    """Read the runs.

    Raises:
      InputError: if one cannot be read, two have the same name, or they differ in image size or
        classes.
    """
    runs: dict[str, RunFolder] = {}
    for workdir in workdirs:
        name = workdir.resolve().name
        if name in runs:
            raise InputError(
                f"--workdirs has two runs named {name}: name their folders differently"
            )
        runs[name] = RunFolder(workdir)
    configs = {name: run.config("sisma_jax.train") for name, run in runs.items()}
    first = next(iter(runs))
    for name, run in runs.items():
        sizes = [model_config(configs[one]).image_size for one in (first, name)]
        if sizes[0] != sizes[1] or run.classes() != runs[first].classes():
            raise InputError(
                f"{name} has {sizes[1]} pixels and {len(run.classes())} classes, {first} has "
                f"{sizes[0]} and {len(runs[first].classes())}, or other ones: give runs of one "
                "image size and one set of classes"
            )
    return [
        Trained(
            name=name, run=run, config=configs[name],
            synthesizer=Synthesizer.load(run.path, batch_size=batch_size),
        )
        for name, run in runs.items()
    ]  # fmt: skip


def check_training_data(run: RunFolder, train: Source) -> None:
    """Raises InputError if the run was trained on other data, to whose faces the distances of its
    samples would say nothing."""
    begun = read_json(run.data_file)
    if begun is None:
        print(f"note: {run.path} does not say what it was trained on; --data is taken for it")
    elif differ(begun["checksum"], train.checksum):
        raise InputError(
            f"{run.path} was trained on other data ({begun['checksum'][:8]}) than --data has "
            f"({train.checksum[:8]}), so the nearest training faces cannot be found: give --data "
            "the set that it was trained on"
        )


def main() -> None:
    args = parse_arguments()
    with name_fields("--"):
        samplings = [
            Sampling(
                options=SamplingOptions(steps=steps, guidance=guidance, solver=args.solver),
                seed=args.seed,
            )
            for steps, guidance in combinations(
                args.steps, args.guidance, args.at_steps, args.at_guidance
            )
        ]
    if args.sheet is not None:
        check_output_file("--sheet", args.sheet)
    check_output_file("--out", args.out)
    networks = load_networks(SCORES, None, args.parser, "alex")
    keep_compiled_programs()
    runs = load(args.workdirs, args.batch_size)
    models = models_of(runs)
    for trained in runs:
        for sampling in samplings:
            trained.synthesizer.check_options(sampling.options, None, args.count)

    first = runs[0]
    size, classes, test_from = (
        first.synthesizer.config.image_size, first.run.classes(), first.config.data.test_from,
    )  # fmt: skip
    path = args.data or first.config.data.path
    if not path:
        raise InputError(f"{first.run.path} was trained on cached latents alone: give --data")
    open_fields = lambda split, *fields: open_split(
        path, size, split, test_from, classes=classes, fields=fields
    )
    train, labelled = open_fields("train", "image"), open_fields("train", "image", "labels")
    for trained in runs:
        check_training_data(trained.run, labelled)  # checksums of raw folders cover opened fields
    masks = None
    if args.sheet is not None:
        masks = sheet_masks(args.sheet_masks, args.sheet_rows, args.sheet_seed, size, classes)
        splits = [open_fields(split, "labels") for split in ("train", "test")]
        refuse_masks_of_data(masks, splits, classes)
    benchmark = Benchmark(
        evaluation=Evaluation(
            report=ReportFolder(args.report),
            networks=networks.fitting(classes.names, size),
            scores=SCORES,
            resize=DEFAULT_RESIZE,
            classes=classes,
            data=path,
            reference=first_of(open_fields("test", "image", "labels"), args.count),
        ),
        train=train,
        samplings=samplings,
        spread_masks=args.spread_masks,
        spread_samples=args.spread_samples,
    )

    found = {
        trained.name: benchmark.of_run(trained, speed=args.speed and trained is model[0])
        for model in models
        for trained in model
    }
    reference = benchmark.reference
    unseen = benchmark.distances(shrunk(reference.read(range(len(reference)))))
    results = {
        "measured": {
            "faces": len(reference), "training_faces": len(train), "image_size": size,
            "solver": args.solver, "noise_seed": args.seed,
            "spread_masks": min(args.spread_masks, len(reference)),
            "spread_samples": args.spread_samples, "nearest_side": SIDE,
        },
        "face_parser": {
            key: value
            for key, value in (benchmark.evaluation.networks.parser.quality or {}).items()
            if key in ("test_miou", "test_accuracy", "test_images", "class_iou")
        },
        "real": benchmark.real(labelled, unseen),
        "runs": {
            trained.name: trained.described()
            | found[trained.name]
            | {
                "samplings": [
                    {"settings": sampling.settings, "scores": scores}
                    for sampling, scores in zip(
                        samplings, found[trained.name]["samplings"], strict=True
                    )
                ]
            }
            for trained in runs
        },
        "models": {
            model[0].name: over_trainings([found[one.name] for one in model], samplings)
            | {"runs": [one.name for one in model]}
            for model in models
        },
    }  # fmt: skip
    for table in tables(results):
        print(table.markdown())
    if masks is not None:
        sampling = Sampling(
            options=SamplingOptions(
                steps=args.at_steps, guidance=args.at_guidance[-1], solver=args.solver
            ),
            seed=args.sheet_seed,
        )
        faces = sheet_faces(first.synthesizer, masks, args.sheet_columns, sampling)
        near = benchmark.distances(shrunk(faces.reshape(-1, size, size, 3)))
        near = near.reshape(faces.shape[:2])
        print(sheet_table(near, unseen).markdown())
        results["sheet"] = {
            "run": first.name, "masks": len(masks), "faces_of_a_mask": args.sheet_columns,
            "settings": sampling.settings, "nearest": quantiles(near.ravel()),
        }  # fmt: skip
    command = portable(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    report.write(args.out, ("jax", "jaxlib", "flax"), results, command)
    if masks is not None:
        refuse_near_faces(near, unseen)
        save_png(Image.fromarray(mask_sheet(masks, faces, classes=classes)), args.sheet)
        print(f"wrote {args.sheet}: {faces.shape[1]} faces of each of {len(masks)} masks, made by "
              f"{first.name} ({sampling.in_words})")  # fmt: skip


if __name__ == "__main__":
    cli.run(main)

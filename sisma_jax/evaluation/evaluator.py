"""From a model or a folder of pictures to a report."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from sisma_jax.common.errors import InputError, RunError
from sisma_jax.common.files import NO_ROOM
from sisma_jax.data.classes import ClassSet
from sisma_jax.data.contact_sheet import mask_sheet, tile
from sisma_jax.data.input_pipeline import Source
from sisma_jax.data.mask_noise import MaskNoise
from sisma_jax.data.thumbnails import shrunk
from sisma_jax.evaluation.generation import GeneratedFaces, Sampling
from sisma_jax.evaluation.judges import (
    inception_features,
    inception_judge,
    measure,
    parser_judge,
)
from sisma_jax.evaluation.nearest import (
    memorisation,
    memorisation_table,
    nearest,
    pictures_of,
)
from sisma_jax.evaluation.networks import Networks
from sisma_jax.evaluation.peers import measure_peers, peer_tables
from sisma_jax.evaluation.pictures import (
    PictureFolder,
    Reconstructions,
    SourcePictures,
    SplitPictures,
    digest,
)
from sisma_jax.evaluation.protocol import in_words
from sisma_jax.evaluation.report import ReportFolder, write_report
from sisma_jax.evaluation.robustness import score_noise
from sisma_jax.evaluation.scoring import Row, Scorer, lpips_key
from sisma_jax.evaluation.speed import circumstances, measure_speed, speed_tables
from sisma_jax.evaluation.styles import FACES, measure_styles, style_tables
from sisma_jax.evaluation.tables import score_table
from sisma_jax.metrics.frechet import Statistics, save_statistics
from sisma_jax.models.generators import generator
from sisma_jax.models.judges.inception import FEATURES
from sisma_jax.models.weights import tree_checksum
from sisma_jax.synthesis.synthesizer import Synthesizer

GUIDED = 1.5
"""The guidance that is timed besides 1; any other costs the same."""
SHOWN_MASKS = 8
SHOWN_SAMPLES = 4
ASKED_FOR_NEAREST = 64
"""Number of samples whose nearest training face is searched."""


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Numbers of masks, and of samples per mask, for LPIPS diversity."""

    masks: int
    samples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores to measure, their reference, and the report that they go to."""

    report: ReportFolder
    networks: Networks
    scores: frozenset[str]
    """Names of `scoring.SCORES`."""
    resize: str
    """How Inception's inputs are resized, one of `inception.SCALINGS`."""
    classes: ClassSet
    data: str
    """Name of the reference data, for the report."""
    reference: SplitPictures | PictureFolder | None = None
    statistics: Statistics | None = None
    """Inception's statistics, in place of a reference."""
    save_statistics: Path | None = None
    """File for the reference's statistics."""

    def __post_init__(self) -> None:
        """Raises InputError if statistics that are to be saved cannot be computed, or if the given
        ones are of other features than those computed here."""
        if self.statistics is not None and self.networks.inception is not None:
            self._check_statistics()
        if self.save_statistics is not None:
            if self.networks.inception is None:
                if "fid" in self.networks.missing:
                    needs = f"Inception's weights: {self.networks.missing['fid']}"
                else:
                    needs = "fid among --metrics: add it there"
                raise InputError(f"--save-statistics {self.save_statistics} needs {needs}")
            if self.reference is None:
                raise InputError(
                    f"--save-statistics {self.save_statistics} would copy --reference: leave it out"
                )
            if not self.save_statistics.parent.is_dir():
                raise InputError(
                    f"--save-statistics {self.save_statistics} is in no folder that exists: make it"
                )

    def _check_statistics(self) -> None:
        theirs, length = self.statistics.features, len(self.statistics.mean)
        if theirs is None:
            if length != FEATURES:
                raise InputError(
                    f"{self.data} has {length} features per picture where FID's Inception has "
                    f"{FEATURES}: compute the statistics with its last pooled ones"
                )
            return
        ours = inception_features(self.networks.inception, self.resize)
        if theirs.resize != ours.resize:
            raise InputError(
                f"{self.data} has pictures resized by {theirs.resize}, but this command resizes "
                f"by {ours.resize}: give --fid-resize {theirs.resize}, or statistics by "
                f"{ours.resize}"
            )
        if (theirs.network, theirs.weights) != (ours.network, ours.weights):
            raise InputError(
                f"{self.data} was computed by {theirs.network} with the weights "
                f"{theirs.weights[:12]}, but those here are {ours.network}'s {ours.weights[:12]}: "
                "give --weights the ones it was made with, or compute the statistics again"
            )

    @contextmanager
    def scoring(self) -> Iterator[Scorer]:
        """Claim the report's folder; write the report at the end, also after an error.

        Raises:
          InputError: as `ReportFolder.claim` does.
          RunError: if the disk is full.
        """
        networks, reference = self.networks, self.reference
        inception = networks.inception and inception_judge(networks.inception, self.resize)
        parser = networks.parser and parser_judge(networks.parser)
        lpips = networks.lpips and lpips_key(networks.lpips)
        protocol = {
            "reference": self._reference_key(),
            "face parser": parser and parser.convention,
            "Inception": inception and f"resized by {self.resize} {inception.key[:12]}",
            "LPIPS": lpips and f"{networks.lpips.backbone.name} {lpips[:12]}",
        }
        with self.report.claim(protocol), _explain_full_disk(self.report.path):
            try:
                yield Scorer(
                    folder=self.report.measurements,
                    metrics=self.scores,
                    classes=self.classes.names,
                    reference=reference,
                    parser=parser,
                    inception=inception,
                    inception_statistics=self.statistics,
                    lpips=networks.lpips,
                )
                if self.save_statistics is not None:
                    measured = measure(self.report.measurements, inception, reference, None)
                    features = inception_features(networks.inception, self.resize)
                    statistics = dataclasses.replace(measured.statistics, features=features)
                    save_statistics(self.save_statistics, statistics)
            except BaseException:
                with suppress(OSError):  # it would hide the first error
                    self._write()
                raise
            self._write()

    def _reference_key(self) -> str:
        if self.reference is not None:
            return f"of {len(self.reference)} pictures {self.reference.key[:12]}"
        return f"statistics {digest(self.statistics.mean, self.statistics.cov)[:12]}"

    def put(self, row: Row) -> None:
        """Save and print a row of the table, unless it has no scores."""
        if not row.scores:
            return
        self.report.put(row)
        table = score_table([row])
        pairs = zip(table.columns[1:], table.rows[0][1:], strict=True)
        print(f"{row.name}:", *(f" {column} {value}" for column, value in pairs), flush=True)

    def _write(self) -> None:
        quality = self.networks.parser.quality if self.networks.parser else None
        tabled = {
            "memorisation": lambda result: [memorisation_table(result)],
            "styles": style_tables,
            "speed": speed_tables,
            "peers": peer_tables,
        }
        tables = [
            dataclasses.replace(table, title=f"{table.title}: {name}")
            for kind, tables_of in tabled.items()
            for name, result in self.report.findings(kind).items()
            for table in tables_of(result)
        ]
        shown = write_report(
            self.report,
            about=in_words(self.networks, self.scores, self.resize, self._describe_reference()),
            missing=self.networks.missing,
            parser_quality=quality,
            tables=tables,
        )
        print("\n" + "\n".join(table.markdown() for table in shown))
        for sentence in self.networks.missing.values():
            print(f"not measured: {sentence}")
        print(f"wrote {self.report.path / 'report.html'}, report.md and report.json beside it")

    def _describe_reference(self) -> str:
        if self.reference is None:
            return f"statistics {self.data}"
        count = f"{len(self.reference)} pictures"
        if isinstance(self.reference, SplitPictures):
            return f"{count}, the first of the test split of {self.data}"
        return f"{count}, {self.data}"


@contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into RunError."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise RunError(
            f"the report in {folder} cannot be written ({error.strerror}): existing files are "
            "kept; make room, and the same command continues"
        ) from error


def weights_key(synthesizer: Synthesizer) -> str:
    """Digest of a model's and its autoencoder's configurations and weights."""
    sizes = synthesizer.config, synthesizer.autoencoder.config
    return digest(*sizes, tree_checksum(synthesizer.params), synthesizer.autoencoder.checksum())


def evaluate_run(
    evaluation: Evaluation,
    synthesizer: Synthesizer,
    train: Source | None,
    *,
    name: str,
    samplings: Sequence[Sampling],
    diversity: Diversity,
    speed: bool,
    peers: bool,
    style: bool = True,
    style_guidance: float = 1.0,
    noises: Sequence[MaskNoise] = (),
) -> None:
    """Score a trained model's faces for the reference's masks, with the bounds of these scores.

    Args:
      evaluation: with a reference that has masks.
      synthesizer: the model.
      train: its training data, for the nearest faces and as another set of real pictures.
      name: name of the model in the table.
      samplings: samplings to score, one row each, unless the model only draws in the style of
        references.
      diversity: sizes for LPIPS diversity, if LPIPS is available.
      speed, peers: whether they are timed.
      style: whether to measure styles of references, with the first sampling, if the model has
        style conditioning.
      style_guidance: style guidance of faces with references.
      noises: noises in masks with which every sampling is scored, too, and, with `style`, faces in
        their own style; they need a face parser.
    """
    report = evaluation.report
    in_style = None
    if style and synthesizer.has_style:
        options = dataclasses.replace(samplings[0].options, style_guidance=style_guidance)
        in_style = dataclasses.replace(samplings[0], options=options, own_style=True)
    weights = weights_key(synthesizer)
    with evaluation.scoring() as scorer:
        if evaluation.scores:
            score_bounds(evaluation, scorer, synthesizer, train, name)
            for sampling in samplings if synthesizer.draws_styles else ():
                faces = GeneratedFaces(
                    report.images, synthesizer, weights, evaluation.reference, sampling
                )
                score_faces(evaluation, scorer, faces, name, diversity)
                if sampling == samplings[0]:
                    show(evaluation, name, faces, train)
        if in_style is not None:
            score_styles(evaluation, scorer, synthesizer, name, weights, in_style)
        if noises:
            score_noise(
                evaluation.put,
                scorer,
                report.images,
                synthesizer,
                weights,
                evaluation.reference,
                name=name,
                samplings=[
                    *(samplings if synthesizer.draws_styles else ()),
                    *([in_style] if in_style else []),
                ],
                noises=noises,
            )
        if speed:
            time_synthesis(report, synthesizer, name, weights, samplings)
        if peers:
            key = digest(synthesizer.config, *circumstances().values())
            if report.finding("peers", name, key) is None:
                report.keep("peers", name, key, measure_peers(synthesizer.config))


def real_faces(scorer: Scorer, reference: SplitPictures) -> Row:
    """The row of the real faces, which shows how reliable the parser's scores are."""
    return scorer.row("test faces", "real", reference, labels=reference.labels)


def score_bounds(
    evaluation: Evaluation,
    scorer: Scorer,
    synthesizer: Synthesizer,
    train: Source | None,
    name: str,
) -> None:
    """Score the real faces and their reconstructions by the model's autoencoder."""
    reference = evaluation.reference
    evaluation.put(real_faces(scorer, reference))
    if train is not None and len(train) >= 2:
        others = SourcePictures(train, min(len(train), len(reference)))
        evaluation.put(scorer.row(f"training faces of {name}", "real", others))
    if generator(synthesizer.config).one_pass:
        return
    evaluation.put(
        scorer.row(
            f"autoencoder of {name}",
            "reconstruction",
            Reconstructions(reference, synthesizer.autoencoder),
            labels=reference.labels,
            pairs=reference,
        )
    )


def score_faces(
    evaluation: Evaluation,
    scorer: Scorer,
    faces: GeneratedFaces,
    name: str,
    diversity: Diversity,
) -> None:
    """Make a model's faces and score them."""
    faces.make(range(len(faces)))
    row = scorer.row(
        f"{name}, {faces.sampling.in_words}",
        "synthesis",
        faces,
        labels=evaluation.reference.labels,
        settings={"model": name, "step": faces.synthesizer.step} | faces.sampling.settings,
    )
    evaluation.put(row)
    if scorer.lpips is not None and "lpips_diversity" in evaluation.scores:
        masks = min(diversity.masks, len(faces))
        faces.make(range(masks), diversity.samples)
        evaluation.put(scorer.with_diversity(row, faces, masks, diversity.samples))


def score_styles(
    evaluation: Evaluation,
    scorer: Scorer,
    synthesizer: Synthesizer,
    name: str,
    weights: str,
    own: Sampling,
) -> None:
    """Score faces in their own style against the real faces, and measure other styles."""
    report, reference = evaluation.report, evaluation.reference
    if evaluation.scores:
        faces = GeneratedFaces(report.images, synthesizer, weights, reference, own)
        faces.make(range(len(faces)))
        evaluation.put(
            scorer.row(
                f"{name}, {own.in_words}",
                "reconstruction",
                faces,
                labels=reference.labels,
                pairs=reference,
                settings={"model": name, "step": synthesizer.step} | own.settings,
            )
        )
    sampling = dataclasses.replace(own, own_style=False)
    count = min(FACES, len(reference))
    key = digest(weights, reference.key, *sampling.settings.items(), count)
    if report.finding("styles", name, key) is not None:
        return
    images, labels = reference.read(range(count)), reference.labels[:count]
    result, sheets = measure_styles(synthesizer, images, labels, sampling)
    for what, sheet in sheets.items():
        report.put_picture(f"{what.partition(':')[0]} of {name}", f"Style, {what} ({name})", sheet)
    report.keep("styles", name, key, result)


def time_synthesis(
    report: ReportFolder,
    synthesizer: Synthesizer,
    name: str,
    weights: str,
    samplings: Sequence[Sampling],
) -> None:
    """Time every solver and number of steps that has not been timed here before."""
    key = digest(weights, *circumstances().values())
    result = report.finding("speed", name, key)
    for solver, steps in dict.fromkeys((x.options.solver, x.options.steps) for x in samplings):
        before = result["cases"] if result else []
        if any((case["solver"], case["steps"]) == (solver, steps) for case in before):
            continue
        guidances = [1.0, GUIDED] if synthesizer.trained_with_null_mask else [1.0]
        result = measure_speed(synthesizer, solvers=[solver], steps=[steps], guidances=guidances)
        result["cases"] = before + result["cases"]
        report.keep("speed", name, key, result)


def show(evaluation: Evaluation, name: str, faces: GeneratedFaces, train: Source | None) -> None:
    """Put sheets of samples and of nearest training faces into the report."""
    reference, report = evaluation.reference, evaluation.report
    how = f"{name}, {faces.sampling.in_words}"
    shown = range(min(SHOWN_MASKS, len(faces)))
    faces.make(shown, SHOWN_SAMPLES)
    samples = np.stack([faces.samples(mask, SHOWN_SAMPLES) for mask in shown])
    sheet = mask_sheet(
        reference.labels[: len(shown)], samples, reference.read(shown), evaluation.classes
    )
    caption = f"Mask, the face it belongs to, and samples of the mask ({how})"
    report.put_picture(f"samples of {name}", caption, sheet)
    if train is None:
        return
    pictures = SourcePictures(train, len(train))
    asked = range(min(ASKED_FOR_NEAREST, len(faces)))

    key = digest(faces.key, pictures.key)
    if report.finding("memorisation", name, key) is not None:
        return
    made, real = faces.read(asked), reference.read(asked)
    neighbours = nearest(shrunk(np.concatenate([made, real])), pictures)
    count = len(asked)
    summary = memorisation(neighbours.distance[:count], neighbours.distance[count:], len(pictures))
    near = lambda start: pictures_of(neighbours, pictures, range(start, start + len(shown)))
    columns = made[: len(shown)], near(0), real[: len(shown)], near(count)
    caption = (
        "Sample and the training face nearest to it; the real face of the same mask and the "
        f"training face nearest to that ({how})"
    )
    report.put_picture(f"nearest to {name}", caption, tile(list(zip(*columns, strict=True))))
    report.keep("memorisation", name, key, {"sampling": faces.sampling.name} | summary)

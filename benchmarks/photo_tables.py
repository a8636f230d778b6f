"""The tables that photo_bench.py prints."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import report
from photo_scores import combined

from sisma_jax.data.thumbnails import SIDE
from sisma_jax.evaluation.tables import Table

TIMED_BATCH = 16
"""Batch of the seconds an image in the table."""


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
        if "reconstructions" in model and model["reconstructions"] not in shown:
            shown.append(model["reconstructions"])
            yield [f"reconstructions, {name}", None, None], model["reconstructions"]
    for name, model in results["models"].items():
        for sampling in model["samplings"]:
            how = [sampling["settings"]["steps"], f"{sampling['settings']['guidance']:g}"]
            yield [name, *how], sampling["scores"]
        if "own_style" in model:
            how = model["own_style"]["settings"]
            how = [how["steps"], f"{how['guidance']:g}"]
            yield [f"{name}, own style", *how], model["own_style"]["scores"]


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

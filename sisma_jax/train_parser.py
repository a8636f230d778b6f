"""Train a face parser: `python -m sisma_jax.train_parser --config configs/parser.py`.

`sisma_jax.evaluate` uses it to measure whether faces follow their masks. At the end it is scored on
the whole test split; reports show this score beside its measurements.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from sisma_jax.common import cli
from sisma_jax.common.config import check_least, check_shares, section
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import UNLABELLED
from sisma_jax.data.contact_sheet import tile
from sisma_jax.data.input_pipeline import Source, fixed_batch
from sisma_jax.data.label_maps import colourise
from sisma_jax.data.raw import FIELDS
from sisma_jax.devices.hosts import together
from sisma_jax.devices.placement import replicate
from sisma_jax.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.face_parser import (
    FaceParser,
    FaceParserConfig,
    FaceParserUNet,
    save_parser,
)
from sisma_jax.models.face_parser.training import parser_loss
from sisma_jax.runs.folder import RunFolder
from sisma_jax.runs.state import Params
from sisma_jax.training.augmentation import AugmentConfig, augmented, draw
from sisma_jax.training.auxiliary import (
    FACES_ON_SHEET,
    open_splits,
    test_batches,
    train_and_report,
)
from sisma_jax.training.class_balance import class_weights
from sisma_jax.training.logging import Log
from sisma_jax.training.loop import Task
from sisma_jax.training.program import Trainable
from sisma_jax.training.setup import (
    Sections,
    check_classes,
    check_image_size,
    parse_training_command,
)
from sisma_jax.training.state import Batch, Metrics, kernel_axes, make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The config's section `loss`."""

    dice_weight: float
    """Weight of the Dice term beside the cross-entropy."""
    class_balance: float = 0.0
    """In [0, 1]: 0 weighs classes by their area in the cross-entropy, 1 all alike
    (`class_weights`)."""

    def __post_init__(self) -> None:
        check_least(self, "loss", 0, "dice_weight")
        check_shares(self, "loss", "class_balance")


def train_parser(config: ConfigDict, workdir: str | Path, watch: Sequence[Log] = ()) -> None:
    """Train a face parser; arguments and errors are those of `sisma_jax.train.train_sisma`."""
    run = RunFolder(Path(workdir))
    with together():
        sections = Sections.of(config)
        data, settings = sections.data, sections.train
        model = section(FaceParserConfig, config, "parser")
        if model.norm == "affine":
            raise InputError(
                "parser.norm is 'affine', which stands for the finished batch norms of published "
                "weights: choose 'group' to train"
            )
        loss = section(LossConfig, config, "loss")
        augment = AugmentConfig()
        if "augment" in config:  # which configs of older runs lack
            augment = section(AugmentConfig, config, "augment")
        levels = len(model.channels)
        check_image_size(
            data, model.factor, f"{model.factor}, which {levels} entries of parser.channels need"
        )
    train_source, test_source = open_splits(
        run,
        config,
        data,
        train=FIELDS,
        test=FIELDS,
        check=partial(check_classes, "parser", model.num_classes),
    )

    classes = train_source.classes
    module = FaceParserUNet(model)
    images = jnp.zeros((1, data.size, data.size, 3))
    parser = lambda ema: FaceParser.trained(model, ema, classes=classes.names, size=data.size)

    def task() -> Task:
        return Task(
            trainable=Trainable(
                init_params=lambda: module.init(jax.random.key(config.seed), images)["params"],
                optimizer=make_optimizer(settings, kernel_axes),
                draw=lambda key, batch: draw(augment, key, len(batch["labels"])),
                loss_fn=lambda params, batch: batch_loss(module, loss, replicate(params), batch),
            ),
            feed=sections.feed(train_source, config.seed),
            sample_grid=lambda ema: sheet(parser(ema), test_source),
        )

    def export(ema: Params) -> dict:
        quality = {"data": data.path} | test_quality(parser(ema), test_source)
        save_parser(run.parser, model, ema, classes=classes.names, size=data.size, quality=quality)
        return quality

    train_and_report(
        run,
        config,
        sections,
        data=train_source.checksum,
        classes=classes,
        task=task,
        export=export,
        show=partial(show, run),
        watch=watch,
    )


def batch_loss(
    module: FaceParserUNet, loss: LossConfig, params: Params, batch: Batch
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of a batch, and its parts; it has "image", "labels" and draws of augmentation."""
    images, labels = augmented(to_float(batch["image"]), batch["labels"], batch)
    weight = None
    if loss.class_balance:
        classes = module.config.num_classes
        weight = class_weights(labels, labels.shape[1], classes, loss.class_balance)
    logits = module.apply({"params": params}, images)
    return parser_loss(logits, labels, loss.dice_weight, weight)


def sheet(parser: FaceParser, source: Source) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet of test faces, their label maps, and the parser's label maps."""
    faces = fixed_batch(source, min(FACES_ON_SHEET, len(source)))
    predicted = np.asarray(parser.labels(faces["image"]))
    maps = [colourise(labels, source.classes) for labels in (faces["labels"], predicted)]
    return tile([list(x) for x in (faces["image"], *maps)])


def test_quality(parser: FaceParser, source: Source) -> dict:
    """Scores on all images of a split, from one confusion matrix."""
    count = parser.num_classes
    confusion = np.zeros((count, count), np.int64)
    for batch, rows in test_batches(source):
        predicted = np.asarray(parser.labels(batch["image"]))[:rows]
        confusion += confusion_matrix(batch["labels"][:rows], predicted, count, UNLABELLED)
    by_class = zip(parser.classes, class_iou(confusion), strict=True)
    return {
        "test_miou": mean_iou(confusion),
        "test_accuracy": pixel_accuracy(confusion),
        "test_images": len(source),
        "class_iou": {name: None if math.isnan(x) else float(x) for name, x in by_class},
    }


def show(run: RunFolder, report: dict) -> None:
    """Print the scores of the finished parser, and how to use it."""
    print(
        f"step {report['step']}: mIoU {report['test_miou']:.3f} and pixel accuracy "
        f"{report['test_accuracy']:.3f} on {report['test_images']} test images"
    )
    for name, value in report["class_iou"].items():
        print(f"  {name:12s} {'not there' if value is None else format(value, '.3f')}")
    print(f"{run.parser} is ready: give sisma_jax.evaluate --parser {run.path}")


def main() -> None:
    train_parser(
        *parse_training_command(
            "sisma_jax.train_parser",
            __doc__,
            "python -m sisma_jax.train_parser --config configs/parser.py --workdir runs/parser",
        )
    )


if __name__ == "__main__":
    cli.run(main)

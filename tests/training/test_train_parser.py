"""The face parser's command and its loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax import train_parser
from sisma_jax.common.errors import InputError
from sisma_jax.data.input_pipeline import open_dataset
from sisma_jax.metrics import confusion_matrix, mean_iou
from sisma_jax.models.autoencoder import to_float
from sisma_jax.models.face_parser import FaceParserConfig, FaceParserUNet, load_parser
from sisma_jax.models.face_parser.training import parser_loss
from sisma_jax.training.class_balance import class_weights
from tests.tiny_runs import CONFIGS, SIZE, call


def run(inputs_folder, workdir, **overrides):
    settings = {
        "data.path": inputs_folder / "data",
        "data.size": SIZE,
        "data.test_from": 12,
        "parser.channels": "(8, 8)",
        "parser.norm_groups": 2,
        "train.steps": 4,
        "train.batch_size": 4,
        "train.warmup": 1,
        "train.schedule": "constant",
        "train.log_every": 2,
        "checkpoint.every": 4,
    } | {key.replace("__", "."): value for key, value in overrides.items()}
    call(
        train_parser.main,
        f"--config={CONFIGS / 'parser.py'}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    )


def test_a_parser_is_saved_with_its_own_score_and_a_finished_run_left_as_it_is(
    inputs_folder, tmp_path, capsys
):
    run(inputs_folder, tmp_path / "run")
    assert "on 4 test images" in capsys.readouterr().out
    report = json.loads((tmp_path / "run/report.json").read_text())
    parser = load_parser(tmp_path / "run")
    test = open_dataset(inputs_folder / "data", SIZE, split="test", test_from=12)
    images, labels = (np.stack([item[key] for item in test]) for key in ("image", "labels"))
    confusion = confusion_matrix(labels, np.asarray(parser.labels(images)), 19, 255)
    assert parser.quality["test_miou"] == report["test_miou"] == mean_iou(confusion)
    assert parser.size == SIZE and parser.classes == test.classes.names
    assert (tmp_path / "run/samples/step_0000004.png").exists()
    before = (tmp_path / "run/parser/config.json").stat().st_mtime_ns
    run(inputs_folder, tmp_path / "run")
    assert "step 4: mIoU" in capsys.readouterr().out
    assert (tmp_path / "run/parser/config.json").stat().st_mtime_ns == before
    # A damaged report is written again.
    (tmp_path / "run/report.json").write_text('{"step": 4')
    run(inputs_folder, tmp_path / "run")
    assert json.loads((tmp_path / "run/report.json").read_text()) == report


@pytest.mark.slow
def test_a_finished_run_continues_to_more_steps(inputs_folder, tmp_path, capsys):
    run(inputs_folder, tmp_path / "run")
    before = load_parser(tmp_path / "run").checksum()
    capsys.readouterr()
    run(inputs_folder, tmp_path / "run", train__steps=6)
    said = capsys.readouterr().out
    assert "continuing" in said and "step 6: mIoU" in said
    assert load_parser(tmp_path / "run").checksum() != before
    assert (tmp_path / "run/samples/step_0000006.png").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__size": 31}, "data.size 31 is not a multiple of 2, which 2 entries"),
        ({"parser__num_classes": 5}, r"has 19 classes: set --config.parser.num_classes=19"),
        ({"parser__norm": "affine"}, "parser.norm is 'affine', .*: choose 'group' to train"),
        ({"loss__class_balance": 1.5}, "loss.class_balance is 1.5"),
        ({"train__batch_size": 6}, "6 is not divisible by the 4 devices"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    overrides, message, inputs_folder, tmp_path
):
    with pytest.raises(InputError, match=message):
        run(inputs_folder, tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()


def test_a_negative_weight_of_the_loss_is_refused():
    with pytest.raises(InputError, match=r"loss\.dice_weight is -1"):
        train_parser.LossConfig(dice_weight=-1.0)


def loss_by_definition(logits, labels, weight, pixel_weights=None):
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labelled = labels < logits.shape[-1]
    chosen = np.take_along_axis(shares, np.where(labelled, labels, 0)[..., None], -1)[..., 0]
    weights = np.ones(labels.shape) if pixel_weights is None else pixel_weights[..., 0]
    cross_entropy = -(weights * np.log(chosen))[labelled].mean()
    parts = []
    for label in np.unique(labels[labelled]):
        truth = labels == label
        share = shares[..., label] * labelled
        both = (share * truth).sum()
        parts.append(1 - (2 * both + 1) / (share.sum() + truth.sum() + 1))
    return cross_entropy + weight * np.mean(parts)


@jax.jit
def loss_and_gradient(logits, labels):
    return jax.value_and_grad(lambda x: parser_loss(x, labels, 0.7), has_aux=True)(logits)


def test_the_loss_is_by_definition_and_leaves_unlabelled_pixels_out():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (2, 5, 6, 4)).astype(np.float32)
    labels = random.integers(0, 3, (2, 5, 6)).astype(np.uint8)
    labels[0, :2] = 255
    (loss, metrics), gradient = loss_and_gradient(logits, labels)
    expected = loss_by_definition(logits.astype(np.float64), labels, 0.7)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    right = (logits.argmax(-1) == labels)[labels < 4].mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)
    assert not np.asarray(gradient)[0, :2].any() and np.asarray(gradient)[1].all()


def test_pixel_weights_change_the_cross_entropy_only():
    random = np.random.default_rng(1)
    logits = jnp.asarray(random.normal(0, 2, (2, 8, 8, 4)), jnp.float32)
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, :2, :2], labels[1, 0, 0], labels[1, 4:] = 1, 2, 255
    weights = class_weights(jnp.asarray(labels), 8, 4, 0.5)
    assert weights[1, 0, 0, 0] > weights[0, 0, 0, 0] > weights[0, 4, 4, 0]
    loss, metrics = parser_loss(logits, jnp.asarray(labels), 0.7, weights)
    doubles = np.asarray(logits, np.float64)
    expected = loss_by_definition(doubles, labels, 0.7, np.asarray(weights, np.float64))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert abs(loss - loss_by_definition(doubles, labels, 0.7)) > 0.01
    unweighted = parser_loss(logits, jnp.asarray(labels), 0.7)[1]
    np.testing.assert_allclose(metrics["cross_entropy"], unweighted["cross_entropy"], rtol=1e-6)


def test_the_class_balance_weights_the_loss_of_a_training_batch():
    module = FaceParserUNet(FaceParserConfig(num_classes=4, channels=(8,), norm_groups=2))
    random = np.random.default_rng(2)
    images = random.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[:, :2, :2] = 1
    batch = {"image": jnp.asarray(images), "labels": jnp.asarray(labels)}
    params = module.init(jax.random.key(0), to_float(images))["params"]
    logits = module.apply({"params": params}, to_float(images))
    for balance in 0.0, 0.5:
        settings = train_parser.LossConfig(dice_weight=0.7, class_balance=balance)
        loss, _ = train_parser.batch_loss(module, settings, params, batch)
        weights = class_weights(batch["labels"], 8, 4, 0.5) if balance else None
        expected, _ = parser_loss(logits, batch["labels"], 0.7, weights)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_nothing_labelled_is_no_loss():
    logits, labels = np.ones((2, 5, 6, 4), np.float32), np.full((2, 5, 6), 255, np.uint8)
    (loss, _), gradient = loss_and_gradient(logits, labels)
    assert loss == 0 and not np.asarray(gradient).any()

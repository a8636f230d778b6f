"""Four classes and no faces: prepare, train from the shards, sample."""

import json

import numpy as np
import pytest
from PIL import Image

from sisma_jax import Synthesizer, prepare, sample
from sisma_jax.common.errors import InputError
from tests.datasets import TOY, write_toy
from tests.tiny_runs import SIZE, call, train_tiny


@pytest.mark.slow
def test_another_data_set_goes_all_the_way(inputs_folder, tmp_path):
    toy, shards, workdir = write_toy(tmp_path / "toy"), tmp_path / "shards", tmp_path / "run"
    arguments = ["--source", toy, "--out", shards, "--size", SIZE, "--test-from", 12]
    call(prepare.main, *arguments, "--workers", 1)
    settings = {"data__path": shards, "train__steps": 5, "train__batch_size": 4}
    with pytest.raises(InputError, match=r"has 4 classes: set --config\.model\.num_classes=4"):
        train_tiny(inputs_folder, workdir, **settings)
    train_tiny(inputs_folder, workdir, model__num_classes=4, **settings)
    assert json.loads((workdir / "classes.json").read_text()) == TOY
    assert Synthesizer.load(workdir).classes.names[2] == "left_stone"

    # A mask in the data set's own colours, which are no classes of faces.
    call(
        sample.main,
        *("--workdir", workdir, "--masks", toy / "labels/scene_3.png"),
        *("--out", tmp_path / "made", "--steps", 2),
    )
    made = np.asarray(Image.open(tmp_path / "made/scene_3_0.png"))
    assert made.shape == (SIZE, SIZE, 3)
    with pytest.raises(InputError, match="for CelebAMask-HQ's classes only"):
        call(
            sample.main,
            *("--workdir", workdir, "--masks", toy / "labels/scene_3.png"),
            *("--out", tmp_path / "more", "--class-order", "bisenet"),
        )

    # The same run cannot go on with other classes.
    other = write_toy(tmp_path / "other")
    classes = json.loads((other / "classes.json").read_text())
    classes["classes"][0]["name"] = "sea"
    (other / "classes.json").write_text(json.dumps(classes))
    arguments[1], arguments[3] = other, tmp_path / "other_shards"
    call(prepare.main, *arguments, "--workers", 1)
    settings["data__path"] = tmp_path / "other_shards"
    with pytest.raises(InputError, match="was trained on other classes"):
        train_tiny(inputs_folder, workdir, model__num_classes=4, **settings)

"""Cached latents: the encoder's, for image and mirror image, and training that cannot tell."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sisma_jax import cache_latents, prepare, train
from sisma_jax.common.config import load_config, section
from sisma_jax.common.errors import InputError, RunError
from sisma_jax.data.config import DataConfig
from sisma_jax.data.input_pipeline import training_stream
from sisma_jax.data.latents import FIELDS_WITH_IMAGES, LatentCache
from sisma_jax.data.prepared import PreparedDataset
from sisma_jax.models.autoencoder import (
    load_autoencoder,
    sample_latent,
    save_autoencoder,
    to_float,
)
from tests.datasets import COUNT, SIZE, TEST_FROM, write_raw
from tests.tiny_runs import (
    CONFIGS,
    STYLE,
    arguments,
    call,
    overridden,
    train_tiny,
    train_tiny_style,
)

HALF = dict(rtol=2e-3, atol=2e-3)
"""What float16 keeps of numbers of about 1."""


def prepared_set(raw, out, size=SIZE, shard_size=6):
    command = ["--source", raw, "--out", out, "--size", size, "--test-from", TEST_FROM]
    call(prepare.main, *command, "--shard-size", shard_size, "--workers", 1)
    return out


def other_faces(folder):
    """The raw set with one picture changed."""
    write_raw(folder)
    photographs = folder / "CelebA-HQ-img"
    (photographs / "0.jpg").write_bytes((photographs / "1.jpg").read_bytes())
    return folder


def write_cache(data, autoencoder, out, *options):
    command = ["--data", data, "--autoencoder", autoencoder, "--out", out, "--batch-size", 4]
    call(cache_latents.main, *overridden(command, options))
    return out


@pytest.fixture(scope="module")
def folder(inputs_folder, tmp_path_factory):
    """A folder with raw/, data/ prepared from raw/, and latents/ cached from data/."""
    folder = tmp_path_factory.mktemp("cache")
    prepared_set(write_raw(folder / "raw"), folder / "data")
    write_cache(folder / "data", inputs_folder / "autoencoder", folder / "latents")
    return folder


@pytest.fixture(scope="module")
def autoencoder(inputs_folder):
    return load_autoencoder(inputs_folder / "autoencoder")


def moments_of(autoencoder, images):
    return np.concatenate(autoencoder.encode(to_float(images)), axis=-1)


class TestCache:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_items_are_what_the_encoder_makes_of_image_and_mirror_image(
        self, split, folder, autoencoder
    ):
        cache = LatentCache(folder / "latents", split=split)
        images = PreparedDataset(folder / "data", SIZE, split=split)
        assert cache.ids == images.ids and cache.classes == images.classes
        for index in range(len(images)):
            item, face = cache[index], images[index]
            assert item["moments"].dtype == np.float16
            assert item["moments"].shape == (2, SIZE // 4, SIZE // 4, 8)
            both = np.stack([face["image"], face["image"][:, ::-1]])
            np.testing.assert_allclose(item["moments"], moments_of(autoencoder, both), **HALF)
            np.testing.assert_array_equal(item["labels"], face["labels"])

    def test_all_devices_encode(self, autoencoder):
        moments = cache_latents.encoder(autoencoder, 8)(np.zeros((3, SIZE, SIZE, 3), np.uint8))
        assert len(moments.sharding.device_set) == jax.local_device_count() == 4
        assert len(moments) == 8

    def test_more_batches_than_are_in_flight_keep_their_order(
        self, folder, inputs_folder, tmp_path
    ):
        data = prepared_set(folder / "raw", tmp_path / "data", shard_size=64)
        write_cache(data, inputs_folder / "autoencoder", tmp_path / "latents", "--batch-size", 3)
        whole, cut = LatentCache(tmp_path / "latents"), LatentCache(folder / "latents")
        assert TEST_FROM / 4 > cache_latents.IN_FLIGHT + 1 and whole.ids == cut.ids
        for index in range(len(whole)):
            np.testing.assert_allclose(whole[index]["moments"], cut[index]["moments"], **HALF)
            np.testing.assert_array_equal(whole[index]["labels"], cut[index]["labels"])

    def test_finished_it_is_left_alone(self, folder, inputs_folder, monkeypatch):
        monkeypatch.setattr(cache_latents, "encode", None)
        before = (folder / "latents/latents.json").stat().st_mtime_ns
        write_cache(folder / "data", inputs_folder / "autoencoder", folder / "latents")
        assert (folder / "latents/latents.json").stat().st_mtime_ns == before

    def test_interrupted_it_continues_and_ends_the_same(
        self, folder, inputs_folder, tmp_path, monkeypatch
    ):
        encode, calls = cache_latents.encode, []

        def failing(*arguments):
            calls.append(None)
            if len(calls) > 4:  # within the third shard: two batches each
                raise KeyboardInterrupt
            return encode(*arguments)

        monkeypatch.setattr(cache_latents, "encode", failing)
        out = tmp_path / "latents"
        inputs = folder / "data", inputs_folder / "autoencoder", out
        with pytest.raises(KeyboardInterrupt):
            write_cache(*inputs)
        with pytest.raises(InputError, match=r"not a latent cache, it has no latents\.json"):
            LatentCache(out)
        calls.clear()
        monkeypatch.setattr(cache_latents, "encode", lambda *x: (calls.append(None), encode(*x))[1])
        write_cache(*inputs)
        assert len(calls) == 2, "the third shard, and that of the test split"
        assert sorted(p.name for p in out.iterdir()) == sorted(
            p.name for p in (folder / "latents").iterdir()
        )
        for split in ("train", "test"):
            again, whole = (
                LatentCache(out, split=split),
                LatentCache(folder / "latents", split=split),
            )
            for index in range(len(whole)):
                np.testing.assert_array_equal(again[index]["moments"], whole[index]["moments"])

    def test_another_autoencoder_is_not_mixed_in(self, folder, inputs_folder, tmp_path):
        other = load_autoencoder(inputs_folder / "autoencoder")
        other.params["quant_conv"]["bias"] += 1
        save_autoencoder(tmp_path / "other", other.config, other.params)
        with pytest.raises(
            InputError, match="finished and has another autoencoder: name another folder"
        ):
            write_cache(folder / "data", tmp_path / "other", folder / "latents")

    def test_wrong_input(self, folder, inputs_folder, autoencoder, tmp_path):
        inputs = folder / "data", inputs_folder / "autoencoder"
        with pytest.raises(InputError, match="--batch-size is 0"):
            write_cache(*inputs, tmp_path / "out", "--batch-size", 0)
        with pytest.raises(InputError, match=r"raw is not a prepared data set.*sisma_jax\.prepare"):
            write_cache(folder / "raw", inputs[1], tmp_path / "out")
        odd = prepared_set(folder / "raw", tmp_path / "odd", size=30)
        with pytest.raises(InputError, match=r"30 pixels.*multiple of the autoencoder's factor 4"):
            write_cache(odd, inputs[1], tmp_path / "out")
        huge = dict(autoencoder.params) | {
            "linear_encoder": jax.tree.map(lambda x: 1e6 * x, autoencoder.params["linear_encoder"])
        }
        save_autoencoder(tmp_path / "huge", autoencoder.config, huge)
        with pytest.raises(InputError, match=r"latents of image 0 overflow float16"):
            write_cache(inputs[0], tmp_path / "huge", tmp_path / "out")


class TestStream:
    @pytest.mark.parametrize("flip", ["exchange", "plain"])
    def test_it_is_the_stream_of_images_encoded(self, flip, folder, autoencoder):
        options = dict(batch_size=4, seed=5, threads=0, flip=flip)
        images = training_stream(PreparedDataset(folder / "data", SIZE), **options)
        latents = training_stream(LatentCache(folder / "latents"), **options)
        for _ in range(8):
            seen, cached = next(images), next(latents)
            np.testing.assert_array_equal(cached["labels"], seen["labels"])
            expected = moments_of(autoencoder, seen["image"])
            np.testing.assert_allclose(cached["moments"], expected, **HALF)

    def test_with_images_it_is_the_same_with_both(self, folder, inputs_folder, autoencoder):
        out = folder / "with_images"
        write_cache(folder / "data", inputs_folder / "autoencoder", out, "--images")
        options = dict(batch_size=4, seed=5, threads=0)
        images = training_stream(PreparedDataset(folder / "data", SIZE), **options)
        both = training_stream(LatentCache(out, fields=FIELDS_WITH_IMAGES), **options)
        for _ in range(8):
            seen, cached = next(images), next(both)
            np.testing.assert_array_equal(cached["labels"], seen["labels"])
            np.testing.assert_array_equal(cached["image"], seen["image"])
            expected = moments_of(autoencoder, seen["image"])
            np.testing.assert_allclose(cached["moments"], expected, **HALF)
        assert LatentCache(out)[0].keys() == {"moments", "labels"}, "the image is not decoded"
        inputs = folder / "data", inputs_folder / "autoencoder"
        with pytest.raises(InputError, match=r"with_images was written with --images: give --im"):
            write_cache(*inputs, out)
        with pytest.raises(InputError, match=r"latents was written without --images: leave out"):
            write_cache(*inputs, folder / "latents", "--images")
        with pytest.raises(InputError, match=r"cache_latents --data DIR .*--out DIR --images`"):
            LatentCache(out, fields=FIELDS_WITH_IMAGES).check(
                size=SIZE, autoencoder="a" * 64, data=None
            )

    def test_without_flips_no_mirror_image_is_seen(self, folder, autoencoder):
        stream = training_stream(
            LatentCache(folder / "latents"), batch_size=16, seed=0, flip="none", threads=0
        )
        images = PreparedDataset(folder / "data", SIZE)
        every = {item["labels"].tobytes(): item["image"] for item in images}
        batch = next(stream)
        faces = np.stack([every[labels.tobytes()] for labels in batch["labels"]])
        np.testing.assert_allclose(batch["moments"], moments_of(autoencoder, faces), **HALF)

    def test_samples_of_cached_moments_are_distributed_as_those_of_images(
        self, folder, autoencoder
    ):
        item = LatentCache(folder / "latents")[0]["moments"][0]
        image = PreparedDataset(folder / "data", SIZE)[0]["image"][None]
        mean, logvar = jnp.split(item, 2, axis=-1)
        draws = jax.random.normal(jax.random.key(1), (4000, *mean.shape))
        cached = jax.vmap(lambda noise: sample_latent(noise, mean, logvar, 0.5))(draws)
        moments = [x[0] for x in autoencoder.encode(to_float(image))]
        draws = jax.random.normal(jax.random.key(2), (4000, *mean.shape))
        direct = jax.vmap(lambda noise: sample_latent(noise, *moments, 0.5))(draws)
        deviation = np.asarray(jnp.std(direct, axis=0))
        apart = np.abs(np.asarray(jnp.mean(cached, axis=0) - jnp.mean(direct, axis=0)))
        assert (apart < 6 * deviation * np.sqrt(2 / 4000) + 1e-3).all()
        np.testing.assert_allclose(jnp.std(cached, axis=0), deviation, rtol=0.1)


class TestTraining:
    def losses(self, workdir):
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row]

    @pytest.mark.slow
    def test_a_run_may_change_over_to_the_cache_and_learns_the_same(
        self, folder, inputs_folder, tmp_path
    ):
        images = dict(data__path=folder / "data", train__log_every=1)
        train_tiny(inputs_folder, tmp_path / "images", train__steps=4, **images)
        train_tiny(inputs_folder, tmp_path / "both", train__steps=2, **images)
        cache = images | dict(autoencoder__cache=folder / "latents", data__path='""')
        train_tiny(inputs_folder, tmp_path / "both", train__steps=4, **cache)
        expected, actual = self.losses(tmp_path / "images"), self.losses(tmp_path / "both")
        assert actual[:2] == expected[:2]
        # The same faces, flips and draws: only float16 is between them.
        np.testing.assert_allclose(actual[2:], expected[2:], rtol=5e-3)
        assert actual[2:] != expected[2:]
        run = tmp_path / "both"
        other = images | dict(
            data__path=prepared_set(other_faces(tmp_path / "raw"), tmp_path / "x")
        )
        with pytest.raises(InputError, match=r"both was trained on other data"):
            train_tiny(inputs_folder, run, train__steps=6, **other)
        assert (tmp_path / "both/samples/step_0000004.png").exists()

    @pytest.mark.slow
    def test_a_model_with_a_style_learns_the_same_from_latents_with_images(
        self, folder, inputs_folder, tmp_path
    ):
        images = dict(data__path=folder / "data", train__log_every=1, train__steps=3)
        images |= dict(evaluation__every=3, train__sample_every=3)
        train_tiny_style(inputs_folder, tmp_path / "images", **images)
        out = tmp_path / "latents"
        write_cache(folder / "data", inputs_folder / "autoencoder", out, "--images")
        cache = images | dict(autoencoder__cache=out, data__path='""')
        train_tiny_style(inputs_folder, tmp_path / "cached", **cache)
        expected, actual = self.losses(tmp_path / "images"), self.losses(tmp_path / "cached")
        np.testing.assert_allclose(actual, expected, rtol=5e-3)
        assert actual != expected

    def test_what_differs_is_refused_before_anything_is_written(
        self, folder, inputs_folder, tmp_path
    ):
        def refuse(pattern, **overrides):
            options = dict(data__path=folder / "data", autoencoder__cache=folder / "latents")
            command = arguments(inputs_folder, tmp_path / "run", **(options | overrides))
            with pytest.raises(InputError, match=pattern):
                call(train.main, *command)
            assert not (tmp_path / "run").exists()

        other = load_autoencoder(inputs_folder / "autoencoder")
        other.params["quant_conv"]["bias"] += 1
        save_autoencoder(tmp_path / "other", other.config, other.params)
        refuse("are of another autoencoder", autoencoder__path=tmp_path / "other")
        half = dict(data__size=SIZE // 2, model__latent_size=SIZE // 8)
        refuse(f"of images of {SIZE} pixels instead of {SIZE // 2}", data__path='""', **half)
        raw = other_faces(tmp_path / "raw")
        changed = prepared_set(raw, tmp_path / "changed")
        refuse("are of other data", data__path=changed)
        # Data is looked at before the autoencoder, which may have to be downloaded.
        refuse("are of other data", autoencoder__path="hf://owner/name", data__path=changed)
        with pytest.raises(InputError, match=r"of another autoencoder .* and of other data"):
            LatentCache(folder / "latents").check(size=SIZE, autoencoder="a" * 64, data="b" * 64)
        refuse("raw is not a prepared data set", data__path=raw)
        styled = dict(autoencoder__cache=folder / "latents", data__path='""')
        command = arguments(
            inputs_folder, tmp_path / "run", "synthetic_style.py", **(STYLE | styled)
        )
        with pytest.raises(InputError, match=r"come without the images .*--out DIR --images"):
            call(train.main, *command)
        assert not (tmp_path / "run").exists()
        refuse("is not a latent cache", autoencoder__cache=folder / "data")
        latents = dict(autoencoder__cache='""', data__path=folder / "latents")
        refuse(r"holds cached latents: set autoencoder\.cache to it", **latents)

    def test_another_scaling_factor_or_type_is_no_other_autoencoder(self, folder, inputs_folder):
        first_stage = train.FirstStageConfig(
            path=str(inputs_folder / "autoencoder"),
            scaling_factor=0.25,
            dtype="bfloat16",
            cache=str(folder / "latents"),
        )
        autoencoder = first_stage.load()
        assert autoencoder.scaling_factor == 0.25 and autoencoder.config.dtype == "bfloat16"
        config = load_config(str(CONFIGS / "synthetic.py"), [f"--config.data.size={SIZE}"])
        config.data.path = str(folder / "data")
        data = section(DataConfig, config, "data")
        train_source, test_source = first_stage.open(data, style=False)
        first_stage.check(train_source, data, autoencoder.checksum())
        assert len(train_source) == TEST_FROM and len(test_source) == COUNT - TEST_FROM


@pytest.mark.slow
def test_kills_leave_nothing_half_written(folder, inputs_folder, tmp_path):
    """Ten kills at random moments, then to the end: the records of an undisturbed run."""
    out = tmp_path / "latents"
    command = [sys.executable, "-m", "sisma_jax.cache_latents", "--data", str(folder / "data")]
    command += ["--autoencoder", str(inputs_folder / "autoencoder"), "--out", str(out)]
    command += ["--batch-size", "4"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    dice = random.Random(0)
    started = time.perf_counter()
    subprocess.run([*command[:-3], str(tmp_path / "timed")], check=True, env=environment)
    whole = time.perf_counter() - started
    for _ in range(10):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.4, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, env=environment)
    assert not (out / ".unfinished").exists()
    for split in ("train", "test"):
        again, once = LatentCache(out, split=split), LatentCache(folder / "latents", split=split)
        assert again.ids == once.ids
        for index in range(len(once)):
            np.testing.assert_allclose(again[index]["moments"], once[index]["moments"], **HALF)


def test_memory_that_does_not_suffice_is_no_full_disk(folder, inputs_folder, tmp_path, monkeypatch):
    def too_large(images):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr(cache_latents, "encoder", lambda autoencoder, batch_size: too_large)
        with pytest.raises(RunError, match=r"--batch-size 4 does not fit .*a smaller one"):
            write_cache(folder / "data", inputs_folder / "autoencoder", tmp_path / "out")
    write_cache(folder / "data", inputs_folder / "autoencoder", tmp_path / "out")
    assert len(LatentCache(tmp_path / "out", split="test")) == COUNT - TEST_FROM

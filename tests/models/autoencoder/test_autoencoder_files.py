"""This package's own autoencoder folders: round trips and damage."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sisma_jax.common.config import load_config, to_json
from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import load_autoencoder, save_autoencoder
from sisma_jax.models.weights import load_tree, save_tree
from tests.autoencoders import SMALL_TINY, random_params


@pytest.fixture
def folder(tmp_path):
    save_autoencoder(tmp_path / "saved", SMALL_TINY, random_params(SMALL_TINY))
    return tmp_path / "saved"


class TestFiles:
    def test_round_trip(self, folder):
        loaded = load_autoencoder(folder, dtype=None)
        assert loaded.config == SMALL_TINY
        jax.tree.map(np.testing.assert_array_equal, loaded.params, random_params(SMALL_TINY))

    def test_run_folder_holds_an_autoencoder(self, folder, tmp_path):
        os.rename(folder, tmp_path / "autoencoder")
        (tmp_path / "config.json").write_text("{}")
        assert load_autoencoder(tmp_path, dtype=None).config == SMALL_TINY

    def test_passes_through_jit_as_an_argument(self, folder):
        autoencoder, z = load_autoencoder(folder), jnp.ones((1, 2, 2, 4))
        decoded = jax.jit(lambda autoencoder, z: autoencoder.decode(z))(autoencoder, z)
        np.testing.assert_allclose(decoded, autoencoder.decode(z), rtol=1e-4, atol=1e-4)

    def test_saving_again_replaces_and_leaves_nothing_behind(self, folder):
        config = dataclasses.replace(SMALL_TINY, scaling_factor=2.0)
        save_autoencoder(folder, config, random_params(config, seed=1))
        assert load_autoencoder(folder).scaling_factor == 2.0
        assert [child.name for child in folder.parent.iterdir()] == ["saved"]

    def test_files_have_the_usual_mode(self, folder):
        plain = folder.parent / "plain"
        plain.write_text("")
        usual = plain.stat().st_mode
        assert {child.stat().st_mode for child in folder.iterdir()} == {usual}

    def test_other_folders_are_not_overwritten(self, folder):
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="holds something other"):
            save_autoencoder(folder, SMALL_TINY, random_params(SMALL_TINY))
        assert (folder / "notes.txt").read_text() == "mine"

    def test_names_that_differ_are_listed(self, folder):
        file = folder / "weights.safetensors"
        tensors = load_file(file)
        tensors["extra/kernel"] = np.zeros(1, np.float32)
        del tensors["quant_conv/bias"]
        tensors["quant_conv/kernel"] = np.zeros((1, 1, 4, 8), np.float32)
        tensors["linear_decoder/bias"] = tensors["linear_decoder/bias"].astype(np.float16)
        save_file(tensors, file)
        with pytest.raises(InputError) as caught:
            load_autoencoder(folder)
        for phrase in (
            "missing: quant_conv/bias",
            "left over: extra/kernel",
            "quant_conv/kernel (1, 1, 4, 8) instead of (1, 1, 8, 8)",
            "linear_decoder/bias float16 instead of float32",
        ):
            assert phrase in str(caught.value)

    def test_long_lists_are_cut(self, tmp_path):
        like = {str(i): jnp.zeros(1) for i in range(30)}
        save_tree(tmp_path / "a.safetensors", {"other": jnp.zeros(1)}, {})
        with pytest.raises(InputError, match="and 22 more"):
            load_tree(tmp_path / "a.safetensors", like)

    def test_bfloat16_trees_survive(self, tmp_path):
        tree = {"a": {"b": jnp.arange(5, dtype=jnp.bfloat16)}}
        save_tree(tmp_path / "a.safetensors", tree, {})
        loaded = load_tree(tmp_path / "a.safetensors", tree)
        assert loaded["a"]["b"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(loaded["a"]["b"], tree["a"]["b"])

    @pytest.mark.parametrize("length", [0, 5, 300])
    def test_truncated_weights_are_refused(self, folder, length):
        file = folder / "weights.safetensors"
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(InputError, match="cut short"):
            load_autoencoder(folder)

    @pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pth", ".pt"])
    def test_pickled_files_are_refused(self, tmp_path, suffix):
        weights = tmp_path / f"weights{suffix}"
        weights.touch()
        for read in (load_autoencoder, lambda path: load_tree(path, {})):
            with pytest.raises(InputError, match=r"convert it once.*weights_only=True"):
                read(weights)

    @pytest.mark.parametrize(
        ("change", "phrase"),
        [
            ({"widht": 3}, "unknown entries widht"),
            ({"fold": 3}, "fold is 3"),
            ({"block_channels": 8}, "block_channels"),
        ],
    )
    def test_wrong_config_is_refused(self, folder, change, phrase):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(InputError, match=phrase):
            load_autoencoder(folder)

    def test_missing_scaling_factor_is_named(self, folder):
        fields = json.loads((folder / "config.json").read_text())
        del fields["scaling_factor"]
        (folder / "config.json").write_text(json.dumps(fields))
        with pytest.raises(InputError, match="scaling_factor"):
            load_autoencoder(folder)

    @pytest.mark.parametrize("text", ["{", "[]", ""])
    def test_config_that_is_no_object_is_refused(self, folder, text):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            load_autoencoder(folder)

    def test_missing_paths_are_named(self, folder, tmp_path):
        with pytest.raises(InputError, match=r"no autoencoder at .*nowhere"):
            load_autoencoder(tmp_path / "nowhere")
        with pytest.raises(InputError, match=r"no weight file .*nowhere\.safetensors"):
            load_autoencoder(tmp_path / "nowhere.safetensors")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"no autoencoder at .*empty"):
            load_autoencoder(tmp_path / "empty")
        (folder / "weights.safetensors").rename(tmp_path / "lone.safetensors")
        with pytest.raises(InputError, match=r"needs its config\.json beside it"):
            load_autoencoder(tmp_path / "lone.safetensors")
        with pytest.raises(InputError, match="no weight file"):
            load_autoencoder(folder)

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ("autoencoder", "train_autoencoder that is not finished .*: finish it with the same"),
            ("parser", "train_parser without autoencoder/ in it: give .* a run of .*_autoencoder$"),
            ("ca2sis", "train without autoencoder/ in it: give .* a run of .*train_autoencoder$"),
        ],
    )
    def test_a_run_without_an_autoencoder_is_named(self, config, said, tmp_path):
        (tmp_path / "config.json").write_text(to_json(load_config(config)))
        with pytest.raises(InputError, match=rf"is a run of sisma_jax\.{said}"):
            load_autoencoder(tmp_path)

    def test_its_weight_file_stands_for_the_folder(self, folder):
        assert load_autoencoder(folder / "weights.safetensors", dtype=None).config == SMALL_TINY

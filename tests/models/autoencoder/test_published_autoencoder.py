"""Published weights: equal to diffusers, by any of their names, and strictly."""

import dataclasses
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from sisma_jax.common.errors import InputError
from sisma_jax.models.autoencoder import (
    AutoencoderConfig,
    load_autoencoder,
    parameter_shapes,
    published,
    save_autoencoder,
)
from sisma_jax.models.autoencoder.files import save_diffusers
from sisma_jax.models.weights import RECIPE
from tests.autoencoders import (
    SMALL_KL,
    SMALL_TINY,
    WEIGHTS,
    as_compvis,
    random_params,
    write_folder,
)
from tests.golden import autoencoder_recipe as recipe
from tests.golden.files import golden_arrays, golden_tensors

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("autoencoder")


def tensors_of(golden, name):
    return golden_tensors(golden, recipe, f"{name}/")


@pytest.fixture
def tiny(golden, tmp_path):
    """A diffusers folder of the small configuration."""
    return write_folder(tmp_path / "tiny", recipe.config_fields("tiny"), tensors_of(golden, "tiny"))


def assert_equals_diffusers(autoencoder, golden, name):
    mean, logvar = autoencoder.encode(recipe.images(name))
    decoded = autoencoder.decode(recipe.latents(name))
    for key, actual in (("mean", mean), ("logvar", logvar), ("decoded", decoded)):
        expected = golden[f"{name}/{key}"]
        for image in range(len(expected)):  # each by itself: one has contrast, one is flat
            error = np.abs(np.asarray(actual[image]) - expected[image]).max()
            assert error < 2e-5 * np.abs(expected[image]).max(), (key, image)


def as_old_diffusers(tensors, convolutions):
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in OLD_ATTENTION.items():
            if f".{new}." in name:
                name = name.replace(new, old)
                if convolutions and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        renamed[name] = tensor
    return renamed


class TestExactness:
    def test_stable_diffusion_equals_diffusers(self, golden, tmp_path):
        name = "stable_diffusion"
        folder = write_folder(tmp_path, recipe.config_fields(name), tensors_of(golden, name))
        autoencoder = load_autoencoder(folder, dtype=None)
        assert autoencoder.config == AutoencoderConfig.stable_diffusion()
        assert_equals_diffusers(autoencoder, golden, name)
        logvar = golden[f"{name}/logvar"]
        assert logvar.min() == -30 and logvar.max() == 20, "the clamp is part of the comparison"
        decoded = golden[f"{name}/decoded"]
        rounded = load_autoencoder(folder, dtype="bfloat16").decode(recipe.latents(name))
        assert rounded.dtype == jnp.float32
        difference = np.abs(np.asarray(rounded) - decoded).mean()
        assert 0 < difference < 2 / 255, "a grey level of [-1, 1]"

    @pytest.mark.parametrize("naming", ["diffusers", "old", "old convolutions", "compvis", "ldm"])
    def test_every_naming_gives_the_same(self, naming, golden, tiny):
        tensors = tensors_of(golden, "tiny")
        if naming.startswith("old"):
            tensors = as_old_diffusers(tensors, convolutions="convolutions" in naming)
        elif naming == "compvis":
            tensors = as_compvis(tensors, levels=2)
            for name in ("loss.logvar", "model_ema.decay", "model_ema.num_updates"):
                tensors[name] = np.zeros((), np.float32)
        elif naming == "ldm":  # a whole model
            tensors = as_compvis(tensors, levels=2, prefix="first_stage_model.")
            tensors["model.diffusion_model.out.2.weight"] = np.zeros((1, 1), np.float32)
        save_file(tensors, tiny / WEIGHTS)
        assert_equals_diffusers(load_autoencoder(tiny), golden, "tiny")

    def test_half_precision_weights_are_read_as_float32(self, golden, tiny):
        (tiny / WEIGHTS).unlink()
        tensors = tensors_of(golden, "tiny")
        halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
        save_file(halves, tiny / "diffusion_pytorch_model.fp16.safetensors")
        params = load_autoencoder(tiny).params
        kernel = params["encoder"]["conv_in"]["kernel"]
        assert kernel.dtype == jnp.float32
        expected = halves["encoder.conv_in.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(kernel, expected.astype(np.float32))


class TestWhereTheyLie:
    def test_a_pipelines_folder_has_one_under_vae(self, golden, tmp_path):
        fields = recipe.config_fields("tiny")
        write_folder(tmp_path / "pipeline/vae", fields, tensors_of(golden, "tiny"))
        (tmp_path / "pipeline/model_index.json").write_text("{}")
        assert load_autoencoder(tmp_path / "pipeline").config.block_channels == (8, 16)

    def test_a_weight_file_uses_the_config_beside_it(self, golden, tiny):
        assert load_autoencoder(tiny / WEIGHTS).config.norm_groups == 4

    @pytest.mark.parametrize(
        ("config", "levels"),
        [
            (AutoencoderConfig.stable_diffusion(), 4),
            (
                AutoencoderConfig(
                    block_channels=(128, 256, 512), latent_channels=3, scaling_factor=None
                ),
                3,
            ),
            (
                AutoencoderConfig(
                    block_channels=(32, 64), layers_per_block=1, mid_attention=False,
                    image_channels=1, scaling_factor=None,
                ),
                2,
            ),
        ],
        ids=["kl-f8", "kl-f4", "small"],
    )  # fmt: skip
    @pytest.mark.filterwarnings("ignore:.*scaling factor")
    def test_sizes_are_read_off_a_lone_compvis_file(self, config, levels):
        shapes = flatten_dict(parameter_shapes(config), sep="/")
        zeros = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in shapes.items()}
        tensors = {
            published.pytorch_name(name): published.to_pytorch_layout(x)
            for name, x in zeros.items()
        }
        selected = published.canonical(as_compvis(tensors, levels))
        assert selected.keys() == tensors.keys()
        assert published.config_from_shapes(Path("lone.safetensors"), selected, None) == config

    def test_a_lone_file_of_stable_diffusions_sizes_warns_of_its_scaling_factor(self):
        shapes = flatten_dict(parameter_shapes(AutoencoderConfig.stable_diffusion()), sep="/")
        tensors = {
            published.pytorch_name(name): published.to_pytorch_layout(
                np.broadcast_to(np.float32(0), x.shape)
            )
            for name, x in shapes.items()
        }
        read = lambda factor: published.config_from_shapes(Path("a.safetensors"), tensors, factor)
        with pytest.warns(UserWarning, match=r"assuming Stable Diffusion's, 0\.18215"):
            assert read(None).scaling_factor == 0.18215
        assert read(0.13025).scaling_factor == 0.13025

    def test_a_whole_models_checkpoint_may_know_its_scaling_factor(self, tmp_path):
        config = AutoencoderConfig(
            block_channels=(32, 64), layers_per_block=1, mid_attention=False, latent_channels=3
        )
        _, tensors = published.to_pytorch(config, random_params(config))
        whole = as_compvis(tensors, levels=2, prefix="first_stage_model.") | {
            "scale_factor": np.array(0.25, np.float32),
            "model.diffusion_model.out.2.weight": np.full((4, 4), np.nan, np.float32),
        }
        save_file(whole, tmp_path / "model.safetensors")
        autoencoder = load_autoencoder(tmp_path / "model.safetensors", dtype=None)
        assert autoencoder.config == dataclasses.replace(config, scaling_factor=0.25)

    def test_a_lone_file_may_leave_its_scaling_factor_open(self, golden, tmp_path):
        config = AutoencoderConfig(block_channels=(32,), layers_per_block=1, mid_attention=False)
        save_diffusers(tmp_path / "folder", config, random_params(config))
        lone = tmp_path / "lone.safetensors"
        (tmp_path / "folder" / WEIGHTS).rename(lone)
        autoencoder = load_autoencoder(lone)
        assert autoencoder.decode(jnp.zeros((1, 2, 2, 4))).shape == (1, 2, 2, 3)
        with pytest.raises(InputError, match=r"set autoencoder\.scaling_factor"):
            autoencoder.from_latents(jnp.zeros((1, 2, 2, 4)))
        assert load_autoencoder(lone, scaling_factor=0.5).scaling_factor == 0.5


class TestScalingFactor:
    def test_it_is_the_configs(self, tiny):
        fields = recipe.config_fields("tiny") | {"scaling_factor": 0.25}
        (tiny / "config.json").write_text(json.dumps(fields))
        assert load_autoencoder(tiny).scaling_factor == 0.25
        assert load_autoencoder(tiny, scaling_factor=0.5).scaling_factor == 0.5

    def test_missing_it_is_named(self, tiny):
        fields = recipe.config_fields("tiny")
        del fields["scaling_factor"]
        (tiny / "config.json").write_text(json.dumps(fields))
        with pytest.raises(InputError, match=r"config\.json lacks scaling_factor"):
            load_autoencoder(tiny)
        assert load_autoencoder(tiny, scaling_factor=0.5).scaling_factor == 0.5

    def test_stable_diffusions_config_from_before_diffusers_wrote_it_down(self):
        fields = recipe.config_fields("stable_diffusion")
        del fields["scaling_factor"]
        config = published.config_of(Path("config.json"), fields, None)
        assert config == AutoencoderConfig.stable_diffusion()


class TestRefusals:
    def test_what_differs_is_listed(self, golden, tiny):
        tensors = tensors_of(golden, "tiny")
        del tensors["quant_conv.bias"]
        tensors["encoder.extra.weight"] = np.zeros(3, np.float32)
        tensors["decoder.conv_in.weight"] = np.zeros((16, 5, 3, 3), np.float32)
        save_file(tensors, tiny / WEIGHTS)
        with pytest.raises(InputError) as caught:
            load_autoencoder(tiny)
        for phrase in (
            "missing: quant_conv.bias",
            "left over: encoder.extra.weight",
            "decoder.conv_in.weight (16, 5, 3, 3) instead of (16, 4, 3, 3)",
        ):
            assert phrase in str(caught.value)

    def test_two_tensors_of_one_name(self, golden, tiny):
        tensors = tensors_of(golden, "tiny")
        save_file(tensors | as_compvis(tensors, levels=2), tiny / WEIGHTS)
        with pytest.raises(InputError, match="name the same parameter: keep the tensors"):
            load_autoencoder(tiny)

    def test_a_vector_quantised_first_stage(self, golden, tmp_path):
        tensors = as_compvis(tensors_of(golden, "tiny"), levels=2)
        tensors["quantize.embedding.weight"] = np.zeros((8, 4), np.float32)
        folder = write_folder(tmp_path / "vq", recipe.config_fields("tiny"), tensors)
        with pytest.raises(InputError, match=r"left over: quantize\.embedding\.weight"):
            load_autoencoder(folder)

    def test_a_file_of_another_model(self, tmp_path):
        file = tmp_path / "unet.safetensors"
        save_file({"time_embed.0.weight": np.zeros((4, 4), np.float32)}, file)
        with pytest.raises(InputError, match=r"no AutoencoderKL, it lacks .*time_embed"):
            load_autoencoder(file)
        save_file({}, file)
        with pytest.raises(InputError, match="lacks all tensors"):
            load_autoencoder(file)

    @pytest.mark.parametrize(
        ("changes", "phrase"),
        [
            ({"_class_name": "UNet2DConditionModel"}, "describes a UNet2DConditionModel"),
            ({"act_fn": "relu"}, "act_fn = 'relu'"),
            ({"use_quant_conv": False}, "use_quant_conv = False"),
            ({"shift_factor": 0.1}, "shift_factor = 0.1"),
            ({"latents_mean": [0.0]}, "latents_mean"),
            ({"out_channels": 4}, "out_channels = 4"),
            ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
            ({"block_out_channels": 8}, "block_channels is 8, which is not a list of whole"),
            ({"block_out_channels": [8, "16"]}, "block_channels is (8, '16'), which is not a list"),
            ({"norm_num_groups": 3}, "norm_groups 3 does not divide"),
            ({"scaling_factor": "big"}, "scaling_factor is 'big', which is not of type float"),
            ({"layers_per_block": None}, "layers_per_block is None, which is not of type int"),
        ],
    )
    def test_a_config_that_cannot_be(self, changes, phrase, tiny):
        (tiny / "config.json").write_text(json.dumps(recipe.config_fields("tiny") | changes))
        with pytest.raises(InputError) as caught:
            load_autoencoder(tiny)
        assert phrase in str(caught.value)

    def test_a_config_without_its_sizes(self, tiny):
        (tiny / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
        with pytest.raises(InputError, match="lacks block_out_channels, in_channels"):
            load_autoencoder(tiny)

    def test_numbers_that_are_none(self, golden, tiny):
        tensors = tensors_of(golden, "tiny")
        tensors["quant_conv.bias"][3] = np.nan
        save_file(tensors, tiny / WEIGHTS)
        with pytest.raises(InputError, match=r"not finite in quant_conv\.bias"):
            load_autoencoder(tiny)

    def test_damaged_files_are_refused_in_words(self, tiny):
        whole = (tiny / WEIGHTS).read_bytes()
        header = int.from_bytes(whole[:8], "little")
        random = np.random.default_rng(0)
        for _ in range(40):
            damaged = bytearray(whole)
            for place in random.integers(0, 8 + header, 3):
                damaged[place] = random.integers(256)
            if random.random() < 0.5:
                damaged = damaged[: random.integers(len(damaged))]
            (tiny / WEIGHTS).write_bytes(damaged)
            with pytest.raises(InputError):
                load_autoencoder(tiny)

    def test_pickled_weights_come_with_the_recipe(self, tiny):
        (tiny / WEIGHTS).rename(tiny / "diffusion_pytorch_model.bin")
        with pytest.raises(InputError, match=r"convert it once.*weights_only=True.*\.safetensors'"):
            load_autoencoder(tiny)

    def test_the_recipe_is_in_the_documentation(self):
        assert RECIPE in (Path(__file__).parents[3] / "docs/autoencoder.md").read_text()

    def test_the_recipe_converts(self, golden, tiny):
        torch = pytest.importorskip("torch", reason="the recipe runs where torch is installed")
        tensors = {name: torch.from_numpy(x) for name, x in tensors_of(golden, "tiny").items()}
        old = tiny / "model.ckpt"
        torch.save({"state_dict": tensors, "epoch": 3}, old)
        (tiny / WEIGHTS).unlink()
        command = RECIPE.replace("OLD", str(old)).replace("NEW", str(tiny / WEIGHTS))
        subprocess.run(command, shell=True, check=True)
        assert_equals_diffusers(load_autoencoder(tiny), golden, "tiny")


class TestExport:
    def test_diffusers_folders_round_trip(self, tmp_path):
        params = random_params(SMALL_KL)
        save_diffusers(tmp_path / "out", SMALL_KL, params)
        fields = json.loads((tmp_path / "out/config.json").read_text())
        assert fields["_class_name"] == "AutoencoderKL" and fields["norm_num_groups"] == 4
        names = load_file(tmp_path / "out" / WEIGHTS)
        assert names["encoder.mid_block.attentions.0.to_out.0.weight"].shape == (16, 16)
        loaded = load_autoencoder(tmp_path / "out", dtype=None)
        assert loaded.config == SMALL_KL
        for name, leaf in flatten_dict(params).items():
            np.testing.assert_array_equal(flatten_dict(loaded.params)[name], leaf)

    def test_what_diffusers_cannot_be_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="no fold and no linear_skip"):
            save_diffusers(tmp_path / "out", SMALL_TINY, random_params(SMALL_TINY))
        assert not (tmp_path / "out").exists()

    def test_the_checksum_is_of_the_weights_wherever_they_lie(self, tmp_path):
        params = random_params(SMALL_KL)
        save_diffusers(tmp_path / "published", SMALL_KL, params)
        save_autoencoder(tmp_path / "own", dataclasses.replace(SMALL_KL, dtype="bfloat16"), params)
        first, second = (load_autoencoder(tmp_path / name) for name in ("published", "own"))
        assert first.checksum() == second.checksum()
        params["quant_conv"]["bias"] = params["quant_conv"]["bias"].at[0].add(1e-3)
        save_diffusers(tmp_path / "published", SMALL_KL, params)
        assert load_autoencoder(tmp_path / "published").checksum() != first.checksum()


class TestHub:
    """Against a server on this machine; nothing is asked of the network."""

    @pytest.fixture
    def server(self, tiny):
        """Its address, and the paths that it was asked for."""
        commit, requests = "0123456789abcdef0123456789abcdef01234567", []
        files = {
            f"/owner/name/resolve/{revision}/{folder}{path.name}": path
            for revision, folder in (("main", "vae/"), ("v2", ""))
            for path in tiny.iterdir()
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                requests.append(self.path)
                content = files[self.path].read_bytes() if self.path in files else b""
                self.send_response(200 if content else 404)
                if not content:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("ETag", f'"{len(content)}"')
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()

    @staticmethod
    def resolve(address, cache, **environment):
        """`local_path` in a process of its own, since the library reads its environment once."""
        script = (
            "import sys; from sisma_jax.common.hub import local_path; "
            "print(local_path(sys.argv[1], 'config.json', ('other.safetensors', sys.argv[2])))"
        )
        settings = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, "-c", script, address, WEIGHTS],
            env=settings | environment,
            capture_output=True,
            text=True,
        )

    def test_it_downloads_once_and_then_works_offline(self, server, golden, tmp_path):
        endpoint, requests = server
        online = self.resolve("hf://owner/name/vae", tmp_path / "cache", HF_ENDPOINT=endpoint)
        assert online.returncode == 0, online.stderr
        assert_equals_diffusers(load_autoencoder(online.stdout.strip()), golden, "tiny")
        requests.clear()
        offline = self.resolve("hf://owner/name/vae", tmp_path / "cache", HF_HUB_OFFLINE="1")
        assert offline.stdout == online.stdout, offline.stderr
        assert not requests

    def test_a_revision_without_a_folder(self, server, tmp_path):
        done = self.resolve("hf://owner/name@v2", tmp_path / "cache", HF_ENDPOINT=server[0])
        assert done.returncode == 0, done.stderr
        assert "/owner/name/resolve/v2/config.json" in server[1]

    def test_what_cannot_be_fetched_is_an_input_error(self, server, tmp_path):
        missing = self.resolve("hf://owner/name/unet", tmp_path, HF_ENDPOINT=server[0])
        assert "InputError: hf://owner/name/unet cannot be fetched" in missing.stderr
        offline = self.resolve("hf://owner/name/vae", tmp_path, HF_HUB_OFFLINE="1")
        assert "InputError: hf://owner/name/vae cannot be fetched" in offline.stderr

    @pytest.mark.parametrize("address", ["hf://owner", "hf://", "hf://a b/c"])
    def test_malformed_addresses(self, address):
        with pytest.raises(InputError, match="not a hub address"):
            load_autoencoder(address)

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(InputError, match=r"needs huggingface_hub: pip install -e .*\[hub\]"):
            load_autoencoder("hf://owner/name")

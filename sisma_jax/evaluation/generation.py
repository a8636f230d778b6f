"""Faces generated from masks, kept as files that an interrupted command does not generate again.

The noise of a face depends on (seed, index of the mask, number of the sample) and not on its batch,
so that missing or additional faces can be generated later.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sisma_jax.common.errors import InputError
from sisma_jax.common.files import write_json
from sisma_jax.common.progress import bar
from sisma_jax.data.image_files import read_picture, save_png
from sisma_jax.evaluation.noisy_masks import NoisyMasks
from sisma_jax.evaluation.pictures import SplitPictures, digest
from sisma_jax.synthesis.options import SamplingOptions
from sisma_jax.synthesis.styles import Style
from sisma_jax.synthesis.synthesizer import Synthesizer

MOST_MASKS = 2**20
"""Difference between the seeds of consecutive samples of one mask."""
MOST_SAMPLES = 2**32 // MOST_MASKS
FAR_APART = 0x9E3779B1
"""2^32 over the golden ratio: its multiples modulo 2^32 stay far from each other."""
SETTINGS_FILE = "settings.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """A set of faces of the same masks, and its descriptions in files and reports."""

    options: SamplingOptions
    """Options of the sampling; the style guidance applies to faces with a reference."""
    seed: int
    own_style: bool = False
    """Whether each face takes the style of the face that its mask belongs to."""
    one_pass: bool = False
    """Whether the model draws in one pass, without a solver and without guidance. `settings` are
    those of its only options then."""

    @property
    def name(self) -> str:
        """The start of the name of the faces' folder."""
        options, style = self.options, "-style" if self.own_style else ""
        style += f"-s{options.style_guidance:g}" if options.style_guided else ""
        style += "".join(f"-{name.replace('_', '-')}" for name in self._further_settings)
        return f"{options.solver}{options.steps}-g{options.guidance:g}-seed{self.seed}{style}"

    @property
    def in_words(self) -> str:
        options, own = self.options, "own style, " if self.own_style else ""
        seed = f", seed {self.seed}" if self.seed else ""
        if self.one_pass:
            return f"{own}one pass{seed}"
        style = f", of the style {options.style_guidance:g}" if options.style_guided else ""
        for setting, value in self._further_settings.items():
            numbers = value if isinstance(value, list) else [value]
            style += f", {setting.replace('_', ' ')} {' '.join(f'{x:g}' for x in numbers)}"
        return f"{own}{options.solver} {options.steps}, guidance {options.guidance:g}{style}{seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by name; without those of styles and the `_further_settings` if they have their
        defaults.

        Reports store these settings, and digests cover them in this order. A change of the names or
        the order invalidates what earlier reports have stored.
        """
        options = self.options
        settings = {
            "steps": options.steps, "solver": options.solver, "guidance": options.guidance,
            "seed": self.seed,
        }  # fmt: skip
        if self.own_style:
            settings["own_style"] = True
        if options.style_guided:
            settings["style_guidance"] = options.style_guidance
        return settings | self._further_settings

    @property
    def _further_settings(self) -> dict[str, Any]:
        """Times and further options of guidance where they differ from their defaults."""
        options, settings = self.options, {}
        if options.times is not None:
            settings["times"] = list(options.times)
        if options.shift != 1:
            settings["shift"] = options.shift
        if options.any_guided and options.interval is not None:
            settings["guidance_interval"] = list(options.interval)
        if options.any_guided and options.rescale is not None:
            settings["guidance_rescale"] = options.rescale
        return settings

    def seed_of(self, mask: int, sample: int) -> int:
        """Seed of the noise, far from the seeds of sets with another `seed`, so that sets share no
        noise."""
        return (self.seed * FAR_APART + sample * MOST_MASKS + mask) % 2**32


class GeneratedFaces:
    """The faces of one model, set of masks and sampling: `{name}_{sample}.png` in a folder.

    As a set of pictures it is the first sample of every mask.
    """

    def __init__(
        self,
        root: Path,
        synthesizer: Synthesizer,
        weights: str,
        reference: SplitPictures,
        sampling: Sampling,
        noisy: NoisyMasks | None = None,
    ):
        """
        Args:
          root: parent of the folder.
          synthesizer: the model.
          weights: checksum of its weights and its autoencoder.
          reference: source of masks and file names.
          sampling: options of the sampling.
          noisy: masks to draw in place of the reference's; styles are read by the reference's.
        """
        self.synthesizer, self.sampling = synthesizer, sampling
        self.names, self.reference = reference.names, reference
        self.noisy = noisy if noisy is not None and noisy.noise.strength else None
        self.settings: dict[str, Any] = {
            "weights": weights,
            "masks": reference.key,
            **sampling.settings,
            **(self.noisy.settings if self.noisy else {}),
        }
        own = digest(*self.settings.items())
        self.key = digest("generated", own)
        noise = f"-{self.noisy.in_words.replace(' ', '-')}" if self.noisy else ""
        self.name = f"{sampling.name}{noise}"
        self.folder = root / f"{self.name}-{own[:8]}"

    def __len__(self) -> int:
        return len(self.names)

    def file(self, mask: int, sample: int = 0) -> Path:
        return self.folder / f"{self.names[mask]}_{sample}.png"

    def read(self, indices: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        return np.stack([np.asarray(read_picture(self.file(index))) for index in indices])

    def samples(self, mask: int, count: int) -> UInt8[np.ndarray, "count h w 3"]:
        """The first samples of one mask."""
        return np.stack([np.asarray(read_picture(self.file(mask, k))) for k in range(count)])

    def make(self, masks: range, samples: int = 1) -> None:
        """Generate the first `samples` faces of each mask, except intact files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SETTINGS_FILE, self.settings)
        wanted = [(mask, k) for mask in masks for k in range(samples)]
        with ThreadPoolExecutor() as pool:
            intact = list(pool.map(lambda one: self._is_intact(*one), wanted))
            missing = [one for one, is_there in zip(wanted, intact, strict=True) if not is_there]
            if not missing:
                return
            each = "" if samples == 1 else f", {samples} of each of {len(masks)} masks"
            masks = [mask for mask, _ in missing]
            own, options = self.sampling.own_style, self.sampling.options
            drawn = self.noisy or self.reference
            images = self.synthesizer.batches(
                drawn.labels[masks],
                options if own else options.without_style(),
                seed=[self.sampling.seed_of(*one) for one in missing],
                style=self._style(masks) if own else None,
            )
            done = 0
            already = len(wanted) - len(missing)
            with bar(
                total=len(wanted), initial=already, unit="face", desc=f"{self.name}{each}"
            ) as progress:
                for batch in images:
                    files = [self.file(*one) for one in missing[done : done + len(batch)]]
                    write = lambda image, file: save_png(Image.fromarray(image), file, flush=False)
                    list(pool.map(write, batch, files))
                    done += len(batch)
                    progress.update(len(batch))

    def _style(self, masks: Sequence[int]) -> Style:
        """Style of the faces that these masks belong to; each is read once."""
        place = {mask: row for row, mask in enumerate(dict.fromkeys(masks))}
        faces = list(place)
        style = self.synthesizer.style(self.reference.read(faces), self.reference.labels[faces])
        return style[[place[mask] for mask in masks]]

    def _is_intact(self, mask: int, sample: int) -> bool:
        file, size = self.file(mask, sample), self.synthesizer.config.image_size
        if not file.exists():
            return False
        try:
            return read_picture(file).size == (size, size)
        except InputError:
            return False

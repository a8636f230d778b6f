"""Masks with noise, which models draw while their faces are scored by the clean masks."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sisma_jax.common.errors import InputError
from sisma_jax.common.progress import over
from sisma_jax.data.mask_noise import MaskNoise
from sisma_jax.evaluation.pictures import SplitPictures, digest

STRENGTHS = (0.25, 0.5, 1.0)
"""Strengths if none are given; 0 is always measured."""


def noises_of(kinds: Sequence[str] | None, strengths: Sequence[float] | None) -> list[MaskNoise]:
    """The noises that a command asks for, each with strength 0 and the given strengths.

    Args:
      kinds: names in `mask_noise.KINDS`, or several that act together, joined by "+"; None for no
        noise.
      strengths: None for STRENGTHS.

    Raises:
      InputError: if a kind is unknown, a strength is not in [0, 1], or there are only strengths.
    """
    if kinds is None:
        if strengths is not None:
            raise InputError("--noise-strengths goes with --mask-noise: add it, or leave this out")
        return []
    every = sorted({0.0, *(STRENGTHS if strengths is None else strengths)})
    noises = [MaskNoise(tuple(one.split("+")), strength) for one in kinds for strength in every]
    return list(dict.fromkeys(noises))


class NoisyMasks:
    """The masks of a reference with noise.

    Attributes:
      settings: the noise, as reports store it.
      in_words: the noise as names of rows have it.
    """

    def __init__(self, reference: SplitPictures, noise: MaskNoise, classes: int, seed: int):
        """
        Args:
          reference: the clean masks.
          noise: its kinds and its strength.
          classes: number of classes.
          seed: seed of the noise, which also depends on the place of a mask in the reference.
        """
        self.reference, self.noise, self.classes, self.seed = reference, noise, classes, seed
        self.settings: dict[str, Any] = {
            "mask_noise": "+".join(noise.kinds),
            "noise_strength": noise.strength,
        }
        self.in_words = f"{self.settings['mask_noise']} {noise.strength:g}"
        self.key = digest("noisy masks", reference.key, classes, seed, *self.settings.items())

    @cached_property
    def labels(self) -> UInt8[np.ndarray, "n h w"]:
        """Made when they are first read, since finished faces and scores do not need them."""
        clean = self.reference.labels
        noisy = np.empty_like(clean)
        for index in over(range(len(clean)), unit="mask", desc=f"noise {self.in_words}"):
            noisy[index] = self.noise(clean[index], classes=self.classes, seed=(self.seed, index))
        return noisy

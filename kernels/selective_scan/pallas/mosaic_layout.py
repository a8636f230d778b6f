"""Static parameters of Mosaic's kernels."""

import dataclasses

import jax.numpy as jnp

from .layout import Layout


@dataclasses.dataclass(frozen=True)
class Staged(Layout):
    """A lane has one channel, with all its states."""

    tile: int = 64
    """Steps of the tiles of kernels that have no chunks; a multiple of `chunk`."""
    stages: int = 2
    """Tiles in shared memory. With 2, one is copied while the other is in use."""
    segments: int = 1
    """Parts of the sequence that run at the same time, whole tiles."""
    capability: tuple[int, int] = (9, 0)
    """Compute capability of the GPU."""

    @property
    def together(self) -> int:
        """States that the backward kernel visits at once: two, or more if a chunk is short.

        `mosaic_machine.store_sums` takes at least 16 sums, one for each state and step.
        """
        return max(2, 16 // self.chunk)

    @property
    def asynchronous(self) -> bool:
        """Whether the GPU copies to shared memory asynchronously."""
        return self.capability >= (8, 0)

    @property
    def tiles(self) -> int:
        """Number of tiles, including a shorter one at the end."""
        return -(-self.length // self.tile)

    def tiles_of(self, segment) -> tuple:
        """The first tile of a segment, and the number of its tiles."""
        if self.segments == 1:
            return 0, self.tiles
        share = -(-self.tiles // self.segments)
        return segment * share, jnp.minimum(self.tiles - segment * share, share)

    def chunks_of(self, segment) -> tuple:
        """The first chunk of a segment, and the number of its chunks."""
        if self.segments == 1:
            return 0, self.chunks
        first, count = self.tiles_of(segment)
        first *= self.chunks_per_tile
        return first, jnp.minimum(self.chunks - first, count * self.chunks_per_tile)

    @property
    def chunks_per_tile(self) -> int:
        return self.tile // self.chunk

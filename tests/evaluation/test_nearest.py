"""The nearest training pictures, against a search that subtracts every pair."""

import numpy as np

from sisma_jax.data.thumbnails import shrunk
from sisma_jax.evaluation.nearest import nearest, quantiles


class Drawn:
    """Pictures in memory."""

    def __init__(self, images):
        self.images, self.names, self.key = images, [str(i) for i in range(len(images))], "drawn"

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return self.images[list(indices)]


def test_the_nearest_picture_is_that_of_a_search_over_all_pairs():
    random = np.random.default_rng(0)
    # More pictures than are read at once, around one face, so that distances are close together.
    face = random.integers(0, 256, (32, 32, 3))
    around = lambda n: np.clip(face + random.integers(-9, 10, (n, 32, 32, 3)), 0, 255).astype("u1")
    training, asked = around(300), around(6)
    asked[1], asked[2] = training[299], training[7][:, ::-1]
    asked[3] = training[150]
    asked[3, 0, 0, 0] ^= 1

    found = nearest(shrunk(asked), Drawn(training))
    both = np.stack([shrunk(training), shrunk(training[:, :, ::-1])]).astype(np.float64)
    pairs = np.sqrt(np.mean((shrunk(asked)[:, None, None] - both[None]) ** 2, axis=-1))
    flat = pairs.reshape(len(asked), -1)
    np.testing.assert_array_equal(found.mirrored * len(training) + found.index, flat.argmin(1))
    np.testing.assert_allclose(found.distance, flat.min(1), rtol=1e-12)
    assert found.distance[1] == found.distance[2] == 0
    one_level = 1 / 4 / 255 / np.sqrt(16 * 16 * 3)  # of a box of 2 x 2 pixels
    np.testing.assert_allclose(found.distance[3], one_level, rtol=1e-4)


def test_quantiles_of_distances():
    assert quantiles(np.arange(101.0)) == {"least": 0, "percent_1": 1, "median": 50}

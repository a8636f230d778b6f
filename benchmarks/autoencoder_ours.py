"""Our side of `autoencoder_bench.py`."""

import json
import sys

import jax
import numpy as np
from autoencoder_inputs import images_per_second, inputs

from sisma_jax.devices.throughput import peak_memory
from sisma_jax.models.autoencoder import load_autoencoder


def main() -> None:
    settings = json.loads(sys.argv[1])
    autoencoder = load_autoencoder(settings["weights"], dtype=settings["dtype"])
    given = jax.device_put(inputs(settings))
    operation = {
        "encode": lambda: autoencoder.encode(given)[0],
        "decode": lambda: autoencoder.decode(given),
    }
    call = operation[settings["operation"]]
    figures = images_per_second(lambda: jax.block_until_ready(call()), settings)
    np.save(settings["output"], np.asarray(call()))
    peak = peak_memory() / 2**20
    print(json.dumps(figures | {"peak_mib": peak, "device": str(jax.devices()[0])}))


if __name__ == "__main__":
    main()

"""The peer's side of `autoencoder_bench.py`; needs torch and diffusers and nothing of ours."""

import json
import sys

import diffusers
import numpy as np
import torch
from autoencoder_inputs import images_per_second, inputs, process_peak_mib


@torch.inference_mode()
def main() -> None:
    settings = json.loads(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, settings["dtype"])
    model = diffusers.AutoencoderKL.from_pretrained(settings["weights"], local_files_only=True)
    model = model.to(device, dtype).eval()
    given = torch.from_numpy(inputs(settings)).permute(0, 3, 1, 2).contiguous().to(device, dtype)
    operation = {
        "encode": lambda: model.encode(given).latent_dist.mean,
        "decode": lambda: model.decode(given).sample,
    }[settings["operation"]]

    def call() -> torch.Tensor:
        result = operation()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    figures = images_per_second(call, settings)
    np.save(settings["output"], call().float().permute(0, 2, 3, 1).cpu().numpy())
    on_gpu = device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else process_peak_mib()
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    print(json.dumps(figures | {"peak_mib": peak, "device": device, "versions": versions}))


if __name__ == "__main__":
    main()

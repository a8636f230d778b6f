"""Limits of the grid of programs that a GPU launches.

CUDA has three grid axes: x of up to 2^31 - 1 programs, y and z of up to 65,535. Pallas distributes
the axes of a launch (sequences, blocks of channels, and the mapped axes of `jax.vmap`) over them.
Triton's lowering moves an axis that is too long for y or z into x. Mosaic GPU's has the blocks in
x, the sequences in y, and the product of the mapped axes in z.
"""

MOST_IN_X = 2**31 - 2
MOST_IN_Y_OR_Z = 2**16 - 1


def check_grid(name: str, sequences: int, blocks: int, instances: int) -> None:
    """Raise NotImplementedError if a device cannot launch that many programs at once.

    Args:
      name: the implementation, "pallas_triton" or "pallas_mosaic".
      sequences: sequences per device.
      blocks: blocks of channels.
      instances: the product of the axes that `jax.vmap` maps.
    """
    remedy = "use implementation='chunked', which has no such limit"
    if sequences * blocks * instances > MOST_IN_X:
        raise NotImplementedError(
            f"selective_scan: {name!r} launches at most {MOST_IN_X} programs, but {instances} "
            f"mapped x {sequences} sequences x {blocks} blocks of channels are "
            f"{instances * sequences * blocks}; {remedy}"
        )
    if name != "pallas_mosaic":
        return
    for count, what in (
        (sequences, "the batch has {} sequences per device; split the batch with jax.lax.map"),
        (instances, "jax.vmap maps {} scans; split the mapped axis with jax.lax.map"),
    ):
        if count > MOST_IN_Y_OR_Z:
            raise NotImplementedError(
                f"selective_scan: {name!r} scans at most {MOST_IN_Y_OR_Z} sequences and as many "
                f"instances of jax.vmap in one launch, but {what.format(count)}, or {remedy}"
            )

"""What a training says at its start of the size of the job."""

from vidlab.cost.flops import ModelCost

# Of each trained number: itself, its gradient, its average and two moments of an optimizer, in float32.
BYTES_PER_PARAMETER = 5 * 4


def opening(cost: ModelCost, clip_shape: tuple[int, int, int], clips_per_step: int, shards: int = 1) -> str:
    """Parameters, tokens, clips of a step and the least memory, in one line.

    Args:
        cost: of the network.
        clip_shape: (frames, height, width).
        clips_per_step: of all ranks and of all batches that accumulate.
        shards: devices that keep a share of the weights each.
    """
    frames, height, width = clip_shape
    return (
        f"{in_words(cost.parameters)} parameters, {cost.tokens:,} tokens for {frames} frames of {height} x {width}, "
        f"{clips_per_step} clips a step; the weights and what trains them take "
        f"{in_words(BYTES_PER_PARAMETER * cost.parameters / shards)}B of memory on each device, activations come on top"
    )


def in_words(number: float) -> str:
    """With three digits and a unit: ``834``, ``3.41 M``, ``11.2 G``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} "

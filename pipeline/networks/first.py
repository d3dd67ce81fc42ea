"""The network that is proposed for a first training where a teacher has none."""

MIN_HALVED = 8  # pixels of the shorter side
MIN_CHANNELS, MAX_CHANNELS = 16, 64


def network_for(shape: tuple[int, ...]) -> str:
    """A network for arrays of `shape`, as the value of `--set network=...`: the smaller they are, the smaller it is.

    Images that can be halved get a U-Net with about as many channels as pixels on a side, all else an mlp.
    """
    sides = shape[1:] if len(shape) == 3 else ()
    num_halvings = _num_halvings(sides)
    if num_halvings == 0:
        return "{family: mlp}"
    channels = min(max(2 ** (max(sides) - 1).bit_length(), MIN_CHANNELS), MAX_CHANNELS)
    return f"{{family: song, channels: {channels}, channel_mult: {[1] + [2] * num_halvings}, num_blocks: 1}}"


def _num_halvings(sides: tuple[int, ...]) -> int:
    """How often `sides` can be halved as long as they are even and the shorter one is not small."""
    if not sides or min(sides) < MIN_HALVED or any(side % 2 for side in sides):
        return 0
    return 1 + _num_halvings(tuple(side // 2 for side in sides))

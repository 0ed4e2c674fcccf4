"""How the depth and width multiples of a definition act on repeats and channels."""

DIVISOR = 8


def make_divisible(value: float, divisor: int = DIVISOR) -> int:
    """The nearest multiple of a divisor, but never less than the divisor, nor less than 90 % of the value.

    Args:
        value: Channels after scaling, above 0.
        divisor: What the result is a multiple of.
    """
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


def scaled_repeat(repeat: int, depth: float) -> int:
    """How often a line is repeated: a line that stands once stands once in every depth.

    Args:
        repeat: As written, at least 1.
        depth: The depth multiple.
    """
    return max(round(repeat * depth), 1) if repeat > 1 else repeat

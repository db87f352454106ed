"""Random numbers without a state: each is a function of a request's seed and of a position in its output.

So a row draws the same numbers alone and in any batch, at once and resumed on another worker.
"""

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    """Mix 64 bits: Stafford's variant 13, as in SplitMix64 [1, figure 16].

    [1] Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def uniform(seed: int, position: int) -> float:
    """Draw the ``position``-th number of SplitMix64's sequence, jumping there directly.

    The seed is mixed first: the sequences of SplitMix64's neighbouring states are shifts of one another, those of
    mixed seeds are not.

    Args:
        seed: 0 <= seed < 2**64.
        position: tokens the request has generated before this one, >= 0.

    Returns:
        A multiple of 2**-53 in [0, 1).
    """
    state = (_mix((seed + _GOLDEN_GAMMA) & _MASK) + (position + 1) * _GOLDEN_GAMMA) & _MASK
    return (_mix(state) >> 11) * 2.0**-53

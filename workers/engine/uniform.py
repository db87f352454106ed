"""Random numbers without a state: each is a function of a request's seed and of a position in its output.

So a row draws the same numbers alone and in any batch, at once and resumed on another worker. Integers are 64 bits
without a sign, which int64 tensors hold as they are: sums and products are the same bits.
"""

from torch import Tensor

_BITS = 64
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << _BITS)
_FACTORS = 0xBF58476D1CE4E5B9 - (1 << _BITS), 0x94D049BB133111EB - (1 << _BITS)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right, bringing in zeros."""
    return (z >> bits).bitwise_and_((1 << (_BITS - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """Mix 64 bits: Stafford's variant 13, as in SplitMix64 [1, figure 16].

    [1] Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    z = (z ^ _shifted(z, 30)).mul_(_FACTORS[0])
    z = (z ^ _shifted(z, 27)).mul_(_FACTORS[1])
    return z ^ _shifted(z, 31)


def sequence_of(seed: Tensor) -> Tensor:
    """Find where a seed's numbers begin, int64 as ``seed`` is.

    The seed is mixed first: the sequences of SplitMix64's neighbouring states are shifts of one another, those of
    mixed seeds are not.
    """
    return _mix(seed + _GOLDEN_GAMMA)


def uniform(sequence: Tensor, position: Tensor) -> Tensor:
    """Draw the ``position``-th number of SplitMix64's sequence, jumping there directly.

    Args:
        sequence: int64, from ``sequence_of``.
        position: int64, tokens the request has generated before this one, >= 0.

    Returns:
        Multiples of 2**-53 in [0, 1), float64.
    """
    return _shifted(_mix((position + 1).mul_(_GOLDEN_GAMMA).add_(sequence)), 11).double().mul_(2.0**-53)

"""Floats of four and eight bits that torch has no dtype for: the value of each bit pattern, exact in float32.

Source: float4_e2m1fn and float8_e4m3b11fnuz in ml_dtypes, which TensorFlow has them from.
"""

from __future__ import annotations

import math


def _positive(bits: int, mantissa_bits: int, bias: int) -> float:
    exponent, mantissa = bits >> mantissa_bits, bits & (1 << mantissa_bits) - 1
    fraction = mantissa / (1 << mantissa_bits)
    return math.ldexp(fraction, 1 - bias) if exponent == 0 else math.ldexp(1 + fraction, exponent - bias)


# No infinities and no NaN; the highest bit is the sign.
E2M1FN = [sign * _positive(bits, 1, 1) for sign in (1.0, -1.0) for bits in range(8)]
# No infinities and no negative zero, whose pattern is the one NaN.
E4M3B11FNUZ = [sign * _positive(bits, 3, 11) for sign in (1.0, -1.0) for bits in range(128)]
E4M3B11FNUZ[0x80] = math.nan

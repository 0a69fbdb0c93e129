"""Numbers to compute with: ordinary and extreme floats, and integers of every size."""

import numpy as np

F32, S32, S64 = np.float32, np.int32, np.int64
EXTREMES = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 3.4e38, -3.4e38, 2.0**-126]


def floats(seed: int, num: int = 64) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = (generator.standard_normal(num) * 10.0 ** generator.integers(-8, 8, num)).astype(F32)
    values[:12] = generator.permutation(EXTREMES)
    return values


def integers(seed: int, kind: type, num: int = 64) -> np.ndarray:
    bits = np.random.default_rng(seed).integers(0, 2**64, num, np.uint64)
    bits[:4] = [0, 1, 2**63, 2**64 - 1]
    return bits.astype(np.dtype(kind).newbyteorder("=").str.replace("i", "u")).view(kind)


A, B, C = floats(1), floats(2), floats(3)
X, Y, Z = (integers(seed, S32) for seed in (4, 5, 6))
LONG, OTHER_LONG = integers(7, S64), integers(8, S64)

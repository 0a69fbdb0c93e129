"""Types of the NumPy arrays that the loaders pass around."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]
Int64Array = NDArray[np.int64]
FloatArray = NDArray[np.float64]

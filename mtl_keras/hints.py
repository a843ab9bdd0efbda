"""Names for types that recur, some of which Keras and NumPy have no types for."""

import os
from typing import Any, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
Size: TypeAlias = tuple[int, int]  # (height, width) in pixels
Tensor: TypeAlias = Any  # of the backend in use, or a NumPy array

"""Type aliases that several modules share."""

import os
from typing import Any, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
Size: TypeAlias = tuple[int, int]  # (height, width) in pixels
# Of the backend in use, or a NumPy array. Keras has no type that covers them all.
Tensor: TypeAlias = Any

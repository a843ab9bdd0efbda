"""Type aliases that several modules share."""

import os
from typing import IO, Any, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
Destination: TypeAlias = PathLike | IO[bytes]  # a file, by its path or open
Size: TypeAlias = tuple[int, int]  # (height, width) in pixels
# Of the backend in use, or a NumPy array. Keras has no type that covers them all.
Tensor: TypeAlias = Any

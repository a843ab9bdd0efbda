"""PNG files as all parts of the package write them."""

import numpy as np


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of an RGB image `(H, W, 3)` or of a map `(H, W)`, uint8 or uint16."""
    import cv2  # here alone: who imports the library may have to do without

    if array.ndim == 3:
        array = array[..., ::-1]  # OpenCV writes BGR
    return cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()

"""PNG files, as every part of the package writes them."""

import numpy as np


def encode_png(array: np.ndarray) -> bytes:
    """The PNG bytes of an RGB image `(H, W, 3)` or a map `(H, W)`, uint8 or uint16."""
    import cv2  # here only: the library runs without it

    if array.ndim == 3:
        array = array[..., ::-1]  # OpenCV writes BGR
    # Photographs and maps come out smaller than by the default strategy, and sooner.
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    settings += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    return cv2.imencode(".png", array, settings)[1].tobytes()

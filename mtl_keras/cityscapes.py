"""Facts about Cityscapes: the label table, the camera and the file names.

The rest of the package derives its class lists from `LABELS` and never spells out
an index.

References:
 - [Label definitions](https://github.com/mcordts/cityscapesScripts), file
   `cityscapesscripts/helpers/labels.py`
 - [Cityscapes](https://www.cityscapes-dataset.com/dataset-overview/)
"""

import pathlib
from typing import NamedTuple

import numpy as np

from mtl_keras.hints import PathLike, Tensor


class Label(NamedTuple):
    """One row of the official label table.

    `id` is the value in `*_labelIds.png`, `train_id` the class index in the
    19-class benchmark (255: none). `has_instances` says whether individual objects
    are annotated, `ignored` whether the official evaluation skips the pixels.
    """

    name: str
    id: int
    train_id: int
    category: str
    has_instances: bool
    ignored: bool
    color: tuple[int, int, int]


LABELS = (
    Label("unlabeled", 0, 255, "void", False, True, (0, 0, 0)),
    Label("ego vehicle", 1, 255, "void", False, True, (0, 0, 0)),
    Label("rectification border", 2, 255, "void", False, True, (0, 0, 0)),
    Label("out of roi", 3, 255, "void", False, True, (0, 0, 0)),
    Label("static", 4, 255, "void", False, True, (0, 0, 0)),
    Label("dynamic", 5, 255, "void", False, True, (111, 74, 0)),
    Label("ground", 6, 255, "void", False, True, (81, 0, 81)),
    Label("road", 7, 0, "flat", False, False, (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", False, False, (244, 35, 232)),
    Label("parking", 9, 255, "flat", False, True, (250, 170, 160)),
    Label("rail track", 10, 255, "flat", False, True, (230, 150, 140)),
    Label("building", 11, 2, "construction", False, False, (70, 70, 70)),
    Label("wall", 12, 3, "construction", False, False, (102, 102, 156)),
    Label("fence", 13, 4, "construction", False, False, (190, 153, 153)),
    Label("guard rail", 14, 255, "construction", False, True, (180, 165, 180)),
    Label("bridge", 15, 255, "construction", False, True, (150, 100, 100)),
    Label("tunnel", 16, 255, "construction", False, True, (150, 120, 90)),
    Label("pole", 17, 5, "object", False, False, (153, 153, 153)),
    Label("polegroup", 18, 255, "object", False, True, (153, 153, 153)),
    Label("traffic light", 19, 6, "object", False, False, (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", False, False, (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", False, False, (107, 142, 35)),
    Label("terrain", 22, 9, "nature", False, False, (152, 251, 152)),
    Label("sky", 23, 10, "sky", False, False, (70, 130, 180)),
    Label("person", 24, 11, "human", True, False, (220, 20, 60)),
    Label("rider", 25, 12, "human", True, False, (255, 0, 0)),
    Label("car", 26, 13, "vehicle", True, False, (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", True, False, (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", True, False, (0, 60, 100)),
    Label("caravan", 29, 255, "vehicle", True, True, (0, 0, 90)),
    Label("trailer", 30, 255, "vehicle", True, True, (0, 0, 110)),
    Label("train", 31, 16, "vehicle", True, False, (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", True, False, (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", True, False, (119, 11, 32)),
)

LABEL_IDS = {label.name: label.id for label in LABELS}
SKY_ID = LABEL_IDS["sky"]
EVALUATED = tuple(label for label in LABELS if not label.ignored)
THING_IDS = tuple(label.id for label in EVALUATED if label.has_instances)

# An instance id of 1000 or more is `label_id * 1000 + number`. A smaller one is the
# label id of stuff, or of a group whose members were not told apart.
FIRST_INSTANCE_ID = 1000

DISPARITY_STEPS = 256.0  # per pixel of disparity, in `*_disparity.png`
MAX_CODE = 2**16 - 1  # the largest value there

# The seven categories beside void, each a label that stands for all of its labels and
# bears the id and the colour of the most frequent one. They are the 7 classes of MTAN's
# protocol: every label of a category counts, those that the official evaluation ignores
# included.
CATEGORIES = tuple(
    LABELS[LABEL_IDS[name]]._replace(
        name=LABELS[LABEL_IDS[name]].category, train_id=index
    )
    for index, name in enumerate(
        ("road", "building", "pole", "vegetation", "sky", "person", "car")
    )
)

# By the name of the label set: the labels a network may predict, in the order of
# their class indices.
LABEL_SETS = {
    "label_ids": LABELS,
    "train_ids": EVALUATED,
    "categories": CATEGORIES,
}


class Camera(NamedTuple):
    """A pinhole stereo camera: focal lengths and centre in pixels, baseline and
    mounting height in metres, downward pitch in radians."""

    fx: float
    fy: float
    cx: float
    cy: float
    baseline: float
    height: float
    pitch: float


IMAGE_SIZE = (1024, 2048)
CAMERA = Camera(  # the camera.json of the Aachen sequences, for IMAGE_SIZE
    fx=2262.52,
    fy=2265.30,
    cx=1096.98,
    cy=513.137,
    baseline=0.209313,
    height=1.22,
    pitch=0.038,
)

# The files of a frame: their folder and the end of their name.
FILES = {
    "image": ("leftImg8bit", "_leftImg8bit.png"),
    "semantic": ("gtFine", "_gtFine_labelIds.png"),
    "instance": ("gtFine", "_gtFine_instanceIds.png"),
    "disparity": ("disparity", "_disparity.png"),
}

# The archive of the download page that holds the files of a kind.
ARCHIVES = {
    "image": "leftImg8bit_trainvaltest.zip",
    "semantic": "gtFine_trainvaltest.zip",
    "instance": "gtFine_trainvaltest.zip",
    "disparity": "disparity_trainvaltest.zip",
}


def frame_path(
    root: PathLike, split: str, frame_id: str, kind: str, city: str | None = None
) -> pathlib.Path:
    """The path of one file of a frame; the file need not exist.

    Args:
        root: path of the unpacked data set.
        split: str, a folder such as `"train"`.
        frame_id: str, `{city}_{sequence}_{frame}`.
        kind: str, a key of `FILES`.
        city: optional str, the folder below the split. Defaults to the first part
            of `frame_id`.
    """
    folder, ending = FILES[kind]
    city = city or frame_id.split("_")[0]
    return pathlib.Path(root) / folder / split / city / (frame_id + ending)


def encode_disparity(disparity: np.ndarray) -> np.ndarray:
    """Encodes disparity in pixels as `*_disparity.png` does: `256 d + 1`, uint16.

    The code 0 is left for pixels without a disparity. Values that do not fit into
    16 bits are clipped.
    """
    coded = np.rint(np.asarray(disparity) * DISPARITY_STEPS) + 1.0
    return np.clip(coded, 1, MAX_CODE).astype(np.uint16)


def decode_disparity(coded: Tensor) -> Tensor:
    """Disparity in pixels from codes as `encode_disparity` makes them, a float array
    or tensor of any shape. Where the code is 0, the result has no meaning."""
    return (coded - 1.0) / DISPARITY_STEPS


def labels_of(label_set: str) -> tuple[Label, ...]:
    """The labels of a label set, one per class, in the order of the class indices.

    Raises:
        ValueError: for a name that is not a key of `LABEL_SETS`.
    """
    if label_set not in LABEL_SETS:
        raise ValueError(
            f"Unknown label set {label_set!r}; choose from {', '.join(LABEL_SETS)}."
        )
    return LABEL_SETS[label_set]


def evaluated_labels(label_set: str) -> tuple[Label, ...]:
    """The labels of a label set that the mean IoU is over: the 19 evaluated ones, or
    the 7 of `categories`."""
    return tuple(label for label in labels_of(label_set) if not label.ignored)


def label_id_table(label_set: str) -> np.ndarray:
    """Label id of every class index of a label set, `(num_classes,)` uint8; of a
    category that of its most frequent label."""
    return np.array([label.id for label in labels_of(label_set)], np.uint8)


def class_index_table(label_set: str) -> np.ndarray:
    """Class index of every label id, `(256,)` int32, -1 where there is none."""
    table = np.full(256, -1, np.int32)
    ids = label_id_table(label_set)
    table[ids] = np.arange(len(ids))
    if label_set == "categories":
        index = {label.category: label.train_id for label in CATEGORIES}
        for label in LABELS:
            table[label.id] = index.get(label.category, -1)
    return table


def evaluated_index_table(label_set: str) -> np.ndarray:
    """Index among `evaluated_labels` of every class index of a label set,
    `(num_classes,)` int32, -1 for the classes the evaluation ignores."""
    return np.array(
        [-1 if label.ignored else label.train_id for label in labels_of(label_set)],
        np.int32,
    )


def color_table(label_set: str = "label_ids") -> np.ndarray:
    """Official colour of every class index of a label set, `(num_classes, 3)` uint8
    RGB; by default, of every label id."""
    return np.array([label.color for label in labels_of(label_set)], np.uint8)

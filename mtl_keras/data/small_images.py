"""Small grey images with a class: Fashion-MNIST, and the digits of scikit-learn."""

import urllib.request
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mtl_keras.data.pipelines import without_autotuning
from mtl_keras.data.spreading import is_taken_evenly
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike

CLASS_NAMES = {
    "fashion_mnist": (
        "T-shirt",
        "trousers",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    ),
    "digits": tuple("0123456789"),
}
IMAGE_SIZES = {"fashion_mnist": (28, 28), "digits": (8, 8)}
SPLITS = {"train": "train", "val": "test"}  # ours: that of Fashion-MNIST
NUM_VAL_DIGITS = 500
CONNECTION_TIMEOUT = 10  # seconds
PROBED_FILE = "t10k-labels-idx1-ubyte.gz"  # the smallest of Fashion-MNIST


def load_split(
    dataset: str, split: str, data_dir: PathLike = "data"
) -> tuple[np.ndarray, np.ndarray]:
    """Loads a split into memory.

    Args:
        dataset: str, a key of `CLASS_NAMES`: `fashion_mnist`, 28x28, downloaded on
            first use, or `digits`, the 8x8 ones that come with scikit-learn, of which a
            fixed 500, with the classes in proportion, are the split `val`.
        split: `"train"` or `"val"`; the latter is the test split of Fashion-MNIST.
        data_dir: where downloaded data are kept.

    Returns:
        `(images, labels)`, `(N, height, width, 1)` uint8 and `(N,)` int32.

    Raises:
        UserError: for a name that does not exist, or if the data cannot be
            downloaded.
    """
    _check_choice("data set", dataset, CLASS_NAMES)
    _check_choice("split", split, SPLITS)
    load = {"fashion_mnist": _load_fashion_mnist, "digits": _load_digits}[dataset]
    images, labels = load(split, data_dir)
    return images, labels.astype(np.int32)


def _load_fashion_mnist(split, data_dir):
    builder = tfds.builder("fashion_mnist", data_dir=data_dir)
    try:
        if not builder.is_prepared():
            # Without a connection, the download would go on trying for minutes.
            url = builder.URL + PROBED_FILE
            urllib.request.urlopen(url, timeout=CONNECTION_TIMEOUT).close()
            builder.download_and_prepare()
    except Exception as error:  # of urllib, requests or tfds
        reason = str(getattr(error, "reason", error)).split("\n")[0]
        raise UserError(
            f"Fashion-MNIST could not be downloaded ({reason}). Try again with a "
            "connection, or take the data set digits, which needs none."
        ) from error
    records = builder.as_dataset(
        split=SPLITS[split], batch_size=-1, shuffle_files=False
    )
    return records["image"].numpy(), records["label"].numpy()


def _load_digits(split, data_dir):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    train, val = train_test_split(
        np.arange(len(images)),
        test_size=NUM_VAL_DIGITS,
        random_state=0,
        stratify=digits.target,
    )
    index = np.sort(train if split == "train" else val)
    return images[index], digits.target[index]


def take_evenly(
    images: np.ndarray, labels: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` of the images with their labels, spread evenly; all if `count` is 0."""
    total = len(images)
    if not count or count >= total:
        return images, labels
    chosen = is_taken_evenly(np.arange(total), count, total)
    return images[chosen], labels[chosen]


def make_training_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    tasks: Sequence[str],
    batch_size: int,
    seed: int = 0,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Endless training batches, every pass over the images in an order of its own.

    The order follows from the seed (and TensorFlow's global one), so that a run
    that goes on at `first_step` sees what it would have seen.

    Args:
        images: `(N, height, width, 1)` uint8.
        labels: `(N,)` int32.
        tasks: the tasks to make targets for.
        batch_size: int.
        seed: int.
        first_step: int. Batches to leave out at the start.

    Returns:
        `tf.data.Dataset` of `(images, targets, masks)`. The targets by task are
        `class`, `(batch,)` int32, and `reconstruction`,
        `(batch, height, width, 1)` float32 in 0..1. The masks are ones, `(batch,)`
        and `(batch, height, width)` float32.
    """
    order = tf.data.Dataset.range(len(images)).shuffle(len(images), seed=seed)
    order = order.repeat().skip(first_step * batch_size)
    order = order.batch(batch_size, drop_remainder=True)
    return _gather_batches(order, images, labels, tasks)


def make_dataset(
    images: np.ndarray, labels: np.ndarray, tasks: Sequence[str], batch_size: int
) -> tf.data.Dataset:
    """The batches of a split in the order of its images, the last one as it comes.

    Arguments and elements are those of `make_training_dataset`.
    """
    order = tf.data.Dataset.range(len(images)).batch(batch_size)
    return _gather_batches(order, images, labels, tasks)


def _gather_batches(order, images, labels, tasks):
    images, labels = tf.constant(images, tf.uint8), tf.constant(labels, tf.int32)

    def gather(index):
        image = tf.gather(images, index)
        targets = {
            "class": tf.gather(labels, index),
            "reconstruction": tf.cast(image, tf.float32) / 255.0,
        }
        masks = {
            "class": tf.ones_like(index, tf.float32),
            "reconstruction": tf.ones_like(image[..., 0], tf.float32),
        }
        return (
            image,
            {task: targets[task] for task in tasks},
            {task: masks[task] for task in tasks},
        )

    return without_autotuning(order.map(gather).prefetch(4))


def _check_choice(name, value, choices):
    if value not in choices:
        raise UserError(f"Unknown {name} {value!r}; choose from {', '.join(choices)}.")

"""Classification and reconstruction of small grey images: data, network, losses,
metrics and picture of the second experiment."""

import urllib.request

import keras
import numpy as np

from mtl_keras.errors import UserError
from mtl_keras.losses import MaskedLoss

# TensorFlow and matplotlib are imported where they are used: the network and its
# losses also serve a machine that has JAX alone.

TASKS = ("class", "reconstruction")
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
DATASETS = tuple(CLASS_NAMES)
NUM_CLASSES = 10
CODE = None
ACT = "tanh"
LASTRELU = "relu"
CODEACT = "relu"
SPLITS = {"train": "train", "val": "test"}  # ours: that of tfds
VAL_DIGITS = 500
CONNECTION_SECONDS = 10


def load_split(dataset, split, data_dir="data"):
    """Loads a split into memory.

    Args:
        dataset: str, one of `DATASETS`. `fashion_mnist` is downloaded on first use;
            `digits`, 8x8, come with scikit-learn, and 500 of them, the classes
            balanced as in all, are the split `val`.
        split: `"train"` or `"val"`; the latter is the test split of Fashion-MNIST.
        data_dir: where downloaded data are kept.

    Returns:
        `(images, labels)`: `(N, height, width, 1)` uint8 and `(N,)` int32.

    Raises:
        UserError: for a name that does not exist, or if the data cannot be
            downloaded.
    """
    if dataset not in DATASETS:
        raise UserError(f"Unknown data set {dataset!r}; choose of {_names(DATASETS)}.")
    if split not in SPLITS:
        raise UserError(f"{dataset} has no split {split!r}; it has {_names(SPLITS)}.")
    load = {"fashion_mnist": _load_fashion_mnist, "digits": _load_digits}[dataset]
    images, labels = load(split, data_dir)
    return images, labels.astype(np.int32)


def _load_fashion_mnist(split, data_dir):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder("fashion_mnist", data_dir=data_dir)
        if not builder.is_prepared():
            # Without a connection the download goes on trying for minutes.
            urllib.request.urlopen(builder.URL, timeout=CONNECTION_SECONDS).close()
            builder.download_and_prepare()
    except Exception as error:  # of tfds, requests, urllib or the file system
        raise UserError(
            f"Fashion-MNIST could not be downloaded ({_first_line(error)}); try again "
            "with a connection, or use --dataset digits, which works offline."
        ) from error
    records = builder.as_dataset(SPLITS[split], batch_size=-1, shuffle_files=False)
    return records["image"].numpy(), records["label"].numpy()


def _load_digits(split, data_dir):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target
    train, val = train_test_split(
        np.arange(len(labels)), test_size=VAL_DIGITS, random_state=0, stratify=labels
    )
    index = np.sort(train if split == "train" else val)
    return images[index], labels[index]


def make_training_dataset(images, labels, tasks, batch_size, seed=0, first_step=0):
    """Endless training batches, every pass over the images in an order of its own.

    The order follows from the seed (and TensorFlow's global one), so that a run that
    goes on at `first_step` sees what it would have seen.

    Args:
        images: `(N, height, width, 1)` uint8.
        labels: `(N,)` int32.
        tasks: the tasks to make targets for.
        batch_size: int.
        seed: int.
        first_step: int. Batches to leave out at the start.

    Returns:
        `tf.data.Dataset` of `(images, targets, masks)`. By task, the targets are
        `class`, `(batch,)` int32, and `reconstruction`, `(batch, height, width, 1)`
        float32 in 0..1; the masks are ones of `(batch,)` and
        `(batch, height, width)`, float32.
    """
    import tensorflow as tf

    order = (
        tf.data.Dataset.range(len(images))
        .shuffle(len(images), seed=seed)
        .repeat()
        .skip(first_step * batch_size)
        .batch(batch_size, drop_remainder=True)
    )
    return _encode_batches(order, images, labels, tasks)


def make_dataset(images, labels, tasks, batch_size):
    """The batches of a split in the order of its images, the last one as it comes.

    Arguments and elements are those of `make_training_dataset`.
    """
    import tensorflow as tf

    order = tf.data.Dataset.range(len(images)).batch(batch_size)
    return _encode_batches(order, images, labels, tasks)


def _encode_batches(order, images, labels, tasks):
    import tensorflow as tf

    images, labels = tf.constant(images, tf.uint8), tf.constant(labels, tf.int32)

    def encode(index):
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

    return order.map(encode).prefetch(4)


def build_small_network(image_size, num_classes=NUM_CLASSES, tasks=TASKS):
    """Builds an encoder with a classifier and a decoder on its code.

    Kernels, widths and activations are those of the Oxford reproduction: five
    convolutions with four halvings from 28x28 to 2x2x16, two dense layers for the
    class, four transposed convolutions, the sizes of the encoder in reverse, for the
    image. Its 2x2 convolutions lose a row and a column each; these keep them, so
    that sizes other than 28x28 work. Smaller images are halved until 2x2 is left,
    and the code keeps the proportion to the image, about one number to twelve
    pixels.

    Args:
        image_size: `(height, width)` in pixels.
        num_classes: int. Channels of the output `class`.
        tasks: the outputs to build, of `TASKS`.

    Returns:
        A functional `keras.Model` from grey images `(batch, height, width, 1)` in
        0..255 (uint8 or float) to a dict of float32 tensors: `class`, logits
        `(batch, num_classes)`, and `reconstruction`,
        `(batch, height, width, 1)` in 0..1.

    Raises:
        UserError: for an unknown task or images smaller than 4x4.

    References:
     - [oscarkey/multitask-learning](https://github.com/oscarkey/multitask-learning),
       `mnisttask/mnist_model.py`
    """
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"Unknown task {task!r}; choose of {_names(TASKS)}.")
    if min(image_size) < 4:
        raise UserError(f"The images must be at least 4x4, not {image_size}.")
    code_channels = CODE or max(round(np.prod(image_size) / 49), 4)
    image = keras.Input((*image_size, 1), name="image")
    x = keras.layers.Rescaling(1 / 255, name="normalize")(image)
    sizes = [x.shape[1:3]]
    x = _apply_conv(x, 32, 3, "encoder_conv1")
    x = _apply_conv(x, 32, 3, "encoder_conv2")
    x = _apply_pool(x, "encoder_pool1")
    sizes.append(x.shape[1:3])
    x = _apply_conv(x, 32, 2, "encoder_conv3")
    x = _apply_conv(x, 16, 2, "encoder_conv4")
    x = _apply_pool(x, "encoder_pool2")
    sizes.append(x.shape[1:3])
    x = _apply_conv(
        x, code_channels, 2, "encoder_conv5", strides=_halving(x), act=CODEACT
    )
    sizes.append(x.shape[1:3])
    code = _apply_pool(x, "code")
    sizes.append(code.shape[1:3])
    sizes = list(dict.fromkeys(sizes))

    outputs = {}
    if "class" in tasks:
        x = keras.layers.Flatten(name="class_flatten")(code)
        x = keras.layers.Dense(128, activation="relu", name="class_dense1")(x)
        # Losses need float32 under every dtype policy.
        outputs["class"] = keras.layers.Dense(
            num_classes, dtype="float32", name="class"
        )(x)
    if "reconstruction" in tasks:
        x = code
        widths = (16, 8, 4, 1)[: len(sizes) - 2] + (1,)
        for number, (size, filters) in enumerate(zip(sizes[-2::-1], widths), 1):
            x = _apply_doubling(
                x,
                filters,
                size,
                f"decoder_conv{number}",
                LASTRELU if number == len(sizes) - 1 else "relu",
            )
        outputs["reconstruction"] = keras.layers.Activation(
            ACT, dtype="float32", name="reconstruction"
        )(x)
    return keras.Model(image, outputs, name="small_images")


def _halving(x):
    """Strides that halve `x`, but leave an axis of 2 as it is."""
    return tuple(2 if length > 2 else 1 for length in x.shape[1:3])


def _apply_conv(x, filters, kernel_size, name, strides=1, act="relu"):
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        activation=act,
        name=name,
    )(x)


def _apply_pool(x, name):
    strides = _halving(x)
    return keras.layers.MaxPooling2D(strides, padding="same", name=name)(x)


def _apply_doubling(x, filters, size, name, act):
    """A transposed convolution to `size`, twice that of `x` or, per axis, one less."""
    odd = [length % 2 for length in size]
    strides = [1 if a == b else 2 for a, b in zip(size, x.shape[1:3])]
    x = keras.layers.Conv2DTranspose(
        filters,
        [s + o for s, o in zip(strides, odd)],
        strides=strides,
        activation=act,
        name=name,
    )(x)
    if any(odd):  # the kernel of 3 reaches one further on either side
        x = keras.layers.Cropping2D(odd, name=f"{name}_crop")(x)
    return x


def _names(names):
    return ", ".join(names)


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]

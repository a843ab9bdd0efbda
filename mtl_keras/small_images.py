"""Classification and reconstruction of small grey images.

The experiment of the Oxford reproduction, from data to picture. TensorFlow, its data
sets and matplotlib are imported where they are used: network and losses also serve a
machine that has JAX alone.
"""

import urllib.request

import keras
import numpy as np

from mtl_keras.errors import UserError
from mtl_keras.pipelines import without_autotuning
from mtl_keras.recipes import SMALL_IMAGE_TASKS

TASKS = SMALL_IMAGE_TASKS
NUM_CLASSES = 10
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

PICTURES_A_ROW = 10
PICTURE_ROWS = 2
WRONG_COLOR = "#d62728"


def load_split(dataset, split, data_dir="data"):
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
    import tensorflow_datasets as tfds

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
            "connection, or use --dataset digits, which needs none."
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


def take_evenly(array, count):
    """`count` of the rows of an array, spread evenly; all if `count` is 0."""
    if not count or count >= len(array):
        return array
    return array[np.arange(len(array)) * count % len(array) < count]


def make_training_dataset(images, labels, tasks, batch_size, seed=0, first_step=0):
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
    import tensorflow as tf

    order = tf.data.Dataset.range(len(images)).shuffle(len(images), seed=seed)
    order = order.repeat().skip(first_step * batch_size)
    order = order.batch(batch_size, drop_remainder=True)
    return _gather_batches(order, images, labels, tasks)


def make_dataset(images, labels, tasks, batch_size):
    """The batches of a split in the order of its images, the last one as it comes.

    Arguments and elements are those of `make_training_dataset`.
    """
    import tensorflow as tf

    order = tf.data.Dataset.range(len(images)).batch(batch_size)
    return _gather_batches(order, images, labels, tasks)


def _gather_batches(order, images, labels, tasks):
    import tensorflow as tf

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


def build_small_network(image_size, num_classes=NUM_CLASSES, tasks=TASKS):
    """Builds an encoder with a classifier and a decoder on its code.

    Kernels and widths are those of the larger convolutional network of the Oxford
    reproduction: five convolutions and four halvings from 28x28 to a code of
    2x2x16; two dense layers for the class; four transposed convolutions, with the
    sizes of the encoder in reverse, for the image, which a ReLU and a tanh end.

    Two things differ. The 2x2 convolutions keep the size of their maps instead of
    losing a row and a column. The code is linear, since units behind a ReLU die
    where it has few channels. Sides of 2 are halved no further, and the code has
    one number to twelve pixels, but at least 4 channels: 2x2x4 for 8x8.

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
        UserError: for an unknown task, or images smaller than 4x4.

    References:
     - [oscarkey/multitask-learning](https://github.com/oscarkey/multitask-learning),
       `multitask-learning/mnisttask/mnist_model.py`
    """
    for task in tasks:
        _check_choice("task", task, TASKS)
    if min(image_size) < 4:
        raise UserError(f"The images must be at least 4x4, not {image_size}.")

    image = keras.Input((*image_size, 1), name="image")
    maps = [keras.layers.Rescaling(1 / 255, name="normalize")(image)]
    x = _apply_conv(maps[0], 32, 3, "encoder_conv1")
    x = _apply_conv(x, 32, 3, "encoder_conv2")
    maps.append(_apply_pool(x, "encoder_pool1"))  # 28x28: 14x14x32
    x = _apply_conv(maps[-1], 32, 2, "encoder_conv3")
    x = _apply_conv(x, 16, 2, "encoder_conv4")
    maps.append(_apply_pool(x, "encoder_pool2"))  # 7x7x16
    maps.append(
        keras.layers.Conv2D(
            max(round(image_size[0] * image_size[1] / 49), 4),
            2,
            strides=_halving(maps[-1]),
            padding="same",
            name="encoder_conv5",
        )(maps[-1])  # 4x4x16
    )
    maps.append(_apply_pool(maps[-1], "code"))  # 2x2x16
    code = maps[-1]

    outputs = {}
    if "class" in tasks:
        x = keras.layers.Flatten(name="class_flatten")(code)
        x = keras.layers.Dense(128, activation="relu", name="class_dense")(x)
        # Losses need float32 under every dtype policy.
        outputs["class"] = keras.layers.Dense(
            num_classes, dtype="float32", name="class"
        )(x)
    if "reconstruction" in tasks:
        # Of the sizes on the way to the code, each once.
        sizes = list(dict.fromkeys(x.shape[1:3] for x in maps))[-2::-1]
        x = code
        for i, (size, filters) in enumerate(zip(sizes[:-1], (16, 8, 4)), 1):
            x = _apply_unpool(x, filters, size, f"decoder_conv{i}")
        x = _apply_unpool(x, 1, sizes[-1], f"decoder_conv{len(sizes)}")
        outputs["reconstruction"] = keras.layers.Activation(
            "tanh", dtype="float32", name="reconstruction"
        )(x)
    return keras.Model(image, outputs, name="small_images")


def _halving(x):
    """The strides that halve a map, but leave a side of 2 as it is."""
    return tuple(2 if side > 2 else 1 for side in x.shape[1:3])


def _apply_conv(x, filters, kernel_size, name):
    return keras.layers.Conv2D(
        filters, kernel_size, padding="same", activation="relu", name=name
    )(x)


def _apply_pool(x, name):
    return keras.layers.MaxPooling2D(_halving(x), padding="same", name=name)(x)


def _apply_unpool(x, filters, size, name):
    """Undoes a halving of a map of `size` by a transposed convolution."""
    strides = tuple(2 if side > old else 1 for side, old in zip(size, x.shape[1:3]))
    # A side of 2n - 1 is the middle of 2n + 1, which a kernel of 3 makes of n.
    margins = tuple(side % 2 for side in size)
    x = keras.layers.Conv2DTranspose(
        filters,
        tuple(map(sum, zip(strides, margins))),
        strides=strides,
        activation="relu",
        name=name,
    )(x)
    if any(margins):
        x = keras.layers.Cropping2D(margins, name=f"{name}_crop")(x)
    return x


def make_losses(tasks):
    """The losses of the tasks: cross entropy of the class, absolute error of the
    reconstruction."""
    losses = {
        "class": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "reconstruction": keras.losses.MeanAbsoluteError(),
    }
    return {task: losses[task] for task in tasks}


def make_metrics(task):
    """The metrics of a task, a list of `keras.metrics.Metric`.

    `class`: `accuracy`, 0..1. `reconstruction`: `mean_abs` and `rms`, of grey
    values in 0..1.
    """
    if task == "class":
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
    return [
        keras.metrics.MeanAbsoluteError(name="mean_abs"),
        keras.metrics.RootMeanSquaredError(name="rms"),
    ]


class ConstantPredictor:
    """Predicts the most frequent class and, pixel by pixel, the median image.

    What it reaches without looking at the image says how much a score is worth.

    Args:
        label: int, the class index to predict.
        median: the image to predict, `(height, width)` nested lists of 0..255.
    """

    def __init__(self, label, median):
        self.label = label
        self.median = median

    @classmethod
    def fit(cls, images, labels):
        """Finds the constants of a split, as `load_split` returns it."""
        return cls(
            label=int(np.bincount(labels).argmax()),
            median=np.median(images[..., 0], axis=0).tolist(),
        )

    def predict(self, targets):
        """Predictions in the shapes of the network's, for `targets` by task."""
        predictions = {}
        if "class" in targets:
            one_hot = np.eye(NUM_CLASSES, dtype=np.float32)[self.label]
            shape = (len(targets["class"]), NUM_CLASSES)
            predictions["class"] = np.broadcast_to(one_hot, shape)
        if "reconstruction" in targets:
            image = np.array(self.median, np.float32)[..., None] / 255
            shape = np.shape(targets["reconstruction"])
            predictions["reconstruction"] = np.broadcast_to(image, shape)
        return predictions


class Gallery:
    """Gathers a few images of a split and draws what was predicted for them.

    Args:
        num_frames: int. Images in the split; those shown are spread over it.
        dataset: str, a key of `CLASS_NAMES`.
    """

    def __init__(self, num_frames, dataset):
        count = min(PICTURES_A_ROW * PICTURE_ROWS, num_frames)
        shown = np.linspace(0, num_frames - 1, count)
        self.shown = set(shown.round().astype(int))
        self.class_names = CLASS_NAMES[dataset]
        self.seen = 0
        self.rows = []

    def add(self, images, targets, masks, predictions):
        """Looks through a batch; the dicts are by task."""
        for i in range(len(images)):
            if self.seen in self.shown:
                values = (
                    {task: np.asarray(batch[i]) for task, batch in values.items()}
                    for values in (targets, predictions)
                )
                self.rows.append((np.asarray(images[i]), *values))
            self.seen += 1

    def plot(self, path, with_truth=True):
        """Draws the images, see `plot_reconstructions`."""
        images, targets, predictions = zip(*self.rows)
        plot_reconstructions(
            np.stack(images),
            _stack(targets) if with_truth else {},
            _stack(predictions),
            path,
            self.class_names,
        )


def _stack(rows):
    return {task: np.stack([row[task] for row in rows]) for task in rows[0]}


def plot_reconstructions(images, targets, predictions, path, class_names=None):
    """Draws images above their reconstructions, with the predicted classes.

    A wrong class is red and followed by the true one.

    Args:
        images: `(N, height, width, 1)` in 0..255; the first 20 are drawn.
        targets: dict by task; `class` is compared to the prediction if it is there.
        predictions: dict by task, outputs of the network, of one task or both.
        path: where the picture goes.
        class_names: sequence of str. Defaults to the class indices.
    """
    from matplotlib.figure import Figure

    images = np.asarray(images)[: PICTURES_A_ROW * PICTURE_ROWS, ..., 0]
    pictures = {"input": images / 255}
    if "reconstruction" in predictions:
        pictures["output"] = np.asarray(predictions["reconstruction"])[..., 0]
    num_columns = min(len(images), PICTURES_A_ROW)
    num_blocks = -(-len(images) // num_columns)
    figure = Figure(
        figsize=(1.1 * num_columns + 0.3, (1.1 * len(pictures) + 0.4) * num_blocks),
        layout="constrained",
    )
    blocks = figure.subfigures(num_blocks, 1, squeeze=False)[:, 0]
    cells = [
        block.subplots(len(pictures), num_columns, squeeze=False) for block in blocks
    ]
    for cell in np.ravel(cells):
        cell.set_axis_off()
    for i in range(len(images)):
        column = cells[i // num_columns][:, i % num_columns]
        for cell, (kind, values) in zip(column, pictures.items()):
            cell.imshow(values[i], cmap="gray_r", vmin=0, vmax=1)
            if i % num_columns == 0:
                cell.text(
                    -0.12,
                    0.5,
                    kind,
                    rotation=90,
                    ha="right",
                    va="center",
                    transform=cell.transAxes,
                )
        if "class" in predictions:
            title, color = _describe_class(i, targets, predictions, class_names)
            column[0].set_title(title, color=color, fontsize=8)
    figure.savefig(path, dpi=110)


def _describe_class(i, targets, predictions, class_names):
    names = class_names or [str(k) for k in range(predictions["class"].shape[-1])]
    predicted = int(np.argmax(predictions["class"][i]))
    if "class" not in targets or predicted == int(targets["class"][i]):
        return names[predicted], "black"
    true = int(targets["class"][i])
    return f"{names[predicted]},\nnot {names[true]}", WRONG_COLOR


def _check_choice(name, value, choices):
    if value not in choices:
        raise UserError(f"Unknown {name} {value!r}; choose from {', '.join(choices)}.")

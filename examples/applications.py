"""A trunk of `keras.applications` with two heads: what is in a picture, and where.

The pictures are made here: a bright disc, square or triangle on a dark background. One
head names the shape (cross entropy, `softmax`), the other finds its box (absolute
error in fractions of the picture, `laplace`). Their losses begin at 1.1 and 0.5 and
fall at different rates, and the weights follow.

    python -m examples.applications                        # under a minute on a CPU
    python -m examples.applications --weights imagenet     # trunk trained on ImageNet

To use your own pictures, replace `make_pictures`. Any other model of
`keras.applications` does for the trunk, with the preprocessing that goes with it. Every
backend will do, but JAX takes two minutes on a CPU.
"""

import argparse

import keras
import numpy as np
from keras import ops

from mtl_keras import MultiTaskTrainer, UncertaintyWeighting

SHAPES = ("disc", "square", "triangle")
SIZE = 64
BATCH_SIZE, EPOCHS = 32, 6


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of pictures and network")
    parser.add_argument(
        "--weights", choices=["imagenet"], help="of the trunk (default: random)"
    )
    options = parser.parse_args(argv)
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed must be 0 or more and below 2^32, not {options.seed}")
    keras.utils.set_random_seed(options.seed)

    try:
        network = build_network(options.weights)
    except Exception as error:  # of a failed download Keras raises nothing narrower
        if not options.weights:
            raise
        reason = str(error).splitlines()[0]
        parser.error(f"cannot download the weights ({reason}); leave out --weights")

    rng = np.random.default_rng(options.seed)
    pictures, targets = make_pictures(rng, 3000)
    held_out = make_pictures(rng, 300)

    trainer = MultiTaskTrainer(
        network,
        losses={
            "shape": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "box": keras.losses.MeanAbsoluteError(),
        },
        weighting=UncertaintyWeighting({"shape": "softmax", "box": "laplace"}),
        task_metrics={"shape": "accuracy", "box": box_iou},
    )
    steps = EPOCHS * len(pictures) // BATCH_SIZE
    rate = keras.optimizers.schedules.CosineDecay(5e-3, steps)
    trainer.compile(keras.optimizers.Adam(rate))
    before = trainer.evaluate(*held_out, verbose=0, return_dict=True)
    trainer.fit(pictures, targets, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=2)
    after = trainer.evaluate(*held_out, verbose=0, return_dict=True)

    print("\nOn 300 other pictures      before    after")
    for name in ("shape/loss", "shape/accuracy", "box/loss", "box/box_iou"):
        print(f"  {name:22} {before[name]:8.3f} {after[name]:8.3f}")
    mean_box = np.broadcast_to(targets["box"].mean(axis=0), held_out[1]["box"].shape)
    constant = float(ops.mean(box_iou(held_out[1]["box"], mean_box)))
    print(f"  box_iou of the mean box {constant:.3f}")
    sigmas, weights = trainer.weighting.sigmas(), trainer.weighting.task_weights()
    for task in sigmas:
        print(f"{task}: learned sigma {sigmas[task]:.3f}, weight {weights[task]:.1f}")
    return {"before": before, "after": after, "constant": constant, "sigmas": sigmas}


def build_network(weights=None):
    """Logits of the shapes, and the box as `(top, left, bottom, right)`."""
    image = keras.Input((SIZE, SIZE, 3), name="image")  # RGB, 0..255
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)  # as MobileNet wants
    trunk = keras.applications.MobileNet(
        input_shape=(SIZE, SIZE, 3), alpha=0.25, include_top=False, weights=weights
    )
    # The layer after which there are 8x8 places; at the end there are only 2x2.
    trunk = keras.Model(trunk.input, trunk.get_layer("conv_pw_5_relu").output)
    features = trunk(scaled)
    what = keras.layers.GlobalMaxPooling2D()(features)
    what = keras.layers.Dense(64, activation="relu")(what)
    where = keras.layers.Flatten()(features)  # pooling would lose the place
    return keras.Model(
        image,
        {
            "shape": keras.layers.Dense(len(SHAPES), name="shape")(what),
            "box": keras.layers.Dense(4, name="box")(where),
        },
    )


def box_iou(y_true, y_pred):
    """Intersection over union of boxes `(batch, 4)`, one value per box."""
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    top_left = ops.maximum(y_true[:, :2], y_pred[:, :2])
    bottom_right = ops.minimum(y_true[:, 2:], y_pred[:, 2:])
    shared = _area(top_left, bottom_right)
    areas = _area(y_true[:, :2], y_true[:, 2:]) + _area(y_pred[:, :2], y_pred[:, 2:])
    return shared / (areas - shared)


def _area(top_left, bottom_right):
    return ops.prod(ops.maximum(bottom_right - top_left, 0), axis=-1)


def make_pictures(rng, count):
    """Pictures `(count, SIZE, SIZE, 3)` uint8, and their targets by task."""
    shapes = rng.integers(len(SHAPES), size=count)
    heights, widths = rng.integers(SIZE // 4, SIZE // 2, size=(2, count))
    tops, lefts = rng.integers(SIZE - np.stack([heights, widths]) + 1)
    # Of every pixel, where it is in the box: 0 at the top and left edge, 1 opposite.
    pixels = np.arange(SIZE) + 0.5
    y = ((pixels - tops[:, None]) / heights[:, None])[:, :, None]
    x = ((pixels - lefts[:, None]) / widths[:, None])[:, None, :]
    inside = (0 < y) & (y < 1) & (0 < x) & (x < 1)
    disc = (2 * y - 1) ** 2 + (2 * x - 1) ** 2 < 1
    triangle = abs(2 * x - 1) < y
    is_shape = np.select(
        [shapes[:, None, None] == i for i in range(3)],
        [disc, inside, inside & triangle],
    )
    bright = rng.integers(160, 256, size=(count, 1, 1, 3))
    dark = rng.integers(0, 80, size=(count, 1, 1, 3))
    pictures = np.where(is_shape[..., None], bright, dark)
    pictures = pictures + rng.normal(0, 10, (count, SIZE, SIZE, 3))
    boxes = np.stack([tops, lefts, tops + heights, lefts + widths], axis=-1) / SIZE
    return (
        pictures.clip(0, 255).astype("uint8"),
        {"shape": shapes.astype("int32"), "box": boxes.astype("float32")},
    )


if __name__ == "__main__":
    main()

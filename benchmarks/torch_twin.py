"""The mtl network in PyTorch, to compare the Keras one with.

    python -m benchmarks.torch_twin

copies random weights from Keras to PyTorch, runs both on the same images, prints a
Markdown table of how far outputs, losses and gradients are apart, and writes it as
`torch_twin.md` and `torch_twin.json`. Takes about three minutes.

The twin computes the same function with the same products and the same rounding as
`mtl_keras.build_network`, written as is natural in PyTorch: fused batch
normalization, activations in place. As a module it needs neither Keras nor
TensorFlow.
"""

import argparse
import os
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tables import make_table, write_results
from benchmarks.workload import TASKS, build_trainer, make_batch, randomize
from mtl_keras.architectures import BACKBONES
from mtl_keras.experiments.arguments import parse_size
from mtl_keras.experiments.environment import describe

CHANNELS = {"semantic": 34, "instance": 2, "depth": 1}
IMAGENET_BGR_MEAN = (103.939, 116.779, 123.68)


class Twin(nn.Module):
    """The mtl network; images `(batch, height, width, 3)` in 0..255 to a dict of
    float32 maps `(batch, channels, height, width)`.

    `layers` holds the modules with weights under the names of their Keras twins.
    """

    def __init__(self, backbone="resnet101", image_size=(128, 256)):
        super().__init__()
        blocks, width, head_width, _ = BACKBONES[backbone]
        self.layers = nn.ModuleDict()
        self.blocks = []
        self._add("conv1", nn.Conv2d(3, width, 7, stride=2, padding=3))
        channels = width
        for stage, num_blocks in enumerate(blocks):
            inner, outer, dilation = width * 2**stage, 4 * width * 2**stage, 1
            if stage >= 2:  # where the stride stays at 8
                dilation = 2 ** (stage - 1)
            for block in range(num_blocks):
                name = f"conv{stage + 2}_block{block + 1}"
                stride = 2 if stage == 1 and block == 0 else 1
                if block == 0:
                    shortcut = nn.Conv2d(channels, outer, 1, stride=stride)
                    self._add(f"{name}_0", shortcut)
                self._add(f"{name}_1", nn.Conv2d(channels, inner, 1, stride=stride))
                dilated = nn.Conv2d(
                    inner, inner, 3, padding=dilation, dilation=dilation
                )
                self._add(f"{name}_2", dilated)
                self._add(f"{name}_3", nn.Conv2d(inner, outer, 1))
                self.blocks.append(name)
                channels = outer
        source_size = [size // 8 for size in image_size]
        for task, num_outputs in CHANNELS.items():
            self.layers[f"{task}_conv1"] = ResizeConv2d(
                channels, head_width, source_size, image_size
            )
            self.layers[f"{task}_conv2"] = nn.Conv2d(head_width, head_width, 1)
            self.layers[task] = nn.Conv2d(head_width, num_outputs, 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_BGR_MEAN))

    def _add(self, name, convolution):
        self.layers[f"{name}_conv"] = convolution
        # Keras's momentum of 0.99 is called 0.01 here.
        self.layers[f"{name}_bn"] = nn.BatchNorm2d(
            convolution.out_channels, eps=1.001e-5, momentum=0.01
        )

    def forward(self, images):
        x = (images.flip(-1).float() - self.mean).permute(0, 3, 1, 2)
        x = F.relu(self._convolve(x, "conv1"), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for name in self.blocks:
            x = self._apply_block(x, name)
        return {task: self._apply_head(x, task) for task in CHANNELS}

    def _apply_block(self, x, name):
        shortcut = x
        if f"{name}_0_conv" in self.layers:
            shortcut = self._convolve(x, f"{name}_0")
        x = F.relu(self._convolve(x, f"{name}_1"), inplace=True)
        x = F.relu(self._convolve(x, f"{name}_2"), inplace=True)
        x = self._convolve(x, f"{name}_3")
        return F.relu(x.add_(shortcut), inplace=True)

    def _apply_head(self, x, task):
        x = F.relu(self.layers[f"{task}_conv1"](x))  # in place, a view costs a copy
        x = F.relu(self.layers[f"{task}_conv2"](x), inplace=True)
        with torch.autocast(x.device.type, enabled=False):
            return self.layers[task](x.float())

    def _convolve(self, x, name):
        return self.layers[f"{name}_bn"](self.layers[f"{name}_conv"](x))


class ResizeConv2d(nn.Module):
    """A 3x3 convolution of a bilinearly enlarged map that never enlarges its
    channels: all taps on the small map, then two products that resize and add up.

    Interpolation, sum and bias are float32 under autocast too, as in Keras.
    """

    def __init__(self, in_channels, out_channels, source_size, target_size):
        super().__init__()
        self.taps = nn.Linear(in_channels, 3 * 3 * out_channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        for axis, source, target in zip(("rows", "columns"), source_size, target_size):
            matrix = torch.tensor(tap_matrix(source, target), dtype=torch.float32)
            self.register_buffer(axis, matrix)

    def forward(self, x):
        batch, _, height, width = x.shape
        taps = self.taps(x.permute(0, 2, 3, 1))
        with torch.autocast(x.device.type, enabled=False):
            y = taps.to(torch.promote_types(taps.dtype, torch.float32))
            y = y.reshape(batch, height, width, 3, 3, -1).transpose(2, 3)
            y = self.columns @ y.reshape(batch * height * 3, width * 3, -1)
            y = self.rows @ y.reshape(batch, height * 3, -1)
            y = y.reshape(batch, len(self.rows), len(self.columns), -1) + self.bias
        return y.to(taps.dtype).permute(0, 3, 1, 2)


def tap_matrix(source, target):
    """Resizes an axis bilinearly (legacy sampling) and adds up the taps of a kernel
    of 3 with zero padding: `(target, source * 3)`."""
    position = np.arange(target) * source / target
    lower = position.astype(int)
    upper = np.minimum(lower + 1, source - 1)
    identity = np.eye(source)
    share = (position - lower)[:, None]
    resize = (1 - share) * identity[lower] + share * identity[upper]
    padded = np.pad(resize, ((1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, target, axis=0)
    return windows.transpose(2, 1, 0).reshape(target, source * 3)


class LearnedWeighting(nn.Module):
    """Adds up losses as `UncertaintyWeighting` does under the `mtl` likelihood."""

    def __init__(self):
        super().__init__()
        self.log_variances = nn.ParameterDict(
            {task: torch.zeros(()) for task in CHANNELS}
        )

    def forward(self, losses):
        return sum(
            0.5 * torch.exp(-s) * losses[task] + s
            for task, s in self.log_variances.items()
        )


def compute_losses(outputs, targets, masks):
    """Cross entropy and L1 norms of the errors, means over the valid pixels; targets
    and masks as Keras gets them."""
    errors = {
        "semantic": F.cross_entropy(
            outputs["semantic"], targets["semantic"], reduction="none"
        ),
        "instance": _l1_norm(outputs["instance"], targets["instance"]),
        "depth": _l1_norm(outputs["depth"], targets["depth"]),
    }
    return {
        task: (error * masks[task]).sum() / masks[task].sum()
        for task, error in errors.items()
    }


def _l1_norm(outputs, targets):
    return (outputs.permute(0, 2, 3, 1) - targets).abs().sum(-1)


def make_optimizer(twin, weighting, learning_rate):
    """Adam as Keras has it, with the faster log variances of `MultiTaskTrainer`."""
    groups = [
        {"params": twin.parameters()},
        {"params": weighting.parameters(), "lr": 10 * learning_rate},
    ]
    return torch.optim.Adam(groups, learning_rate, eps=1e-7, fused=True)


def copy_weights(network, twin):
    """Copies the weights of the Keras network into its twin."""
    with torch.no_grad():
        for name, module in twin.layers.items():
            if isinstance(module, nn.BatchNorm2d):
                targets = [module.weight, module.bias]
                targets += [module.running_mean, module.running_var]
            else:
                targets = [kernel_in_keras(module), module.bias]
            values = network.get_layer(name).get_weights()
            for target, value in zip(targets, values, strict=True):
                target.copy_(torch.tensor(value))


def kernel_in_keras(module, gradient=False):
    """The kernel of a convolution, or its gradient, as a view of the shape it has
    in Keras."""
    is_fused = isinstance(module, ResizeConv2d)
    weight = module.taps.weight if is_fused else module.weight
    values = weight.grad if gradient else weight
    if is_fused:
        return values.view(3, 3, -1, weight.shape[1]).transpose(2, 3)
    return values.permute(2, 3, 1, 0)


def to_torch(part, device="cpu"):
    """Images, targets or masks as tensors; class indices become int64."""
    if isinstance(part, dict):
        return {task: to_torch(array, device) for task, array in part.items()}
    tensor = torch.tensor(part, device=device)
    return tensor.long() if tensor.dtype == torch.int32 else tensor


def compare(backbone, image_size, precision, batch_size=2):
    """How far the twins are apart, `{what: largest difference / largest value}`.

    Compares the outputs in inference and in training mode, the total loss, and the
    gradients of all kernels, of which it returns the one that differs most. In
    float32 some units within rounding of 0 are on in one twin and off in the other,
    which shows in the gradients. In `precision` `"float64"` there are none.
    """
    import tensorflow as tf

    trainer = build_trainer(precision, backbone=backbone, image_size=image_size)
    network, batch = trainer.network, make_batch(batch_size, image_size)
    randomize(network)
    twin, weighting = Twin(backbone, image_size), LearnedWeighting()
    copy_weights(network, twin)
    if precision == "float64":
        twin.double()
        for task in TASKS:  # float32 under every policy
            twin.layers[task].float()
    convolutions = {
        name: module
        for name, module in twin.layers.items()
        if not isinstance(module, nn.BatchNorm2d)
    }
    variables = [network.get_layer(name).kernel.value for name in convolutions]

    images, targets, masks = batch
    inferred = network(images)
    with tf.GradientTape() as tape:
        outputs = network(images, training=True)
        total = trainer.compute_loss(images, targets, outputs, masks)
    gradients = tape.gradient(total, variables)

    images, targets, masks = (to_torch(part) for part in batch)
    with torch.no_grad():
        twin_inferred = twin.eval()(images)
    twin_outputs = twin.train()(images)
    twin_total = weighting(compute_losses(twin_outputs, targets, masks))
    twin_total.backward()

    modes = (
        ("inference", inferred, twin_inferred),
        ("training", outputs, twin_outputs),
    )
    differences = {"total loss": _difference(total, twin_total)}
    for task in TASKS:
        for mode, ours, theirs in modes:
            differences[f"`{task}`, {mode}"] = _difference(
                ours[task], theirs[task].permute(0, 2, 3, 1)
            )
    by_kernel = {
        f"gradient of `{name}`": _difference(
            expected, kernel_in_keras(module, gradient=True)
        )
        for (name, module), expected in zip(convolutions.items(), gradients)
    }
    worst = max(by_kernel, key=by_kernel.get)
    return {**differences, worst: by_kernel[worst]}


def _difference(value, twin):
    value, twin = np.asarray(value), twin.detach().numpy()
    return float(np.abs(value - twin).max() / np.abs(value).max())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet101")
    parser.add_argument("--image-size", type=parse_size, default="128x256")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    differences = {
        precision: compare(options.backbone, options.image_size, precision)
        for precision in ("float32", "float64")
    }
    rows = [
        [precision, what, f"{difference:.1e}"]
        for precision, by_what in differences.items()
        for what, difference in by_what.items()
    ]
    header = ["precision", "Keras and PyTorch", "relative difference"]
    table = make_table(header, rows, text_columns=2)
    print(table)
    result = {
        "backbone": options.backbone,
        "image_size": options.image_size,
        "machine": describe(["keras", "tensorflow", "torch"]),
        "differences": differences,
    }
    write_results(options.output, "torch_twin", table, result)


if __name__ == "__main__":
    main()

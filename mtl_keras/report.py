"""What a run shows: progress, tables and figures."""

import time

import keras
import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from tqdm import tqdm

from mtl_keras.cityscapes import EVALUATED, LABEL_SETS

TASK_COLORS = {
    "semantic": "#0072b2",
    "instance": "#d55e00",
    "depth": "#009e73",
    "class": "#0072b2",
    "reconstruction": "#d55e00",
}

# Column of the tables: metric, header, factor.
COLUMNS = (
    ("semantic/miou", "mIoU %", 100.0),
    ("semantic/pixel_accuracy", "pixel accuracy %", 100.0),
    ("instance/mean_abs", "instance mean abs px", 1.0),
    ("instance/mean_l2", "instance mean L2 px", 1.0),
    ("instance/rms", "instance RMS px", 1.0),
    ("instance/ap", "AP %", 100.0),
    ("instance/ap50", "AP50 %", 100.0),
    ("depth/mean_abs", "depth mean abs px", 1.0),
    ("depth/rms", "depth RMS px", 1.0),
    ("class/accuracy", "accuracy %", 100.0),
    ("reconstruction/mean_abs", "reconstruction mean abs", 1.0),
    ("reconstruction/rms", "reconstruction RMS", 1.0),
)


class ProgressReport(keras.callbacks.Callback):
    """A progress bar over the whole training, and a line when an epoch ends.

    Args:
        num_steps: int. Training steps of the whole run.
    """

    def __init__(self, num_steps):
        super().__init__()
        self.num_steps = num_steps
        self.bar = None

    def on_epoch_begin(self, epoch, logs=None):
        if self.bar is None:
            done = epoch * self.params["steps"]
            self.bar = tqdm(
                total=self.num_steps, initial=done, unit="step", desc="train"
            )
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.started
        scores = [
            f"{header} {logs['val_' + key] * factor:.3g}"
            for key, header, factor in COLUMNS
            if key.endswith(("miou", "accuracy", "mean_abs"))
            and not key.endswith("pixel_accuracy")
            and "val_" + key in logs
        ]
        self.bar.write(
            f"epoch {epoch + 1}/{self.params['epochs']}: loss {logs['loss']:.3f}, val "
            f"{', '.join(scores)} ({seconds:.0f} s)"
        )

    def on_train_end(self, logs=None):
        if self.bar is not None:
            self.bar.close()


def format_table(rows, columns):
    """A Markdown table.

    Args:
        rows: list of lists of cells; `None` makes an empty cell, a float is given
            four significant digits.
        columns: list of str.
    """

    def cell(value):
        if value is None:
            return ""
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def format_metrics(metrics, constant_predictor, per_class_iou, instances=None):
    """The metric table of a split, with the constant predictor and the classes.

    Args:
        metrics: `{task/metric: float}` of the network.
        constant_predictor: the same of the constant predictor.
        per_class_iou: `{class name: IoU or None}`, may be empty.
        instances: optional, what `ObjectScore.score` returned.
    """
    shown = [column for column in COLUMNS if column[0] in metrics]
    scores = {"network": metrics, "constant predictor": constant_predictor}
    if instances:
        best = instances["upper_bound"]
        scores["true votes and classes, decoded"] = name_instance_metrics(best)
    rows = [
        [name] + [row[key] * factor if key in row else None for key, _, factor in shown]
        for name, row in scores.items()
    ]
    table = format_table(rows, [""] + [header for _, header, _ in shown])
    if per_class_iou or instances:
        table += "\n\n" + _format_classes(per_class_iou, instances)
    return table


def _format_classes(per_class_iou, instances):
    precisions = instances["classes"] if instances else {}
    columns = ["class"] + ["IoU %"] * bool(per_class_iou)
    columns += ["AP %", "AP50 %"] * bool(instances)
    rows = []
    for name in per_class_iou or precisions:
        row = [name]
        if per_class_iou:
            row.append(_percent(per_class_iou[name]))
        if name in precisions:  # stuff is not
            score = precisions[name] or {}
            row += [_percent(score.get(key)) for key in ("ap", "ap50")]
        rows.append(row + [None] * (len(columns) - len(row)))
    return format_table(rows, columns)


def name_instance_metrics(instances):
    """The scores of `ObjectScore.score` as metrics, none if there is no object."""
    return {
        f"instance/{key}": instances[key]
        for key in ("ap", "ap50")
        if instances[key] is not None
    }


def _percent(value):
    return "absent" if value is None else value * 100.0


def plot_losses(history, tasks, path):
    """Draws total and task losses over the epochs, training and validation."""
    figure = Figure(figsize=(3.6 * (len(tasks) + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(tasks) + 1, squeeze=False)[0]
    epochs = [row["epoch"] + 1 for row in history]
    for axis, key in zip(axes, ["loss"] + [f"{task}/loss" for task in tasks]):
        task = key.split("/")[0]
        color = TASK_COLORS.get(task, "black")
        for prefix, style in (("", "-"), ("val_", "--")):
            values = [row[prefix + key] for row in history]
            name = "validation" if prefix else "training"
            axis.plot(epochs, values, style, color=color, label=name)
        axis.set_title("total (may be negative)" if key == "loss" else f"{task} loss")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        if key != "loss":
            axis.set_yscale("log")
            plain_log_ticks(axis)
    figure.savefig(path, dpi=120)


def plot_weights(history, tasks, path):
    """Draws the noise levels and the effective loss weights over the epochs.

    Returns whether there was anything to draw: fixed weights do not move.
    """
    if not history or f"{tasks[0]}/sigma" not in history[0]:
        return False
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in history]
    titles = {"sigma": "noise level $\\sigma$", "weight": "weight of the loss"}
    for axis, (key, title) in zip(axes, titles.items()):
        for task in tasks:
            values = [row[f"{task}/{key}"] for row in history]
            axis.plot(epochs, values, color=TASK_COLORS[task], label=task)
        axis.set(title=title, xlabel="epoch", yscale="log")
        plain_log_ticks(axis)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    return True


class Gallery:
    """Gathers a few frames of a split and draws what was predicted for them.

    Args:
        num_frames: int. Frames in the split; those shown are spread over it.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        num_shown: int. Rows of the picture. Defaults to 5.
    """

    def __init__(self, num_frames, label_set, num_shown=5):
        self.label_set = label_set
        shown = np.linspace(0, num_frames - 1, min(num_shown, num_frames))
        self.shown = set(shown.round().astype(int))
        self.seen = 0
        self.rows = []

    def add(self, images, targets, masks, predictions):
        """Looks through a batch; the dicts are by task."""
        for i in range(len(images)):
            if self.seen in self.shown:
                self.rows.append(
                    [np.asarray(images[i])]
                    + [
                        {task: np.asarray(value[i]) for task, value in values.items()}
                        for values in (targets, masks, predictions)
                    ]
                )
            self.seen += 1

    def plot(self, path, with_truth=True):
        """Draws input, truth and prediction side by side, a row a frame.

        Classes have the official colours, offsets the hue of their direction and
        the saturation of their length, disparity a perceptual scale. What is not
        valid in the truth is grey.
        """
        tasks = list(self.rows[0][3])
        height, width = self.rows[0][0].shape[:2]
        kinds = ("truth", "prediction") if with_truth else ("prediction",)
        num_columns = 1 + len(kinds) * len(tasks)
        cell_height = 2.8 * height / width
        figure = Figure(
            figsize=(2.8 * num_columns, cell_height * len(self.rows) + 1.3),
            layout="constrained",
        )
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        above, below = figure.subfigures(
            2, 1, height_ratios=[cell_height * len(self.rows) + 0.3, 1.0]
        )
        axes = above.subplots(len(self.rows), num_columns, squeeze=False)
        legends = below.subplots(1, 1 + len(tasks), width_ratios=[1] + [2] * len(tasks))
        for axis in [*axes.flat, *legends]:
            axis.set_axis_off()
        axes[0, 0].set_title("input")
        for row, axis in zip(self.rows, axes[:, 0]):
            axis.imshow(row[0])
        for i, (task, legend) in enumerate(zip(tasks, legends[1:])):
            columns = axes[:, 1 + i * len(kinds) :][:, : len(kinds)]
            paint = PAINTERS[task](self.rows, self.label_set, legend)
            for row, cells in zip(self.rows, columns):
                _, targets, masks, predictions = row
                shown = {
                    "truth": np.where(
                        masks[task][..., None], paint(targets[task]), 200
                    ),
                    "prediction": paint(predictions[task]),
                }
                for kind, cell in zip(kinds, cells):
                    cell.imshow(shown[kind].astype(np.uint8), interpolation="nearest")
            for kind, cell in zip(kinds, columns[0]):
                cell.set_title(f"{task}, {kind}")
        figure.savefig(path, dpi=110)


# A painter looks at the rows, draws a legend, and returns the function from values
# to colours.


def _paint_semantic(rows, label_set, legend):
    colors = np.array([label.color for label in LABEL_SETS[label_set]], np.uint8)

    def paint(values):
        return colors[values.argmax(-1) if values.ndim == 3 else values]

    legend.legend(
        handles=[
            Patch(color=np.array(label.color) / 255, label=label.name)
            for label in EVALUATED
        ],
        loc="upper left",
        ncols=5,
        fontsize=7,
        frameon=False,
        borderaxespad=0,
        handlelength=1.2,
        columnspacing=1.0,
    )
    return paint


def _paint_instance(rows, label_set, legend):
    scale = largest_shown([row[1]["instance"][row[2]["instance"] > 0] for row in rows])
    draw_offset_wheel(legend, scale)
    return lambda values: color_offsets(values, scale)


def _paint_depth(rows, label_set, legend):
    scale = largest_shown([row[1]["depth"][row[2]["depth"] > 0] for row in rows])
    mappable = matplotlib.cm.ScalarMappable(
        matplotlib.colors.Normalize(0, scale), "magma"
    )
    legend.figure.colorbar(
        mappable,
        cax=legend.inset_axes([0.02, 0.7, 0.8, 0.14]),
        orientation="horizontal",
        label="disparity in pixels",
    )
    return lambda values: color_depth(values, scale)


PAINTERS = {
    "semantic": _paint_semantic,
    "instance": _paint_instance,
    "depth": _paint_depth,
}


def largest_shown(values):
    """The largest value to tell apart: nearly the largest there is, at least 1.

    `values` is a list of arrays.
    """
    values = np.abs(np.concatenate(values))
    return max(np.percentile(values, 99), 1.0) if values.size else 1.0


def draw_offset_wheel(legend, scale):
    """Draws the legend of `color_offsets` on an axis."""
    dy, dx = np.mgrid[-1:1:101j, -1:1:101j]
    inside = np.hypot(dy, dx)[..., None] <= 1
    wheel = np.where(inside, color_offsets(np.stack([dy, dx], -1), 1.0), 255)
    legend.imshow(wheel, extent=(-1, 1, 1, -1))
    legend.set_anchor("W")
    legend.text(
        1.2,
        0,
        f"direction to the centre of the\ninstance; at the rim {scale:.0f} pixels",
        fontsize=8,
        va="center",
    )


def color_offsets(offsets, scale):
    """Colours of offsets `(..., 2)`: hue is the direction, saturation the length up
    to `scale` pixels. Returns `(..., 3)` uint8."""
    dy, dx = offsets[..., 0], offsets[..., 1]
    hue = (np.arctan2(dy, dx) / (2 * np.pi)) % 1.0
    saturation = np.clip(np.hypot(dy, dx) / scale, 0.0, 1.0)
    hsv = np.stack([hue, saturation, np.ones_like(hue)], axis=-1)
    return (hsv_to_rgb(hsv) * 255).astype(np.uint8)


def color_depth(disparity, scale):
    """Colours of disparity `(..., 1)` from 0 to `scale` pixels, `(..., 3)` uint8."""
    colormap = matplotlib.colormaps["magma"]
    return colormap(np.clip(disparity[..., 0] / scale, 0, 1), bytes=True)[..., :3]


def plain_log_ticks(axis):
    formatter = matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(formatter)
    axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    low, high = axis.get_ylim()
    if high / low < 4:
        axis.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    elif high / low < 30:
        axis.yaxis.set_major_locator(
            matplotlib.ticker.LogLocator(subs=(1, 2, 5), numticks=12)
        )

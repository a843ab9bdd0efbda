"""Options of the commands.

A setting is declared once, as a field of a frozen dataclass with its help text and,
where needed, the function that reads it. This module imports nothing heavy, so that
`--help` answers at once.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_keras.architectures import ARCHITECTURES, BACKBONES, DECODERS
from mtl_keras.cityscapes import LABEL_SETS
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import (
    flag_of,
    option,
    parse_camera,
    parse_kinds,
    parse_likelihoods,
    parse_not_negative,
    parse_numbers,
    parse_path,
    parse_port,
    parse_positive,
    parse_priorities,
    parse_range,
    parse_recipe,
    parse_scales,
    parse_seed,
    parse_share,
    parse_size,
    parse_task_pair,
    parse_tasks,
    parse_weights,
)
from mtl_keras.experiments.files import write_whole
from mtl_keras.experiments.kinds import EXPORTS, KINDS
from mtl_keras.experiments.recipes import DATASETS, TABLES, WEIGHTINGS
from mtl_keras.instances.clustering import METHODS
from mtl_keras.instances.decoding import LEFT_OVER, OBJECT_CLASSES, cluster_offsets
from mtl_keras.likelihoods import LIKELIHOODS
from mtl_keras.tasks import TASKS, tasks_of


def _parse_exports(text):
    return () if text == "none" else parse_kinds(EXPORTS)(text)


# Runs of version 1 have half the instance loss, and sigmas stored by position; those of
# version 2 have other names of label sets and of what the constant predictor says.
OPTIONS_VERSION = 3

VERBOSE = "also show what TensorFlow and other libraries log"
# How a run is started, not what it is.
STARTING_OPTIONS = (
    "output",
    "resume",
    "checkpoint_minutes",
    "data_dir",
    "verbose",
    "export",
    "strategy",
)


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a multi-task network on street scenes with learned loss weights.

    The defaults are those of the recipe; a flag that is given overrides it.
    """

    recipe: str = option("demo", "named settings to start from", parse_recipe)
    dataset: str = option(
        "scenes",
        "what to learn from; scenes are the rendered streets or what --data names",
        choices=tuple(DATASETS),
    )
    data: str = option(
        "",
        "folder with Cityscapes' archives as downloaded, or unpacked; or several, with "
        "commas; or a folder of MTAN's arrays (default: the built-in rendered streets)",
        parse_path,
    )
    train_frames: int = option(
        0,
        "train on this many frames of the training split, spread over it evenly "
        "(default: all)",
        parse_positive(int),
    )
    output: str = option("", "run directory (default: runs/RECIPE)", parse_path)
    tasks: tuple = option(
        lambda: tasks_of("scenes"), "comma-separated tasks to train", parse_tasks
    )
    weighting: str = option(
        "learned",
        "how the losses are added up; dwa: dynamic weight average; rlw: random loss "
        "weighting; gls: geometric mean; uw-so: soft optimal uncertainty weighting; "
        "log-sum: sum of the logarithms",
        choices=WEIGHTINGS,
    )
    task_weights: dict = option(
        dict,
        "fixed weights, such as semantic=0.8,instance=0.05,depth=0.15, for "
        "--weighting fixed (default: equal weights that add up to 1)",
        parse_weights,
    )
    priorities: dict = option(
        dict,
        "what the whole terms of tasks are multiplied by, such as semantic=3,depth=1, "
        "for --weighting learned (default: 1 for every task)",
        parse_priorities,
    )
    temperature: float = option(
        0.0,
        "that of --weighting dwa or uw-so; the larger, the more alike the weights "
        "(default: 2 for dwa, 1 for uw-so)",
        parse_positive(float),
    )
    likelihoods: dict = option(
        lambda: {task: TASKS[task].likelihood for task in tasks_of("scenes")},
        f"noise model of each task, one of {', '.join(LIKELIHOODS)}",
        parse_likelihoods,
    )
    initial_variance: tuple = option(
        (1.0, 1.0),
        "LOW,HIGH: range that the initial noise variances are drawn from",
        parse_range,
    )
    architecture: str = option("mtl", "network architecture", choices=ARCHITECTURES)
    backbone: str = option(
        "small",
        "ResNet that extracts the features",
        choices=tuple(BACKBONES),
    )
    decoder: str = option(
        "resize_conv",
        "direct: the original's literal graph, the same function, far slower",
        choices=DECODERS,
    )
    image_size: tuple = option(
        (128, 256),
        "height and width in pixels, HxW, that frames are resized to",
        parse_size,
    )
    records: str = option(
        "resized",
        "how the frames of --data are kept: at --image-size, or as they are, and "
        "resized whenever they are read",
        choices=("resized", "source"),
    )
    train_split: str = option(
        "train",
        "what to train on; train_extra: the frames with coarse labels",
        choices=("train", "train_extra", "train+train_extra"),
    )
    skip_bad: bool = option(
        False, "leave out frames of --data that lack a file or cannot be read"
    )
    label_set: str = option(
        "train_ids",
        "classes of the semantic output: all 34 label ids, the 19 evaluated ones, or "
        "the 7 categories, as in MTAN's protocol",
        choices=tuple(LABEL_SETS),
    )
    sky: str = option(
        "zero",
        "depth of the sky: a disparity of 0, or masked, as in MTAN's protocol and "
        "always in its arrays",
        choices=("zero", "masked"),
    )
    batch_size: int = option(4, "frames per training step", parse_positive(int))
    epochs: int = option(4, "passes over the training split", parse_positive(int))
    steps: int = option(
        0,
        "training steps in place of --epochs, rounded up to whole epochs "
        "(default: as many as --epochs makes)",
        parse_positive(int),
    )
    epoch_steps: int = option(
        0,
        "training steps between two validations (default: one pass over the split)",
        parse_positive(int),
    )
    optimizer: str = option("adam", "optimizer", choices=("adam", "sgd"))
    learning_rate: float = option(4e-3, "peak learning rate", parse_positive(float))
    schedule: str = option(
        "cosine",
        "course of the learning rate; poly: (1 - step / steps)^0.9; halved: half of it "
        "in the second half of the steps; plateau: a tenth whenever the validation "
        "loss has not fallen for six validations",
        choices=("constant", "poly", "cosine", "halved", "plateau"),
    )
    weight_decay: float = option(
        1e-4,
        "decoupled weight decay of the kernels, times the learning rate",
        parse_not_negative,
    )
    sigma_learning_rate_factor: float = option(
        10.0,
        "learning rate of the log variances, in units of --learning-rate",
        parse_positive(float),
    )
    flip: bool = option(True, "mirror half of the training frames")
    crop: tuple = option(
        (),
        "HxW: train on random crops of this size; whole frames are evaluated and "
        "predicted (default: train on whole frames)",
        parse_size,
    )
    scales: tuple = option(
        (1.0, 1.0),
        "LOW,HIGH: range that the scale of a training frame is drawn from",
        parse_scales,
    )
    jitter: float = option(
        0.0,
        "how far brightness, contrast and saturation of a training frame may be from "
        "their own, 0 to 1",
        parse_share,
    )
    precision: str = option(
        "float32",
        "arithmetic of the network",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit: str = option(
        "auto",
        "compile with XLA; auto: on a GPU only, where it pays",
        choices=("auto", "on", "off"),
    )
    strategy: str = option(
        "none",
        "devices to train on; mirrored: all of this machine, each with its share of "
        "every batch (on JAX)",
        choices=("none", "mirrored"),
    )
    seed: int = option(0, "seed of weights, order and augmentation", parse_seed)
    resume: bool = option(False, "go on with the run in --output where it stopped")
    checkpoint_minutes: float = option(
        10.0,
        "minutes between the checkpoints within an epoch; 0 for those at its end alone",
        parse_not_negative,
    )
    data_dir: str = option(
        "data", "where records and downloaded data are kept", parse_path
    )
    verbose: bool = option(False, VERBOSE)
    pretrained: bool = option(
        False, "start from the ImageNet weights of keras.applications"
    )
    export: tuple = option(
        ("tf_saved_model",),
        "formats to export the best checkpoint to, of "
        f"{', '.join(EXPORTS)}, or none; not for --table and --sweep",
        _parse_exports,
    )


@dataclasses.dataclass(frozen=True)
class SeriesOptions(TrainOptions):
    """Train a multi-task network on street scenes with learned loss weights, or all
    the networks of a table or of a sweep.

    The defaults are those of the recipe; a flag that is given overrides it, in every
    row of a table.
    """

    table: str = option(
        "",
        "train every row of a published table, in runs/TABLE-DATASET: "
        + "; ".join(f"{name}: {table.title}" for name, table in TABLES.items()),
        choices=tuple(TABLES),
    )
    sweep: tuple = option(
        (),
        "TASK,TASK: train a pair of tasks with fixed weights from the first alone to "
        "the second alone, and with learned weights",
        parse_task_pair,
    )
    points: int = option(
        0,
        "number of evenly spaced fixed weights of --sweep (default: those of the "
        "paper's figure, or 11)",
        parse_positive(int),
    )
    seeds: int = option(
        1,
        "train every row of --table or --sweep with this many seeds",
        parse_positive(int),
    )
    replay: str = option(
        "",
        "RUN: show the step in which the loss of a run became infinite or NaN, and "
        "train nothing",
        parse_path,
    )


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate the best checkpoint of a run and print its metric table, or compare
    the runs of a table or a sweep."""

    run: str = option(
        "",
        "run directory that train.py wrote, with --table and --sweep the directory of "
        "the runs (default: runs/demo, the only one in runs/ of this table or sweep)",
        parse_path,
    )
    table: str = option(
        "", "compare the runs of train.py --table", choices=tuple(TABLES)
    )
    sweep: tuple = option((), "compare the runs of train.py --sweep", parse_task_pair)
    compare: tuple = option(
        (), "compare any finished runs on one page, --report", parse_path, nargs="+"
    )
    report: str = option(
        "comparison.html", "the page that --compare writes", parse_path
    )
    output: str = option(
        "",
        "where scores, figures and maps of a single run are written (default: into the "
        "run, with its page)",
        parse_path,
    )
    data: str = option(
        "",
        "Cityscapes tree, or folder of MTAN's arrays, to evaluate on (default: the "
        "run's data)",
        parse_path,
    )
    data_dir: str = option(
        "",
        "where records and downloaded data are kept (default: the run's)",
        parse_path,
    )
    split: str = option("val", "split to evaluate on", str)
    batch_size: int = option(
        0,
        "frames at a time (default: 16, fewer of frames larger than 128x256)",
        parse_positive(int),
    )
    predictions: bool = option(
        False, "also write the predicted maps of every frame to RUN/predictions/SPLIT"
    )
    submission: str = option(
        "",
        "also write the split for the benchmark of Cityscapes, at 2048x1024: label "
        "ids, and objects as masks with scores (default: no submission)",
        parse_path,
    )
    instances: bool = option(
        False, "also turn the centre votes into objects, and score and draw them"
    )
    object_classes: str = option(
        "predicted",
        "the classes in which --instances looks for objects; true: the true ones, to "
        "tell errors of the votes from errors of the classes",
        choices=OBJECT_CLASSES,
    )
    method: str = option(
        "optics",
        "how --instances finds the clusters of votes; see "
        "mtl_keras.instances.cluster_offsets",
        choices=tuple(METHODS),
    )
    method_options: dict = option(
        dict,
        "options of the method, such as eps=1,max_eps=5,min_samples=5 for the radii of "
        "the original (default: see mtl_keras.instances.cluster_offsets)",
        parse_numbers,
    )
    left_over: str = option(
        "noise",
        "what becomes of pixels that --instances finds in no cluster; nearest: each "
        "goes to the object of its class whose centre is nearest to its vote, as the "
        "paper has it",
        choices=LEFT_OVER,
    )
    verbose: bool = option(False, VERBOSE)


# Of commands that read pictures.
DEFAULT_MODEL = "runs/demo"
CAMERA_HELP = (
    "FOCAL,BASELINE of the camera, in pixels of the picture and metres: adds the "
    "distance of objects (default: unknown; that of Cityscapes for its pictures, if "
    "the model is a run on them)"
)


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Predict pictures: classes, objects and depth, each at the picture's own size."""

    inputs: tuple = option(
        (),
        "the model, a run of train.py or a SavedModel (default: runs/demo), and then "
        "pictures, folders of pictures or patterns",
        parse_path,
    )
    output: str = option("predictions", "directory for the files", parse_path)
    only: tuple = option(
        (),
        f"kinds of files to write, of {', '.join(KINDS)} (default: all that the "
        "model has the tasks for)",
        parse_kinds(KINDS),
    )
    camera: tuple = option((), CAMERA_HELP, parse_camera)
    method: str = option(
        "optics",
        "how clusters of votes are found; see mtl_keras.instances.cluster_offsets",
        choices=tuple(METHODS),
    )
    method_options: dict = option(
        dict, "options of --method, such as eps=1,min_cluster_size=10", parse_numbers
    )
    # As in the paper, so that objects have no holes; EvaluateOptions scores what the
    # original does.
    left_over: str = option(
        "nearest",
        "what becomes of pixels that are in no cluster; nearest: each goes to the "
        "object of its class whose centre is nearest to its vote",
        choices=LEFT_OVER,
    )
    batch_size: int = option(
        0,
        "pictures at a time (default: 8, fewer for a network of larger images than "
        "128x256)",
        parse_positive(int),
    )
    overwrite: bool = option(False, "replace files of earlier predictions")
    verbose: bool = option(False, VERBOSE)


@dataclasses.dataclass(frozen=True)
class AppOptions:
    """Open a page in the browser that shows what a model sees in a picture: classes,
    objects and depth. Nobody but this machine can reach it, unless --host is given."""

    model: str = option(
        DEFAULT_MODEL, "the model, a run of train.py or a SavedModel", parse_path
    )
    host: str = option(
        "127.0.0.1",
        "address to listen on; another one than the default lets others use the page, "
        "which has no password",
        parse_path,
    )
    port: int = option(
        0, "port to listen on (default: 7860, or the next free one)", parse_port
    )
    browser: bool = option(True, "open the page in the browser, if there is a screen")
    camera: tuple = option((), CAMERA_HELP, parse_camera)
    verbose: bool = option(False, VERBOSE)


@dataclasses.dataclass(frozen=True)
class WriteMtanOptions:
    """Write a data set as a folder of arrays, {train,val}/{image,label_7,label_19,
    depth}/NUMBER.npy, as MTAN's protocol takes it, with the frames' names in
    frames.csv."""

    source: str = option(
        "",
        "what train.py --data takes, Cityscapes' archives or an unpacked tree; or the "
        "word streets, for rendered streets",
        parse_path,
    )
    directory: str = option("", "the folder, which must not exist yet", parse_path)
    image_size: tuple = option(
        (128, 256), "height and width of the arrays in pixels, HxW", parse_size
    )
    frames: int = option(
        0,
        "frames of each split, spread over it evenly (default: all of a tree; 2000 and "
        "250 rendered ones)",
        parse_positive(int),
    )
    verbose: bool = option(False, VERBOSE)


@dataclasses.dataclass(frozen=True)
class ShowOptions(TrainOptions):
    """Show what is in a data set and what training sees of it: tables, warnings, and a
    sheet of frames as they are trained on, with classes, votes, depth and masks.

    The options are those of train.py, so that the sheet is of the batches of that
    training; the ones that are not about data have no effect.
    """

    data: str = option(
        "",
        "what train.py --data takes, Cityscapes' archives or an unpacked tree; or the "
        "word streets, for the rendered streets (default: streets)",
        parse_path,
    )
    output: str = option("data.png", "the sheet, a PNG file", parse_path)
    sheet: bool = option(
        True, "draw the sheet; it needs the records, which are made if there are none"
    )
    shown: int = option(6, "frames on the sheet", parse_positive(int))
    frames: int = option(
        0,
        "look at this many frames of each split, spread over it evenly (default: all)",
        parse_positive(int),
    )


def check_clustering(method: str, method_options: Mapping[str, Any]) -> None:
    """Raises `UserError` for options that a method of clustering does not take."""
    nothing = np.zeros((1, 1, 2)), np.zeros((1, 1), bool)
    try:
        cluster_offsets(*nothing, method, **method_options)
    except (ValueError, TypeError) as error:
        raise UserError(f"--method-options: {error}") from error


def override(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a recipe with the given ones in their place."""
    if "epochs" in given:  # in place of the steps of the recipe
        settings = {**settings, "steps": 0}
    return {**settings, **given}


def write_options(options: Any, path: pathlib.Path) -> None:
    """Writes options as JSON."""
    values = {"version": OPTIONS_VERSION, **dataclasses.asdict(options)}
    write_whole(path, json.dumps(values, indent=2) + "\n")


def read_options(options_class: type, path: pathlib.Path) -> Any:
    """Reads what `write_options` wrote.

    Raises:
        UserError: if the file is missing, is of another version or does not hold all
            of these options; those of how a run is started may be left out.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no run in {path.parent}: {path.name} is missing; "
            "train one with train.py first."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("version", 1)
        if version == OPTIONS_VERSION:
            return _options_from(values, options_class)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} does not hold the options of a run ({error}); restore the file "
            "or train into another directory."
        ) from error
    raise UserError(
        f"{path.parent} is a run of another version of this package, which means "
        "something else by the same options; train it again in another directory, or "
        "go on with that version."
    )


def _options_from(values, options_class):
    """Options from what `json.loads` returned; raises `ValueError` or `TypeError`."""
    default = options_class()
    for field in dataclasses.fields(default):
        kind = type(getattr(default, field.name))
        if field.name not in values:
            if field.name in STARTING_OPTIONS:
                continue
            raise ValueError(f"{field.name} is missing")
        value = values[field.name]
        if kind is tuple and isinstance(value, list):
            values[field.name] = tuple(value)
        elif isinstance(value, bool) != (kind is bool) or not isinstance(
            value, (int, float) if kind is float else kind
        ):
            raise ValueError(f"{field.name} is {value!r}")
    return options_class(**values)


def differing_options(
    first: Any, second: Any, ignored: Sequence[str] = ()
) -> dict[str, tuple]:
    """`{flag: (first value, second value)}` of the options that differ."""
    return {
        flag_of(field.name): (getattr(first, field.name), getattr(second, field.name))
        for field in dataclasses.fields(first)
        if field.name not in ignored
        and getattr(first, field.name) != getattr(second, field.name)
    }

"""Options of the scripts and their parsers.

A setting is declared once, as a field of a frozen dataclass with its help text
and, where needed, the function that reads it. This module imports nothing heavy,
so that `--help` answers at once.
"""

import argparse
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_keras.architectures import ARCHITECTURES, BACKBONES, DECODERS
from mtl_keras.cityscapes import LABEL_SETS
from mtl_keras.errors import UserError
from mtl_keras.experiments.recipes import DATASETS, RECIPES, TABLES
from mtl_keras.hints import Size
from mtl_keras.instances.clustering import METHODS
from mtl_keras.instances.decoding import LEFT_OVER, OBJECT_CLASSES
from mtl_keras.likelihoods import LIKELIHOODS
from mtl_keras.tasks import TASKS, tasks_of

# Runs of version 1 have half the instance loss, and sigmas stored by position.
OPTIONS_VERSION = 2


def _option(default, help, parse=None, choices=None):
    metadata = {"help": help, "parse": parse or type(default), "choices": choices}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_size(text: str) -> Size:
    """`"128x256"` to `(128, 256)`, height first."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(map(int, match.groups())) < 32:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no image size: write HEIGHTxWIDTH in pixels, each at "
            "least 32, such as 128x256"
        )
    return int(match[1]), int(match[2])


def parse_tasks(text: str) -> tuple[str, ...]:
    """`"semantic,depth"` to `("semantic", "depth")`, in the order of `TASKS`."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        _check_task(name)
    return tuple(task for task in TASKS if task in names)


def parse_task_pair(text: str) -> tuple[str, ...]:
    """`"semantic,depth"` to `("semantic", "depth")`."""
    pair = parse_tasks(text)
    if len(pair) != 2 or TASKS[pair[0]].kind != TASKS[pair[1]].kind:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no pair of tasks of one network: write TASK,TASK, such as "
            "semantic,depth"
        )
    return pair


def parse_recipe(text: str) -> str:
    """The name of a recipe."""
    if text not in RECIPES:
        names = [name for name in RECIPES if "/" not in name]
        raise argparse.ArgumentTypeError(
            f"unknown recipe {text!r}: choose from {', '.join(names)}, or a row of a "
            "table, such as A/all"
        )
    return text


def parse_path(text: str) -> str:
    """A path; an empty one may come from a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def parse_weights(text: str) -> dict[str, float]:
    """`"semantic=0.8,depth=0.2"` to `{"semantic": 0.8, "depth": 0.2}`."""
    weights = {}
    for task, value in _parse_pairs(text):
        try:
            weights[task] = float(value)
        except ValueError:
            weights[task] = -1.0
        if not 0 <= weights[task] < float("inf"):
            raise argparse.ArgumentTypeError(
                f"the weight of {task} must be a number of 0 or more, not {value!r}"
            )
    return weights


def parse_likelihoods(text: str) -> dict[str, str]:
    """`"semantic=softmax,depth=laplace"` to a dict."""
    likelihoods = dict(_parse_pairs(text))
    for task, name in likelihoods.items():
        if name not in LIKELIHOODS:
            raise argparse.ArgumentTypeError(
                f"unknown likelihood {name!r} of {task}: choose from "
                f"{', '.join(LIKELIHOODS)}"
            )
    return likelihoods


def parse_numbers(text: str) -> dict[str, Any]:
    """`"eps=1.5,min_samples=10"` to `{"eps": 1.5, "min_samples": 10}`."""
    numbers = {}
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        try:
            number = float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{pair!r} does not set a number: write NAME=NUMBER,NAME=NUMBER"
            ) from None
        numbers[name] = int(number) if number.is_integer() else number
    return numbers


def parse_range(text: str) -> tuple[float, float]:
    """`"0.2,1"` to `(0.2, 1.0)`; one number stands for both ends."""
    try:
        ends = [float(end) for end in text.split(",")]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2) or not 0 < ends[0] <= ends[-1] < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range of variances: write LOW,HIGH, such as 0.2,1"
        )
    return ends[0], ends[-1]


def _parse_pairs(text):
    for pair in text.split(","):
        task, equals, value = pair.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(
                f"{pair!r} does not name a task: write TASK=VALUE,TASK=VALUE"
            )
        _check_task(task.strip())
        yield task.strip(), value.strip()


def _check_task(name):
    if name not in TASKS:
        raise argparse.ArgumentTypeError(
            f"unknown task {name!r}: choose from {', '.join(TASKS)}"
        )


def _positive(kind):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} must be a {what} above 0")
        return value

    return parse


def _not_negative(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of 0 or more")
    return value


def _seed(text):
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a whole number of 0 or more, below 2^32"
        )
    return int(text)


VERBOSE = "also show what TensorFlow and other libraries log"
# How a run is started, not what it is.
STARTING_OPTIONS = ("output", "resume", "data_dir", "verbose")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a multi-task network on street scenes with learned loss weights.

    The defaults are those of the recipe; a flag that is given overrides it.
    """

    recipe: str = _option("demo", "named settings to start from", parse_recipe)
    dataset: str = _option(
        "scenes",
        "what to learn from; scenes are the rendered streets or what --data names",
        choices=tuple(DATASETS),
    )
    data: str = _option(
        "",
        "unpacked Cityscapes tree (default: the built-in rendered streets)",
        parse_path,
    )
    train_frames: int = _option(
        0,
        "train on so many frames of the training split, spread over it evenly "
        "(default: all)",
        _positive(int),
    )
    output: str = _option("", "run directory (default: runs/RECIPE)", parse_path)
    tasks: tuple = _option(
        lambda: tasks_of("scenes"), "comma-separated tasks to train", parse_tasks
    )
    weighting: str = _option(
        "learned", "how the losses are added up", choices=("learned", "fixed")
    )
    task_weights: dict = _option(
        dict,
        "fixed weights, such as semantic=0.8,instance=0.05,depth=0.15, for "
        "--weighting fixed (default: equal weights that add up to 1)",
        parse_weights,
    )
    likelihoods: dict = _option(
        lambda: {task: TASKS[task].likelihood for task in tasks_of("scenes")},
        f"noise model of each task, one of {', '.join(LIKELIHOODS)}",
        parse_likelihoods,
    )
    initial_variance: tuple = _option(
        (1.0, 1.0),
        "LOW,HIGH: range that the initial noise variances are drawn from",
        parse_range,
    )
    architecture: str = _option("mtl", "network architecture", choices=ARCHITECTURES)
    backbone: str = _option(
        "small",
        "ResNet that extracts the features",
        choices=tuple(BACKBONES),
    )
    decoder: str = _option(
        "resize_conv",
        "direct: the original's literal graph, the same function, far slower",
        choices=DECODERS,
    )
    image_size: tuple = _option(
        (128, 256),
        "height and width in pixels, HxW, that frames are resized to",
        parse_size,
    )
    label_set: str = _option(
        "train_ids",
        "classes of the semantic output: all 34 label ids, or the 19 evaluated ones",
        choices=tuple(LABEL_SETS),
    )
    batch_size: int = _option(4, "frames per training step", _positive(int))
    epochs: int = _option(4, "passes over the training split", _positive(int))
    steps: int = _option(
        0,
        "training steps in place of --epochs, rounded up to whole epochs "
        "(default: as many as --epochs makes)",
        _positive(int),
    )
    epoch_steps: int = _option(
        0,
        "training steps between two validations (default: one pass over the split)",
        _positive(int),
    )
    optimizer: str = _option("adam", "optimizer", choices=("adam", "sgd"))
    learning_rate: float = _option(4e-3, "peak learning rate", _positive(float))
    schedule: str = _option(
        "cosine",
        "course of the learning rate; poly: (1 - step / steps)^0.9; plateau: a tenth "
        "whenever the validation loss has not fallen for six validations",
        choices=("constant", "poly", "cosine", "plateau"),
    )
    weight_decay: float = _option(
        1e-4, "decoupled weight decay of the kernels, a learning rate", _not_negative
    )
    sigma_learning_rate_factor: float = _option(
        10.0, "learning rate of the log variances, in --learning-rate", _positive(float)
    )
    flip: bool = _option(True, "mirror half of the training frames")
    precision: str = _option(
        "float32",
        "arithmetic of the network",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit: str = _option(
        "auto",
        "compile with XLA; auto: on a GPU only, where it pays",
        choices=("auto", "on", "off"),
    )
    seed: int = _option(0, "seed of weights, order and augmentation", _seed)
    resume: bool = _option(False, "go on with the run in --output where it stopped")
    data_dir: str = _option(
        "data", "where records and downloaded data are kept", parse_path
    )
    verbose: bool = _option(False, VERBOSE)
    pretrained: bool = _option(
        False, "start from the ImageNet weights of keras.applications"
    )


@dataclasses.dataclass(frozen=True)
class SeriesOptions(TrainOptions):
    """Train a multi-task network on street scenes with learned loss weights, or all
    the networks of a table or of a sweep.

    The defaults are those of the recipe; a flag that is given overrides it, in every
    row of a table.
    """

    table: str = _option(
        "",
        "train every row of a published table, in runs/TABLE-DATASET: "
        + "; ".join(f"{name}: {table.title}" for name, table in TABLES.items()),
        choices=tuple(TABLES),
    )
    sweep: tuple = _option(
        (),
        "TASK,TASK: train a pair of tasks with fixed weights from the first alone to "
        "the second alone, and with learned weights",
        parse_task_pair,
    )
    points: int = _option(
        0,
        "number of evenly spaced fixed weights of --sweep (default: those of the "
        "paper's figure, or 11)",
        _positive(int),
    )
    seeds: int = _option(
        1, "train every row of --table or --sweep with so many seeds", _positive(int)
    )


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate the best checkpoint of a run and print its metric table, or compare
    the runs of a table or a sweep."""

    run: str = _option(
        "",
        "run directory that train.py wrote, with --table and --sweep the directory of "
        "the runs (default: runs/demo, the only one in runs/ of this table or sweep)",
        parse_path,
    )
    table: str = _option(
        "", "compare the runs of train.py --table", choices=tuple(TABLES)
    )
    sweep: tuple = _option((), "compare the runs of train.py --sweep", parse_task_pair)
    data: str = _option(
        "", "Cityscapes tree to evaluate on (default: the run's data)", parse_path
    )
    data_dir: str = _option(
        "",
        "where records and downloaded data are kept (default: the run's)",
        parse_path,
    )
    split: str = _option("val", "split to evaluate on", str)
    batch_size: int = _option(16, "frames at a time", _positive(int))
    predictions: bool = _option(
        False, "also write the predicted maps of every frame to RUN/predictions/SPLIT"
    )
    instances: bool = _option(
        False, "also turn the centre votes into objects, and score and draw them"
    )
    object_classes: str = _option(
        "predicted",
        "the classes in which --instances looks for objects; true: the true ones, to "
        "tell errors of the votes from errors of the classes",
        choices=OBJECT_CLASSES,
    )
    method: str = _option(
        "optics",
        "how --instances finds the clusters of votes; see "
        "mtl_keras.instances.cluster_offsets",
        choices=tuple(METHODS),
    )
    method_options: dict = _option(
        dict,
        "options of the method, such as eps=1,max_eps=5,min_samples=5 for the radii of "
        "the original (default: see mtl_keras.instances.cluster_offsets)",
        parse_numbers,
    )
    left_over: str = _option(
        "noise",
        "what becomes of pixels that --instances finds in no cluster; nearest: each "
        "goes to the object of its class whose centre is nearest to its vote, as the "
        "paper has it",
        choices=LEFT_OVER,
    )
    verbose: bool = _option(False, VERBOSE)


def parse_options(
    options_class: type,
    argv: Sequence[str] | None = None,
    positional: Sequence[str] = (),
) -> Any:
    """Parses the command line into an options object; see `parse_given`."""
    return options_class(**parse_given(options_class, argv, positional=positional))


def override(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a recipe with the given ones in their place."""
    if "epochs" in given:  # in place of the steps of the recipe
        settings = {**settings, "steps": 0}
    return {**settings, **given}


def parse_given(
    options_class: type,
    argv: Sequence[str] | None = None,
    recipes: Mapping[str, Any] | None = None,
    positional: Sequence[str] = (),
) -> dict[str, Any]:
    """What the command line sets.

    Args:
        options_class: dataclass whose fields were made by `_option`.
        argv: list of str. Defaults to the arguments of the process.
        recipes: optional dict, the recipes that `--help` describes.
        positional: fields that are given without a flag.

    Returns:
        `{field: value}` of the fields that are given.

    Exits with status 2 and one sentence for a wrong argument.
    """
    parser = argparse.ArgumentParser(
        description=" ".join((options_class.__doc__ or "").split()),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for field in dataclasses.fields(options_class):
        default = _default(field)
        help = field.metadata["help"].replace("%", "%%")
        if "default:" not in help:
            help += f" (default: {_as_text(default)})"
        settings = {"help": help}
        if isinstance(default, bool):
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = field.metadata["parse"]
            settings["choices"] = field.metadata["choices"]
            settings["metavar"] = None if settings["choices"] else _metavar(field.name)
        if field.name in positional:
            parser.add_argument(field.name, nargs="?", **settings)
        else:
            parser.add_argument(_flag(field.name), **settings)
    if recipes:
        parser.epilog = "Recipes: " + "; ".join(
            f"{name}: {_describe(values) or 'the defaults above'}"
            for name, values in recipes.items()
            if "/" not in name
        )
        parser.epilog += "; TABLE/ROW: a row of a table, such as A/all"
    return vars(parser.parse_args(argv))


def write_options(options: Any, path: pathlib.Path) -> None:
    """Writes options as JSON."""
    values = {"version": OPTIONS_VERSION, **dataclasses.asdict(options)}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_options(options_class: type, path: pathlib.Path) -> Any:
    """Reads what `write_options` wrote.

    Raises:
        UserError: if the file is missing or does not hold such options.
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
        values = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
        }
        options = options_class(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold the options of a run ({error}); restore the file "
            "or train into another directory."
        ) from error
    if version != OPTIONS_VERSION:
        raise UserError(
            f"{path.parent} is a run of another version of this package, which means "
            "something else by the same options; train it again in another directory, "
            "or go on with that version."
        )
    return options


def differing_options(
    first: Any, second: Any, ignored: Sequence[str] = ()
) -> dict[str, tuple]:
    """`{flag: (first value, second value)}` of the options that differ."""
    return {
        _flag(field.name): (getattr(first, field.name), getattr(second, field.name))
        for field in dataclasses.fields(first)
        if field.name not in ignored
        and getattr(first, field.name) != getattr(second, field.name)
    }


def _flag(name):
    return "--" + name.replace("_", "-")


def _metavar(name):
    return "HxW" if name == "image_size" else name.upper()


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _describe(values):
    return ", ".join(
        f"{_flag(name)} {_as_text(value)}" for name, value in values.items()
    )


def _as_text(value):
    """A value as one would write it behind its flag."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ",".join(f"{key}={_as_text(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        sizes = all(isinstance(item, int) for item in value)
        return ("x" if sizes else ",").join(map(_as_text, value))
    return str(value)

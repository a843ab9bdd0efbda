"""From the command line to options: how arguments are declared, read and explained.

This module imports nothing heavy, so that `--help` answers at once.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mtl_keras.experiments.recipes import RECIPES
from mtl_keras.hints import Size
from mtl_keras.likelihoods import LIKELIHOODS
from mtl_keras.tasks import TASKS


def option(
    default: Any,
    help: str,
    parse: Callable[[str], Any] | None = None,
    choices: Sequence[str] | None = None,
    nargs: str | None = None,
) -> Any:
    """Declares an option, a field of a dataclass.

    Args:
        default: its value, or a function without arguments that makes it.
        help: str, for `--help`; the default is added, unless it is mentioned.
        parse: reads the argument. Defaults to the type of `default`.
        choices: optional, the values that are allowed.
        nargs: optional, `"+"` for a tuple of several arguments after one flag, each of
            which `parse` reads.
    """
    metadata = {
        "help": help,
        "parse": parse or type(default),
        "choices": choices,
        "nargs": nargs,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_options(
    options_class: type,
    argv: Sequence[str] | None = None,
    positional: Sequence[str] = (),
) -> Any:
    """Parses the command line into an options object; see `parse_given`."""
    return options_class(**parse_given(options_class, argv, positional=positional))


def parse_given(
    options_class: type,
    argv: Sequence[str] | None = None,
    recipes: Mapping[str, Any] | None = None,
    positional: Sequence[str] = (),
    hidden: Sequence[str] = (),
) -> dict[str, Any]:
    """What the command line sets.

    Args:
        options_class: dataclass whose fields were made by `option`.
        argv: list of str. Defaults to the arguments of the process.
        recipes: optional dict, the recipes that `--help` describes.
        positional: fields that are given without a flag.
        hidden: fields that `--help` leaves out.

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
            help += f" (default: {as_text(default)})"
        settings: dict[str, Any] = {
            "help": argparse.SUPPRESS if field.name in hidden else help
        }
        if isinstance(default, bool):
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = field.metadata["parse"]
            settings["choices"] = field.metadata["choices"]
            settings["metavar"] = None if settings["choices"] else _metavar(field.name)
        if field.name in positional:
            nargs = "*" if isinstance(default, tuple) else "?"
            parser.add_argument(field.name, nargs=nargs, **settings)
        else:
            if field.metadata["nargs"]:
                settings["nargs"] = field.metadata["nargs"]
            parser.add_argument(flag_of(field.name), **settings)
    if recipes:
        parser.epilog = "Recipes: " + "; ".join(
            f"{name}: {_describe(values) or 'the defaults above'}"
            for name, values in recipes.items()
            if "/" not in name
        )
        parser.epilog += "; TABLE/ROW: a row of a table, such as A/all"
    return vars(parser.parse_args(argv))


def parse_size(text: str) -> Size:
    """`"128x256"` to `(128, 256)`, height first."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(map(int, match.groups())) < 32:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an image size: write HEIGHTxWIDTH in pixels, each at "
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
            f"{text!r} is not a pair of tasks of one network: write TASK,TASK, such as "
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


def parse_priorities(text: str) -> dict[str, float]:
    """`"semantic=3,depth=1"` to `{"semantic": 3.0, "depth": 1.0}`."""
    priorities = parse_weights(text)
    for task, priority in priorities.items():
        if priority == 0:
            raise argparse.ArgumentTypeError(
                f"the priority of {task} must be a number above 0; leave the task out "
                "of --tasks to switch it off"
            )
    return priorities


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
            number = float("nan")
        if not name or number != number:
            raise argparse.ArgumentTypeError(
                f"{pair!r} does not set a number: write NAME=NUMBER,NAME=NUMBER"
            )
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
            f"{text!r} is not a range of numbers above 0: write LOW,HIGH, such as 0.2,1"
        )
    return ends[0], ends[-1]


def parse_scales(text: str) -> tuple[float, float]:
    """A range of the scales of training frames, from 0.1 to 10."""
    low, high = parse_range(text)
    if low < 0.1 or high > 10:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a range of scales: choose both ends from 0.1 to 10"
        )
    return low, high


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


def parse_camera(text: str) -> tuple[float, float]:
    """`"2262.5,0.209"` to focal length in pixels and baseline in metres."""
    try:
        focal, baseline = map(float, text.split(","))
    except ValueError:
        focal = baseline = 0.0
    if not (0 < focal < float("inf") and 0 < baseline < float("inf")):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a camera: write FOCAL,BASELINE, in pixels and metres, "
            "such as 2262.5,0.209"
        )
    return focal, baseline


def parse_kinds(kinds: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """A function that reads comma-separated words, returned in the order of `kinds`."""
    known = tuple(kinds)

    def parse(text):
        chosen = text.split(",")
        for word in chosen:
            if word not in known:
                raise argparse.ArgumentTypeError(
                    f"{word!r} is unknown; choose from {', '.join(known)}"
                )
        return tuple(kind for kind in known if kind in chosen)

    return parse


def parse_positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A function that reads an `int` or a `float` above 0."""

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


def parse_port(text: str) -> int:
    """A TCP port."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port: write a whole number from 1 to 65535"
        )
    return int(text)


def parse_not_negative(text: str) -> float:
    """A number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of 0 or more")
    return value


def parse_share(text: str) -> float:
    """A number from 0 to 1."""
    value = parse_not_negative(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return value


def parse_seed(text: str) -> int:
    """What NumPy and Keras take as a seed."""
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a whole number of 0 or more, below 2^32"
        )
    return int(text)


def flag_of(name: str) -> str:
    """`"data_dir"` to `"--data-dir"`."""
    return "--" + name.replace("_", "-")


def _metavar(name):
    return "HxW" if name == "image_size" else name.upper()


def _default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _describe(values):
    return ", ".join(
        f"{flag_of(name)} {as_text(value)}" for name, value in values.items()
    )


def as_text(value: Any) -> str:
    """A value as it is written after its flag."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ",".join(f"{key}={as_text(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        sizes = all(isinstance(item, int) for item in value)
        return ("x" if sizes else ",").join(map(as_text, value))
    return str(value)

"""The model card: what someone who finds an exported network needs to know."""

import dataclasses
import datetime
from collections.abc import Mapping

import keras

from mtl_keras.cityscapes import labels_of
from mtl_keras.figures.markdown import format_table, in_columns
from mtl_keras.tasks import METRICS


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What a network does not tell about itself.

    Attributes:
        label_set: optional str, a key of `cityscapes.LABEL_SETS`: what the class
            indices of `semantic` mean.
        class_names: optional tuple of str, the classes of other tasks by index.
        training_data: str.
        settings: dict. What it was trained with, `{name: value}`.
        scores: dict of float by key of `tasks.METRICS`, `None` where it is absent.
        scored_on: str, the data that the scores are from.
    """

    label_set: str | None = None
    class_names: tuple[str, ...] = ()
    training_data: str = "not recorded"
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    scored_on: str = "not recorded"


OUTPUTS = {
    "semantic": "probability of each class below",
    "instance": "`(dy, dx)` from a pixel to the centre of its instance, in pixels; "
    "means something on things (people and vehicles) only",
    "depth": "disparity in pixels of the input, as of a stereo camera of Cityscapes",
    "class": "probability of each class below",
    "reconstruction": "the input again, grey values in 0..1",
}


def format_card(
    model: keras.Model, facts: ModelFacts, format: str, usage: str, today: str = ""
) -> str:
    """The model card as Markdown.

    Args:
        model: what `build_serving_model` returned.
        facts: `ModelFacts`.
        format: str, what the format is called.
        usage: str, how the file is loaded and called, as code.
        today: optional str, the date to write. Defaults to today's.
    """
    inputs = format_table([_describe(model.input)], ["input", "shape", "type"])
    outputs = format_table(
        [
            (f"`{task}`", *_describe(output)[1:], OUTPUTS.get(task, ""))
            for task, output in model.output.items()
        ],
        ["output", "shape", "type", "meaning"],
    )
    sections = [
        f"# {', '.join(model.output)} from an image\n\nA network of mtl_keras, "
        f"{model.count_params():,} parameters, exported as {format} on "
        f"{today or datetime.date.today().isoformat()}.",
        f"## Use\n\n{usage}",
        f"## Input\n\nRGB in 0..255 for three channels, grey in 0..255 for one.\n\n"
        f"{inputs}",
        f"## Outputs\n\nFind them by name, not by position.\n\n{outputs}",
        *_list_classes(facts),
        f"## Training\n\nData: {facts.training_data}.{_list_settings(facts)}",
        *_list_scores(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _describe(tensor):
    shape = ", ".join("batch" if side is None else str(side) for side in tensor.shape)
    return f"`{tensor.name}`", f"({shape})", tensor.dtype


def _list_settings(facts):
    if not facts.settings:
        return ""
    lines = [f"- {name}: {value}" for name, value in facts.settings.items()]
    return "\n\nSettings, where they are not the defaults of train.py:\n\n" + "\n".join(
        lines
    )


def _list_classes(facts):
    if facts.label_set:
        rows = [
            (index, label.name, label.id)
            for index, label in enumerate(labels_of(facts.label_set))
        ]
        header = "Cityscapes label id"
        if facts.label_set == "categories":
            header = "Cityscapes label id that stands for it"
        table = format_table(rows, ["index", "class", header])
    elif facts.class_names:
        table = format_table(enumerate(facts.class_names), ["index", "class"])
    else:
        return
    yield f"## Classes\n\n{table}"


def _list_scores(facts):
    shown = [key for key in METRICS if key in facts.scores]
    if not shown:
        yield "## Scores\n\nNot recorded."
        return
    rows = [
        (METRICS[key].header, cell)
        for key, cell in zip(shown, in_columns(facts.scores, shown))
    ]
    yield f"## Scores\n\nOn {facts.scored_on}.\n\n{format_table(rows, ['', ''])}"

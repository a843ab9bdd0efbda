"""The page of `app`: a picture in, what a model sees in it out."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from mtl_keras.commands.viewer import (
    SLIDERS,
    Look,
    default_options,
    find_objects,
    list_objects,
    take_look,
    write_objects,
)
from mtl_keras.errors import UserError
from mtl_keras.figures.panel import draw_cells, list_classes
from mtl_keras.instances.clustering import METHODS
from mtl_keras.instances.decoding import LEFT_OVER
from mtl_keras.serving.answers import Answer, StereoCamera

if TYPE_CHECKING:
    from mtl_keras.serving.models import ServedModel

TITLE = "What the network sees"
INTRODUCTION = f"""# {TITLE}
Drop a picture of a street, or choose an example. It is read by the machine that serves
this page and goes nowhere else."""
# System fonts: a web font would be a request to another machine.
THEME = gr.themes.Default(
    font=("ui-sans-serif", "system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)
STYLE = """
.legend {display: flex; flex-wrap: wrap; gap: 2px 14px}
.legend i {display: inline-block; width: 14px; height: 12px; margin-right: 5px}
"""
# What the sliders change.
OBJECT_PARTS = ("summary", "objects", "table", "json")
LABELS = {
    "input": "picture",
    "classes": "classes",
    "objects": "objects",
    "depth": "depth: near is bright",
}


def show_answer(look: Look, found: Answer) -> dict[str, Any]:
    """What the page shows of an answer, by the names of its parts."""
    cells = draw_cells(look.picture, *found)
    shown: dict[str, Any] = {name: cell.picture for name, cell in cells.items()}
    height, width = look.picture.shape[:2]
    said = f"<b>{html.escape(look.name)}</b>, {width} x {height} pixels"
    if found.classes is not None:
        shown["legend"] = draw_legend(found.classes, look.label_set)
    if found.instances is not None:
        count = len(found.objects)
        said += f": {count} object{'s' * (count != 1)}"
        shown["table"] = list_objects(found.objects)
        shown["json"] = gr.DownloadButton(
            value=write_objects(look, found), interactive=True
        )
    return {**shown, "summary": said}


def draw_legend(classes: np.ndarray, label_set: str = "train_ids") -> str:
    """HTML, the name and colour of the classes in a map of label ids."""
    names = [
        f'<span><i style="background: rgb{tuple(color)}"></i>{name}</span>'
        for name, color in list_classes(classes, label_set)
    ]
    return f'<div class="legend">{"".join(names)}</div>'


def build_page(
    model: ServedModel,
    camera_of: Callable[[np.ndarray], StereoCamera | None],
    examples: Sequence[pathlib.Path] = (),
) -> gr.Blocks:
    """The page, to be launched with `THEME` and `STYLE`.

    Args:
        model: `ServedModel`. The page has no place for the tasks that it lacks.
        camera_of: function from a picture `(H, W, 3)` to its `StereoCamera` or `None`.
        examples: pictures that a click chooses.
    """
    has_objects = {"semantic", "instance"} <= set(model.tasks)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        kept = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                field = _add_field(examples)
                results = {"input": _add_picture("input")}
                if has_objects:
                    results |= _add_maps(model.tasks)
            with gr.Column(scale=3, min_width=320):
                results["summary"] = gr.HTML()
                if has_objects:
                    results["objects"] = _add_picture("objects")
                else:
                    results |= _add_maps(model.tasks)
                controls = _add_controls(has_objects)
                if has_objects:
                    results |= {
                        "table": gr.Dataframe(list_objects([]), interactive=False),
                        "json": gr.DownloadButton(
                            "Download as JSON", interactive=False
                        ),
                    }
        _connect(model, camera_of, kept, field, controls, results)
    return page


def _connect(model, camera_of, kept, field, controls, results):
    """Tells the parts of the page what to do."""

    def look(path, *settings):
        if path is None:
            return clear()
        try:
            seen = take_look(model, camera_of, pathlib.Path(path))
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        shown = show_answer(seen, find_objects(seen, *settings))
        return {kept: seen} | {results[name]: shown[name] for name in results}

    def find_again(seen, *settings):
        if seen is None:  # no picture yet
            return dict.fromkeys(again["outputs"], gr.skip())
        shown = show_answer(seen, find_objects(seen, *settings))
        return {results[name]: shown[name] for name in OBJECT_PARTS}

    def clear():
        nothing = dict.fromkeys([kept, *results.values()])
        if "table" in results:
            nothing[results["table"]] = list_objects([])
            nothing[results["json"]] = gr.DownloadButton(value=None, interactive=False)
        return nothing

    everything = [kept, *results.values()]
    # The network, and the memory that its answers take, are there once.
    alone = {"concurrency_limit": 1, "concurrency_id": "model"}
    field.change(look, [field, *controls], everything, **alone).failure(
        clear, None, everything
    )
    if "objects" not in results:
        return
    again = {
        "fn": find_again,
        "inputs": [kept, *controls],
        "outputs": [results[name] for name in OBJECT_PARTS],
        "show_progress": "hidden",
        **alone,
    }
    method, left_over, *sliders = controls
    # Of many moves, the last one counts.
    method.input(
        arrange_sliders,
        method,
        sliders,
        show_progress="hidden",
        trigger_mode="always_last",
    ).then(**again)
    for control in (left_over, *sliders):
        control.input(**again, trigger_mode="always_last")


def arrange_sliders(method: str) -> list[gr.Slider]:
    """The sliders of a method, at its defaults; the others are hidden."""
    values = default_options(method)
    return [
        gr.Slider(value=values[name], visible=True)
        if name in values
        else gr.Slider(visible=False)
        for name in SLIDERS
    ]


def _add_field(examples):
    """Where the picture goes: a field for files, which hands them on as they came, for
    `read_picture` to read or to say what is wrong."""
    field = gr.File(label="picture file", file_types=["image"], height=150)
    if examples:
        rows = [[str(path)] for path in examples]
        shown = gr.Dataset(
            label="examples", components=["image"], samples=rows, type="index"
        )
        shown.click(lambda k: rows[k][0], shown, field, show_progress="hidden")
    return field


def _add_picture(name):
    # Without the button that shares a picture on another machine.
    buttons = ["download", "fullscreen"]
    return gr.Image(
        label=LABELS[name], interactive=False, format="png", buttons=buttons
    )


def _add_maps(tasks):
    """The parts for what the model says of every pixel."""
    parts = {}
    if "semantic" in tasks:
        parts |= {"classes": _add_picture("classes"), "legend": gr.HTML()}
    if "depth" in tasks:
        parts["depth"] = _add_picture("depth")
    return parts


def _add_controls(visible):
    """Method, left-over choice and sliders, at the defaults of `predict`."""
    first = next(iter(METHODS))
    values = default_options(first)
    with gr.Column(visible=visible):
        with gr.Row():
            method = gr.Radio(
                [*METHODS],
                value=first,
                label="method",
                info="How clusters are found in the votes of the pixels.",
            )
            left_over = gr.Radio(
                [*LEFT_OVER],
                value="nearest",
                label="left_over",
                info="What becomes of pixels in no cluster.",
            )
        with gr.Row():
            sliders = [
                gr.Slider(
                    slider.minimum,
                    slider.maximum,
                    value=values.get(name, slider.minimum),
                    step=slider.step,
                    label=name,
                    info=slider.info,
                    visible=name in values,
                )
                for name, slider in SLIDERS.items()
            ]
    return [method, left_over, *sliders]

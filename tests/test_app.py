"""The page of `app`: what it finds, what it shows, and how it is served."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from browser import needs_browser, open_page, scrolls_sideways
from PIL import Image

from mtl_keras.cityscapes import LABELS, class_index_table
from mtl_keras.commands import app, page, predict, viewer
from mtl_keras.commands.console import run_command
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_options
from mtl_keras.experiments.options import AppOptions, TrainOptions, write_options
from mtl_keras.instances import encode_offsets
from mtl_keras.instances.clustering import METHODS
from mtl_keras.serving.answers import StereoCamera
from mtl_keras.serving.models import ServedModel
from mtl_keras.streets import render_scene

ROOT = Path(__file__).parents[1]
TASKS = ("semantic", "instance", "depth")
SIZE = (64, 128)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with the checkpoint of a network that has learned nothing."""
    from mtl_keras.experiments import setup
    from mtl_keras.experiments.problems import open_problem

    keras.utils.set_random_seed(3)
    directory = tmp_path_factory.mktemp("runs") / "run"
    (directory / "checkpoints").mkdir(parents=True)
    options = TrainOptions(image_size=(32, 64), output=str(directory))
    write_options(options, directory / "options.json")
    trainer = setup.build_trainer(open_problem(options))
    trainer.save_weights(directory / "checkpoints" / "best.weights.h5")
    return directory


@pytest.fixture(scope="module")
def scene():
    return render_scene(7, SIZE)


class KnowingModel(ServedModel):
    """A model that knows one scene, with votes that miss their centres a little."""

    def __init__(self, scene, tasks=TASKS):
        calls = []
        classes = class_index_table("train_ids")[scene["semantic"]]
        noise = np.random.default_rng(0).normal(0, 0.6, (*SIZE, 2))
        outputs = {
            "semantic": (classes[..., None] == np.arange(19)).astype("float32"),
            "instance": (encode_offsets(scene["instance"])[0] + noise).astype(
                "float32"
            ),
            "depth": scene["disparity"][..., None].astype("float32") / 256,
        }

        def serve(images):
            calls.append(len(images))
            return {task: np.stack([outputs[task]] * len(images)) for task in tasks}

        super().__init__("the scene", serve, SIZE, tuple(tasks), "train_ids")
        object.__setattr__(self, "calls", calls)  # of a frozen class


def no_camera(picture):
    return None


@pytest.fixture
def picture(scene, tmp_path):
    Image.fromarray(scene["image"]).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def values_of(**options):
    """The values of all sliders."""
    return [
        options.get(name, slider.minimum) for name, slider in viewer.SLIDERS.items()
    ]


# What is found.


@pytest.mark.parametrize("method", METHODS)
def test_the_page_says_what_predict_says(scene, picture, tmp_path, monkeypatch, method):
    """With the sliders where they start, and where they are moved to."""
    model, camera = KnowingModel(scene), StereoCamera(500.0, 0.2)
    monkeypatch.setattr(predict, "open_model", lambda *_: (model, lambda _: camera))
    (tmp_path / "options.json").write_text("{}", encoding="utf-8")
    look = viewer.take_look(model, lambda _: camera, picture)
    defaults = viewer.default_options(method)
    counts = set()
    for k, given in enumerate(({}, {"min_samples": 4, "min_cluster_size": 150})):
        arguments = [tmp_path, picture, "--output", tmp_path / f"{k}", "--only", "json"]
        arguments += ["--method", method]
        if given:
            text = ",".join(f"{key}={value}" for key, value in given.items())
            arguments += ["--method-options", text]
        predict.main([*map(str, arguments)])
        expected = json.loads((tmp_path / f"{k}" / "street.json").read_text("utf-8"))
        values = values_of(**{**defaults, **given})
        found = viewer.find_objects(look, method, "nearest", *values)
        shown = json.loads(viewer.write_objects(look, found).read_text("utf-8"))
        assert shown == {**expected, "picture": "street.png"}
        counts.add(len(shown["objects"]))
    assert len(counts) == 2 and min(counts) > 0  # the options do something


def test_the_left_over_choice_is_obeyed(scene, picture):
    look = viewer.take_look(KnowingModel(scene), no_camera, picture)
    values = values_of(**viewer.default_options("optics"))
    pixels = [
        (viewer.find_objects(look, "optics", choice, *values).instances > 0).sum()
        for choice in ("noise", "nearest")
    ]
    assert 0 < pixels[0] < pixels[1]


@pytest.mark.parametrize("method", METHODS)
def test_all_places_of_the_sliders_are_values(scene, picture, method):
    look = viewer.take_look(KnowingModel(scene), no_camera, picture)
    for end in ("minimum", "maximum"):
        values = [getattr(slider, end) for slider in viewer.SLIDERS.values()]
        viewer.find_objects(look, method, "noise", *values)
    for name, value in viewer.default_options(method).items():
        slider = viewer.SLIDERS[name]
        assert slider.minimum <= value <= slider.maximum
        steps = (value - slider.minimum) / slider.step
        assert steps == pytest.approx(round(steps))


def test_sliders_are_those_of_the_method():
    assert viewer.default_options("optics") == {
        "eps": 1.5,
        "min_samples": 10,
        "min_cluster_size": 20,
    }
    assert viewer.default_options("hdbscan") == {
        "min_samples": 20,
        "min_cluster_size": 20,
    }
    updates = page.arrange_sliders("optics-xi")
    shown = {
        name: update.value
        for name, update in zip(viewer.SLIDERS, updates)
        if update.visible
    }
    assert shown == {"xi": 0.2, "min_samples": 5, "min_cluster_size": 20}


def test_a_file_that_is_no_picture_is_explained(scene, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="^a.png is not a picture.$"):
        viewer.take_look(KnowingModel(scene), no_camera, path)


# What is shown.


def test_the_table_has_a_column_for_what_is_known(scene, picture):
    model = KnowingModel(scene)
    values = values_of(**viewer.default_options("optics"))
    for camera, more in (None, []), (StereoCamera(100.0, 0.2), ["metres"]):
        look = viewer.take_look(model, lambda picture: camera, picture)
        found = viewer.find_objects(look, "optics", "nearest", *values)
        table = viewer.list_objects(found.objects)
        names = ["class", "confidence", "box", "pixels", "disparity", *more]
        assert table["headers"] == names
        for row, thing in zip(table["data"], found.objects, strict=True):
            cells = dict(zip(names, row, strict=True))
            assert cells["class"] == thing["class"]
            assert [*map(int, cells["box"].split())] == thing["box"]
            assert cells["pixels"] == thing["pixels"]
            assert cells.get("metres") == thing.get("distance_m")
    assert viewer.list_objects([])["data"] == []


def test_an_answer_is_shown(scene, picture):
    look = viewer.take_look(KnowingModel(scene), no_camera, picture)
    look = look._replace(name="<i>.png")
    values = values_of(**viewer.default_options("optics"))
    found = viewer.find_objects(look, "optics", "nearest", *values)
    shown = page.show_answer(look, found)
    count = len(found.objects)
    assert count > 1
    assert shown["summary"] == f"<b>&lt;i&gt;.png</b>, 128 x 64 pixels: {count} objects"
    for name in ("input", "classes", "objects", "depth"):
        assert shown[name].shape == (240, 480, 3)
    for label in LABELS:
        is_there = (found.classes == label.id).any()
        assert (f"</i>{label.name}<" in shown["legend"]) == is_there


@pytest.mark.parametrize(
    "tasks, labels",
    [
        (TASKS, {"classes", "objects", "depth: near is bright", "eps"}),
        (("depth",), {"depth: near is bright"}),
        (("semantic",), {"classes"}),
        (("instance", "depth"), {"depth: near is bright"}),
    ],
)
def test_a_page_has_what_the_model_has(scene, tasks, labels):
    blocks = page.build_page(KnowingModel(scene, tasks), no_camera)
    every = {"classes", "objects", "depth: near is bright", "eps"}
    visible = set()
    todo = [(blocks, True)]
    while todo:
        block, seen = todo.pop()
        seen = seen and getattr(block, "visible", True)
        todo += [(child, seen) for child in getattr(block, "children", [])]
        if seen:
            visible.add(getattr(block, "label", None))
    assert visible & every == labels


def test_no_picture_is_shared_and_no_font_is_fetched(scene):
    blocks = page.build_page(KnowingModel(scene), no_camera)
    config = json.dumps(blocks.get_config_file(), default=str)
    assert "fullscreen" in config and '"share"' not in config
    assert not page.THEME._stylesheets and not page.THEME._font_css
    assert not blocks.analytics_enabled


# How it is served.


def call(*arguments):
    """The exit status of the command."""
    try:
        run_command(app.main, [*map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def test_defaults():
    options = parse_options(AppOptions, [], positional=("model",))
    assert options == AppOptions()
    assert (options.model, options.host) == ("runs/demo", "127.0.0.1")
    given = ["a", "--port", "80", "--no-browser", "--host", "::1"]
    options = parse_options(AppOptions, given, positional=("model",))
    assert options == AppOptions("a", "::1", 80, False)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("nothing",), "There is no model in nothing"),
        (("RUN", "--port", "0"), "'0' is not a port"),
        (("RUN", "--port", "70000"), "'70000' is not a port"),
        (("RUN", "--host", "192.0.2.1"), "192.0.2.1 is not an address of this machine"),
    ],
)
def test_mistakes_are_explained(
    run, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    assert call(*(run if word == "RUN" else word for word in arguments)) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_missing_gradio_is_explained(capsys):
    def fail():
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio")

    with pytest.raises(SystemExit):
        run_command(fail)
    assert "pip install '.[app]'" in capsys.readouterr().err


def test_a_free_port_is_found(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot use port {port} .*in use"):
            app.find_port("127.0.0.1", port)
        monkeypatch.setattr(app, "PORTS", range(port, port + 20))
        assert port < app.find_port("127.0.0.1") < port + 20
        monkeypatch.setattr(app, "PORTS", range(port, port + 1))
        with pytest.raises(UserError, match="cannot use any port from"):
            app.find_port("127.0.0.1")
    assert app.find_port("127.0.0.1", port) == port


def test_who_can_reach_the_page():
    assert app.is_loopback("127.0.0.1") and app.is_loopback("::1")
    assert app.is_loopback("localhost")
    assert not app.is_loopback("0.0.0.0") and not app.is_loopback("192.0.2.1")


# In a browser.

# Gradio's own, when a stream ends that it reads itself.
HARMLESS = "Method not implemented."


def check(seen, address):
    """That a page in the browser is whole, and that nothing leaves the machine."""
    assert [text for text in seen.complaints if text != HARMLESS] == []
    others = [url for url in seen.requests if not url.startswith((address, "data:"))]
    assert others == []
    for picture in seen.locator("img").all():  # those out of sight wait
        picture.scroll_into_view_if_needed()
    whole = "[...document.images].every(i => i.complete && i.naturalWidth)"
    seen.wait_for_function(whole, timeout=10_000)
    assert not scrolls_sideways(seen)


def free_port():
    """A port of its own, since other tests serve pages at the same time."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def drop(seen, path):
    seen.locator("input[type=file]").first.set_input_files(str(path))


def wait_for(seen, text):
    seen.wait_for_function(
        "text => document.body.innerText.includes(text)", arg=text, timeout=30_000
    )


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width, dark", [(1200, False), (390, True)])
def test_a_picture_is_dropped_and_sliders_are_moved(
    scene, picture, tmp_path, monkeypatch, width, dark
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    model = KnowingModel(scene)
    look = viewer.take_look(model, no_camera, picture)

    def sentence(method, **options):
        options = {**viewer.default_options(method), **options}
        found = viewer.find_objects(look, method, "nearest", *values_of(**options))
        return f"128 x 64 pixels: {len(found.objects)} object"

    first, moved = sentence("optics"), sentence("optics", min_cluster_size=200)
    assert first != moved
    blocks = page.build_page(model, no_camera, app.render_examples(tmp_path))
    address = app.launch(blocks, "127.0.0.1", free_port())
    try:
        with open_page(address, width=width, dark=dark) as seen:
            seen.wait_for_selector("input[type=range]")
            slider = seen.get_by_role("slider", name="min_cluster_size")
            slider.press("End")  # without a picture nothing happens
            slider.press("Home")
            seen.get_by_text("hdbscan").click()
            seen.get_by_text("optics", exact=True).click()
            seen.wait_for_timeout(1000)
            assert not seen.get_by_text("Error", exact=True).count()
            before = len(model.calls)
            drop(seen, picture)
            wait_for(seen, "street.png")
            wait_for(seen, first)
            seen.wait_for_function("document.images.length >= 8")
            objects = seen.locator("img[src*='image']").nth(-1).get_attribute("src")
            assert len(model.calls) == before + 1
            check(seen, address)
            slider.press("End")
            wait_for(seen, moved)
            assert len(model.calls) == before + 1  # the network has not run again
            assert objects != seen.locator("img[src*='image']").nth(-1).get_attribute(
                "src"
            )
            seen.get_by_text("optics-xi").click()
            wait_for(seen, sentence("optics-xi"))
            assert seen.get_by_role("slider", name="xi").is_visible()
            assert not seen.get_by_role("slider", name="eps").is_visible()
            with seen.expect_download() as download:
                seen.get_by_text("Download as JSON").click()
            assert download.value.suggested_filename == "street.json"
            facts = json.loads(Path(download.value.path()).read_text("utf-8"))
            assert f"{len(facts['objects'])} object" in sentence("optics-xi")
            check(seen, address)
            (tmp_path / "b.png").write_bytes(b"hello")
            seen.get_by_label("Clear").first.click()
            seen.wait_for_function(
                "text => !document.body.innerText.includes(text)", arg="128 x 64"
            )
            drop(seen, tmp_path / "b.png")
            wait_for(seen, "b.png is not a picture.")
            assert seen.get_by_text("Error", exact=True).count() == 1
            check(seen, address)
    finally:
        blocks.close(verbose=False)


@pytest.mark.slow
@needs_browser
def test_the_command_serves_a_run_until_it_is_interrupted(run, picture, tmp_path):
    (tmp_path / "tmp").mkdir()
    port = ["--port", str(free_port())]
    started = subprocess.Popen(
        [sys.executable, "-m", "mtl_keras", "app", run, "--no-browser", *port],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job would not hear of it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        line = started.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        with open_page(address) as seen:
            seen.wait_for_selector("input[type=file]", state="attached")
            drop(seen, picture)
            wait_for(seen, "128 x 64 pixels")
            seen.wait_for_function("document.images.length >= 8")
            check(seen, address)
            assert [*(tmp_path / "tmp").glob("mtl_keras-*")]
            started.send_signal(signal.SIGINT)
            time.sleep(0.1)
            started.send_signal(signal.SIGTERM)  # who is impatient gets the same
            said, complaints = started.communicate(timeout=30)
    finally:
        started.kill()
    assert (started.returncode, said, complaints) == (0, "", "")
    assert not [*(tmp_path / "tmp").glob("mtl_keras-*")]  # nor any upload

"""Reports of runs: what is on the page, and the page in a browser."""

import csv
import io
import json

import keras
import numpy as np
import pytest
from browser import find_broken_pictures, needs_browser, open_page, scrolls_sideways
from PIL import Image

from mtl_keras.commands import evaluate
from mtl_keras.commands.console import run_command
from mtl_keras.data.batches import Batch
from mtl_keras.errors import UserError
from mtl_keras.experiments import comparison_report, environment, ranking, reports
from mtl_keras.experiments.options import TrainOptions, write_options
from mtl_keras.figures.report import MARK, Page, Section, Table, render_page, write_page
from mtl_keras.tasks import make_metrics

TASKS = ("semantic", "depth")


def write_rows(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def make_run(directory, miou=0.25, evaluated=False, **options):
    """A finished run of two epochs; the first is its best."""
    (directory / "figures").mkdir(parents=True)
    options = TrainOptions(tasks=TASKS, **options)
    write_options(options, directory / "options.json")
    rows = []
    for epoch, score in enumerate((miou + 0.125, miou)):
        row = {"epoch": epoch, "loss": 2.0 - epoch, "val_loss": 2.5 - epoch}
        row |= {"val_semantic/miou": score, "val_depth/mean_abs": 3.5}
        for task in TASKS:
            row |= {f"{task}/loss": 1.5, f"val_{task}/loss": 1.75}
            if options.weighting == "learned":
                row |= {f"{task}/sigma": 0.5 + epoch, f"{task}/weight": 2.0}
        rows.append(row)
    write_rows(directory / "history.csv", rows)
    write_rows(
        directory / "epochs.csv",
        [
            {
                "epoch": epoch,
                "train_seconds": 61.5,
                "val_seconds": 28.5,
                "images_per_second": 12.25,
                "learning_rate": 0.004,
            }
            for epoch in (0, 1)
        ],
    )
    result = {"semantic/miou": miou, "depth/mean_abs": 3.5}
    constant = {"semantic/miou": 0.03125, "depth/mean_abs": 7.25}
    found = {"result": result, "constant_result": constant}
    found["environment"] = {"cpu": "an abacus", "packages": {"keras": "3.99"}}
    if evaluated:
        confusion = np.zeros((19, 20), int)
        confusion[13, 13], confusion[13, 0] = 30, 10  # cars, some taken for road
        found["metrics"] = {
            "split": "val",
            "frames": 77,
            "title": "other streets, split val, 77 frames",
            "epoch": 0,
            "metrics": {"semantic/miou": 0.4375, "depth/mean_abs": 1.125},
            "constant_predictor": constant,
            "per_class_iou": {"car": 0.625, "road": 0.0, "train": None},
            "confusion": confusion.tolist(),
            "instances": None,
        }
        picture = io.BytesIO()
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(picture, "PNG")
        (directory / "figures" / "frames_depth.png").write_bytes(picture.getvalue())
    for name, content in found.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def report_of(directory):
    reports.write_run_report(directory)
    return (directory / "report.html").read_text(encoding="utf-8")


def test_a_trained_run_is_reported(tmp_path):
    page = report_of(make_run(tmp_path / "run", epochs=2))
    assert page.startswith(MARK)
    assert "The best checkpoint is that of epoch 1." in page
    best, last, constant = (
        page.index(name)
        for name in (
            ">best checkpoint<",
            ">after the last step<",
            ">constant predictor<",
        )
    )
    assert ">37.5<" in page[best:last]  # 100 * 0.375
    assert ">25<" in page[last:constant]
    assert ">3.125<" in page[constant:] and ">7.25<" in page[constant:]
    assert "3.0 minutes in all" in page and ">12.25<" in page
    assert "an abacus" in page and ">3.99<" in page
    for title in ("semantic loss", "noise level sigma of each task", "learning rate"):
        assert title in page
    epochs = page[page.index(">--epochs<") :]
    assert epochs.index(">2<") < epochs.index(">4<") < epochs.index(">--steps<")
    assert "Confusion" not in page


def test_an_evaluated_run_is_reported(tmp_path):
    page = report_of(make_run(tmp_path / "run", evaluated=True))
    assert "on other streets, split val, 77 frames." in page
    assert ">43.75<" in page and ">1.125<" in page
    assert ">62.5<" in page and ">absent<" in page
    assert "Confusion matrix" in page and ">75<" in page  # per cent of the cars
    assert page.count('src="data:image/png;base64,') == 1
    assert "depth: the best, the median and the worst frame" in page


def test_scores_of_an_earlier_checkpoint_are_not_shown(tmp_path):
    run = make_run(tmp_path / "run", evaluated=True)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "epoch": 1}))
    page = report_of(run)
    assert "The best checkpoint is that of epoch 1." in page
    assert ">43.75<" not in page and "the median and the worst frame" not in page


@pytest.mark.parametrize("name", ["metrics.json", "epochs.csv", "history.csv"])
def test_a_damaged_file_does_not_end_a_run(tmp_path, capsys, name):
    run = make_run(tmp_path / "run", evaluated=True)
    content = (run / name).read_text(encoding="utf-8")
    (run / name).write_text(content[: len(content) // 2] + "\n0,x,", encoding="utf-8")
    reports.write_run_report(run)
    assert f"{name} is damaged" in capsys.readouterr().err


def test_fixed_weights_have_no_sigma(tmp_path):
    page = report_of(make_run(tmp_path / "run", weighting="fixed"))
    assert "noise level" not in page and "semantic loss" in page


def test_names_are_shown_as_they_are():
    section = Section("<b>", "a & b", [Table("<i>", ["<u>"], [["<s>"]])])
    page = render_page(Page("$x$ <script>", "", [section]))
    for name in (
        "$x$ &lt;script&gt;",
        "&lt;b&gt;",
        "a &amp; b",
        "&lt;u&gt;",
        "&lt;s&gt;",
    ):
        assert name in page
    assert "<script>" not in page and "<s>" not in page


def test_only_reports_are_overwritten(tmp_path):
    page = Page("one", "", [])
    write_page(page, tmp_path / "a.html")
    write_page(Page("two", "", []), tmp_path / "a.html")
    assert "<h1>two</h1>" in (tmp_path / "a.html").read_text(encoding="utf-8")
    (tmp_path / "b.html").write_text("mine")
    with pytest.raises(UserError, match=r"b\.html exists and is not a report"):
        write_page(page, tmp_path / "b.html")
    assert (tmp_path / "b.html").read_text() == "mine"
    assert len([*tmp_path.iterdir()]) == 2


# Several runs.


def call(*arguments):
    try:
        run_command(evaluate.main, [*map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def test_runs_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paths = [
        make_run(tmp_path / "runs" / "a-seed0", 0.25),
        make_run(tmp_path / "runs" / "a-seed1", 0.5, seed=1),
        make_run(tmp_path / "runs" / "b", 0.125, weighting="fixed", epochs=9),
    ]
    assert call("--compare", *paths) == 0
    said = capsys.readouterr()
    assert said.out == "The comparison is in comparison.html.\n"
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "Runs: 3, rows: 2." in page
    assert 'best">37.50 ± 17.68<' in page  # the mean of 25 and 50
    assert 'score ">12.50<' in page
    assert page.count('best">3.5') == 2  # both are alike in depth
    settings = page[page.index("Settings that differ") :]
    assert settings.index(">--weighting<") < settings.index(">fixed<")
    assert ">--epochs<" in settings and ">--seed<" not in settings
    assert page.count("<svg") == 2  # the sigmas of two tasks


def test_other_data_are_not_compared_without_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = make_run(tmp_path / "small", image_size=(64, 128))
    assert call("--compare", make_run(tmp_path / "a"), small, "--report", "c.html") == 0
    assert "These runs differ in --image-size" in capsys.readouterr().err
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "differ in --image-size" in page and 'best">' not in page


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("a", "nowhere"), "nowhere holds no finished run"),
        (("a", "a"), "a and a have the same name"),
        (("a", "--instances"), "--instances does not go with --compare"),
        (("a", "--report", "mine.html"), "mine.html exists and is not a report"),
        (("a", "--report", "a"), "a is a directory; name a file in it"),
        (("a", "--report", "x/y.html"), "y.html cannot be written (No such file"),
        (("a", "damaged"), "damaged/result.json is damaged"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    (make_run(tmp_path / "damaged") / "result.json").write_text("{")
    (tmp_path / "mine.html").write_text("mine")
    assert call("--compare", *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert not (tmp_path / "comparison.html").exists()


def test_runs_of_one_name_differ_in_their_seed_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a-seed0")
    make_run(tmp_path / "a-seed1", seed=1, epochs=9)
    assert call("--compare", "a-seed0", "a-seed1") == 2
    said = capsys.readouterr().err
    assert "are both called a" in said and "differ in --epochs; rename" in said


def test_one_run_is_not_two_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    make_run(tmp_path / "a-seed1")
    assert call("--compare", "a", "a-seed1") == 2
    assert "two of them have the same seed" in capsys.readouterr().err


def test_one_tree_by_two_names_is_the_same_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", data="tree")
    make_run(tmp_path / "b", data=str(tmp_path / "tree"))
    assert call("--compare", "a", "b") == 0
    assert "differ" not in capsys.readouterr().err


def test_a_page_of_somebody_else_does_not_end_a_run(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (run / "report.html").write_text("mine")
    reports.write_run_report(run)
    assert "Note: there is no new report." in capsys.readouterr().err
    assert (run / "report.html").read_text() == "mine"


def test_the_upper_bound_of_objects_is_reported(tmp_path):
    run = make_run(tmp_path / "run", evaluated=True)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["instances"] = {
        "classes": {"car": {"ap": 0.125, "ap50": 0.1875}, "train": None},
        "upper_bound": {"ap": 0.6875, "ap50": 0.9375},
    }
    metrics["metrics"] |= {"instance/ap": 0.0625, "instance/ap50": 0.5}
    (run / "metrics.json").write_text(json.dumps(metrics))
    page = report_of(run)
    assert ">6.25<" in page and ">68.75<" in page and ">93.75<" in page
    assert ">12.5<" in page and page.count(">absent<") == 3


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    environment.write_environment(tmp_path)
    first = json.loads((tmp_path / "environment.json").read_text())
    environment.write_environment(tmp_path)
    assert json.loads((tmp_path / "environment.json").read_text()) == first
    monkeypatch.setattr(environment, "_cpu_model", lambda: "an abacus")
    environment.write_environment(tmp_path)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found == {**first, "resumed_with": [{"cpu": "an abacus"}]}
    environment.write_environment(tmp_path)  # as the last time
    assert json.loads((tmp_path / "environment.json").read_text()) == found
    (section,) = reports._show_environment(tmp_path)
    assert section.tables[0].rows[-1] == ["then cpu", "an abacus"]
    (tmp_path / "environment.json").write_text("{")  # damaged: made again
    environment.write_environment(tmp_path)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["cpu"] == "an abacus" and "resumed_with" not in found


def test_groups_are_named_after_their_runs(tmp_path):
    names = ("all-seed0", "all-seed12", "seedless", "x/all-seed3")
    paths = [make_run(tmp_path / name) for name in names]
    groups = comparison_report.group_runs(paths)
    assert groups == {"all": [paths[0], paths[1], paths[3]], "seedless": [paths[2]]}


# The frames that are shown.


def make_batches():
    """Five frames in two batches; the depth errors are 3, 1, 2, 9 and none."""
    errors = np.array([3.0, 1.0, 2.0, 9.0, 5.0], "float32")
    targets = np.ones((5, 4, 6, 1), "float32")
    predictions = targets + errors[:, None, None, None]
    masks = np.ones((5, 4, 6), "float32")
    masks[4] = 0
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros(
        (5, 4, 6, 3), np.uint8
    )
    for part in (slice(0, 3), slice(3, 5)):
        ids = [f"frame{i}" for i in range(5)[part]]
        batch = Batch(
            ids, images[part], {"depth": targets[part]}, {"depth": masks[part]}
        )
        yield batch, {"depth": predictions[part]}


def test_frames_are_ranked():
    evaluator = ranking.FrameRanking({"depth": make_metrics("depth")})
    for batch, predictions in make_batches():
        evaluator.update(batch, predictions)
    found = evaluator.result()["ranking"]["depth"]
    assert found == {"best": (1, 1.0), "median": (2, 2.0), "worst": (3, 9.0)}
    assert ranking.FrameRanking({}).result() == {"ranking": {}}


def test_higher_is_better_for_classes():
    evaluator = ranking.FrameRanking({"semantic": make_metrics("semantic")})
    truth = np.zeros((2, 4, 6), "int32")
    logits = np.zeros((2, 4, 6, 19), "float32")
    logits[0, ..., 3], logits[1, ..., 0] = 1, 1
    batch = Batch(["a", "b"], truth, {"semantic": truth}, {"semantic": truth + 1.0})
    evaluator.update(batch, {"semantic": logits})
    found = evaluator.result()["ranking"]["semantic"]
    assert found["best"] == (1, 1.0) and found["worst"] == (0, 0.0)


def test_chosen_frames_are_predicted_again():
    image = keras.Input((4, 6, 3))
    depth = keras.layers.Conv2D(1, 1, kernel_initializer="ones")(image)
    network = keras.Model(image, {"depth": depth})
    batches = [batch for batch, _ in make_batches()]
    rows = ranking.load_rows(network, batches, {1, 4}, 3)
    assert {index: frame_id for index, (frame_id, _) in rows.items()} == {
        1: "frame1",
        4: "frame4",
    }
    for index, (_, row) in rows.items():
        assert (row.image == index).all()
        np.testing.assert_array_equal(row.predictions["depth"], 3 * index)


# In a browser.


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_pages_in_a_browser(tmp_path, width, dark):
    run = make_run(tmp_path / 'a <b> & "c" $d$', evaluated=True)
    reports.write_run_report(run)
    other = make_run(tmp_path / "other")
    comparison_report.write_comparison_report(
        comparison_report.group_runs([run, other]), "Both", tmp_path / "both.html"
    )
    for path, num_charts in ((run / "report.html", 9), (tmp_path / "both.html", 2)):
        with open_page(path.as_uri(), width=width, dark=dark) as page:
            assert page.complaints == []
            addresses = [a for a in page.requests if not a.startswith("data:")]
            assert addresses == [path.as_uri()]
            assert find_broken_pictures(page) == []
            assert not scrolls_sideways(page)
            assert page.locator("svg").count() == num_charts
            ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
            assert len(set(ids)) == len(ids)
            ink, paper = page.evaluate(
                "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
            )
            brightness = [sum(map(int, c[4:-1].split(","))) for c in (ink, paper)]
            assert (brightness[0] > brightness[1]) == dark
            tick = page.locator("svg text").first
            assert tick.evaluate("e => getComputedStyle(e).fill") == ink

import csv
import json

import numpy as np
import pytest
from PIL import Image

from mtl_keras.errors import UserError
from mtl_keras.experiments import comparison
from mtl_keras.experiments.options import TrainOptions, read_options, write_options
from mtl_keras.experiments.recipes import TABLES
from mtl_keras.experiments.tables import plan_runs
from mtl_keras.figures import tables

# The last scores of the runs below, by row and seed, in 0..1 and pixels.
SCORES = {
    "semantic": [{"semantic/miou": 0.40}, {"semantic/miou": 0.42}],
    "depth": [{"depth/mean_abs": 0.5}, {"depth/mean_abs": 0.7}],
    "equal": [{"semantic/miou": 0.30, "instance/mean_abs": 2.0, "depth/mean_abs": 0.9}],
    "all": [
        {"semantic/miou": 0.41, "instance/mean_abs": 1.0, "depth/mean_abs": 0.4},
        {"semantic/miou": 0.45, "instance/mean_abs": 3.0, "depth/mean_abs": 0.6},
    ],
}
CONSTANTS = {"semantic/miou": 0.02, "instance/mean_abs": 5.0, "depth/mean_abs": 1.25}


def write_runs(root, arguments, scores, constants):
    """Run directories as train.py leaves them, without checkpoints."""
    for options in plan_runs([*arguments.split(), "--output", str(root)]):
        key, _, seed = options.output.rpartition("/")[2].rpartition("-seed")
        if len(scores.get(key, ())) <= int(seed):
            continue
        directory = root / f"{key}-seed{seed}"
        directory.mkdir(parents=True)
        write_options(options, directory / "options.json")
        (directory / "result.json").write_text(json.dumps(scores[key][int(seed)]))
        (directory / "constant_result.json").write_text(json.dumps(constants))
        sigmas = [f"{task}/sigma" for task in options.tasks]
        learned = options.weighting == "learned"
        with open(directory / "history.csv", "w", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *sigmas * learned])
            for epoch in range(3):
                writer.writerow([epoch, *[0.5 + epoch] * len(sigmas) * learned])


@pytest.fixture
def table(tmp_path):
    write_runs(tmp_path / "A", "--table A --seeds 2", SCORES, CONSTANTS)
    return comparison.compare_runs(tmp_path / "A", "A")


def test_runs_are_compared_on_test_if_all_have_scores_on_it(table, tmp_path):
    assert "on the val split" in comparison.format_comparison(table)
    paths = [path for seeds in table.runs.values() for path in seeds.values()]
    for path in paths:
        scores = json.loads((path / "result.json").read_text())
        scores = {key: value / 2 for key, value in scores.items()}
        (path / "test_result.json").write_text(json.dumps(scores))
        constants = {key: 2 * value for key, value in CONSTANTS.items()}
        (path / "constant_test_result.json").write_text(json.dumps(constants))
    found = comparison.compare_runs(tmp_path / "A", "A")
    assert "on the test split" in comparison.format_comparison(found)
    assert found.scores["equal"]["depth/mean_abs"].mean == pytest.approx(0.45)
    assert found.constants["depth/mean_abs"] == pytest.approx(2.5)
    (paths[0] / "test_result.json").unlink()
    assert comparison.compare_runs(tmp_path / "A", "A").scores == table.scores


@pytest.fixture
def sweep(tmp_path):
    scores = {
        "1": [{"semantic/miou": 0.5}],
        "0.5": [{"semantic/miou": 0.4, "depth/mean_abs": 1.0}],
        "0": [{"depth/mean_abs": 0.9}],
        "learned": [{"semantic/miou": 0.6, "depth/mean_abs": 0.8}],
    }
    arguments = "--sweep semantic,depth --points 3"
    write_runs(tmp_path / "sweep", arguments, scores, CONSTANTS)
    return comparison.compare_runs(tmp_path / "sweep", pair=("semantic", "depth"))


def cells_of(markdown):
    """The cells of a Markdown table by the first one of their line."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_scores_are_mean_and_deviation_in_the_units_of_the_columns(table):
    assert table.scores["semantic"]["semantic/miou"] == pytest.approx((41, 2**0.5, 2))
    assert table.scores["all"]["instance/mean_abs"] == pytest.approx((2, 2**0.5, 2))
    assert table.scores["equal"]["depth/mean_abs"] == (0.9, None, 1)
    assert "instance" not in table.scores
    assert table.constants == pytest.approx(
        {"semantic/miou": 2.0, "instance/mean_abs": 5.0, "depth/mean_abs": 1.25}
    )


def test_table_has_every_row_with_the_published_figures(table):
    cells = cells_of(comparison.format_comparison(table))
    assert set(TABLES["A"].rows) | {"constant predictor"} <= set(cells)
    weights, runs, iou, instance, depth, oxford, paper = cells["all"]
    assert (weights, runs) == ("learned / learned / learned", "2")
    assert iou == "**43.00 ± 2.83**" and depth == "**0.5000 ± 0.1414**"
    assert (oxford, paper) == ("34 / 5.82 / 0.425", "63.4 / 3.5 / 0.522")
    assert cells["semantic"][:5] == ["1 / – / –", "2", "**41.00 ± 1.41**", "", ""]
    assert cells["equal"][0] == "0.333 / 0.333 / 0.333"
    assert cells["equal"][1:5] == ["1", "30.00", "**2.000**", "0.9000"]
    assert cells["instance"][1:5] == ["", "", "", ""]  # not trained
    assert cells["constant predictor"][2:5] == ["2.000", "5.000", "1.250"]
    assert {len(row) for row in cells.values()} == {7}


def test_table_says_what_it_is_about(table):
    text = comparison.format_comparison(table)
    assert "on the rendered streets (not Cityscapes)" in text
    assert "mean ± standard deviation over runs with different seeds" in text
    assert "network kendall with the backbone small and random weights" in text
    assert "64x128 pixels" in text and "learning rate 0.008" in text
    assert "is the mean over the images" in text  # how Oxford's IoU differs
    assert "all-laplace has no published figures" in text


def test_best_is_the_highest_or_the_lowest(table):
    """Pooled deviation of `depth` and `all`: 0.14; `equal` is 0.4 away."""
    cells = cells_of(comparison.format_comparison(table))
    assert cells["depth"][4].startswith("**") and cells["all"][4].startswith("**")
    assert not cells["equal"][4].startswith("**")
    assert not cells["equal"][2].startswith("**")


def test_a_single_run_does_not_sharpen_the_deviation(tmp_path):
    scores = {
        "all": [{"semantic/miou": 0.40}, {"semantic/miou": 0.42}],
        "semantic": [{"semantic/miou": 0.398}],  # within the 1.41 % of `all`
        "equal": [{"semantic/miou": 0.39}],
    }
    write_runs(tmp_path, "--table A --seeds 2", scores, CONSTANTS)
    text = comparison.format_comparison(comparison.compare_runs(tmp_path, "A"))
    cells = cells_of(text)
    shown = [cells[key][2] for key in scores]
    assert shown == ["**41.00 ± 1.41**", "**39.80**", "39.00"]


def test_without_a_second_seed_there_is_no_deviation(tmp_path):
    write_runs(tmp_path, "--table A", SCORES, CONSTANTS)
    text = comparison.format_comparison(comparison.compare_runs(tmp_path, "A"))
    assert cells_of(text)["all"][2] == "**41.00**"
    assert "±" not in text and "Ours: the score after the last step" in text


def test_runs_that_diverged_are_counted(tmp_path):
    write_runs(tmp_path, "--table A --seeds 2", SCORES, CONSTANTS)
    (tmp_path / "all-seed2").mkdir()
    (tmp_path / "all-seed2" / "diverged.txt").write_text("NaN")
    found = comparison.compare_runs(tmp_path, "A")
    cells = cells_of(comparison.format_comparison(found))
    assert cells["all"][1] == "2 (1 diverged)" and cells["depth"][1] == "2"
    comparison.write_csv(found, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["row"] == "all"]
    assert {line["diverged"] for line in lines} == {"1"}


def test_runs_that_were_trained_differently_are_not_compared(tmp_path):
    write_runs(tmp_path, "--table A", SCORES, CONSTANTS)
    scores = {"equal": [None, SCORES["equal"][0]]}
    write_runs(tmp_path, "--table A --seed 1 --steps 7", scores, CONSTANTS)
    with pytest.raises(UserError, match="--steps 7 in equal-seed1 and 1400 in others"):
        comparison.compare_runs(tmp_path, "A")


def test_runs_with_other_weights_or_likelihoods_are_not_compared(tmp_path):
    write_runs(tmp_path / "A", "--table A --seeds 2", SCORES, CONSTANTS)
    path = tmp_path / "A" / "all-seed1" / "options.json"
    options = read_options(TrainOptions, path)
    options.likelihoods["depth"] = "laplace"
    write_options(options, path)
    message = "all-seed1 was trained with other --likelihoods than the row all of table"
    with pytest.raises(UserError, match=message):
        comparison.compare_runs(tmp_path / "A", "A")

    arguments, scores = "--sweep class,reconstruction --points 3", {"class/accuracy": 1}
    scores = {"learned": [scores] * 2}
    write_runs(tmp_path / "C", arguments, scores, CONSTANTS)
    arguments += " --seed 1 --likelihoods class=softmax,reconstruction=laplace"
    write_runs(tmp_path / "C", arguments, scores, CONSTANTS)
    with pytest.raises(UserError, match="--likelihoods .* in learned-seed1"):
        comparison.compare_runs(tmp_path / "C", pair=("class", "reconstruction"))


def test_a_weight_that_only_diverged_is_in_the_sweep(sweep, tmp_path):
    (tmp_path / "sweep" / "0.25-seed0").mkdir()
    (tmp_path / "sweep" / "0.25-seed0" / "diverged.txt").write_text("NaN")
    found = comparison.compare_runs(tmp_path / "sweep", pair=("semantic", "depth"))
    cells = cells_of(comparison.format_comparison(found))
    assert cells["0.25"][:4] == ["0.25 / 0.75", "(1 diverged)", "", ""]


@pytest.mark.parametrize("value", [0.0, float("nan"), None])
def test_scores_that_are_no_measure_are_shown(tmp_path, value):
    scores = {"semantic": [{"semantic/miou": value}], "equal": SCORES["equal"]}
    write_runs(tmp_path, "--table A", scores, CONSTANTS)
    found = comparison.compare_runs(tmp_path, "A")
    shown = cells_of(comparison.format_comparison(found))["semantic"][2]
    assert shown.strip("*") == ("0.000" if value == 0 else "absent")
    tables.plot_bars(found, tmp_path / "bars.png")
    assert_picture(tmp_path / "bars.png")


def test_a_foreign_run_does_not_hide_its_row(tmp_path):
    write_runs(tmp_path, "--table A", SCORES, CONSTANTS)
    scores = {"equal": [None, SCORES["equal"][0]]}
    write_runs(tmp_path, "--table B --seed 1", scores, CONSTANTS)
    found = comparison.compare_runs(tmp_path, "A")
    assert list(found.runs["equal"]) == ["0"]


def test_csv_has_a_line_for_every_row_and_metric(table, tmp_path):
    comparison.write_csv(table, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * len(TABLES["A"].rows)
    (line,) = [
        line
        for line in lines
        if (line["row"], line["metric"]) == ("all", "instance mean abs px")
    ]
    assert float(line["mean"]) == 2.0 and (line["runs"], line["diverged"]) == ("2", "0")
    assert float(line["constant predictor"]) == 5.0
    assert (line["Oxford"], line["paper"]) == ("5.82", "3.5")
    single = next(line for line in lines if line["row"] == "equal")
    assert (single["std"], single["runs"]) == ("", "1")


def test_sweep_lists_the_weights_in_order(sweep):
    cells = cells_of(comparison.format_comparison(sweep))
    names = [name for name in cells if name.replace(".", "").isdigit()]
    assert names == sorted(names, key=float, reverse=True)
    assert cells["0.5"] == ["0.5 / 0.5", "1", "40.00", "1.000", "56.3 / 0.602"]
    assert cells["0.975"][1:4] == ["", "", ""]  # the paper's, not trained here
    assert cells["learned"][:3] == ["learned / learned", "1", "**60.00**"]


def assert_picture(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_figures(table, sweep, tmp_path):
    tables.plot_bars(table, tmp_path / "bars.png")
    tables.plot_sweep(sweep, tmp_path / "sweep.png")
    assert tables.plot_trajectories(table, tmp_path / "sigmas.png")
    for name in ("bars", "sweep", "sigmas"):
        assert_picture(tmp_path / f"{name}.png")


def test_bars_are_gains_over_the_task_alone(table, tmp_path, monkeypatch):
    figures = []

    class Figure(tables.Figure):
        def savefig(self, *args, **kwargs):
            figures.append(self)

    monkeypatch.setattr(tables, "Figure", Figure)
    tables.plot_bars(table, tmp_path / "bars.png")
    gains = [[bar.get_width() for bar in panel.patches] for panel in figures[0].axes]
    # mIoU of semantic, equal, all: 41, 30, 43; depth of depth, equal, all: .6, .9, .5
    assert gains[0] == pytest.approx([0, -1100 / 41, 200 / 41])
    assert gains[1] == pytest.approx([0, 0])  # 2 px each
    assert gains[2] == pytest.approx([0, -50, 100 / 6])
    labels = [panel.get_xlabel().split()[-1] for panel in figures[0].axes]
    assert labels == ["semantic", "equal", "depth"]  # instance alone is not trained


def test_there_are_no_trajectories_of_fixed_weights(tmp_path):
    write_runs(tmp_path, "--table A", {"equal": SCORES["equal"]}, CONSTANTS)
    fixed = comparison.compare_runs(tmp_path, "A")
    assert not tables.plot_trajectories(fixed, tmp_path / "sigmas.png")
    assert not (tmp_path / "sigmas.png").exists()


def test_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match="no finished run of this table.*train.py"):
        comparison.compare_runs(tmp_path, "B")
    write_runs(tmp_path, "--table A", SCORES, CONSTANTS)
    with pytest.raises(UserError, match="no finished run of this table"):
        comparison.compare_runs(tmp_path, "B")  # has rows of the same names
    scores = {"0.5": [{"semantic/miou": 0.4, "instance/mean_abs": 1.0}]}
    write_runs(tmp_path / "sweep", "--sweep semantic,instance", scores, CONSTANTS)
    with pytest.raises(UserError, match="no finished run of this sweep"):
        comparison.compare_runs(tmp_path / "sweep", pair=("semantic", "depth"))


def test_on_cityscapes_it_says_so(tmp_path):
    write_runs(tmp_path, "--table A --data TREE", SCORES, CONSTANTS)
    text = comparison.format_comparison(comparison.compare_runs(tmp_path, "A"))
    assert "on Cityscapes" in text and "streets" not in text


def test_titles_tell_the_training_sets_apart(tmp_path):
    write_runs(tmp_path, "--table A --train-frames 200", SCORES, CONSTANTS)
    title = comparison.compare_runs(tmp_path, "A").title
    assert "on 200 of the rendered streets (not Cityscapes)" in title


def test_mtans_table_stands_beside_two_publications(tmp_path):
    """Two metrics of a task make one column of weights, and nothing is mixed."""
    scores = {
        "all": [
            {
                "semantic/miou": 0.5,
                "semantic/pixel_accuracy": 0.9,
                "depth/abs_err": 0.0134,
                "depth/rel_err": 40.0,
            }
        ]
    }
    write_runs(tmp_path / "mtan", "--table mtan", scores, {"depth/rel_err": 60.0})
    found = comparison.compare_runs(tmp_path / "mtan", "mtan")
    assert found.tasks == ("semantic", "depth")
    cells = cells_of(comparison.format_comparison(found))
    learned = cells["all"]
    assert learned[0] == "learned / learned"
    assert learned[-2:] == [
        "72.02 / 92.85 / 0.014 / 30.13",
        "69.03 / 91.61 / 0.01338 / 45.89",
    ]
    assert cells["equal"][0] == "1 / 0.0313"

"""Evaluate the best checkpoint of a run, or compare the runs of a table.

    python evaluate.py runs/demo
    python evaluate.py runs/demo --instances      # also objects and their AP
    python evaluate.py runs/original --data CITYSCAPES --split val
    python evaluate.py runs/original --split test --submission submission
    python evaluate.py --table A                  # what train.py --table A has trained
    python evaluate.py --compare runs/a runs/b    # any runs, on a page

The metric table is printed, and kept in the run directory beside the figures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mtl_keras.commands.console import start_tensorflow
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_options
from mtl_keras.experiments.files import write_whole
from mtl_keras.experiments.options import (
    EvaluateOptions,
    TrainOptions,
    differing_options,
    read_options,
)

WRITTEN = {"figures", "predictions", "metrics.json", "table.md"}

if TYPE_CHECKING:  # what takes seconds to import waits until the options are read
    import keras

    from mtl_keras.data.batches import Batch
    from mtl_keras.experiments.constant_predictor import ConstantPredictor
    from mtl_keras.experiments.evaluation import Evaluator
    from mtl_keras.experiments.problems import Problem


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates a run or compares those of a table, as the command line says."""
    options = parse_options(EvaluateOptions, argv, positional=("run",))
    if options.compare:
        compare_any(options)
    elif options.table or options.sweep:
        compare(options)
    else:
        evaluate(options, pathlib.Path(options.run or "runs/demo"))


def compare(options: EvaluateOptions) -> None:
    """Prints and draws the comparison of the runs of a table or sweep."""
    start_tensorflow(options.verbose)
    from mtl_keras.experiments import comparison, tables
    from mtl_keras.experiments.comparison_report import write_comparison_report
    from mtl_keras.experiments.reports import REPORT
    from mtl_keras.figures.tables import plot_bars, plot_sweep, plot_trajectories

    single = dataclasses.replace(
        EvaluateOptions(),
        run=options.run,
        table=options.table,
        sweep=options.sweep,
        verbose=options.verbose,
    )
    for flag in differing_options(single, options):
        raise UserError(f"{flag} is about a single run; leave it out.")
    if options.table and options.sweep:
        raise UserError("--table and --sweep are two comparisons; give one of them.")
    root = tables.find_root(options.table, options.sweep, options.run)
    found = comparison.compare_runs(root, options.table, options.sweep)
    markdown = comparison.format_comparison(found)
    (root / "table.md").write_text(markdown, encoding="utf-8", errors="surrogateescape")
    comparison.write_csv(found, root / "table.csv")
    plot = plot_bars if options.table else plot_sweep
    plot(found, root / "table.png")
    groups = {name: [*seeds.values()] for name, seeds in found.runs.items()}
    write_comparison_report(groups, found.title, root / REPORT)
    files = ["table.md", "table.csv", "table.png", REPORT]
    if plot_trajectories(found, root / "sigmas.png"):
        files.append("sigmas.png")
    print(f"{markdown}\nAlso in {root}: {', '.join(files)}.")


def compare_any(options: EvaluateOptions) -> None:
    """Writes a page that compares the runs of `--compare`."""
    start_tensorflow(options.verbose)
    from mtl_keras.experiments.comparison_report import (
        group_runs,
        write_comparison_report,
    )

    allowed = ("compare", "report", "verbose")
    for flag in differing_options(EvaluateOptions(), options, ignored=allowed):
        raise UserError(f"{flag} does not go with --compare; leave it out.")
    groups = group_runs(options.compare)
    warning = write_comparison_report(groups, "Runs compared", options.report)
    if warning:
        print(f"Note: {warning}", file=sys.stderr)
    print(f"The comparison is in {options.report}.")


def evaluate(options: EvaluateOptions, directory: pathlib.Path) -> None:
    """Prints and draws what the best checkpoint of a run predicts."""
    trained = read_options(TrainOptions, directory / "options.json")
    place = choose_place(options, directory)
    start_tensorflow(options.verbose)
    from tqdm import tqdm

    from mtl_keras.experiments import evaluation, runs, setup
    from mtl_keras.experiments.problems import open_problem

    setup.check_evaluation(options, trained)
    problem = open_problem(
        dataclasses.replace(
            trained,
            data=options.data or trained.data,
            data_dir=options.data_dir or trained.data_dir,
        )
    )
    trainer = setup.build_trainer(problem)
    runs.restore_best(trainer, directory)
    num_frames = problem.count_frames(options.split)
    batch_size = choose_batch_size(options, problem)
    with contextlib.ExitStack() as stack:
        predictor = evaluation.load_constant_predictor(problem, directory)
        evaluators = make_evaluators(
            options, problem, place, num_frames, predictor, stack
        )
        batches = load_batches(options, problem, batch_size)
        bar = stack.enter_context(tqdm(total=num_frames, unit="frame", desc="evaluate"))
        results = evaluation.evaluate(
            trainer.network, batches, evaluators, batch_size, bar
        )
    draw_ranking(options, problem, place, trainer.network, results["ranking"])
    report(options, problem, directory, place, num_frames, results)


def choose_place(options: EvaluateOptions, directory: pathlib.Path) -> pathlib.Path:
    """The directory that is written to, which is made if it does not exist.

    Raises:
        UserError: if it cannot be written, or holds something else.
    """
    place = pathlib.Path(options.output or directory)
    if options.output and place.exists():
        if not place.is_dir() or {path.name for path in place.iterdir()} - WRITTEN:
            raise UserError(f"{place} holds something else; name another --output.")
    with contextlib.suppress(OSError):
        (place / "figures").mkdir(parents=True, exist_ok=True)
    if not os.access(place / "figures", os.W_OK):
        raise UserError(
            f"{place} cannot be written; name a directory for the scores with --output."
        )
    return place


def choose_batch_size(options: EvaluateOptions, problem: Problem) -> int:
    """The frames at a time, not more than there are."""
    from mtl_keras.data.batches import limit_batch

    chosen = options.batch_size or limit_batch(16, problem.options.image_size)
    return min(chosen, problem.count_frames(options.split))


def load_batches(
    options: EvaluateOptions, problem: Problem, batch_size: int
) -> Iterator[Batch]:
    """The batches of a split with their ids, and instance ids for `--instances`."""
    from mtl_keras.data.batches import Batch

    ids = iter(problem.load_ids(options.split))
    true_ids: Iterator[Any] = itertools.repeat(None)
    if options.instances:
        true_ids = problem.load_instance_ids(options.split, batch_size)
    batches = problem.make_batches(options.split, batch_size)
    for (images, targets, masks), instance_ids in zip(batches, true_ids):
        names = [*itertools.islice(ids, len(images))]
        yield Batch(names, images, targets, masks, instance_ids)


def make_evaluators(
    options: EvaluateOptions,
    problem: Problem,
    directory: pathlib.Path,
    num_frames: int,
    predictor: ConstantPredictor,
    stack: contextlib.ExitStack,
) -> list[Evaluator]:
    """The evaluators that are asked for; `stack` ends their worker processes."""
    from mtl_keras.experiments import evaluation, ranking
    from mtl_keras.figures.objects import ObjectGallery
    from mtl_keras.instances.objects import ObjectScorer
    from mtl_keras.serving.submission import SubmissionWriter

    figures = directory / "figures"
    evaluators: list[Evaluator] = [
        evaluation.MapScores(problem.make_metrics()),
        evaluation.ConstantBaseline(problem.make_metrics(), predictor),
        ranking.FrameRanking(problem.make_metrics()),
        problem.make_gallery(figures / f"{options.split}.png", num_frames),
    ]
    maps, label_set = predictions_of(options, directory), problem.options.label_set
    if options.instances:
        scorer = ObjectScorer(
            num_frames,
            label_set,
            options.object_classes,
            options.method,
            maps / "instances" if options.predictions else None,
            options.left_over,
            **options.method_options,
        )
        gallery = ObjectGallery(figures / f"instances_{options.split}.png", num_frames)
        stack.enter_context(scorer)
        evaluators.append(evaluation.ObjectEvaluator(scorer, gallery))
    if options.predictions:
        evaluators.append(evaluation.PredictionWriter(maps, label_set))
    if options.submission:
        submission = SubmissionWriter(
            options.submission,
            label_set,
            method=options.method,
            left_over=options.left_over,
            **options.method_options,
        )
        evaluators.append(stack.enter_context(submission))
    return evaluators


def draw_ranking(
    options: EvaluateOptions,
    problem: Problem,
    directory: pathlib.Path,
    network: keras.Model,
    ranking: dict[str, dict[str, tuple[int, float]]],
) -> None:
    """Draws the best, the median and the worst frame of each task."""
    from mtl_keras.experiments.ranking import load_rows
    from mtl_keras.tasks import METRICS, main_metric

    chosen = {index for ranks in ranking.values() for index, _ in ranks.values()}
    batch_size = choose_batch_size(options, problem)
    single = dataclasses.replace(options, instances=False)
    batches = load_batches(single, problem, batch_size)
    rows = load_rows(network, batches, chosen, batch_size) if chosen else {}
    for path in (directory / "figures").glob("frames_*.png") if ranking else ():
        path.unlink()  # of another split, maybe
    for task, ranks in ranking.items():
        metric = METRICS[main_metric(task)]
        notes = [
            f"{rank}: {metric.header} {score * metric.factor:.3g}\n{rows[index][0]}"
            for rank, (index, score) in ranks.items()
        ]
        shown = [rows[index][1] for index, _ in ranks.values()]
        path = directory / "figures" / f"frames_{task}.png"
        problem.plot_frames(shown, task, notes, path)


def report(
    options: EvaluateOptions,
    problem: Problem,
    directory: pathlib.Path,
    place: pathlib.Path,
    num_frames: int,
    results: dict[str, Any],
) -> None:
    """Prints and writes the metric table of the run `directory` to `place`, or says
    that there is none."""
    from mtl_keras.experiments.reports import write_run_report
    from mtl_keras.experiments.runs import find_best
    from mtl_keras.figures.markdown import format_metrics, name_instance_metrics

    if options.predictions:
        print(f"The predicted maps are in {predictions_of(options, place)}.")
    if options.submission:
        print(
            f"The submission is in {options.submission}; pack each folder in it as an "
            "archive of its own."
        )
    if all(score is None for score in results["metrics"].values()):
        print(
            f"The split {options.split!r} has no labels: predicted, not evaluated; see "
            f"{place / 'figures' / options.split}.png, or write every map with "
            "--predictions."
        )
        return
    scores: dict[str, Any] = {"split": options.split, "frames": num_frames}
    del results["ranking"]  # drawn
    scores |= {"instances": None} | results
    title = f"{problem.name}, split {options.split}, {num_frames} frames"
    if options.instances:
        found = name_instance_metrics(results["instances"])
        scores["metrics"] |= found
        scores["constant_predictor"] |= {
            key: None if score is None else 0.0  # a constant class is not a thing
            for key, score in found.items()
        }
        title += (
            f"; objects by {options.method} in the {options.object_classes} classes"
        )
        if options.left_over == "nearest":
            title += ", left-over pixels to the nearest"
    # What they are scores of: the checkpoint may change, and the data be others.
    best = find_best(directory, problem.options.tasks)
    scores |= {"title": title, "epoch": best.get("epoch")}
    table = format_metrics(
        scores["metrics"],
        scores["constant_predictor"],
        scores["per_class_iou"],
        scores["instances"],
    )
    write_whole(place / "metrics.json", json.dumps(scores, indent=2) + "\n")
    write_whole(place / "table.md", f"{title}\n\n{table}\n")
    if place == directory:
        write_run_report(directory)
    also = "report.html" if place == directory else "metrics.json, table.md and figures"
    print(f"\n{title}\n\n{table}\n\nAlso in {place}: {also}.")


def predictions_of(options: EvaluateOptions, directory: pathlib.Path) -> pathlib.Path:
    """Where the predicted maps of a split are written."""
    return directory / "predictions" / options.split

"""Evaluate the best checkpoint of a run, or compare the runs of a table.

python evaluate.py runs/demo
python evaluate.py runs/demo --instances      # also objects and their AP
python evaluate.py runs/mtl --data CITYSCAPES --split val
python evaluate.py --table A                  # what train.py --table A has trained
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from mtl_keras.cli import (  # noqa: E402
    EvaluateOptions,
    TrainOptions,
    differing_options,
    parse_options,
    read_options,
    run_script,
)
from mtl_keras.errors import UserError  # noqa: E402


def main():
    options = parse_options(EvaluateOptions, positional=("run",))
    if options.table or options.sweep:
        compare(options)
    else:
        evaluate(options, pathlib.Path(options.run or "runs/demo"))


def compare(options):
    """Prints and draws the comparison of the runs of a table or sweep."""
    from mtl_keras import comparison, comparison_figures, tables

    single = dataclasses.replace(
        EvaluateOptions(), run=options.run, table=options.table, sweep=options.sweep
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
    if options.table:
        comparison_figures.plot_bars(found, root / "table.png")
    else:
        comparison_figures.plot_sweep(found, root / "table.png")
    files = ["table.md", "table.csv", "table.png"]
    if comparison_figures.plot_trajectories(found, root / "sigmas.png"):
        files.append("sigmas.png")
    print(f"{markdown}\nAlso in {root}: {', '.join(files)}.")


def evaluate(options, directory):
    """Prints and draws what the best checkpoint of a run predicts."""
    trained = read_options(TrainOptions, directory / "options.json")
    from tqdm import tqdm  # after --help has had its chance

    from mtl_keras import export, metrics, objects, report, runs
    from mtl_keras.object_gallery import ObjectGallery
    from mtl_keras.problems import open_problem

    problem = open_problem(trained, options.data)
    runs.check_evaluation(options, trained)
    if options.instances:
        objects.check_tasks(trained.tasks, options.mask)
    trainer = runs.build_trainer(problem)
    runs.restore_best(trainer, directory)
    num_frames = problem.count_frames(options.split)
    batch_size = min(options.batch_size, num_frames)

    score = metrics.SplitScore(problem.make_metrics())
    constant_score = metrics.SplitScore(problem.make_metrics())
    predictor = runs.load_constant_predictor(problem, directory)
    gallery = problem.make_gallery(num_frames)
    maps = directory / "predictions" / options.split
    true_ids, object_score = itertools.repeat(None), None
    if options.instances:
        true_ids = problem.load_instance_ids(options.split, batch_size)
        object_score = objects.ObjectScore(
            num_frames,
            trained.label_set,
            options.mask,
            options.method,
            maps / "instances" if options.predictions else None,
            options.left_over,
        )
        object_gallery = ObjectGallery(num_frames)
    batches = zip(problem.make_batches(options.split, batch_size), true_ids)
    ids = problem.load_ids(options.split)
    done = 0
    with (
        tqdm(total=num_frames, unit="frame", desc="evaluate") as bar,
        object_score or contextlib.nullcontext(),
    ):
        for (images, targets, masks), instance_ids in batches:
            names = ids[done : done + len(images)]
            predictions = runs.predict_batch(trainer.network, images, batch_size)
            score.update(targets, predictions, masks)
            constant_score.update(targets, predictor.predict(targets), masks)
            gallery.add(images, targets, masks, predictions)
            if options.instances:
                decoded = object_score.add(names, predictions, instance_ids)
                object_gallery.add(
                    images, predictions["instance"], decoded, instance_ids
                )
            if options.predictions:
                export.write_predictions(maps, names, predictions, trained.label_set)
            done += len(images)
            bar.update(len(images))
    results = score.results()
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    gallery.plot(figures / f"{options.split}.png", bool(results))
    if options.instances:
        object_gallery.plot(figures / f"instances_{options.split}.png", bool(results))
    if options.predictions:
        print(f"The predicted maps are in {maps}.")
    if not results:
        print(
            f"The split {options.split!r} has no labels: predicted, not evaluated; see "
            f"{figures / options.split}.png, or write every map with --predictions."
        )
        return
    constants, per_class_iou = constant_score.results(), score.per_class_iou()
    title = f"{problem.name}, split {options.split}, {num_frames} frames"
    instances = None
    if options.instances:
        instances = object_score.score()
        found = report.name_instance_metrics(instances)
        results |= found
        constants |= dict.fromkeys(found, 0.0)  # a constant class is no thing
        title += f"; objects by {options.method} on the {options.mask} classes"
        if options.left_over == "nearest":
            title += ", left-over pixels to the nearest"
    table = report.format_metrics(results, constants, per_class_iou, instances)
    scores = {
        "split": options.split,
        "frames": num_frames,
        "metrics": results,
        "constant_predictor": constants,
        "per_class_iou": per_class_iou,
        "instances": instances,
    }
    (directory / "metrics.json").write_text(
        json.dumps(scores, indent=2) + "\n", encoding="utf-8"
    )
    (directory / "table.md").write_text(
        f"{title}\n\n{table}\n", encoding="utf-8", errors="surrogateescape"
    )
    print(f"\n{title}\n\n{table}")


if __name__ == "__main__":
    run_script(main)

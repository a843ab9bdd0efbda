"""Evaluate the best checkpoint of a run: metric table and pictures.

python evaluate.py runs/demo
python evaluate.py runs/demo --instances      # also objects and their AP
python evaluate.py runs/mtl --data CITYSCAPES --split val
"""

import contextlib
import itertools
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from mtl_keras.cli import (  # noqa: E402
    EvaluateOptions,
    TrainOptions,
    parse_options,
    read_options,
    run_script,
)


def main():
    options = parse_options(EvaluateOptions, positional=("run",))
    directory = pathlib.Path(options.run)
    trained = read_options(TrainOptions, directory / "options.json")
    from tqdm import tqdm  # after --help has had its chance

    from mtl_keras import data, datasets, export, metrics, objects, report, runs
    from mtl_keras.object_gallery import ObjectGallery

    if options.instances:
        objects.check_tasks(trained.tasks, options.mask)
    trainer = runs.build_trainer(trained)
    runs.restore_best(trainer, directory)
    source = options.data or trained.data
    builder = datasets.prepare(source, trained.image_size, trained.tasks)
    datasets.check_split(builder, options.split)
    encoding = (trained.tasks, trained.label_set, options.batch_size)
    ids = data.load_ids(builder, options.split)

    score = metrics.SplitScore(trained.tasks, trained.label_set)
    constant_score = metrics.SplitScore(trained.tasks, trained.label_set)
    predictor = runs.load_constant_predictor(directory)
    gallery = report.Gallery(len(ids))
    maps = directory / "predictions" / options.split
    true_ids, object_score = itertools.repeat(None), None
    if options.instances:
        true_ids = data.load_instance_ids(builder, options.split, options.batch_size)
        object_score = objects.ObjectScore(
            len(ids),
            trained.label_set,
            options.mask,
            options.method,
            maps / "instances" if options.predictions else None,
        )
        object_gallery = ObjectGallery(len(ids))
    batches = zip(data.make_dataset(builder, options.split, *encoding), true_ids)
    done = 0
    with (
        tqdm(total=len(ids), unit="frame", desc="evaluate") as bar,
        object_score or contextlib.nullcontext(),
    ):
        for (images, targets, masks), instance_ids in batches:
            names = ids[done : done + len(images)]
            predictions = trainer.network.predict_on_batch(images)
            score.update(targets, predictions, masks)
            constant_score.update(
                targets, predictor.predict(targets, trained.label_set), masks
            )
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
    gallery.plot(trained.label_set, figures / f"{options.split}.png", bool(results))
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
    title = f"{source or 'streets'}, split {options.split}, {len(ids)} frames"
    instances = None
    if options.instances:
        instances = object_score.score()
        found = report.name_instance_metrics(instances)
        results |= found
        constants |= dict.fromkeys(found, 0.0)  # a constant class is no thing
        title += f"; objects by {options.method} on the {options.mask} classes"
    table = report.format_metrics(results, constants, per_class_iou, instances)
    scores = {
        "split": options.split,
        "frames": len(ids),
        "metrics": results,
        "constant_predictor": constants,
        "per_class_iou": per_class_iou,
        "instances": instances,
    }
    (directory / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n")
    (directory / "table.md").write_text(f"{title}\n\n{table}\n")
    print(f"\n{title}\n\n{table}")


if __name__ == "__main__":
    run_script(main)

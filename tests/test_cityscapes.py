import numpy as np
import pytest

from mtl_keras import cityscapes


def test_label_table_equals_the_official_one():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    official = {
        (
            label.name,
            label.id,
            label.trainId,
            label.category,
            label.hasInstances,
            label.ignoreInEval,
            label.color,
        )
        for label in labels
        if label.id >= 0  # the licence plate, -1, is not in the id images
    }
    assert {tuple(label) for label in cityscapes.LABELS} == official


def test_rows_are_in_the_order_of_their_index():
    assert [label.id for label in cityscapes.LABELS] == list(range(34))
    assert [label.train_id for label in cityscapes.EVALUATED] == list(range(19))


def test_things_are_the_classes_from_person_to_bicycle():
    assert cityscapes.THING_IDS == (24, 25, 26, 27, 28, 31, 32, 33)
    assert cityscapes.SKY_ID == 23


def test_class_index_table():
    ids = cityscapes.class_index_table("label_ids")
    np.testing.assert_array_equal(ids, [*range(34)] + [-1] * 222)
    train = cityscapes.class_index_table("train_ids")
    assert (train[7], train[33], train[0], train[29], train[255]) == (0, 18, -1, -1, -1)
    assert sorted(train[train >= 0]) == list(range(19))


def test_evaluated_index_table():
    ids = cityscapes.evaluated_index_table("label_ids")
    assert len(ids) == 34 and (ids[7], ids[33], ids[9]) == (0, 18, -1)
    np.testing.assert_array_equal(
        cityscapes.evaluated_index_table("train_ids"), np.arange(19)
    )


def test_frame_path():
    path = cityscapes.frame_path("root", "val", "ulm_000001_000019", "semantic")
    assert path.as_posix() == (
        "root/gtFine/val/ulm/ulm_000001_000019_gtFine_labelIds.png"
    )
    elsewhere = cityscapes.frame_path("root", "val", "a_1_2", "disparity", "b")
    assert elsewhere.as_posix() == "root/disparity/val/b/a_1_2_disparity.png"


def test_colors_are_by_label_id():
    table = cityscapes.color_table()
    assert table.shape == (34, 3) and table.dtype == np.uint8
    np.testing.assert_array_equal(table[7], (128, 64, 128))

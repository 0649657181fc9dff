from __future__ import annotations

import os
from datetime import timedelta

from db.queries import labels as label_queries
from db.tables import Image, Label
from tests.factories import ask
from tests.pipeline.steps.ingest.folder import HELD_OUT, Folder


def an_hour_ago(folder: Folder) -> None:
    """As if the last ingest had been an hour ago."""
    with folder.database.session() as session:
        for image in session.query(Image):
            image.ingested_at -= timedelta(hours=1)


def test_a_corrected_mask_is_the_next_version_of_its_label(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    an_hour_ago(five)
    five.mask("c/f0.png", value=1)
    report = five.ingest(splits=HELD_OUT)
    assert (report.failures, report.labeled_images) == (0, 1)
    image_id = dict(five.rows(Image.uri, Image.id))["images/c/f0.png"]
    (label,) = ask(five.database, label_queries.labels_in_force, image_id=image_id)
    assert label.version == 2
    assert (five.read_mask(label.mask_uri) == 1).all()
    before = five.rows(Label.id)
    five.ingest(splits=HELD_OUT)
    assert five.rows(Label.id) == before


def test_a_replaced_image_is_refused_and_one_that_was_only_copied_is_not(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    an_hour_ago(five)
    five.image("c/f0.png", seed=4711)
    path = five.root / "images" / "c" / "f1.png"
    path.write_bytes(path.read_bytes())
    os.utime(path)
    report = five.ingest(splits=HELD_OUT)
    assert report.failures == 1
    assert "has changed since it was ingested" in five.failures()["images/c/f0.png"]


def test_a_corrected_mask_with_strange_values_is_a_failure_and_the_label_stays(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    an_hour_ago(five)
    five.mask("c/f0.png", value=7)
    before = five.rows(Label.id)
    assert five.ingest(splits=HELD_OUT).failures == 1
    assert "7 (384 px)" in five.failures()["masks/c/f0.png"]
    assert five.rows(Label.id) == before

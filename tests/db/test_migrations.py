"""Upgrading a store that an older version has filled, and going back."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from db import migrations
from db.engine import Database, connect
from db.queries import runs, scores
from db.tables import Base

FILLED = """
INSERT INTO project (id, name, class_names, channels, created_at)
    VALUES (1, 'squares', '["a", "b"]', 3, '2026-01-01');
INSERT INTO image (id, uri, sha256, width, height, channels, group_name, position, split, ingested_at)
    VALUES (1, 'a.png', 'a', 8, 8, 3, 'g', 0, 'pool', '2026-01-01');
INSERT INTO round (id, number, state, started_at) VALUES (1, 1, 'import', '2026-01-01');
INSERT INTO model (id, round_id, name, status, checkpoint_uri, config, config_hash, labels_hash, seed,
    iterations, created_at) VALUES (1, 1, 'r01', 'promoted', 'm', '{}', 'c', 'l', 0, 1, '2026-01-01');
INSERT INTO calibration (id, model_id, sampler, calibrator, parameters, images, pixels, created_at)
    VALUES (1, 1, 'none', 'temperature', '{"temperature": 2.0}', 3, 9, '2026-01-01');
INSERT INTO queue (id, round_id, name, kind, strategy, unit, seed, spec, created_at)
    VALUES (1, 1, 'round-01', 'selected', 'entropy', 'region', 0, '{}', '2026-01-01');
INSERT INTO queue_item (id, queue_id, rank, image_id, region_index, x, y, w, h, slice, reason, status)
    VALUES (1, 1, 1, 1, 0, 0, 0, 8, 8, 'selected', 'why', 'labeled');
INSERT INTO label (id, image_id, queue_id, version, mask_uri, mask_sha256, labeled_pixels, source,
    labeled_at, created_at) VALUES (1, 1, 1, 1, 'm.png', 's', 64, 'import', '2026-01-01', '2026-01-01');
INSERT INTO label_region (label_id, x, y, w, h) VALUES (1, 0, 0, 8, 8);
INSERT INTO scoring_run (id, model_id, scorer_hash, scorer, created_at)
    VALUES (1, 1, 'h', '{}', '2026-01-01');
INSERT INTO region_score (run_id, image_id, region_index, x, y, w, h, pixels, predicted_class, class_share,
    impurity, least_confidence, margin, entropy, energy, max_logit, entropy_top10)
    VALUES (1, 1, 0, 0, 0, 8, 8, 64, 0, 1, 0, 0.1, 0.2, 0.3, -1, -2, 0.4);
"""
EVALUATED = """
UPDATE project SET splits_locked_at = '2026-01-01';
INSERT INTO image (id, uri, sha256, width, height, channels, group_name, position, split, mask_uri,
    ingested_at) VALUES (2, 't.png', 't', 8, 8, 3, 'g', 1, 'test', 't.png', '2026-01-01'),
        (3, 'c.png', 'c', 8, 8, 3, 'g', 1, 'calibration', NULL, '2026-01-01');
INSERT INTO evaluation (id, model_id, split, sampler, calibrated, images, blocks, curves, created_at)
    VALUES (1, 1, 'test', 'none', true, 1, 1, '{}', '2026-01-01');
"""
NUMBERS = "regions pixels predicted_class class_share impurity least_confidence margin entropy energy"
IMAGE_ROW = {"image_id": [7], "heatmaps": [None]} | {
    name: [1] for name in f"{NUMBERS} max_logit entropy_top10".split()
}
TABLES = ("image", "round", "model", "calibration", "queue", "queue_item", "label", "label_region")
SCORED = """
INSERT INTO image (id, uri, sha256, width, height, channels, group_name, position, split, ingested_at)
    VALUES (2, 'b.png', 'b', 8, 8, 3, 'g', 1, 'pool', '2026-01-01');
INSERT INTO scoring_run (id, model_id, scorer_hash, scorer, created_at)
    VALUES (2, 1, 'i', '{}', '2026-01-02');
UPDATE queue SET run_id = 1;
INSERT INTO region_score (run_id, image_id, region_index, x, y, w, h, pixels, predicted_class, class_share,
    impurity, least_confidence, margin, entropy, energy, max_logit, entropy_top10, outline)
    VALUES (1, 1, 1, 0, 0, 8, 8, 64, 0, 1, 0, 0.1, 0.2, 0.5, -1, -2, 0.4, 'abc'),
        (2, 2, 3, 0, 0, 8, 8, 64, 0, 1, 0, 0.1, 0.2, 0.25, -1, -2, 0.4, NULL);
INSERT INTO image_score (run_id, image_id, regions, pixels, predicted_class, class_share, impurity,
    least_confidence, margin, entropy, energy, max_logit, entropy_top10, heatmaps)
    VALUES (1, 1, 2, 64, 0, 1, 0, 0.1, 0.2, 0.5, -1, -2, 0.4, '{"entropy": "map.png"}'),
        (2, 2, 1, 64, 0, 1, 0, 0.1, 0.2, 0.25, -1, -2, 0.4, NULL),
        (2, 1, 0, 64, 0, 1, 0, 0.1, 0.2, 0.25, -1, -2, 0.4, NULL)
"""
SCORES = {
    "region_score": "run_id, image_id, region_index, x, y, w, h, entropy, mutual_information, outline",
    "image_score": "run_id, image_id, regions, entropy, max_logit_norm, heatmaps",
}


@pytest.fixture
def new_stores_are_copies() -> None:
    """No: here the migrations fill each store."""


@pytest.fixture
def old(url: str) -> Generator[Engine]:
    """A store as the first version left it, with a row in each table that has changed since."""
    engine = connect(url)
    command.upgrade(migrations.alembic_config(engine), "0001")
    run(engine, FILLED)
    yield engine
    engine.dispose()


@pytest.fixture
def scored(old: Engine) -> Engine:
    """A store of the second version, with the scores of two runs."""
    command.upgrade(migrations.alembic_config(old), "0002")
    run(old, SCORED)
    if old.dialect.name == "postgresql":
        run(old, "SELECT setval('scoring_run_id_seq', 2)")
    return old


def run(engine: Engine, statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements.split(";"):
            if statement.strip():
                connection.exec_driver_sql(statement)


def score_rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return {
            table: [
                tuple(row)
                for row in connection.execute(text(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3"))
            ]
            for table, columns in SCORES.items()
        }


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        options = {"include_name": migrations.is_declared}
        return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


def counts(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return [connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0 for table in TABLES]


def test_an_upgrade_loses_no_row(old: Engine) -> None:
    before = counts(old)
    assert migrations.upgrade(old) == ("0001", migrations.head())
    assert counts(old) == before == [1] * len(TABLES)


def test_an_upgraded_store_has_the_tables_of_a_new_one(old: Engine) -> None:
    migrations.upgrade(old)
    assert differences(old) == []


def test_an_upgraded_store_opens_and_knows_what_it_was_told(old: Engine) -> None:
    migrations.upgrade(old)
    database = Database(old.url.render_as_string(hide_password=False))
    with database.session() as session:
        passed = session.scalar(text("SELECT passed FROM calibration"))
        session.execute(text("UPDATE queue SET kind = 'review'"))
    database.close()
    assert passed in (0, False)


def test_two_regions_may_share_a_box_after_the_upgrade_only(old: Engine) -> None:
    twin = (
        "INSERT INTO queue_item (id, queue_id, rank, image_id, region_index, x, y, w, h, slice, reason,"
        " status) VALUES (2, 1, 2, 1, 1, 0, 0, 8, 8, 'selected', 'why', 'queued')"
    )
    with pytest.raises(IntegrityError), old.begin() as connection:
        connection.execute(text(twin))
    migrations.upgrade(old)
    with old.begin() as connection:
        connection.execute(text(twin))
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), old.begin() as connection:
        connection.execute(text("DELETE FROM image"))


def test_a_project_keeps_its_name_through_an_upgrade_and_back(old: Engine) -> None:
    migrations.upgrade(old)
    with old.connect() as connection:
        [(identifier, name)] = connection.execute(text("SELECT id, name FROM identity")).all()
    assert (len(identifier), name) == (32, "squares")
    with pytest.raises(IntegrityError):
        run(old, "INSERT INTO identity (key, id, name) VALUES (2, 'x', 'another')")
    command.downgrade(migrations.alembic_config(old), "0004")
    with old.connect() as connection:
        assert connection.execute(text("SELECT name FROM project")).all() == [("squares",)]


def test_the_locked_splits_and_their_evaluations_become_version_one(old: Engine) -> None:
    run(old, EVALUATED)
    migrations.upgrade(old)
    with old.connect() as connection:
        images = connection.execute(text("SELECT uri, split_version FROM image ORDER BY id")).all()
        versions = connection.execute(text("SELECT split_version FROM evaluation")).all()
    assert images == [("a.png", None), ("t.png", 1), ("c.png", None)]
    assert versions == [(1,)]
    again = "INSERT INTO evaluation (id, model_id, split, split_version, sampler, calibrated, images, blocks,"
    again += " curves, created_at) VALUES (2, 1, 'test', 2, 'none', true, 3, 3, '{}', '2026-01-02')"
    run(old, again)
    run(old, "INSERT INTO metric (evaluation_id, name, class_index) VALUES (1, 'ece', -1), (2, 'ece', -1)")
    command.downgrade(migrations.alembic_config(old), "0007")
    with old.connect() as connection:
        assert connection.execute(text("SELECT images FROM evaluation")).all() == [(3,)]
        assert connection.execute(text("SELECT evaluation_id FROM metric")).all() == [(2,)]


def test_masks_of_an_upgraded_store_have_no_known_content(old: Engine) -> None:
    command.upgrade(migrations.alembic_config(old), "0008")
    run(old, "UPDATE image SET mask_uri = 'a-mask.png', mask_classes = '[0, 1]'")
    before = counts(old)
    migrations.upgrade(old)
    read = "SELECT mask_uri, mask_sha256 FROM image"
    with old.connect() as connection:
        assert connection.execute(text(read)).all() == [("a-mask.png", None)]
    run(old, "UPDATE image SET mask_sha256 = 's'")
    command.downgrade(migrations.alembic_config(old), "0008")
    with old.connect() as connection:
        assert connection.execute(text("SELECT mask_uri FROM image")).all() == [("a-mask.png",)]
    assert counts(old) == before


def test_what_mask_values_meant_is_not_known_after_an_upgrade(old: Engine) -> None:
    command.upgrade(migrations.alembic_config(old), "0009")
    before = counts(old)
    migrations.upgrade(old)
    with old.connect() as connection:
        assert connection.execute(text("SELECT channels, mask_values FROM project")).all() == [(3, None)]
    run(old, """UPDATE project SET mask_values = '{"data.ignore_index": [255]}'""")
    command.downgrade(migrations.alembic_config(old), "0009")
    with old.connect() as connection:
        assert connection.execute(text("SELECT channels FROM project")).all() == [(3,)]
    assert counts(old) == before


def test_a_queue_of_held_out_images_is_a_review_before(old: Engine) -> None:
    held_out = "UPDATE queue SET kind = 'held_out'; UPDATE queue_item SET slice = 'held_out'"
    with pytest.raises(IntegrityError):
        run(old, held_out)
    migrations.upgrade(old)
    run(old, held_out)
    command.downgrade(migrations.alembic_config(old), "0012")
    with old.connect() as connection:
        kinds = connection.execute(text("SELECT kind FROM queue UNION SELECT slice FROM queue_item")).all()
    assert kinds == [("review",)]


def test_scores_of_before_do_not_know_the_length_of_borders(old: Engine) -> None:
    command.upgrade(migrations.alembic_config(old), "0013")
    before = counts(old)
    migrations.upgrade(old)
    with old.connect() as connection:
        assert connection.execute(text("SELECT border, entropy_top10 IS NULL FROM region_score")).all() == [
            (None, False)
        ]
    run(old, "UPDATE region_score SET border = 12.5")
    command.downgrade(migrations.alembic_config(old), "0013")
    with old.connect() as connection:
        for table in ("region_score", "image_score"):
            assert "border" not in [column["name"] for column in inspect(connection).get_columns(table)]
    assert counts(old) == before


def test_a_downgrade_leaves_what_the_old_version_knew(old: Engine) -> None:
    before = counts(old)
    migrations.upgrade(old)
    command.downgrade(migrations.alembic_config(old), "0001")
    assert counts(old) == before
    assert migrations.upgrade(old) == ("0001", migrations.head())


def test_scores_come_through_an_upgrade_and_back(scored: Engine) -> None:
    before = score_rows(scored)
    assert [len(rows) for rows in before.values()] == [3, 3]
    migrations.upgrade(scored)
    assert score_rows(scored) == before
    with scored.connect() as connection:
        assert (
            compare_metadata(
                MigrationContext.configure(connection, opts={"include_name": migrations.is_declared}),
                Base.metadata,
            )
            == []
        )
    command.downgrade(migrations.alembic_config(scored), "0002")
    assert score_rows(scored) == before


def test_an_upgrade_finds_the_highest_entropy_of_each_image(scored: Engine) -> None:
    migrations.upgrade(scored)
    with scored.connect() as connection:
        peaks = connection.execute(
            text("SELECT run_id, image_id, entropy_max FROM image_score ORDER BY 1, 2")
        )
        assert [tuple(row) for row in peaks] == [(1, 1, 0.5), (2, 1, None), (2, 2, 0.25)]


def test_after_an_upgrade_a_run_that_was_there_and_a_new_one_take_scores(scored: Engine) -> None:
    migrations.upgrade(scored)
    database = Database(scored.url.render_as_string(hide_password=False))
    with database.session() as session:
        old_run = runs.open_run(session, model_id=1, scorer_hash="h", scorer={})
        new_run = runs.open_run(session, model_id=1, scorer_hash="new", scorer={})
        assert (old_run.id, new_run.id > 2) == (1, True)
        for run_id in (1, new_run.id):
            scores.insert_scores(session, run_id=run_id, images=IMAGE_ROW, regions={})
    database.close()
    assert [row[:2] for row in score_rows(scored)["image_score"] if row[1] == 7] == [(1, 7), (3, 7)]


def test_a_downgrade_forgets_pruned_runs_and_keeps_their_queues(scored: Engine) -> None:
    migrations.upgrade(scored)
    run(scored, "UPDATE scoring_run SET pruned_at = '2026-01-03' WHERE id = 1")
    command.downgrade(migrations.alembic_config(scored), "0002")
    with scored.connect() as connection:
        assert connection.scalars(text("SELECT id FROM scoring_run")).all() == [2]
        assert connection.execute(text("SELECT name, run_id FROM queue")).all() == [("round-01", None)]
    assert [row[0] for row in score_rows(scored)["region_score"]] == [2]

"""Upgrading a store that an older version has filled, and going back."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from db import migrations
from db.engine import Database, connect
from db.tables import Base

FILLED = """
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
TABLES = ("image", "round", "model", "calibration", "queue", "queue_item", "label", "label_region")


@pytest.fixture
def old(url: str) -> Generator[Engine]:
    """A store as the first version left it, with a row in each table that has changed since."""
    engine = connect(url)
    command.upgrade(migrations.alembic_config(engine), "0001")
    with engine.begin() as connection:
        for statement in FILLED.split(";"):
            if statement.strip():
                connection.execute(text(statement))
    yield engine
    engine.dispose()


def counts(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return [connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0 for table in TABLES]


def test_an_upgrade_loses_no_row(old: Engine) -> None:
    before = counts(old)
    assert migrations.upgrade(old) == ("0001", migrations.head())
    assert counts(old) == before == [1] * len(TABLES)


def test_an_upgraded_store_has_the_tables_of_a_new_one(old: Engine) -> None:
    migrations.upgrade(old)
    with old.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


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


def test_a_downgrade_leaves_what_the_old_version_knew(old: Engine) -> None:
    before = counts(old)
    migrations.upgrade(old)
    command.downgrade(migrations.alembic_config(old), "0001")
    assert counts(old) == before
    assert migrations.upgrade(old) == ("0001", migrations.head())

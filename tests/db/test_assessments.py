"""Documents about a model's uncertainty."""

from __future__ import annotations

import pytest

from db.engine import Database
from db.queries.evaluations import assessment_of, put_assessment
from db.tables import Model, Round
from tests.factories import ask


@pytest.fixture
def database(store_url: str) -> Database:
    opened = Database(store_url)
    with opened.session() as session:
        session.add(Round(id=1, number=1, state="score"))
        session.flush()
        session.add(
            Model(
                id=1,
                round_id=1,
                name="r01",
                status="promoted",
                checkpoint_uri="m",
                config={},
                config_hash="c",
                labels_hash="l",
                seed=0,
                iterations=1,
            )
        )
    return opened


def test_a_document_replaces_the_former_one_of_its_kind_only(database: Database) -> None:
    with database.session() as session:
        put_assessment(session, model_id=1, kind="stress", document={"images": 3})
        put_assessment(session, model_id=1, kind="quality", document={"images": 1})
        put_assessment(session, model_id=1, kind="quality", document={"images": 2})
    found = {
        kind: ask(database, assessment_of, model_id=1, kind=kind) for kind in ("quality", "stress", "novelty")
    }
    assert {kind: row and row.document for kind, row in found.items()} == {
        "quality": {"images": 2},
        "stress": {"images": 3},
        "novelty": None,
    }

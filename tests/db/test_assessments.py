"""Documents about a model's uncertainty."""

from __future__ import annotations

from db.engine import Database
from db.queries.evaluations import assessment_of, put_assessment
from tests.factories import ask


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

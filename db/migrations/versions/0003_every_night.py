# pyright: basic
"""Leases, of shards and of whole steps; scores by run, without foreign keys; runs that are pruned

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
IMAGE_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BY_RUN = {"sqlite_with_rowid": False, "postgresql_partition_by": "LIST (run_id)"}
KEYS = {"region_score": ["run_id", "image_id", "region_index"], "image_score": ["run_id", "image_id"]}
UNIQUE = "uq_scoring_run_scorer_hash"


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.add_column("shard", sa.Column("owner", sa.Text(), nullable=True))
    op.add_column("shard", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("shard", sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("shard", sa.Column("regions", sa.Integer(), nullable=False, server_default="0"))
    _allow("shard", "status", ["pending", "running", "done"])
    op.add_column("scoring_run", sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("scoring_run") as batch:
        batch.drop_constraint(op.f(UNIQUE), type_="unique")
    alive = sa.text("pruned_at IS NULL")
    op.create_index(
        UNIQUE, "scoring_run", ["scorer_hash"], unique=True, sqlite_where=alive, postgresql_where=alive
    )
    _remake_scores(by_run=True)


def downgrade() -> None:
    """What only this revision can say is lost: leases, and runs that are pruned."""
    pruned = "SELECT id FROM scoring_run WHERE pruned_at IS NOT NULL"
    for table in KEYS:
        op.execute(f"DELETE FROM {table} WHERE run_id IN ({pruned})")
        if op.get_bind().dialect.name == "postgresql":  # their partitions are detached, if not dropped
            for (run,) in op.get_bind().exec_driver_sql(pruned).all():
                op.execute(f"DROP TABLE IF EXISTS {table}_{run}")
    op.execute(f"DELETE FROM shard WHERE run_id IN ({pruned})")
    op.execute(f"UPDATE queue SET run_id = NULL WHERE run_id IN ({pruned})")
    op.execute("DELETE FROM scoring_run WHERE pruned_at IS NOT NULL")
    _remake_scores(by_run=False)
    op.drop_index(UNIQUE, "scoring_run")
    with op.batch_alter_table("scoring_run") as batch:
        batch.drop_column("pruned_at")
        batch.create_unique_constraint(op.f(UNIQUE), ["scorer_hash"])
    op.execute("UPDATE shard SET status = 'pending' WHERE status = 'running'")
    _allow("shard", "status", ["pending", "done"])
    for column in ("regions", "attempts", "lease_until", "owner"):
        op.drop_column("shard", column)
    op.drop_table("lease")


def one_of(column: str, values: list[str]) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({listed})"


def _allow(table: str, column: str, values: list[str]) -> None:
    name = op.f(f"ck_{table}_{column}")
    with op.batch_alter_table(table) as batch:
        batch.drop_constraint(name, type_="check")
        batch.create_check_constraint(name, one_of(column, values))


def _remake_scores(*, by_run: bool) -> None:
    """Make the two score tables anew and fill them from the old ones, run by run."""
    bind = op.get_bind()
    on_postgresql = bind.dialect.name == "postgresql"
    for table, key in KEYS.items():
        old = f"{table}_old"
        if by_run:
            op.drop_index(op.f(f"ix_{table}_top"), table)
        elif table == "image_score":
            op.drop_index("ix_image_score_top", table)
            op.drop_index("ix_image_score_peak", table)
        op.rename_table(table, old)
        if on_postgresql:  # names of constraints are a schema's, not a table's
            op.execute(f"ALTER TABLE {old} DROP CONSTRAINT pk_{table}")
        op.create_table(
            table,
            *_score_columns(table, by_run=by_run),
            *([] if by_run else _references(table)),
            sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{table}")),
            **(BY_RUN if by_run else {}),
        )
        names = [column.name for column in _score_columns(table, by_run=False)]
        listed = ", ".join(names)
        for (run,) in bind.exec_driver_sql("SELECT id FROM scoring_run ORDER BY id").all():
            if by_run and on_postgresql:
                op.execute(f"CREATE TABLE {table}_{run} PARTITION OF {table} FOR VALUES IN ({run})")
            op.execute(
                f"INSERT INTO {table} ({listed}) SELECT {listed} FROM {old} WHERE run_id = {run}"
                f" ORDER BY {', '.join(key)}"
            )
        op.drop_table(old)
        if table == "image_score" or not by_run:
            op.create_index(f"ix_{table}_top", table, ["run_id", "entropy"])
    if by_run:
        op.execute(
            "UPDATE image_score SET entropy_max = (SELECT MAX(entropy) FROM region_score WHERE"
            " region_score.run_id = image_score.run_id AND region_score.image_id = image_score.image_id)"
        )
        op.create_index("ix_image_score_peak", "image_score", ["run_id", "entropy_max"])


def _score_columns(table: str, *, by_run: bool) -> list[sa.Column]:
    def whole(name: str) -> sa.Column:
        return sa.Column(name, sa.Integer(), nullable=False)

    def real(name: str, nullable: bool = False) -> sa.Column:
        return sa.Column(name, sa.REAL(), nullable=nullable)

    of_region = table == "region_score"
    return [
        whole("run_id"),
        sa.Column("image_id", IMAGE_ID, nullable=False),
        *map(whole, ["region_index", *"xywh"] if of_region else ["regions"]),
        whole("pixels"),
        sa.Column("predicted_class", sa.SmallInteger(), nullable=False),
        *map(real, ["class_share", "impurity", "least_confidence", "margin", "entropy"]),
        *(real(name, True) for name in ("expected_entropy", "mutual_information", "variation_ratio")),
        *map(real, ["energy", "max_logit"]),
        real("max_logit_norm", True),
        real("entropy_top10"),
        *([] if of_region or not by_run else [real("entropy_max", True)]),
        sa.Column("outline", sa.Text()) if of_region else sa.Column("heatmaps", DOCUMENT),
    ]


def _references(table: str) -> list[sa.ForeignKeyConstraint]:
    return [
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f(f"fk_{table}_image_id_image")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["scoring_run.id"], name=op.f(f"fk_{table}_run_id_scoring_run"), ondelete="CASCADE"
        ),
    ]

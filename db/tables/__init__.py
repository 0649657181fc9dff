"""Every table of the store, and nothing else; a module a subject.

Each table has a natural unique key, so that every insert can be repeated; times are UTC; URIs are POSIX
paths relative to the project's folder where the file lies inside it, absolute otherwise. The two score
tables are written in bulk by `db.queries.scores`; the others are small and are used through the ORM.
"""

from db.base import Base, utc_now
from db.tables.images import Failure, Image
from db.tables.labels import Label, LabelRegion
from db.tables.models import Assessment, Calibration, Evaluation, Metric, Model, ModelLabel, Round
from db.tables.project import Identity, Lease, Project
from db.tables.queues import PoolEstimate, Queue, QueueItem, QueuePlace
from db.tables.scores import ImageScore, RegionScore, Scores, ScoringRun, Shard
from db.tables.simulations import Simulation, SimulationCell

__all__ = [
    "Assessment",
    "Base",
    "Calibration",
    "Evaluation",
    "Failure",
    "Identity",
    "Image",
    "ImageScore",
    "Label",
    "LabelRegion",
    "Lease",
    "Metric",
    "Model",
    "ModelLabel",
    "PoolEstimate",
    "Project",
    "Queue",
    "QueueItem",
    "QueuePlace",
    "RegionScore",
    "Round",
    "Scores",
    "ScoringRun",
    "Shard",
    "Simulation",
    "SimulationCell",
    "utc_now",
]

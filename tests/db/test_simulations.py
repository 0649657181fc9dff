"""Simulations and their cells, on either backend."""

from __future__ import annotations

from db.queries import simulations
from db.queries.simulations import CellKey
from db.tables import Simulation, SimulationCell
from tests.factories import ask, count_rows, open_store


def test_the_settings_name_a_simulation_and_a_cell_is_replaced_by_the_same_one(store_url: str) -> None:
    database = open_store(store_url)
    key = CellKey("random", 0, 12)
    with database.session() as session:
        first = simulations.open_simulation(session, hash="a", settings={"budgets": [6, 12]})
        assert simulations.open_simulation(session, hash="a", settings={}).id == first.id
        other = simulations.open_simulation(session, hash="b", settings={})
        for miou in (0.1, 1 / 3):
            simulations.put_cell(session, first.id, key, {"miou": miou, "labels": 12})
        first_id, other_id = first.id, other.id
    assert ask(database, simulations.cells, first_id) == {key: {"miou": 1 / 3, "labels": 12}}
    assert ask(database, simulations.cell_keys, first_id) == {key}
    assert ask(database, simulations.cell_keys, other_id) == set()
    newest = ask(database, simulations.newest_simulation)
    assert newest is not None
    assert newest.hash == "a"
    with database.session() as session:
        session.delete(session.get_one(Simulation, first_id))
    assert count_rows(database, SimulationCell) == 0
    assert ask(database, simulations.newest_simulation) is None

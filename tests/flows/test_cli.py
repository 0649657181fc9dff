"""The command line before there is a model: init, config, status, and polite refusals."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from alembic.script import ScriptDirectory
from PIL import Image
from sqlalchemy import create_engine

from db import migrations
from tests.flows.console import Console


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return Console(tmp_path, monkeypatch, capsys)


@pytest.fixture
def begun(console: Console) -> Console:
    """In a folder with a configuration."""
    console.run("init", "--images", "pictures", "--classes", "ground,square")
    return console


def draw(path: Path, *, seed: int) -> None:
    """A 48×40 picture of a bright square on a dark ground."""
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
    x, y = generator.integers(4, 24, 2)
    picture[y : y + 12, x : x + 14] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def test_init_then_config_show_gives_the_same_settings(console: Console) -> None:
    answers = ("--images", "pictures", "--masks", "masks", "--classes", "ground, square", "--cell", "16")
    console.run("init", *answers)
    shown = console.json("config", "show")
    assert shown["data"]["images"] == ["pictures"]
    assert [item["name"] for item in shown["data"]["classes"]] == ["ground", "square"]
    assert shown["scoring"]["regions"]["cell"] == 16


def test_init_proposes_classes_from_the_masks(console: Console) -> None:
    draw(console.folder / "pictures" / "a.png", seed=1)
    (console.folder / "masks").mkdir()
    Image.fromarray(np.array([[0, 255]] * 2, dtype=np.uint8)).save(console.folder / "masks" / "a.png")
    said = console.run("init", "--images", "pictures", "--masks", "masks", "--classes", "ground,square")
    assert "The masks' values: 0 (50 %), 255 (50 %)." in said
    data = console.json("config", "show")["data"]
    assert [(item["name"], item["id"]) for item in data["classes"]] == [("ground", 0), ("square", 255)]
    assert data["ignore_index"] == []
    console.run("init", "--images", "pictures", "--masks", "masks", "--force")
    assert [item["name"] for item in console.json("config", "show")["data"]["classes"]] == [
        "background",
        "class 255",
    ]


def test_a_label_map_that_cannot_be_leaves_no_configuration(console: Console) -> None:
    (console.folder / "map.json").write_text('["road", {"name": "car", "id": 0}]', encoding="utf-8")
    said = console.run("init", "--images", "pictures", "--label-map", "map.json", code=1)
    assert "Two classes have the same id" in said
    assert not (console.folder / "segcurate.yaml").exists()


def test_init_never_overwrites_without_force(console: Console) -> None:
    (console.folder / "segcurate.yaml").write_text("mine", encoding="utf-8")
    assert "--force" in console.run("init", "--images", "a", "--classes", "a,b", code=1)
    assert (console.folder / "segcurate.yaml").read_text(encoding="utf-8") == "mine"


def test_the_schema_explains_each_key(console: Console) -> None:
    schema = json.loads(console.run("config", "schema"))
    assert "audit" in json.dumps(schema)
    assert schema["additionalProperties"] is False


def test_a_typo_in_the_file_ends_with_a_hint_and_exit_code_1(begun: Console) -> None:
    text = (begun.folder / "segcurate.yaml").read_text(encoding="utf-8")
    (begun.folder / "segcurate.yaml").write_text(text.replace("budget:", "buget:"), encoding="utf-8")
    message = begun.run("status", code=1)
    assert "selection.buget" in message
    assert "`budget`" in message
    assert "Traceback" not in message


def test_each_command_of_a_round_waits_for_its_turn(begun: Console) -> None:
    for index in range(4):
        draw(begun.folder / "pictures" / f"{index}.png", seed=index)
    for command in ("train", "calibrate", "evaluate", "score", "select", "export"):
        assert "segcurate ingest" in begun.run(command, code=1)


def test_a_database_of_another_revision_names_the_command_to_run(begun: Console) -> None:
    begun.run("status")
    with sqlite3.connect(begun.folder / ".segcurate" / "segcurate.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'f00d'")
    assert "revision f00d" in begun.run("status", code=1)


def test_unknown_options_of_select_are_refused_like_the_file(begun: Console) -> None:
    message = begun.run("select", "--strategy", "entrpy", code=1)
    assert "selection.strategy" in message
    assert "'entropy'" in message


HEAVY = {
    "torch",
    "prefect",
    "scipy",
    "numpy",
    "PIL",
    "tifffile",
    "cv2",
    "skimage",
    "matplotlib",
    "imagecodecs",
}
HEAVY |= {"albumentations", "pycocotools", "alembic", "sqlalchemy", "pydantic"}
"""Packages whose import takes more than a tenth of a second, or imports one that does."""


def imported(*arguments: str, folder: Path) -> tuple[set[str], str]:
    """The heavy packages that a command has imported, and what it printed, in a process of its own."""
    code = (
        "import atexit, sys, flows.cli as cli\n"
        f"atexit.register(lambda: print('imported', *({HEAVY!r} & set(sys.modules))))\n"
        f"sys.argv = ['segcurate', *{arguments!r}]\n"
        "cli.main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, cwd=folder
    )
    printed, _, names = result.stdout.rpartition("imported")
    return set(names.split()), printed + result.stderr


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_need_no_project_and_none_of_the_heavy_packages(tmp_path: Path, option: str) -> None:
    names, printed = imported(option, folder=tmp_path)
    assert names == set()
    assert "segcurate" in printed


def test_status_answers_before_torch_is_imported(begun: Console) -> None:
    begun.run("status")
    names, printed = imported("status", folder=begun.folder)
    assert "segcurate ingest" in printed
    assert names == {"sqlalchemy", "pydantic"}


REFUSED = {
    "train": "cannot run yet",
    "calibrate": "cannot run yet",
    "evaluate": "cannot run yet",
    "score": "cannot run yet",
    "select": "cannot run yet",
    "select --strategy entrpy": "selection.strategy",
    "export": "cannot run yet",
    "export --queue round-09": "no queue 'round-09'",
    "import nothing.zip": "nothing.zip",
    "import pictures": "cannot run yet",
    "import --from label-studio": "address of the label-studio server",
    "sync": "`folder` is no tool with a server",
    "assess": "No model has been trained yet",
    "assess --sampler coins": "no sampler 'coins'",
    "assess --model r09": "no trained model `r09`",
    "stress": "No model has been trained yet",
    "novelty": "No model has been trained yet",
    "novelty --classes moon": "no class `moon`",
    "disagreements": "no finished scores yet",
    "review": "No model has been promoted yet",
    "review --budget 0": "at least 1, but got 0",
    "report": "no model has been evaluated",
    "loop --rounds 0": "at least 1, but got 0",
    "loop --rounds 1 --annotator owls": "no annotator 'owls'",
    "prune": "number of runs to keep",
    "queue round-09": "no queue 'round-09'",
}
"""Commands that a new project refuses, and words of their messages."""
READS_FILES = ("disagreements", "import nothing.zip", "import pictures")
"""Refused commands that are refused by what reads labels or scores: with numpy and Pillow, without torch."""


def test_every_refused_command_answers_before_heavy_packages_are_imported(begun: Console) -> None:
    draw(begun.folder / "pictures" / "a.png", seed=1)
    begun.run("status")
    unwanted = HEAVY - {"sqlalchemy", "pydantic"}
    order = sorted(REFUSED, key=lambda line: line in READS_FILES)
    code = (
        "import sys, flows.cli as cli\n"
        f"for line in {order!r}:\n"
        "    sys.argv = ['segcurate', *line.split()]\n"
        "    print('>', line, file=sys.stderr)\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as end:\n"
        f"        print('exit', end.code, *({unwanted!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=begun.folder,
    )
    answers = dict(part.split("\n", 1) for part in result.stderr.split("> ")[1:])
    for line, words in REFUSED.items():
        answer = " ".join(answers[line].split())
        assert words in answer, (line, answer)
        if line not in READS_FILES:
            assert answer.endswith("exit 1"), (line, answer)
        assert "torch" not in answer.rpartition("exit 1")[2], (line, answer)


def test_verbose_shows_none_of_alembics_lines(begun: Console) -> None:
    _, printed = imported("-v", "status", folder=begun.folder)
    assert "INFO" not in printed


def test_the_newest_revision_is_the_one_that_alembic_finds() -> None:
    with create_engine("sqlite://").connect() as connection:
        script = ScriptDirectory.from_config(migrations.alembic_config(connection.engine))
    assert migrations.head() == script.get_current_head()

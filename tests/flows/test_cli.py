"""The command line before there is a model: init, config, status, and polite refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import cli


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def segcurate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the console script in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["segcurate", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def draw(path: Path, *, seed: int, mask: Path | None = None) -> None:
    """A 48×40 picture of a bright square on a dark ground, and its mask."""
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
    x, y = generator.integers(4, 24, 2)
    picture[y : y + 12, x : x + 14] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    if mask is not None:
        classes = np.zeros((40, 48), dtype=np.uint8)
        classes[y : y + 12, x : x + 14] = 1
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(classes).save(mask)


def test_init_then_config_show_gives_the_same_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ("--images", "pictures", "--masks", "masks", "--classes", "ground, square", "--cell", "16")
    assert segcurate(monkeypatch, "init", *answers) == 0
    capsys.readouterr()
    assert segcurate(monkeypatch, "config", "show", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["data"]["images"] == ["pictures"]
    assert [item["name"] for item in shown["data"]["classes"]] == ["ground", "square"]
    assert shown["scoring"]["regions"]["cell"] == 16


def test_init_never_overwrites_without_force(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "segcurate.yaml").write_text("mine", encoding="utf-8")
    assert segcurate(monkeypatch, "init", "--images", "a", "--classes", "a,b") == 1
    assert (folder / "segcurate.yaml").read_text(encoding="utf-8") == "mine"
    assert "--force" in capsys.readouterr().err


def test_the_schema_explains_each_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segcurate(monkeypatch, "config", "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert "audit" in json.dumps(schema)
    assert schema["additionalProperties"] is False


def test_a_typo_in_the_file_ends_with_a_hint_and_exit_code_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segcurate(monkeypatch, "init", "--images", "pictures", "--classes", "a,b") == 0
    text = (folder / "segcurate.yaml").read_text(encoding="utf-8")
    (folder / "segcurate.yaml").write_text(text.replace("budget:", "buget:"), encoding="utf-8")
    assert segcurate(monkeypatch, "status") == 1
    message = capsys.readouterr().err
    assert "selection.buget" in message
    assert "`budget`" in message
    assert "Traceback" not in message


def test_each_command_of_a_round_waits_for_its_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segcurate(monkeypatch, "init", "--images", "pictures", "--classes", "ground,square") == 0
    for index in range(4):
        draw(folder / "pictures" / f"{index}.png", seed=index)
    for command in ("train", "calibrate", "evaluate", "score", "select", "export"):
        assert segcurate(monkeypatch, command) == 1
        assert "segcurate ingest" in capsys.readouterr().err


def test_a_database_of_another_revision_names_the_command_to_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sqlite3

    assert segcurate(monkeypatch, "init", "--images", "pictures", "--classes", "a,b") == 0
    assert segcurate(monkeypatch, "status") == 0
    with sqlite3.connect(folder / ".segcurate" / "segcurate.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'f00d'")
    capsys.readouterr()
    assert segcurate(monkeypatch, "status") == 1
    assert "revision f00d" in capsys.readouterr().err


def test_unknown_options_of_select_are_refused_like_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segcurate(monkeypatch, "init", "--images", "pictures", "--classes", "a,b") == 0
    assert segcurate(monkeypatch, "select", "--strategy", "entrpy") == 1
    message = capsys.readouterr().err
    assert "selection.strategy" in message
    assert "'entropy'" in message


def test_help_and_version_need_no_project_and_no_torch(folder: Path) -> None:
    code = (
        "import sys, flows.cli as cli\n"
        "sys.argv = ['segcurate', '--version']\n"
        "try:\n    cli.main()\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'prefect' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("segcurate ")

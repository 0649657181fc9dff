"""A queue of many large images out to each labeling tool's files, and labels back into the store: CPU seconds
and peak memory, for a tenth of the tasks and for all of them.

What goes out are masks that are made here, of whole images; predicting them is another benchmark's. Images
are linked. Each export and each import is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from db.engine import Database
from db.tables import Image, Queue, QueueItem, Round, utc_now
from pipeline.config import ProjectConfig
from pipeline.data.project import Project
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.manifest import ManifestRegion, export_name
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from pipeline.labeling.tools import TOOLS

CLASSES = 8
DISTINCT = 8
"""Pictures and basic masks; every task's mask differs in some pixels."""


@dataclass(frozen=True)
class Measured:
    """What one process has taken: CPU seconds, and MiB at its peak and before it began."""

    seconds: float
    peak: float
    before: float
    size: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS))
    parser.add_argument("--no-overlays", action="store_true", help="Leave the pictures of where to look out.")
    parser.add_argument("--work", choices=["export", "import"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work = _export if given.work == "export" else _import
        print(json.dumps(work(given.folder, given.tools[0], given.tasks, given.side, not given.no_overlays)))
        return
    print(
        f"{given.tasks} tasks of {given.side}×{given.side}, {CLASSES} classes, "
        f"{'without' if given.no_overlays else 'with'} pictures of where to look"
    )
    print("| tool | tasks | export CPU s | import CPU s | export peak (idle) MiB | import's | files MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for tool in given.tools:
        for tasks in (given.tasks // 10, given.tasks):
            with tempfile.TemporaryDirectory(prefix="bench-labeling-") as folder:
                out, back = (_run(Path(folder), work, tool, tasks, given) for work in ("export", "import"))
            times = f"{out.seconds:.1f} | {back.seconds:.1f}"
            peaks = f"{out.peak:.0f} ({out.before:.0f}) | {back.peak:.0f} ({back.before:.0f})"
            print(f"| {tool} | {tasks} | {times} | {peaks} | {out.size:.0f} |", flush=True)


def _run(folder: Path, work: str, tool: str, tasks: int, given: argparse.Namespace) -> Measured:
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_labeling",
        "--work",
        work,
        "--folder",
        str(folder),
    ]
    command += ["--tools", tool, "--tasks", str(tasks), "--side", str(given.side)]
    command += ["--no-overlays"] if given.no_overlays else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _export(folder: Path, tool: str, tasks: int, side: int, overlays: bool) -> dict[str, float]:
    project = _project(folder)
    _fill(project, folder, tasks, side)
    out = folder / "out"
    out.mkdir()
    queue = OutgoingQueue(
        name="round-01",
        round=1,
        kind="selected",
        project="bench",
        root=folder,
        model="r01",
        labels=LabelMap(project.config.data),
        overlays=overlays,
    )
    images = _images(folder, tasks, side)
    first = next(images)
    before = _forget_peak()
    begun = time.process_time()
    writer = TOOLS[tool].writer(out, queue)
    writer.add(first)
    for image in images:
        writer.add(image)
    writer.finish()
    seconds = time.process_time() - begun
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and not path.is_symlink())
    return {"seconds": seconds, "peak": _resident("VmHWM"), "before": before, "size": size / 2**20}


def _import(folder: Path, tool: str, tasks: int, side: int, overlays: bool) -> dict[str, float]:
    from pipeline.steps.import_labels import import_labels

    source = _finished(folder, tool)
    project = _project(folder)
    database = Database(project.database_url)
    before = _forget_peak()
    begun = time.process_time()
    report = import_labels(project, database, source=source, tool=tool, queue="round-01")
    seconds = time.process_time() - begun
    database.close()
    if report.imported != tasks or report.rejected:
        raise SystemExit(f"{tool}: {report.imported} of {tasks} imported, {report.rejected[:3]}")
    return {"seconds": seconds, "peak": _resident("VmHWM"), "before": before, "size": 0.0}


def _finished(folder: Path, tool: str) -> Path:
    """What the tool would export if its annotators agreed with every proposal."""
    out = folder / "out"
    if tool == "folder":
        shutil.rmtree(out / "masks")
        (out / "premasks").rename(out / "masks")
        return out
    if tool == "label-studio":
        return _submitted(out / "tasks.json", folder / "project.json")
    if tool in ("coco", "coco-panoptic"):
        shutil.copytree(out / "annotations", folder / "annotations")
        return next((folder / "annotations").glob("*.json"))
    inside = {"cvat": "annotations.xml"}.get(tool)
    file = folder / "task.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(out.rglob(inside or "*")):
            if path.is_file() and (
                inside or path.parent.name in ("SegmentationClass", "Segmentation", "out")
            ):
                archive.write(path, path.relative_to(out))
    return file


def _submitted(tasks: Path, file: Path) -> Path:
    """Predictions turned into annotations, a task at a time."""
    with tasks.open() as source, file.open("w") as target:
        for number, line in enumerate(source):
            text = line.strip().rstrip(",")
            if not text.startswith("{"):
                target.write(line)
                continue
            task: dict[str, Any] = json.loads(text)
            (prediction,) = task.pop("predictions")
            annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "lead_time": 10.0}
            times = {"created_at": "2026-11-01T09:00:00Z", "updated_at": "2026-11-01T10:00:00Z"}
            task["id"] = number
            task["annotations"] = [{**annotation, **times, "result": prediction["result"]}]
            target.write(json.dumps(task) + (",\n" if line.rstrip().endswith(",") else "\n"))
    return file


def _project(folder: Path) -> Project:
    classes = [{"name": f"class {index}", "id": index} for index in range(CLASSES)]
    data: dict[str, Any] = {"images": ["images"], "classes": classes}
    return Project(config=ProjectConfig(name="bench", data=data), root=folder)  # pyright: ignore[reportArgumentType]


def _fill(project: Project, folder: Path, tasks: int, side: int) -> None:
    """A store with a queue of whole images, whose turn it is to be imported."""
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(DISTINCT):
        noise = generator.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        picture = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
        PillowImage.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"{number}.jpg", quality=85)
    database = Database(project.database_url)
    with database.session() as session:
        current = Round(number=1, state="import")
        session.add(current)
        session.flush()
        queue = Queue(
            round_id=current.id, name="round-01", kind="selected", strategy="entropy", unit="image", seed=0
        )
        queue.spec, queue.exported_at = {}, utc_now()
        session.add(queue)
        session.flush()
        for number in range(tasks):
            name = f"images/{number:06d}.jpg"
            size = {"width": side, "height": side, "channels": 3}
            image = Image(
                uri=name, sha256=f"{number:064x}", group_name="g", position=number, split="pool", **size
            )
            session.add(image)
            session.flush()
            item = QueueItem(queue_id=queue.id, rank=number + 1, image_id=image.id, region_index=0, x=0, y=0)
            item.w, item.h, item.slice, item.reason = side, side, "selected", "entropy 0.50"
            session.add(item)
    database.close()


def _images(folder: Path, tasks: int, side: int) -> Iterator[OutgoingImage]:
    masks = [_mask(np.random.default_rng(number), side) for number in range(DISTINCT)]
    look = cv2.GaussianBlur(np.random.default_rng(0).random((side, side), dtype=np.float32), (0, 0), 16)
    for number in range(tasks):
        mask = masks[number % DISTINCT].copy()
        mask[0, :32] = [number >> bit & 1 for bit in range(32)]
        uri = f"images/{number:06d}.jpg"
        region = ManifestRegion(
            item=number + 1,
            rank=number + 1,
            x=0,
            y=0,
            w=side,
            h=side,
            slice="selected",
            reason="entropy 0.50",
        )
        yield OutgoingImage(
            image_id=number + 1,
            uri=uri,
            sha256=f"{number:064x}",
            width=side,
            height=side,
            name=export_name(rank=number + 1, image_id=number + 1, uri=uri),
            rank=number + 1,
            position=number,
            source=folder / "images" / f"{number % DISTINCT}.jpg",
            scores={"entropy": 0.5},
            mask=mask,
            map=look.astype(np.float32),
            title="entropy",
            regions=[region],
        )


def _mask(generator: np.random.Generator, side: int) -> npt.NDArray[np.uint8]:
    """Blobs of every class, some hundred parts, with ragged borders and holes."""
    fields = [
        cv2.GaussianBlur(generator.random((side // 4, side // 4), dtype=np.float32), (0, 0), 6)
        for _ in range(CLASSES)
    ]
    whole = [cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR) for field in fields]
    return np.argmax(np.stack(whole), axis=0).astype(np.uint8)


def _forget_peak() -> float:
    """Let the peak begin at what is resident now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


if __name__ == "__main__":
    main()

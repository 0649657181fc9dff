"""Run as a program: pulls from servers, each in a process of its own whose memory is measured.

Each line of its input has a tool, an address, a folder and limits as JSON; it answers each with an outcome.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.labeling.servers import cvat, cvat_client, cvat_http, label_studio, label_studio_http, limits
from pipeline.labeling.servers.base import LabelingServer
from tests.memory import status

TOKEN = "abc123.secret"


def peak() -> float:
    """MiB that this process has needed so far; unlike `ru_maxrss`, without those of its parent."""
    return status("VmHWM") / 1024**2


def attacked(tool: str, url: str, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Outcome, peak of memory in MiB, and seconds of a pull."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    places = settings.pop("places", ["1"])
    for name, value in settings.items():
        modules = (limits, cvat_http, cvat_client, label_studio, label_studio_http)
        for module in (module for module in modules if hasattr(module, name)):
            setattr(module, name, tuple(value) if isinstance(value, list) else value)
    before, begun = peak(), time.monotonic()
    try:
        server: LabelingServer = (
            cvat.CvatServer(url, TOKEN, project="streets", project_id="a" * 32, timeout=5)
            if tool == "cvat"
            else label_studio.LabelStudioServer(url, TOKEN, project="streets", project_id="a" * 32, timeout=5)
        )
        is_begun = server.is_begun(queue="round-03", places=places)
        pulled = server.pull(queue="round-03", places=places, into=Path(folder))
        outcome = f"pulled {len(pulled.files)} files, begun {is_begun}"
    except UserError as error:
        outcome = str(error)
    except BaseException:
        outcome = traceback.format_exc()
    return {"outcome": outcome, "mib": peak() - before, "seconds": time.monotonic() - begun}


def main() -> None:
    cvat_client.POLL_SECONDS = 0.01
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            print(json.dumps(attacked(*json.loads(line))), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()

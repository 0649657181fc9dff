"""Commands for scheduled work: on this machine, or on a Prefect server and its workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import configured_project, opened_project, opened_runner, state, step_named
from flows.cli.automatic import AUTOMATIC
from flows.cli.display import console, literal, table
from pipeline.format import counted

if TYPE_CHECKING:
    from db.tables import Identity
    from flows.deployments import Deployment, Deployments

PASSWORD_FILE = "prefect-password"
"""The file in the workdir with the password of `serve`'s private Prefect server."""
SERVER_FILE = "prefect-server"
"""The file in the workdir with the process of that server."""

commands = typer.Typer()
prefect_app = typer.Typer(help="Prepare a Prefect server.", no_args_is_help=True)

File = Annotated[
    Path | None, typer.Option("--file", help="Instead of configs/prefect.yaml: which flows run, and when.")
]


@commands.command(rich_help_panel=AUTOMATIC)
def serve(
    file: File = None,
    port: Annotated[int, typer.Option(help="Port of the Prefect server that it starts.")] = 4200,
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time, of all deployments together.")] = 2,
) -> None:
    """Run every schedule on this machine, until stopped. Starts a Prefect server if none is configured."""
    deployments, identity = _deployments(file)
    from flows.prefect_server import (
        configured_server,
        private_password,
        private_server,
        require_server,
        use_server,
    )
    from flows.serving import serve_until_stopped

    if configured_server() is not None:
        use_server(require_server(), deployments.environment)
        serve_until_stopped(deployments, identity, limit=limit, ready=_show)
        return
    workdir = configured_project().workdir
    secret, record = workdir / PASSWORD_FILE, workdir / SERVER_FILE
    password = private_password(secret)
    with private_server(port, password=password, record=record) as url:
        use_server(url, deployments.environment, password=password)
        console.print(
            f"Prefect: [bold]{url.removesuffix('/api')}[/]; the password is in {literal(str(secret))}."
        )
        console.print(
            literal(f'Other commands: PREFECT_API_URL={url} PREFECT_API_AUTH_STRING="$(cat {secret})"')
        )
        serve_until_stopped(deployments, identity, limit=limit, ready=_show)


@commands.command(rich_help_panel=AUTOMATIC)
def deploy(file: File = None) -> None:
    """Register the schedules on the Prefect server, for workers to run. Run again, it updates them."""
    deployments, identity = _deployments(file)
    from flows.prefect_server import require_server
    from flows.serving import register

    url = require_server()
    register(deployments, identity)
    _show(deployments.deployments)
    for pool in deployments.pools:
        console.print(f"Next, on each machine: [bold]prefect worker start --pool {literal(pool)}[/]")
    console.print(f"Registered at {literal(url)}.")


@commands.command(rich_help_panel=AUTOMATIC)
def prune(
    keep_runs: Annotated[
        int | None, typer.Option(min=1, help="Scoring runs to keep. Without it: `nightly.keep_runs`.")
    ] = None,
) -> None:
    """Delete the region scores of all but the latest scoring runs."""
    from pipeline.errors import ConfigError

    with opened_runner() as runner:
        keep = keep_runs if keep_runs is not None else runner.project.config.nightly.keep_runs
        if keep is None:
            raise ConfigError(
                "The number of runs to keep is not set.", "Add `--keep-runs 5`, or set `nightly.keep_runs`."
            )
        runner.run(step_named("prune"), keep_runs=keep)


@prefect_app.command("setup")
def setup(
    file: File = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Runs at a time in the whole work pool.")] = None,
) -> None:
    """Create or update the work pool, its limits, and the automations for dead runs and retraining."""
    deployments, identity = _deployments(file)
    from flows.prefect_server import require_server
    from flows.serving import put_automations, put_pools

    require_server()
    automations = put_automations(deployments, identity)
    for line in (*put_pools(deployments, limit=limit), *automations):
        console.print(literal(line))


@prefect_app.command("alerts")
def alerts(
    to: Annotated[
        str,
        typer.Option(
            envvar="SEGCURATE_ALERTS_TO",
            help="Where to, as Apprise writes it: json://host/path, mailtos://…, or a Slack webhook's https://….",
        ),
    ],
) -> None:
    """Send a message when a run fails, crashes, or ends with warnings. Run again, it changes the address."""
    from flows.prefect_server import require_server
    from flows.serving import put_alerts

    require_server()
    console.print(literal(put_alerts(to)))


def _deployments(file: Path | None) -> tuple[Deployments, Identity]:
    """The project's deployments, and the project's identity."""
    from flows.deployments import read_deployments
    from pipeline.ownership import identity_of

    # a mistake in the configuration is an error now, not in the first nightly run
    with opened_project() as (project, database):
        identity = identity_of(project, database)
    return read_deployments(file, config=state.config_file).of(identity), identity


def _show(deployments: Sequence[Deployment]) -> None:
    from flows.serving import next_run

    rows: list[tuple[str, str, str | None]] = []
    for deployment in deployments:
        schedules = [
            f"{schedule.cron} {schedule.timezone}" + ("" if schedule.active else " (off)")
            for schedule in deployment.schedules
        ]
        when = next_run(deployment)
        rows.append((deployment.name, ", ".join(schedules), when and f"{when:%a %Y-%m-%d %H:%M %Z}"))
    table(counted(len(rows), "deployment"), ("deployment", "schedule", "next run"), rows)

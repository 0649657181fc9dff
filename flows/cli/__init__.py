"""`segcurate …`: each command opens the project, calls one step, and prints its report.

Heavy imports (torch, matplotlib) stay inside the commands, so that `--help` and a mistyped key answer fast.
"""

from flows.cli import automatic, labeling, look, operate, project, round, trust
from flows.cli.app import PROJECT, app, config_app, db_app, main

# The order of the panels in `--help`
for module in (project, round, labeling, automatic, operate, trust, look):
    app.add_typer(module.commands)
app.add_typer(config_app, name="config", rich_help_panel=PROJECT)
app.add_typer(db_app, name="db", rich_help_panel=PROJECT)
app.add_typer(operate.prefect_app, name="prefect", rich_help_panel=automatic.AUTOMATIC)

__all__ = ["app", "main"]

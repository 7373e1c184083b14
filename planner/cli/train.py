"""`srsplan train`: the chosen configuration on real interactions."""

from __future__ import annotations

from srsplan.planner.cli import console
from srsplan.planner.cli.options import options_of
from srsplan.planner.cli.train_options import TrainOptions


@options_of(TrainOptions)
def train_command(options: TrainOptions) -> None:
    """Train a plan's configuration, test it by full ranking, and keep everything needed to repeat it."""
    from srsplan.planner.cli.train_runs import train_all  # imports torch
    from srsplan.planner.cli.train_screens import show_results

    documents = train_all(options)
    if options.json:
        console.print_json(documents[0] if len(documents) == 1 else {"runs": documents})
    else:
        show_results(documents)

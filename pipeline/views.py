"""What people read of a run: its report, and the card of every model it made.

Both are views: written again from manifests and metrics whenever a stage ends, never read by a stage.

    make report RUN=NAME
"""

from pathlib import Path

from pipeline.model_card import write_model_cards
from pipeline.report import write_report


def write_views(run_dir: Path) -> Path:
    """Writes the report and the model cards of the run at `run_dir`; returns the page of the report.

    Raises ArtifactError when there is no such run.
    """
    write_model_cards(run_dir)
    return write_report(run_dir)

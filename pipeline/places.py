"""Where things lie: the project's own folders and the runs."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
DATA_CARDS = ROOT / "data_cards"


def runs_folder() -> Path:
    """`runs/` in the project, or the folder in the environment variable R1_RUNS."""
    return Path(os.environ.get("R1_RUNS") or ROOT / "runs").resolve()

"""Where things lie: the project's own folders and the runs."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
DATA_CARDS = ROOT / "data_cards"


def runs_folder() -> Path:
    """`runs/` in the project, or the folder in the environment variable R1_RUNS."""
    return Path(os.environ.get("R1_RUNS") or ROOT / "runs").resolve()


def stays_inside(path: str) -> bool:
    """Whether a path that a config or a data set names, joined to a folder, stays in that folder."""
    return bool(path) and path.isprintable() and path[0] not in "/~" and ".." not in path.split("/")

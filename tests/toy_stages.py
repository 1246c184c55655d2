"""Toy stages that make a data set, checkpoints and metrics in milliseconds; as a script, the CLI with them."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import DataError, StageFailed
from pipeline.refs import CHECKPOINT, DATASET, METRICS, CheckpointRef, DatasetRef
from pipeline.stage import Inputs, Runtime, Stage, Workdir


class Count(Stage):
    """Makes rows 1..n; can be told to fail in many ways, to be killed once, or to be slow."""

    kind: ClassVar[str] = "count"
    makes: ClassVar[str] = DATASET
    spreads: ClassVar[bool] = True
    n: int = 3
    trouble: Runtime[str] = ""
    pause_s: Runtime[float] = 0.0

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        tries = work.path / "tries"
        if os.environ.get("RANK", "0") == "0":
            tries.write_text(_old(tries) + "x")
        else:  # the first process may have published already
            (work.path.parent / "helped").touch()
        if self.trouble == "data":
            raise DataError("the toy has no rows", hint="give it some")
        if self.trouble == "half a character":
            raise DataError("the row '\ud800' is bad", hint="write '\ud800' otherwise")
        if self.trouble == "token":
            raise DataError(f"https://me:{os.environ['DB_PASSWORD']}@host refuses {os.environ['HF_TOKEN']}")
        if self.trouble == "data in the second process" and os.environ.get("RANK") == "1":
            raise DataError("the second process has no rows", hint="give it some")
        if self.trouble == "bug":
            raise KeyError("a bug")
        if self.trouble == "bug in a reward":
            raise StageFailed("the reward 'toy' failed") from KeyError("a bug")
        if self.trouble == "always memory" or (self.trouble == "memory" and len(tries.read_text()) == 1):
            raise MemoryError
        if self.trouble.startswith("clock "):
            _jump(float(self.trouble.partition(" ")[2]))
        if self.trouble == "killed" and len(tries.read_text()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for step in range(self.n):
            work.progress(step + 1, self.n, "counting")
            if self.trouble == "deaf":
                (work.path / "late.txt").write_text(str(step))
            time.sleep(self.pause_s)
        work.write_jsonl("rows.jsonl", ({"number": str(i + 1)} for i in range(self.n)))
        return {"rows": self.n}


class Sum(Stage):
    """A checkpoint that remembers the sum of its data: numbers that a stage has counted, or the texts of a card."""

    kind: ClassVar[str] = "sum"
    makes: ClassVar[str] = CHECKPOINT
    data: DatasetRef
    rate: float = 1.0

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        total = sum(int(row.get("number") or row["text"]) for row in inputs.rows("data")) * self.rate
        work.write_json("config.json", {"total": total})
        return {"total": total}


class Climb(Stage):
    """Trains one number, with curves and checkpoints as a trainer has them."""

    kind: ClassVar[str] = "climb"
    makes: ClassVar[str] = CHECKPOINT
    max_steps: int = 40
    save_steps: Runtime[int] = 1
    pause_s: Runtime[float] = 0.0

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        from stages.engines import checkpoints

        newest = checkpoints.newest_whole(work.checkpoints)
        begun_at = checkpoints.step_of(newest) if newest else 0
        number = int((newest / "number").read_text()) if newest else self.seed
        work.rewind(begun_at)
        for step in range(begun_at + 1, self.max_steps + 1):
            number = (31 * number + step) % 1_000_003
            work.log(step, {"number": number})
            if step % self.save_steps == 0:
                save_number(checkpoints.folder_of(work.checkpoints, step), number)
            work.progress(step, self.max_steps)
            time.sleep(self.pause_s)
        work.write_json("config.json", {"number": number})
        return {"begun_at": begun_at}


def save_number(checkpoint: Path, number: int) -> None:
    """A checkpoint of a Climb; the third is rotated away."""
    from stages.engines.checkpoints import in_the_making

    with in_the_making(checkpoint):
        checkpoint.mkdir(parents=True)
        (checkpoint / "number").write_text(str(number))


class Look(Stage):
    """Metrics of a checkpoint."""

    kind: ClassVar[str] = "look"
    makes: ClassVar[str] = METRICS
    model: CheckpointRef

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        total = json.loads(Path(inputs.checkpoint("model").path, "config.json").read_text())["total"]
        metrics = {"pass_at_1": {"value": total, "ci95": [total, total], "n": 1}}
        work.write_json("metrics.json", metrics)
        return metrics


TOYS = {cls.kind: cls for cls in (Count, Sum, Climb, Look)}


def _jump(seconds: float) -> None:
    """Sets the clock on the wall of this process; nobody else sees it."""
    now = time.time
    time.time = lambda: now() + seconds


def _old(path: Any) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    # The command line with the toys in it: what tests start where a process of its own is needed.
    from pipeline import runner, written
    from pipeline.cli import main
    from stages import STAGES

    STAGES.update(TOYS)
    written.CONFIGS = Path(os.environ["R1_TOY_CONFIGS"])
    runner.WORKER = [sys.executable, __file__, "_stage"]
    runner.LAUNCHER = [sys.executable, __file__, "_launch"]
    sys.exit(main(sys.argv[1:]))

"""What a person sees while a run works: the plan, a bar per stage with the time left, one line per finished stage."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipeline.errors import printable
from pipeline.plan import Line
from pipeline.runner import Watch
from pipeline.verify import Verified

STYLE = {"done": "green", "resume": "yellow", "to do": "cyan", "stale": "red", "damaged": "red"}
_IS_TERMINAL = sys.stdout.isatty()
_WIDTH = None if _IS_TERMINAL or "COLUMNS" in os.environ else 100  # rich takes a pipe for 80 wide, and cuts tables
console = Console(highlight=False, markup=False, soft_wrap=not _IS_TERMINAL, width=_WIDTH)
"""Prints text as it is: what is in square brackets may come from a config, a card or a model, and is no markup."""


def show_plan(title: str, lines: list[Line], seconds: Mapping[str, float | None]) -> None:
    """One line per stage: *done*, *resume at step 120*, *to do*, *stale (learning_rate 1e-05 → 2e-05)*.

    `seconds` holds every stage that is not done with the time it is expected to take, None where nobody knows.
    """
    console.print(title, style="bold")
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "kind", "state"):
        table.add_column(column, overflow="fold")
    known = [value for value in seconds.values() if value is not None]
    if known:
        table.add_column("expected", justify="right", no_wrap=True)
    for line in lines:
        expected = [_minutes(seconds[line.stage]) if line.stage in seconds else ""] if known else []
        table.add_row(line.stage, line.kind, Text(printable(_state(line)), STYLE[line.state]), *expected)
    console.print(table)
    if known:
        unknown = len(seconds) - len(known)
        console.print(f"expected in all: {_minutes(sum(known))}" + (f", {unknown} not counted" if unknown else ""))


def show_note(sentence: str) -> None:
    """Something to know before a run starts."""
    console.print(f"note: {sentence}", style="yellow")


def show_counts(stage: str, counts: Mapping[str, Any]) -> None:
    """What the rules of a stage keep and leave out, a line for each group of counts."""
    console.print(stage, style="bold")
    for name, count in counts.items():
        console.print(f"  {name.replace('_', ' ')}: {_told(count)}")


def _told(count: Any) -> str:
    """`found 8,449, kept 7,012`; a group inside a group in brackets; `math, en 5; math, zh 7` if names hold commas."""
    if not isinstance(count, Mapping):
        return f"{count:,}" if isinstance(count, int) else f"{count:.3g}" if isinstance(count, float) else str(count)
    parts = (f"({_told(part)})" if isinstance(part, Mapping) else _told(part) for part in count.values())
    comma = "; " if any("," in name for name in count) else ", "
    return comma.join(f"{name} {told}" for name, told in zip(count, parts, strict=True)) or "none"


def _minutes(seconds: float | None) -> str:
    """`0.4 min`, `12 min`, `3 h 05 min`; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 570:
        return f"{seconds / 60:.1f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def show_done(manifest: Mapping[str, Any]) -> None:
    """One line for a finished stage: its seconds and its headline figures."""
    done = f" in {manifest['seconds']:.0f} s  {_headline(manifest['metrics'])}"
    console.print(Text(f"{manifest['stage']} done", "green").append(done, ""))


def show_verified(found: Verified) -> None:
    """One line for a stage whose files were compared with their checksums, and one for each damage."""
    said = Text("damaged", "red") if found.damage else Text("whole", "green")
    line = f"{found.stage:<24} {found.num_files:3} files  {found.num_bytes / 2**20:9.1f} MiB  "
    console.print(Text(line).append_text(said))
    for sentence in found.damage:
        console.print(f"  {printable(sentence)}")


def _headline(metrics: Mapping[str, Any]) -> str:
    measured = metrics.get("pass_at_1")
    if isinstance(measured, dict):
        low, high = measured["ci95"]
        return f"pass@1 {measured['value']:.1%} [{low:.1%}, {high:.1%}]"
    known = ("reward", "loss", "mean_response_tokens")
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in known if isinstance(metrics.get(name), int | float))


def _state(line: Line) -> str:
    if line.state == "resume":
        return f"resume {line.detail}"
    if line.state == "done" and line.seconds is not None:
        return f"done in {line.seconds:.0f} s"
    return f"{line.state} ({line.detail})" if line.detail else line.state


@contextmanager
def progress_bars() -> Iterator[Watch]:
    """A watch function that draws one bar per stage; on a plain stream it prints a line at every tenth."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        tenths: dict[str, int] = {}

        def watch(stage: str, progress: dict[str, Any]) -> None:
            step, total, note = progress["step"], max(progress["total"], 1), progress["note"]
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=step, total=total, note=note)
            if not console.is_terminal and (tenth := 10 * step // total) > tenths.get(stage, 0):
                tenths[stage] = tenth
                console.print(f"{stage}: {step}/{total}  {note}")

        yield watch

"""What a person sees while a run works: the plan, a bar per stage with the time left, one line per finished stage."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.plan import Line
from pipeline.runner import Watch

STYLE = {"done": "green", "resume": "yellow", "to do": "cyan", "stale": "red", "damaged": "red"}
console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def show_plan(title: str, lines: list[Line]) -> None:
    """One line per stage: *done*, *resume at step 120*, *to do*, *stale (learning_rate 1e-05 → 2e-05)*."""
    console.print(title, style="bold")
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "kind", "state"):
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(line.stage, line.kind, f"[{STYLE[line.state]}]{_state(line)}")
    console.print(table)


def show_done(manifest: Mapping[str, Any]) -> None:
    """One line for a finished stage: its seconds and its headline figures."""
    console.print(
        f"[green]{manifest['stage']} done[/] in {manifest['seconds']:.0f} s  {_headline(manifest['metrics'])}"
    )


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
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
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

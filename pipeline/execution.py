"""Making stages of a recipe: what should be known first, then an engine (Prefect or a plain loop), then the report."""

import signal
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from pipeline.artifact import read_or_empty, write_json
from pipeline.console import console, progress_bars, show_done, show_note, show_plan
from pipeline.errors import ConfigError, interrupt
from pipeline.estimates import expected_seconds
from pipeline.launch import num_processes
from pipeline.lock import run_lock
from pipeline.needs import data_warnings, missing, missing_packages, require_there
from pipeline.plan import DONE, Line
from pipeline.recipe import Recipe
from pipeline.runner import Watch, made_again, make_way, plan_with, require_inputs, run_in_process


def announce(recipe: Recipe, lines: Iterable[Line], wanted: Collection[str]) -> None:
    """The wanted stages with the minutes they will take, and what should be known before they start."""
    shown = [line for line in lines if line.stage in wanted]
    title = f"{recipe.name} at scale {recipe.scale} in run {recipe.run}"
    show_plan(title, shown, expected_seconds(recipe, shown))
    for name, entry in recipe.taken.items():
        show_note(f"{name} is not made here: it is taken from {entry['taken']}")
    for sentence, hint in missing(recipe, [line.stage for line in shown if line.state != DONE]).items():
        show_note(f"{sentence}; {hint}")
    for sentence in data_warnings(recipe, wanted):
        show_note(sentence)
    if packages := missing_packages():
        show_note(f"not installed here: {', '.join(packages)}; a stage that needs one will fail; `make setup`")


def execute(
    recipe: Recipe, wanted: Sequence[str], rebuild: Sequence[str], engine: str, launch: str, processes: str | None
) -> None:
    """Makes the wanted stages that are not done, then writes the report."""
    from pipeline.doctor import require_fits  # not above: `plan` must answer at once
    from pipeline.report import summary_line
    from pipeline.views import write_views

    def make(name: str, watch: Watch) -> None:
        show_done(run_in_process(recipe, name, watch, console.print, count).manifest)

    count, run = num_processes(launch, processes), _engine(engine)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
    with run_lock(recipe.folder):
        again = made_again(recipe, wanted, rebuild)
        lines = plan_with(recipe, wanted, again)
        announce(recipe, lines, wanted)
        done = {line.stage for line in lines if line.state == DONE}
        if todo := [name for name in wanted if name not in done]:
            require_there(recipe, todo)
            require_inputs(recipe, todo, done)
            require_fits(recipe, todo)
            make_way(recipe, again)
            write_json(recipe.folder / "recipe.json", recipe.as_json())
            try:
                with progress_bars() as watch:
                    run(recipe, todo, make, watch, console.print)
            finally:
                with suppress(OSError):  # a full disk has its own sentence already
                    write_views(recipe.folder)
        elif not isinstance(read_or_empty(recipe.folder / "recipe.json").get("stages"), dict):  # lost meanwhile
            write_json(recipe.folder / "recipe.json", recipe.as_json())
        console.print(summary_line(recipe.folder))


def _engine(name: str) -> Any:
    if name == "prefect":
        from pipeline.flow import run_with_prefect

        return run_with_prefect
    if name == "plain":
        return _run_plain
    raise ConfigError(f"there is no engine '{name}'", hint="ENGINE=prefect or ENGINE=plain")


def _run_plain(recipe: Recipe, names: list[str], make: Any, watch: Watch, say: Any) -> None:
    from pipeline.views import write_views

    for name in names:
        make(name, watch)
        write_views(recipe.folder)

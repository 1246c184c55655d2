"""The command line, used through the Makefile: `python -m pipeline VERB …` (or `r1 VERB …`).

    run RECIPE      make every stage that is not done        stage RECIPE NAME   make one stage
    plan RECIPE     what a run would do, and how long        show RECIPE         the resolved configuration
    report RUN      write the report and model cards again   cards               the data sets there are
    card NAME       start a data card                        card-check NAME     try one on real rows
    pack RUN        one file to take a run elsewhere         unpack FILE         go on with it there
    verify RUN      compare every finished file with its checksum
    doctor RECIPE   memory and minutes before anything is loaded, and what is wrong with this machine

`--from STAGE` and `--until STAGE` keep `run` and `plan` to a part of the recipe; `run --dry-run` makes nothing, and
counts what the stages that make data would keep and leave out.
Exit codes: 0 done, 2 something the user can mend (one sentence and a hint), 75 interrupted and resumable.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    ArtifactError,
    ConfigError,
    PipelineError,
    printable,
)


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        arguments.verb(arguments)
    except PipelineError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; what was done is kept, the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _disk_failed(error)
    return 0


def _disk_failed(error: OSError) -> int:
    """Says what is wrong with the disk of the runs; an error about any other file is a bug of ours."""
    from pipeline.disk import LEAST_ROOM, failure, is_full
    from pipeline.places import runs_folder

    folder = runs_folder()
    if not is_full(error) and not str(error.filename).startswith(str(folder)):
        raise error
    print(f"error: {failure(error, folder, LEAST_ROOM, 'the run')}", file=sys.stderr)
    return EXIT_ERROR


class _Parser(argparse.ArgumentParser):
    """Words that make no command are told like every other mistake."""

    def error(self, message: str) -> NoReturn:
        sentence = message.partition(" (choose from ")[0]  # the list names verbs that are not for people
        hint = f"the head of the Makefile says what there is, and so does `.venv/bin/{self.prog} --help`"
        raise ConfigError(f"{self.prog}: {sentence}", hint=hint)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="r1", description="The DeepSeek-R1 recipe as one resumable pipeline.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, function: Callable[[argparse.Namespace], None], meaning: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=meaning, description=meaning)
        verb.set_defaults(verb=function)
        return verb

    _add_recipe_verbs(add)
    add("report", _report, "write a run's report and model cards again").add_argument("run")
    add("verify", _verify, "compare every finished file of a run with its checksum").add_argument("run")
    pack = add("pack", _pack, "one file to take a run to another machine, also while it is at work")
    pack.add_argument("run")
    pack.add_argument("--file", help="default RUN.tar.gz")
    add("unpack", _unpack, "put a packed run into runs/ and merge its weights again").add_argument("file")
    add("cards", _cards, "the data sets there are")
    card, check = (
        add("card", _card, "start a data card"),
        add("card-check", _card_check, "try a data card on real rows"),
    )
    for verb in (card, check):
        verb.add_argument("name", help="the folder in data_cards/")
        verb.add_argument("--file", type=Path, help="rows in the source's columns")
    check.add_argument("--config")
    check.add_argument("--split")
    worker, launcher = verbs.add_parser("_stage"), verbs.add_parser("_launch")
    worker.set_defaults(verb=_worker)
    launcher.set_defaults(verb=_launcher)
    launcher.add_argument("count", type=int)
    for verb in (worker, launcher):
        verb.add_argument("run_dir")
        verb.add_argument("name")
    return parser


def _add_recipe_verbs(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The verbs that take a recipe, its scale, its run and settings."""
    run = add("run", _run, "make every stage that is not done")
    stage = add("stage", _stage, "make one stage")
    plan = add("plan", _plan, "what a run would do, stage by stage")
    show = add("show", _show, "the resolved configuration as YAML")
    doctor = add("doctor", _doctor, "what every stage will need, what fits, and what is wrong with this machine")
    for verb in (run, stage, plan, show, doctor):
        verb.add_argument("recipe", help="a file in configs/recipes/, without .yaml")
        verb.add_argument("--scale", default="mini", help="a file in configs/scales/, without .yaml")
        verb.add_argument("--run", help="the run's name; default RECIPE-SCALE")
        verb.add_argument("--args", nargs="*", default=[], help="settings, e.g. seed=7 stages.r1_zero.max_steps=20")
    stage.add_argument("--stage", required=True, help="the stage to make; what it rests on must be done")
    for verb in (run, plan):
        verb.add_argument("--from", dest="first", help="begin with this stage; what it rests on must be done")
        verb.add_argument("--until", dest="last", help="end with this stage")
    run.add_argument("--dry-run", action="store_true", help="make nothing; count what data stages would keep")
    for verb in (run, stage):
        verb.add_argument("--rebuild", action="append", default=[], help="make this stage and what rests on it again")
        verb.add_argument("--engine", default=os.environ.get("ENGINE") or "prefect", help="prefect or plain")
        verb.add_argument("--launch", default=os.environ.get("LAUNCH") or "single", help="single, or ddp: every GPU")
        verb.add_argument(
            "--processes", default=os.environ.get("PROCESSES") or None, help="for ddp; default: one for each GPU"
        )


def _load(arguments: argparse.Namespace) -> Any:
    from pipeline.recipe import load_recipe

    return load_recipe(arguments.recipe, arguments.scale, arguments.run or None, arguments.args)


def _plan(arguments: argparse.Namespace) -> None:
    from pipeline.execution import announce
    from pipeline.plan import make_plan

    recipe = _load(arguments)
    announce(recipe, make_plan(recipe), recipe.between(arguments.first, arguments.last))


def _show(arguments: argparse.Namespace) -> None:
    import yaml

    print(yaml.safe_dump(_load(arguments).as_json(), sort_keys=False, allow_unicode=True), end="")


def _doctor(arguments: argparse.Namespace) -> None:
    from pipeline import doctor, doctor_table
    from pipeline.console import console
    from pipeline.machine import GIB, this_machine
    from pipeline.needs import missing, missing_packages

    recipe, machine = _load(arguments), this_machine()
    found = doctor.diagnoses(recipe, recipe.stages, machine)
    data, packages = missing(recipe, recipe.stages) | doctor.out_of_reach(recipe), missing_packages()
    doctor_table.show_machine(machine)
    doctor_table.show_forecast(f"{recipe.name} at scale {recipe.scale}, here", found, doctor.measured_minutes(recipe))
    doctor_table.show_cards(found)
    if (gib := doctor.disk_bytes(recipe, recipe.stages) / GIB) >= 0.1:
        console.print(f"on disk: about {gib:.1f} GiB for the models")
    for sentence, hint in data.items():
        console.print(f"missing: {sentence}; {hint}")
    if packages:
        console.print(f"missing: {', '.join(packages)} (`make setup`)")
    num_problems = doctor_table.show_problems(found)
    if all(one.found for one in found) and not (num_problems or data or packages):
        console.print("nothing stands in the way of it", style="green")


def _run(arguments: argparse.Namespace) -> None:
    recipe = _load(arguments)
    wanted = recipe.between(arguments.first, arguments.last)
    if arguments.dry_run and arguments.rebuild:
        raise ConfigError("DRY_RUN makes nothing, so REBUILD has no sense beside it", hint="leave one of them away")
    if arguments.dry_run:
        _dry_run(recipe, wanted)
    else:
        _make(recipe, wanted, arguments)


def _dry_run(recipe: Any, wanted: list[str]) -> None:
    from pipeline.console import show_counts, show_note
    from pipeline.dry_run import dry_run

    makes_data = False
    for name, counted in dry_run(recipe, wanted):
        makes_data = True
        if isinstance(counted, str):
            show_note(f"{name}: {counted}")
        else:
            show_counts(name, counted)
    if not makes_data:
        show_note(f"DRY_RUN counts what stages that make data keep, and {recipe.name} has none of them to be made")


def _stage(arguments: argparse.Namespace) -> None:
    from pipeline.settings import did_you_mean

    recipe = _load(arguments)
    if arguments.stage not in recipe.stages:
        hint = did_you_mean(arguments.stage, recipe.stages)
        raise ConfigError(f"recipe {recipe.name} has no stage '{arguments.stage}'", hint=hint)
    _make(recipe, [arguments.stage], arguments)


def _make(recipe: Any, wanted: list[str], arguments: argparse.Namespace) -> None:
    from pipeline.execution import execute

    execute(recipe, wanted, arguments.rebuild, arguments.engine, arguments.launch, arguments.processes)


def _run_folder(run: str) -> Path:
    """Where the run of that name lies; ConfigError when there is none."""
    from pipeline.places import runs_folder
    from pipeline.settings import did_you_mean
    from pipeline.written import run_name

    folder = runs_folder() / run_name(run)
    if not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir()):  # the lock of a refused one
        there = sorted(file.parent.name for file in runs_folder().glob("*/recipe.json"))
        hint = did_you_mean(run, there) if there else "start one with `make r1-zero`"
        raise ConfigError(f"there is no run '{run}' in {runs_folder()}", hint=hint)
    return folder


def _report(arguments: argparse.Namespace) -> None:
    from pipeline.report import summary_line
    from pipeline.views import write_views

    folder = _run_folder(arguments.run)
    write_views(folder)
    print(summary_line(folder))


def _pack(arguments: argparse.Namespace) -> None:
    from pipeline.pack import pack

    archive = pack(_run_folder(arguments.run), Path(arguments.file or f"{arguments.run}.tar.gz"))
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB; there: make unpack FILE={shlex.quote(archive.name)}")


def _unpack(arguments: argparse.Namespace) -> None:
    from pipeline.pack import unpack
    from pipeline.places import runs_folder

    print(f"{unpack(Path(arguments.file), runs_folder())} is whole; the command that made it goes on from here")


def _verify(arguments: argparse.Namespace) -> None:
    from pipeline.console import show_verified
    from pipeline.verify import mend, verify

    damaged = []
    for found in verify(_run_folder(arguments.run)):
        show_verified(found)
        damaged += [found.stage] if found.damage else []
    if damaged:
        raise ArtifactError(f"run '{arguments.run}' is damaged in {', '.join(damaged)}", hint=mend(damaged[0]))


def _cards(arguments: argparse.Namespace) -> None:
    from pipeline.card_table import cards_table
    from pipeline.console import console

    console.print(cards_table())


def _card(arguments: argparse.Namespace) -> None:
    from pipeline.new_card import start_card

    folder = start_card(arguments.name, arguments.file)
    rows = f" FILE={shlex.quote(str(arguments.file))}" if arguments.file else ""
    print(f"{folder / 'README.md'} is there; mend it, then: make card-check NAME={arguments.name}{rows}")


def _card_check(arguments: argparse.Namespace) -> None:
    from pipeline.card_check import check_card, check_table, require_good
    from pipeline.console import console

    name, config = arguments.name, arguments.config or None
    lines = check_card(name, config, arguments.split or None, arguments.file)
    console.print(check_table(f"card {name}" + (f", config {config}" if config else ""), lines))
    require_good(name, lines)


def _worker(arguments: argparse.Namespace) -> None:
    from pipeline.worker import run_one

    run_one(Path(arguments.run_dir), arguments.name)


def _launcher(arguments: argparse.Namespace) -> None:
    from pipeline.launch import leave, run_processes
    from pipeline.runner import WORKER

    leave(run_processes([*WORKER, arguments.run_dir, arguments.name], arguments.count))

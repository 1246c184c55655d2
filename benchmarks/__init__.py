"""Measurements beside the pipeline, a module each: `python -m benchmarks.NAME --help` says what it reads and makes.

`core_cases`, `core_ours` and `core_peers` are parts of `core`. A peer's process imports this, so it imports nothing of
the project by itself.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def command_line(description: str | None) -> argparse.ArgumentParser:
    """A parser whose `--help` shows the module's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def start(main: Callable[[], int | None]) -> NoReturn:
    """Runs a benchmark and leaves with its exit code; what it lacks is one sentence and exit code 2."""
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:  # the command has said why
        print(f"stopped: {Path(error.cmd[0]).name} left with {error.returncode}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        from pipeline.errors import PipelineError

        if not isinstance(error, PipelineError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def require_package(name: str, hint: str) -> None:
    """A ResourceError when a library of others is not installed."""
    from pipeline.errors import ResourceError

    if find_spec(name) is None:
        raise ResourceError(f"{name} is not installed here", hint)


def require_gpu(what: str) -> None:
    """A ResourceError when torch cannot compute on a GPU; asked without torch, which would hold some of its memory."""
    from pipeline.errors import ResourceError
    from pipeline.machine import this_machine

    if not (machine := this_machine()).has_cuda:
        raise ResourceError(f"{what} needs a GPU: {machine.why_no_cuda}", "run it where there is one")


def ready(recipe: str, scale: str, args: Iterable[str], stages: Iterable[str]) -> "Recipe":
    """The recipe, when these stages can be made on this machine; else a PipelineError, before anything has started."""
    from pipeline.doctor import require_fits
    from pipeline.needs import require_there
    from pipeline.recipe import load_recipe

    found = load_recipe(recipe, scale, args=args)
    require_there(found, stages)
    require_fits(found, stages)
    return found

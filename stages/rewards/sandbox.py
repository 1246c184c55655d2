"""Questions to child processes that may be killed: the verdicts our own rules can not give.

`ask_many([(what, gold, answer), ...])` gives one verdict each: `right`, `wrong`, `gold_unusable`, or
`cannot_tell` when the work took too long. The children (`sandbox_worker.py`) start with the first question
and stay warm.

Why not a thread: sympy holds the interpreter's lock for minutes on `9^9^9^9`, and everything stands still.
Why not
multiprocessing: its children import our caller's main module again, torch and all. Here a child is a plain
command, the traffic is JSON, and a caller needs no `if __name__ == "__main__"`.
No child outlives us: closing stdin ends an idle one, the kernel ends a busy one.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import ResourceError

NUM_WORKERS = min(8, max(2, (os.cpu_count() or 2) // 8))
QUESTIONS_PER_WORKER = 5000  # then a fresh one: the parser's tables only ever grow
_WORKER = Path(__file__).with_name("sandbox_worker.py")
_TIME_IS_UP = (-signal.SIGPROF, -signal.SIGALRM)

Question = tuple[str, str, str]
"""What to judge by (`math` or `reasoning_gym`), the gold answer, the answer."""


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

    def __init__(self) -> None:
        self.num_asked = 0
        self.process = subprocess.Popen(
            # -P: the folder of the script holds a format.py, which must not be importable from there
            [sys.executable, "-P", "-B", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env=_environment(),
        )
        assert self.process.stdout
        if self.process.stdout.readline() != '"ready"\n':
            raise ResourceError(
                f"the child process that judges answers does not start (exit code {self.stop()})",
                hint=f"see what it says by hand: {sys.executable} -P {_WORKER} </dev/null",
            )

    def ask(self, question: Question) -> dict[str, str] | None:
        """The reply; None if the child ended without one."""
        assert self.process.stdin and self.process.stdout
        self.num_asked += 1
        try:
            self.process.stdin.write(json.dumps(question) + "\n")  # plain ASCII, whatever the text holds
            reply = self.process.stdout.readline()
        except BrokenPipeError:
            return None
        return json.loads(reply) if reply.endswith("\n") else None

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
    """The threads that own the children. They live as long as we do: a child dies with the thread that
    started it.
    """
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="sandbox")
    return _executor


def _ask(question: Question) -> str:
    for _ in range(
        2
    ):  # a child may have died of something else: an earlier answer's garbage, the kernel short of memory
        worker = _current_worker()
        reply = worker.ask(question)
        if reply is None:
            if _retire(worker) in _TIME_IS_UP:
                return "cannot_tell"
        elif "error" in reply:
            raise ResourceError(f"the judge of {question[0]!r} does not load:\n{reply['error']}", hint="make setup")
        else:
            return reply["verdict"]
    return "cannot_tell"


def _current_worker() -> _Worker:
    worker: _Worker | None = getattr(_local, "worker", None)
    if worker and worker.num_asked >= QUESTIONS_PER_WORKER:
        _retire(worker)
        worker = None
    if worker is None:
        worker = _local.worker = _Worker()
        _workers.add(worker)
    return worker


def _retire(worker: _Worker) -> int:
    _local.worker = None
    _workers.discard(worker)
    return worker.stop()


def _environment() -> dict[str, str]:
    """Little, so that nothing secret is at hand; one thread each; pure-Python integers, which obey the
    limits.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    fixed = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "SYMPY_GROUND_TYPES": "python",
        "PYTHONHASHSEED": "0",
    }
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

"""A signal asks training to stop: it finishes its step, saves and leaves."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from pipeline.errors import Interrupted


class Stop:
    """Whether a signal has come."""

    requested = False

    @staticmethod
    def error(step: int) -> Interrupted:
        """What is raised when everything up to `step` is saved."""
        return Interrupted(
            f"stopped by a signal after step {step}; everything up to there is saved",
            hint="the same command goes on from there",
        )


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT only set `requested`; a second one acts as usual. Only in the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def request(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

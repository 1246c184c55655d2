"""The only importers of torch, transformers, peft, trl and vllm; they are imported when a stage runs.

What must be decided before torch is loaded is decided here.
"""

import contextlib
import ctypes
import os

_SETTINGS = {
    # A thread that waits for another spins for microseconds, not milliseconds, before it gives its core away:
    # as fast on an idle machine; on a busy one the default made a mini step up to 20 times slower.
    "GOMP_SPINCOUNT": "1000",
    # Tokenizing forks no threads, so that child processes (judging answers) can be forked safely.
    "TOKENIZERS_PARALLELISM": "false",
    # A run sends nothing about itself.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # TRL remarks on every experimental feature.
    "TRL_EXPERIMENTAL_SILENCE": "1",
}

for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks; does nothing elsewhere than on Linux.

    Sampling grows its cache with each token; fresh pages from the system each time would cost a fifth of it.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


_keep_freed_memory()

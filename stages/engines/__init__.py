"""The only importers of torch, transformers, peft, trl and vllm; they are imported when a stage runs.

What must be decided before torch is loaded is decided here.
"""

import os

_SETTINGS = {
    # A thread that waits for another gives its core away instead of spinning. On a machine that does something
    # else too, spinning made a step of the mini scale twenty times slower (two cores, load 3).
    "OMP_WAIT_POLICY": "PASSIVE",
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

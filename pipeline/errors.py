"""Every error a user can meet, as one tree.

    PipelineError
    ├── ConfigError      a recipe, scale, stage setting or command-line argument
    ├── ReferenceError   a reference that leads nowhere or to the wrong kind of thing
    ├── ArtifactError    a finished or half-finished folder under runs/
    ├── CardError        a data card
    ├── DataError        the rows behind a card
    ├── ModelError       a checkpoint, tokenizer or template
    ├── ResourceError    the machine: device, memory, disk, another process
    │   └── OutOfMemory  a stage wants more memory than there is; the runner tries once more with less
    ├── StaleError       a finished stage no longer matches what is asked
    ├── StageFailed      a stage's process ended without its artifact
    └── Interrupted      a signal: everything so far is saved (exit code 75)

The command line prints `error: MESSAGE` and `hint: HINT` and leaves with `exit_code`. Anything else that is raised
is a bug of ours and keeps its traceback.
"""

import unicodedata

from pipeline.credentials import hidden

EXIT_ERROR = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: try again later


class PipelineError(Exception):
    """Something a user can mend. `message` says what and where, `hint` the next step; neither says a password."""

    exit_code = EXIT_ERROR

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = hidden(message), hidden(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ConfigError(PipelineError):
    """A recipe, scale, stage setting or command-line argument is wrong."""


class ReferenceError(PipelineError):
    """A reference leads nowhere, or to the wrong kind of artifact."""


class ArtifactError(PipelineError):
    """A folder under runs/ is missing, torn or not what its manifest says."""


class CardError(PipelineError):
    """A data card is missing or says something impossible."""


class DataError(PipelineError):
    """The rows behind a card cannot be used."""


class ModelError(PipelineError):
    """A checkpoint, tokenizer or template cannot be used."""


class ResourceError(PipelineError):
    """The machine lacks what the stage needs: device, memory, disk, or the run's lock."""


class OutOfMemory(ResourceError):
    """A stage wants more memory than there is."""

    def __init__(self, message: str, hint: str = "set a smaller token_budget, or gradient_checkpointing: true") -> None:
        super().__init__(message, hint)


class StaleError(PipelineError):
    """A finished stage no longer matches what is asked."""


class StageFailed(PipelineError):
    """A stage's process ended without publishing its artifact."""


class Interrupted(PipelineError):
    """A signal came; the stage saved what it had and can be resumed."""

    exit_code = EXIT_INTERRUPTED

    def __init__(self, message: str = "stopped by a signal; what was done is kept", hint: str = "") -> None:
        super().__init__(message, hint or "the same command goes on from here")


def interrupt(signum: int, frame: object) -> None:
    """What a process of ours does at a signal."""
    raise Interrupted


def printable(text: str) -> str:
    """Text for a terminal: control characters, changes of direction and halves of a pair are shown and not obeyed."""
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    is_obeyed = char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs")
    return char.encode("unicode_escape").decode() if is_obeyed else char

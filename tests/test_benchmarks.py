"""The benchmarks: each starts, says what it does, and says in a sentence what it lacks."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import start
from pipeline.errors import ConfigError

ROOT = Path(__file__).parent.parent
PARTS = {"__init__", "core_cases"}
NAMES = sorted({file.stem for file in ROOT.glob("benchmarks/*.py")} - PARTS)


def leave() -> None:
    subprocess.run(["false"], check=True)


def refuse() -> None:
    raise ConfigError("there is no scale 'x'", hint="mini")


def begin(name: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_command_in_a_document_names_a_benchmark_that_is_there() -> None:
    assert len(NAMES) > 10
    for file in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.py"), ROOT / "README.md"]:
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r"-m benchmarks\.(\w+)", text)) <= {*NAMES, "NAME"}, file.name
        assert "python benchmarks/" not in text, f"{file.name}: started so, it does not find its package"


@pytest.mark.parametrize(
    ("main", "said"), [(refuse, "error: there is no scale 'x'\nhint: mini"), (leave, "false left")]
)
def test_what_a_benchmark_lacks_is_told_with_exit_code_2(
    main: Callable[[], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        start(main)
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_a_bug_in_a_benchmark_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        start(lambda: 1 // 0)


def test_a_mistake_is_told_before_anything_starts() -> None:
    done = begin("grpo_step", "--scale", "qwen")
    assert done.returncode == 2 and done.stderr.startswith("error: there is no scale 'qwen'\nhint: ")


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_that_is_asked_for_help_says_what_it_does(name: str) -> None:
    done = begin(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ")

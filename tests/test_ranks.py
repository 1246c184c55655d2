"""Several processes: together they make the update of one, wait for nobody, stop as one, and fail as one."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import launch, runner
from pipeline.artifact import load
from pipeline.errors import ConfigError, ResourceError
from pipeline.launch import num_processes, run_processes
from pipeline.machine import GIB, Gpu, Machine
from pipeline.recipe import load_recipe
from pipeline.stage import read_jsonl
from stages.engines.models import load_model
from tests import spread_training
from tests.conftest import TOY_CLI
from tests.test_grpo import same
from tests.test_machine import processes_with
from tests.toy_model import save_toy_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The base, and what one process and two have made of it."""
    base, one, two = (tmp_path_factory.mktemp(name) for name in ("base", "one", "two"))
    save_toy_model(base)
    command = [sys.executable, "-m", "tests.spread_training", str(base), str(two)]
    script = f"from pipeline.launch import leave, run_processes; leave(run_processes({command!r}, 2))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    spread_training.all_of_them(base, one)
    return base, one, two


@pytest.mark.long
@pytest.mark.parametrize("name", [*spread_training.GRPO_SETTINGS, "sft"])
def test_two_processes_end_with_the_weights_of_one(name: str, folders: tuple[Path, Path, Path]) -> None:
    base, *both = folders
    start = load_model(base, device="cpu").state_dict()
    alone, together = (load_model(folder / name, device="cpu").state_dict() for folder in both)
    moved = max(float((alone[key] - start[key]).abs().max()) for key in start)
    apart = max(float((alone[key] - together[key]).abs().max()) for key in start)
    assert moved > 1e-3 and apart < 2e-5 * max(1.0, moved)


@pytest.mark.long
@pytest.mark.parametrize("name", [*spread_training.GRPO_SETTINGS, "sft"])
def test_the_curves_are_those_of_all_processes(name: str, folders: tuple[Path, Path, Path]) -> None:
    _, *both = folders
    alone, together = (read_jsonl(folder / name / "metrics.jsonl") for folder in both)
    assert [row.keys() for row in alone] == [row.keys() for row in together]
    for wanted in ("reward", "pass_at_1", "zero_variance_share", "trained_share", "loss", "grad_norm", "eval_loss"):
        values = [[row.get(wanted) for row in rows] for rows in (alone, together)]
        assert [pytest.approx(value, abs=1e-4) if value is not None else None for value in values[0]] == values[1]


@pytest.mark.long
def test_a_signal_to_one_process_stops_both_after_the_same_step_and_both_go_on(
    folders: tuple[Path, Path, Path],
) -> None:
    whole, stopped = (folders[2] / name for name in ("whole", "stopped"))
    assert same(*(load_model(folder, device="cpu").state_dict() for folder in (whole, stopped)))
    assert (stopped / "checkpoints/checkpoint-6/grpo_state-1.pt").is_file()


CPU = Machine("a CPU", 2, 8 * GIB, 1e12)
TWO_GPUS = Machine("a CPU", 2, 8 * GIB, 1e12, (Gpu("H100", 80 * GIB, 80 * GIB, "580"),) * 2, "13.0")


def test_there_is_a_process_for_each_gpu_unless_another_number_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "this_machine", lambda: TWO_GPUS)
    assert [num_processes("single", None), num_processes("ddp", None), num_processes("ddp", "1")] == [1, 2, 1]
    with pytest.raises(ConfigError, match="PROCESSES=3: there are 2 GPUs"):
        num_processes("ddp", "3")
    monkeypatch.setattr(launch, "this_machine", lambda: CPU)
    assert num_processes("ddp", "2") == 2
    for wanted in ("0", "-1", "²", "100000"):  # so many are started before any looks at another
        with pytest.raises(ConfigError, match=f"PROCESSES={wanted}: without a GPU a number from 1 to 2 belongs there"):
            num_processes("ddp", wanted)
    with pytest.raises(ConfigError, match="PROCESSES=2 goes with LAUNCH=ddp"):
        num_processes("single", "2")
    with pytest.raises(ResourceError, match="this machine has none"):
        num_processes("ddp", None)


@pytest.mark.parametrize(("way", "says"), [("fsdp", "not offered"), ("dpd", "no such way")])
def test_another_way_to_launch_is_refused_with_a_sentence(way: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as told:
        num_processes(way, None)
    assert "ddp" in told.value.hint


def test_how_many_processes_make_a_stage_is_in_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_recipe("r1-zero", "mini").fingerprints
    monkeypatch.setenv("LAUNCH", "ddp")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load_recipe("r1-zero", "mini").fingerprints == before


def code_of(script: str, count: int = 2) -> int:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return run_processes([sys.executable, "-c", script], count)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_when_one_process_fails_the_others_are_ended_and_its_code_is_told() -> None:
    began = time.monotonic()
    assert code_of("import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)") == 3
    assert time.monotonic() - began < 30


def test_processes_know_their_rank_and_how_many_they_are(tmp_path: Path) -> None:
    script = f"import os; open(f'{tmp_path}/' + os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'])"
    assert code_of(script, 3) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


SPREAD = ("run", "toy", "--launch", "ddp", "--processes", "2", "--args")


def test_a_spread_stage_is_published_once_by_the_first_of_its_processes(toy, r1):
    code, output = r1(*SPREAD, "stages.data.n=4")
    assert code == 0, output
    assert len(read_jsonl(load(toy / "runs/toy-mini/data").path / "rows.jsonl")) == 4
    assert (toy / "runs/toy-mini/data/tries").read_text() == "x" and (toy / "runs/toy-mini/helped").exists()
    assert "done" in r1("plan", "toy", "--args", "stages.data.n=4")[1]  # one process would have made the same


def test_the_sentence_of_whichever_process_fails_arrives_and_none_is_left_behind(toy, r1):
    words = ["stages.data.n=600", "stages.data.pause_s=0.1", "stages.data.trouble=data in the second process"]
    code, output = r1(*SPREAD, *words)
    assert code == 2 and "error: stage data: the second process has no rows\nhint: give it some" in output
    assert not processes_with(str(toy))


def test_ctrl_c_reaches_every_process_and_the_same_command_goes_on(toy):
    command = [sys.executable, TOY_CLI, *SPREAD, "stages.data.n=100"]
    run = subprocess.Popen([*command, "stages.data.pause_s=0.1"], start_new_session=True)
    progress = toy / "runs/toy-mini/data.partial/progress.json"
    deadline = time.monotonic() + 60
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 75
    assert not processes_with(str(toy))
    assert subprocess.run(command).returncode == 0


def test_a_stage_of_one_process_is_nobodys_rank_and_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "3,1"}.items():
        monkeypatch.setenv(name, value)
    environment = runner._of_one_process()
    assert environment["CUDA_VISIBLE_DEVICES"] == "3" and not {"RANK", "WORLD_SIZE"} & environment.keys()

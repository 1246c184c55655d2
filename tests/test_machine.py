"""The machine: what is done stays done, what is cut off goes on, what changed is never silently reused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import needs, runner
from pipeline.artifact import is_whole, load, publish, seal
from pipeline.errors import ArtifactError, ResourceError
from pipeline.estimates import whole_seconds
from pipeline.lock import run_lock
from pipeline.recipe import load_recipe
from pipeline.stage import Workdir, read_jsonl
from tests.conftest import TOY_CLI
from tests.toy_stages import TOYS


def states(output: str) -> dict[str, str]:
    """Stage -> state, as the plan's table shows them (what is said of a stage later comes further down)."""
    words = [line.split() for line in output.splitlines()]
    return {w[0]: " ".join(w[2:]) for w in reversed(words) if w and w[0] in STAGES}


STAGES = ("data", "model", "eval_model")


def test_a_run_makes_every_stage_and_a_second_run_makes_none(toy, r1):
    code, output = r1("run", "toy")
    assert code == 0
    assert set(states(output).values()) == {"to do"}
    assert "eval_model done in 0 s  pass@1 600.0%" in output
    made = {name: load(toy / "runs/toy-mini" / name).manifest["started"] for name in STAGES}
    code, output = r1("run", "toy")
    assert code == 0
    assert all(state.startswith("done") for state in states(output).values())
    assert made == {name: load(toy / "runs/toy-mini" / name).manifest["started"] for name in STAGES}


def test_a_manifest_says_what_made_the_artifact_from_what(toy, r1):
    r1("run", "toy")
    manifest = load(toy / "runs/toy-mini/model", deep=True).manifest
    assert manifest["kind"] == "sum"
    assert manifest["artifact"] == "checkpoint"
    assert manifest["settings"] == {"seed": 0, "rate": 1.0}
    assert manifest["inputs"]["data"][0]["ref"] == "stage:data"
    assert manifest["inputs"]["data"][0]["fingerprint"] == load(toy / "runs/toy-mini/data").fingerprint
    assert manifest["metrics"] == {"total": 6.0}
    assert set(manifest["files"]) == {"config.json"}
    assert {"git", "packages", "hardware", "seconds", "peak_memory_gib"} <= set(manifest)


def test_a_changed_setting_makes_exactly_that_stage_and_those_after_it_stale(toy, r1):
    r1("run", "toy")
    code, output = r1("plan", "toy", "--args", "stages.model.rate=2e-1")
    shown = states(output)
    assert code == 0
    assert shown["data"].startswith("done")
    assert "rate 1.0 → 0.2" in shown["model"]
    assert shown["eval_model"].startswith("stale")


def test_a_stale_stage_is_neither_reused_nor_deleted(toy, r1):
    r1("run", "toy")
    before = load(toy / "runs/toy-mini/model").fingerprint
    code, output = r1("run", "toy", "--args", "stages.model.rate=2.0")
    assert code == 2
    assert "REBUILD=model" in output
    assert load(toy / "runs/toy-mini/model").fingerprint == before


def test_rebuild_makes_a_stage_and_what_rests_on_it_again_and_keeps_the_old_aside(toy, r1):
    r1("run", "toy")
    code, _ = r1("run", "toy", "--args", "stages.model.rate=2.0", "--rebuild", "model")
    assert code == 0
    assert load(toy / "runs/toy-mini/eval_model").manifest["metrics"]["pass_at_1"]["value"] == 12.0
    assert (toy / "runs/toy-mini/model.old1/config.json").exists()
    assert not (toy / "runs/toy-mini/data.old1").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rebuild", "model", "--rebuild", "foo"], "REBUILD=foo: there is no such stage"),
        (["--rebuild", "model", "--from", "eval_model"], "REBUILD=model: this stage is not among those to be made"),
        (["--rebuild", "eval_model", "--args", "stages.model.rate=2.0"], "stage model of run 'toy-mini' is stale"),
        (["--rebuild", "model"], "this machine is too small"),
    ],
)
def test_a_rebuild_that_is_refused_sets_nothing_aside(toy, r1, monkeypatch, words, says):
    r1("run", "toy")
    before = sorted(path.name for path in (toy / "runs/toy-mini").iterdir())

    def refuse(recipe: Any, todo: Any) -> None:
        raise ResourceError("this machine is too small")

    monkeypatch.setattr("pipeline.doctor.require_fits", refuse)
    code, output = r1("run", "toy", *words)
    assert code == 2 and says in output
    assert sorted(path.name for path in (toy / "runs/toy-mini").iterdir()) == before


def test_a_runtime_setting_changes_no_fingerprint(toy, r1):
    r1("run", "toy")
    code, output = r1("plan", "toy", "--args", "stages.data.pause_s=0.5")
    assert code == 0
    assert all(state.startswith("done") for state in states(output).values())


def test_a_file_where_a_stage_should_be_is_told_and_a_rebuild_sets_it_aside(toy, r1):
    r1("run", "toy", "--until", "data")
    (toy / "runs/toy-mini/model").write_text("mine")
    code, output = r1("run", "toy")
    assert code == 2 and "stage model of run 'toy-mini' is damaged: it is a file" in output
    assert r1("run", "toy", "--rebuild", "model")[0] == 0
    assert (toy / "runs/toy-mini/model.old1").read_text() == "mine"


def test_an_error_that_quotes_what_utf8_cannot_hold_is_told_all_the_same(toy, r1):
    code, output = r1("run", "toy", "--args", "stages.data.trouble=half a character")
    assert code == 2 and "error: stage data: the row '?' is bad\nhint: write '?' otherwise" in output


def test_a_stage_that_was_killed_goes_on_in_its_own_folder(toy, r1):
    args = ("run", "toy", "--args", "stages.data.trouble=killed")
    code, output = r1(*args)
    assert code == 2
    assert "killed" in output
    assert states(r1("plan", *args[1:])[1])["data"].startswith("resume")
    code, _ = r1(*args)
    assert code == 0
    assert (toy / "runs/toy-mini/data/tries").read_text() == "xx"


def test_an_error_of_a_stage_arrives_as_its_sentence_and_hint(toy, r1):
    code, output = r1("run", "toy", "--args", "stages.data.trouble=data")
    assert code == 2
    assert "error: stage data: the toy has no rows\nhint: give it some" in output
    assert "Traceback" not in output


def test_a_bug_in_a_stage_names_the_log_that_keeps_its_traceback(toy, r1):
    code, output = r1("run", "toy", "--args", "stages.data.trouble=bug")
    assert code == 2
    assert "KeyError" in output
    assert "Traceback" in (toy / "runs/toy-mini/data.log").read_text()


def test_what_led_to_a_sentence_is_in_the_log(toy, r1):
    code, output = r1("run", "toy", "--args", "stages.data.trouble=bug in a reward")
    assert code == 2 and "error: stage data: the reward 'toy' failed" in output and "KeyError" not in output
    log = (toy / "runs/toy-mini/data.log").read_text()
    assert "Traceback" in log and "KeyError: 'a bug'" in log


def test_one_stage_can_be_made_alone_but_not_before_what_it_rests_on(toy, r1):
    code, output = r1("stage", "toy", "--stage", "model")
    assert code == 2
    assert "needs data" in output
    assert r1("stage", "toy", "--stage", "data")[0] == 0
    assert r1("stage", "toy", "--stage", "model")[0] == 0
    assert not (toy / "runs/toy-mini/eval_model").exists()


def test_until_stops_there_and_from_goes_on_from_there(toy, r1):
    code, output = r1("run", "toy", "--until", "model")
    assert code == 0
    assert "eval_model" not in states(output)
    assert not (toy / "runs/toy-mini/eval_model").exists()
    assert r1("run", "toy", "--from", "eval_model")[0] == 0
    assert (toy / "runs/toy-mini/eval_model").exists()


def test_from_refuses_to_begin_where_something_before_it_is_not_done(toy, r1):
    code, output = r1("run", "toy", "--from", "eval_model")
    assert code == 2
    assert "stage eval_model needs model, which is not done" in output
    assert "make toy UNTIL=model" in output


def test_a_later_stage_that_is_stale_stands_in_nobodys_way(toy, r1):
    r1("run", "toy")
    other = ["--args", "stages.model.rate=2.0"]
    assert r1("run", "toy", "--until", "data", *other)[0] == 0
    assert r1("run", "toy", "--from", "eval_model", *other)[0] == 2


def test_the_plan_expects_what_the_scale_says_until_this_machine_knows_better(toy, r1):
    assert "expected" not in r1("plan", "toy")[1]
    (toy / "configs/scales/mini.yaml").write_text("minutes: {data: 12, model: 0.5}")
    lines = r1("plan", "toy")[1].splitlines()
    assert [line.split()[-2:] for line in lines[2:4]] == [["12", "min"], ["0.5", "min"]]
    assert lines[4].endswith("–")
    assert lines[5] == "expected in all: 12 min, 1 not counted"
    r1("run", "toy")
    measured = r1("plan", "toy", "--run", "other", "--args", "seed=3")[1]
    assert "expected in all: 0.0 min" in measured
    changed = r1("plan", "toy", "--run", "other", "--args", "stages.data.n=5")[1]
    assert "expected in all: 12 min" in changed
    for strange in ('{"inputs": {"data": [{}]}}', '{"settings": []}', '{"inputs": 3}'):
        (toy / "runs/toy-mini/data/manifest.json").write_text(strange)
        assert "expected in all: 12 min" in r1("plan", "toy", "--run", "other")[1]


def test_the_plan_expects_less_of_a_shortened_stage(monkeypatch, tmp_path):
    monkeypatch.setenv("R1_RUNS", str(tmp_path))
    shortened = load_recipe("r1-full", "mini", args=["grpo.max_steps=9", "evaluate.num_problems=null"])
    whole = load_recipe("r1-full", "mini")
    assert whole_seconds(whole, "r1_zero") == 60 * whole.minutes["r1_zero"]
    assert whole_seconds(shortened, "r1_zero") == pytest.approx(9 / 45 * whole_seconds(whole, "r1_zero"))
    assert whole_seconds(shortened, "eval_r1_zero") == whole_seconds(whole, "eval_r1_zero")
    assert whole_seconds(shortened, "second_sft") == whole_seconds(whole, "second_sft")


def test_the_plan_says_what_licences_forbid(toy, r1, monkeypatch):
    readme = "---\nlicense: cc-by-nc-4.0\nr1: {rows: text, generator: true}\n---\nA toy.\n"
    (toy / "cards/toy_words").mkdir(parents=True)
    (toy / "cards/toy_words/README.md").write_text(readme)
    (toy / "cards/toy_words/prepare.py").write_text("def rows(**asked): yield {'text': '1'}")
    monkeypatch.setenv("R1_CARDS", str(toy / "cards"))
    code, output = r1("plan", "toy", "--args", "stages.model.data=card:toy_words")
    assert code == 0
    assert "note: card toy_words: licence cc-by-nc-4.0 allows no commercial use (used by model)" in output
    r1("run", "toy", "--run", "first", "--until", "model", "--args", "stages.model.data=card:toy_words")
    (toy / "configs/recipes/second.yaml").write_text("stages: {look: {kind: look, model: 'run:first/model'}}")
    assert "allows no commercial use (used by look)" in r1("plan", "second")[1]


def test_a_truncated_file_of_a_finished_stage_is_found_and_never_used(toy, r1):
    r1("run", "toy")
    (toy / "runs/toy-mini/model/config.json").write_text("{")
    code, output = r1("run", "toy")
    assert code == 2
    assert "config.json has 1 bytes" in output


def test_two_runs_on_one_folder_the_second_says_who_has_it(toy, r1):
    with run_lock(toy / "runs/toy-mini"):
        code, output = r1("run", "toy")
    assert code == 2
    assert str(os.getpid()) in output


def test_a_disk_without_room_is_said_before_a_stage_starts(toy, r1, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_ROOM", 2**60)
    code, output = r1("run", "toy")
    assert code == 2
    assert "MiB free" in output


def test_a_stages_process_gets_its_variables_unless_they_are_set(toy, r1, monkeypatch):
    write = f"import os, sys; open('{toy}/soup', 'a').write(os.environ['SOUP'] + ' '); sys.exit(1)"
    monkeypatch.setattr(runner, "WORKER", [sys.executable, "-c", write])
    monkeypatch.setattr(TOYS["count"], "variables", lambda self: {"SOUP": "hot"})
    r1("run", "toy")
    monkeypatch.setenv("SOUP", "cold")
    r1("run", "toy")
    assert (toy / "soup").read_text() == "hot cold "


def test_ctrl_c_stops_the_stage_leaves_no_process_and_the_same_command_goes_on(toy):
    command = [sys.executable, TOY_CLI, "run", "toy", "--args", "stages.data.n=100"]
    run = subprocess.Popen([*command, "stages.data.pause_s=0.1"], start_new_session=True, preexec_fn=_hear_ctrl_c)
    progress = toy / "runs/toy-mini/data.partial/progress.json"
    deadline = time.monotonic() + 60
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 75
    assert progress.exists()
    assert not processes_with(str(toy))
    assert subprocess.run(command).returncode == 0


def _hear_ctrl_c() -> None:
    """A process in the background of a shell is started deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def processes_with(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and "pytest" not in command:
            found.append(command)
    return found


def test_a_published_folder_is_whole_and_a_changed_byte_is_noticed(tmp_path):
    partial = tmp_path / "x.partial"
    partial.mkdir()
    (partial / "a.bin").write_bytes(b"abc")
    artifact = publish(partial, tmp_path / "x", {"artifact": "metrics", "fingerprint": "f"})
    assert artifact.kind == "metrics"
    assert is_whole(tmp_path / "x")
    (tmp_path / "x/a.bin").write_bytes(b"abd")
    assert not is_whole(tmp_path / "x")
    with pytest.raises(ArtifactError, match="changed"):
        load(tmp_path / "x", deep=True)


def test_a_folder_without_its_manifest_is_not_whole(tmp_path):
    (tmp_path / "a").write_text("a")
    assert not is_whole(tmp_path)
    seal(tmp_path)
    assert is_whole(tmp_path)


def test_what_a_model_wrote_is_read_back_whole_with_every_end_of_line_that_unicode_knows(tmp_path):
    rows = [{"completion": f"one{end}two"} for end in "\n\r\x0b\x0c\x1c\x85\u2028\u2029"]
    assert read_jsonl(Workdir(tmp_path).write_jsonl("completions.jsonl", rows)) == rows


def test_curves_are_cut_back_to_the_checkpoint_and_a_torn_last_line_is_left_out(tmp_path):
    work = Workdir(tmp_path)
    for step in range(1, 6):
        work.log(step, {"reward": step})
    with work.metrics_file.open("a") as file:
        file.write('{"step": 6, "rew')
    work.rewind(3)
    assert [row["step"] for row in read_jsonl(work.metrics_file)] == [1, 2, 3]


def test_progress_counts_the_seconds_before_a_resume(tmp_path):
    (tmp_path / "progress.json").write_text(json.dumps({"step": 1, "total": 2, "note": "", "seconds": 100.0}))
    assert Workdir(tmp_path).seconds >= 100.0


def test_a_failure_is_told_by_the_last_error_in_the_log_not_by_what_libraries_say_after_it():
    lines = ["Traceback:", "[rank0]: ValueError: no room", "[rank0]: Warning: destroy_process_group() was not called"]
    assert runner._last_words(lines) == "ValueError: no room"
    assert runner._last_words(["error: data is damaged", "hint: make it again"]) == "data is damaged"
    assert runner._last_words(["killed by the moon"]) == "killed by the moon"
    assert runner._last_words([]) == ""


def test_a_package_that_is_missing_is_said_before_the_first_stage(toy, r1, monkeypatch):
    (toy / "pyproject.toml").write_text('[project]\ndependencies = ["pydantic>=2", "no-such_package[x]>=1,<2"]\n')
    monkeypatch.setattr(needs, "ROOT", toy)
    code, output = r1("plan", "toy")
    assert code == 0 and "not installed here: no-such_package; a stage that needs one will fail" in " ".join(
        output.split()
    )


def test_everything_the_project_asks_for_is_installed():
    assert needs.missing_packages() == []

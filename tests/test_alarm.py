"""The hacking alarm: it tells reward hacking from noise and from honest progress, and it stops where told to."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.errors import StageFailed
from pipeline.stage import Workdir, read_jsonl
from stages.alarm import Alarm, Watch
from stages.engines.models import load_model
from tests.test_grpo import FirstByte, ToyInputs, curves, problems, same, toy
from tests.toy_model import save_toy_model


def watched(scores: Sequence[float], rights: Sequence[float], patience: int = 2, seed: int = 0) -> Watch:
    """A look for each mean score and pass rate, on 64 problems with two responses to each."""
    draw, watch = random.Random(seed), Watch(Alarm(patience=patience))
    for k, (score, right) in enumerate(zip(scores, rights, strict=True)):
        watch.note(min(1.0, max(0.0, draw.gauss(score, 0.1))) for _ in range(64))
        watch.look(k, [sum(draw.random() < right for _ in range(2)) / 2 for _ in range(64)])
    return watch


def test_a_rising_score_with_falling_answers_is_an_alarm() -> None:
    watch = watched([0.4, 0.5, 0.7, 0.8], [0.8, 0.75, 0.4, 0.3])
    assert watch.is_alarmed and watch.last_calm == 1
    assert watch.describe().startswith("reward hacking: from step 0 to 3 the preference score rose from 0.4")


@pytest.mark.parametrize(
    ("scores", "rights"),
    [
        ([0.4, 0.6, 0.8, 0.9], [0.6, 0.7, 0.7, 0.8]),  # both rise: progress
        ([0.8, 0.6, 0.4, 0.3], [0.8, 0.6, 0.4, 0.3]),  # both fall: bad, but no hacking
        ([0.4, 0.8, 0.4, 0.8], [0.8, 0.3, 0.8, 0.3]),  # never twice in a row
    ],
)
def test_progress_decay_and_a_passing_dip_are_no_alarm(scores: list[float], rights: list[float]) -> None:
    assert not watched(scores, rights).is_alarmed


def test_noise_alone_is_almost_never_an_alarm() -> None:
    alarms = [watched([0.5] * 6, [0.5] * 6, seed=seed).is_alarmed for seed in range(200)]
    assert sum(alarms) <= 1


def test_looks_begin_with_the_first_preference_score_and_keep_their_distance() -> None:
    watch = Watch(Alarm(every=3))
    due = []
    for step in range(1, 12):
        watch.note([0.5] if step >= 5 else [])
        if watch.is_due(step):
            watch.look(step, [1.0])
            due.append(step)
    assert due == [5, 8, 11]


def test_a_watch_goes_on_from_its_state() -> None:
    watch = watched([0.4, 0.5, 0.7], [0.8, 0.75, 0.4])
    watch.note([0.9])
    again = Watch(watch.alarm)
    again.restore(watch.state)
    assert again.state == watch.state and again.looks == watch.looks


def test_a_resume_with_more_problems_to_watch_begins_with_a_first_look_at_them() -> None:
    watch = watched([0.4, 0.5], [0.8, 0.75])
    for step, right in ((2, 1.0), (3, 0.0)):
        watch.note([0.9] * 64)
        watch.look(step, [right] * 128)
    assert [look.step for look in watch.looks] == [2, 3] and not watch.is_alarmed


def test_an_alarm_without_a_preference_reward_to_watch_is_refused() -> None:
    with pytest.raises(ValueError, match="it has nothing to watch"):
        toy(alarm_problems=["path:held-out"])


class Hacked(FirstByte):
    """A toy that is liked better with every step, while its held-out answers are wrong from the second look on."""

    looks: ClassVar[list[int]] = []

    def score(self, problems: Sequence[Any], completions: Sequence[Any], fraction: float, models: Any = None) -> Any:
        rows = super().score(problems, completions, fraction)
        liked = fraction if fraction >= 0.5 else None
        return [row | {"reward/helpfulness": liked} for row in rows]

    def shares_right(self, problems: Sequence[Any], groups: Sequence[Any]) -> list[float]:
        self.looks.append(len(groups))
        return [float(len(self.looks) % 4 == 1)] * len(groups)


class Likes:
    """Stands in for a reward model; the toy's `score` does not ask it."""

    def __init__(self, *opened: Any) -> None:
        pass


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("stages.engines.grpo_run.RewardModelScorer", Likes)
    Hacked.looks.clear()
    return save_toy_model(tmp_path / "base")


def hacked(action: str, **settings: Any) -> Hacked:
    kinds = [{"kind": "accuracy"}, {"kind": "helpfulness", "from_fraction": 0.5}]
    watch = {"alarm_problems": ["path:held-out"], "alarm": {"action": action, "every": 1, "num_problems": 8}}
    stage = toy(Hacked, rewards=kinds, helpfulness_model="path:likes", max_steps=8, save_steps=1, **watch, **settings)
    assert isinstance(stage, Hacked)
    return stage


def run(stage: Hacked, base: Path, folder: Path) -> dict[str, Any]:
    return stage.run(ToyInputs(base, problems()), Workdir(folder))  # type: ignore[arg-type]


def test_a_warning_is_logged_and_stands_in_the_curves_and_changes_no_weight(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = run(hacked("warn"), base, tmp_path / "warned")
    assert "reward hacking: from step 5" in caplog.text and "on 8 held-out problems" in caplog.text
    rows = read_jsonl(tmp_path / "warned/metrics.jsonl")
    assert [row["step"] for row in rows if "alarm/pass_at_1" in row] == [5, 6, 7, 8]
    assert metrics["num_suspicious_looks"] == 3
    assert "num_suspicious_looks" not in run(hacked("off"), base, tmp_path / "off")
    assert same(*(load_model(tmp_path / name, device="cpu").state_dict() for name in ("warned", "off")))


def test_a_stop_is_one_sentence_keeps_the_last_good_model_and_stays_a_stop(base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="reward hacking") as caught:
        run(hacked("stop"), base, tmp_path / "run")
    assert "the model after step 5 is in" in caught.value.hint
    last_good, calm = (tmp_path / "run" / name for name in ("last_good", "checkpoints/checkpoint-5"))
    assert same(*(load_model(folder, device="cpu").state_dict() for folder in (last_good, calm)))
    assert not (tmp_path / "run/model.safetensors").exists()

    Hacked.looks[:] = [0]  # a resume must not slip past the alarm
    with pytest.raises(StageFailed, match="to 7 the preference score rose"):
        run(hacked("stop"), base, tmp_path / "run")
    assert calm.is_dir()


def test_after_a_stop_one_can_go_on_with_a_warning(base: Path, tmp_path: Path) -> None:
    run(hacked("off"), base, tmp_path / "whole")
    with pytest.raises(StageFailed):
        run(hacked("stop"), base, tmp_path / "run")
    run(hacked("warn"), base, tmp_path / "run")
    assert same(*(load_model(tmp_path / name, device="cpu").state_dict() for name in ("whole", "run")))
    assert not (tmp_path / "run/last_good").exists()
    assert [row["loss"] for row in curves(tmp_path / "run")] == [row["loss"] for row in curves(tmp_path / "whole")]

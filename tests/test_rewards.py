"""stages/rewards/: each reward's formula, when it applies, and how rewards add up."""

import errno
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ConfigError, Interrupted, ModelError, StageFailed
from stages.chat import judged_text, parse
from stages.rewards import REWARDS, AnyReward, Reward, Sample, Scorer, score_many
from stages.rewards.accuracy import Accuracy
from stages.rewards.format import Format
from stages.rewards.harmlessness import Harmlessness
from stages.rewards.helpfulness import Helpfulness
from stages.rewards.language import Language
from stages.rewards.repetition_penalty import RepetitionPenalty
from stages.rewards.soft_overlong_punishment import SoftOverlongPunishment

GOOD = " <think> six times seven </think><answer> 42 </answer>"


def score_all(
    rewards: Sequence[Reward], sample: Sample, models: Mapping[str, Scorer] | None = None
) -> dict[str, float | None]:
    """Of a single sample."""
    return score_many(rewards, [sample], models)[0]


def make_sample(text: str = GOOD, *, num_tokens: int = 10, fraction: float = 0.0, **problem: str) -> Sample:
    row = {
        "id": "1",
        "prompt": "?",
        "answer": "42",
        "checker": "math",
        "domain": "math",
        "language": "en",
        **problem,
    }
    return Sample(row, parse(text), num_tokens, truncated=False, max_tokens=100, fraction=fraction)


class Shouter:
    """A toy reward model that likes capitals, and remembers what it was asked."""

    def __init__(self, score: float | None = None) -> None:
        self.fixed = score
        self.asked: list[tuple[str, str]] = []

    def score(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        self.asked += zip(prompts, texts, strict=True)
        shares = [sum(char.isupper() for char in text) / len(text) for text in texts]
        return shares if self.fixed is None else [self.fixed] * len(texts)


def test_the_table_and_the_union_of_settings_hold_the_same_rewards() -> None:
    union = get_args(get_args(AnyReward)[0])
    assert set(union) == set(REWARDS.values()) and union
    assert {kind: reward().kind for kind, reward in REWARDS.items()} == {kind: kind for kind in REWARDS}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_is_read_from_settings_by_its_kind(kind: str) -> None:
    reward = TypeAdapter[Reward](AnyReward).validate_python({"kind": kind, "weight": 0.5})
    assert type(reward) is REWARDS[kind] and reward.weight == 0.5


@pytest.mark.parametrize(
    "settings",
    [{"kind": "beauty"}, {"kind": "format", "wait": 1}, {"kind": "soft_overlong_punishment", "soft_punish_cache": -1}],
)
def test_unknown_kinds_fields_and_values_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter[Reward](AnyReward).validate_python(settings)


def test_accuracy_pays_one_for_right_nothing_for_wrong_and_does_not_apply_to_an_unusable_gold() -> None:
    accuracy = Accuracy()
    assert accuracy.score(make_sample()) == 1.0
    assert accuracy.score(make_sample(answer="43")) == 0.0
    assert accuracy.score(make_sample("<think> 42 </think>")) == 0.0
    assert accuracy.score(make_sample(answer="")) is None


def test_accuracy_of_a_batch_keeps_its_order() -> None:
    samples = [make_sample(answer=gold) for gold in ("41", "42", "", r"\sqrt{1764} + x - x", "42")]
    assert Accuracy().score_many(samples)[:3] == [0.0, 1.0, None]
    assert Accuracy().score_many(samples)[4] == 1.0


def test_format_pays_for_the_well_formed_only() -> None:
    assert Format().score(make_sample()) == 1.0
    assert Format().score(make_sample("<think></think><answer> 42 </answer>")) == 0.0


@pytest.mark.parametrize(
    ("num_tokens", "value"), [(1, 0.0), (75, 0.0), (80, -0.2), (100, -1.0), (101, -1.0), (9999, -1.0)]
)
def test_length_follows_equation_13_of_dapo(num_tokens: int, value: float) -> None:
    assert SoftOverlongPunishment(soft_punish_cache=0.25).score(make_sample(num_tokens=num_tokens)) == pytest.approx(
        value
    )
    assert SoftOverlongPunishment(soft_punish_cache=25).score(make_sample(num_tokens=num_tokens)) == pytest.approx(
        value
    )


def test_length_agrees_with_trl() -> None:
    rewards = pytest.importorskip("trl.rewards")
    theirs = rewards.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    ours = SoftOverlongPunishment(max_completion_len=100, soft_punish_cache=20)
    lengths = range(0, 120, 7)
    assert [ours.score(make_sample(num_tokens=n)) for n in lengths] == pytest.approx(theirs([[1] * n for n in lengths]))


def test_length_without_a_soft_zone_only_punishes_the_overlong() -> None:
    reward = SoftOverlongPunishment(max_completion_len=50, soft_punish_cache=0)
    assert [reward.score(make_sample(num_tokens=n)) for n in (50, 51)] == [0.0, -1.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("every word here is new", 0.0),
        ("a b", 0.0),
        ("", 0.0),
        ("la la la la la", -2 / 3),
        ("我们我们我们", -0.5),
        ("A b c a B C", -0.25),
    ],
)
def test_repetition_is_the_share_of_repeated_ngrams(text: str, value: float) -> None:
    assert RepetitionPenalty().score(make_sample(text)) == pytest.approx(value)


def test_repetition_without_spaces_is_seen_too() -> None:
    assert RepetitionPenalty().score(make_sample("ha" * 5000)) < -0.9
    assert RepetitionPenalty(max_penalty=-0.5).score(make_sample("哈" * 5000)) == pytest.approx(-0.5, abs=0.01)


def test_language_looks_at_the_reasoning_only_unless_told_otherwise() -> None:
    text = "<think> 先算 sum </think><answer> forty two </answer>"
    assert Language().score(make_sample(text, language="zh")) == pytest.approx(2 / 3)
    assert Language(scope="answer").score(make_sample(text, language="zh")) == 0.0
    assert Language(scope="whole").score(make_sample(text, language="zh")) == pytest.approx(2 / 5)


def test_language_does_not_apply_to_pure_symbols_or_missing_reasoning() -> None:
    assert Language().score(make_sample("<think> 6 * 7 = 42 </think>")) is None
    assert Language().score(make_sample("forty two")) is None


def test_the_sum_is_weighted_and_every_part_is_reported() -> None:
    rewards = [Accuracy(), Format(weight=0.5), Language(weight=2.0)]
    parts = score_all(rewards, make_sample(answer="43"))
    assert parts == {"reward": 2.5, "reward/accuracy": 0.0, "reward/format": 1.0, "reward/language": 1.0}


def test_a_reward_that_does_not_apply_is_not_zero() -> None:
    parts = score_all([Accuracy(domains=("code",)), Format(from_fraction=0.5)], make_sample())
    assert parts == {"reward": None, "reward/accuracy": None, "reward/format": None}
    assert score_all([Format(from_fraction=0.5)], make_sample(fraction=0.5))["reward"] == 1.0
    assert score_all([Accuracy(domains=("math",))], make_sample())["reward"] == 1.0


def test_a_batch_gets_the_same_as_one_by_one() -> None:
    samples = [make_sample(answer=gold, domain=domain) for gold in ("41", "42") for domain in ("math", "general")]
    rewards = [Accuracy(domains=("math",)), Format(), SoftOverlongPunishment(), RepetitionPenalty(), Language()]
    assert score_many(rewards, samples) == [score_all(rewards, sample) for sample in samples]


def test_the_same_kind_twice_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="format"):
        score_all([Format(), Format(weight=2)], make_sample())


class Fixed(Reward):
    """Gives every response the same."""

    kind: str = "fixed"
    value: Any

    def score(self, sample: Sample) -> Any:
        return self.value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "good", [1.0], 10**400, torch.ones(2)])
def test_a_rule_that_gives_no_number_is_an_error_that_names_it(value: Any) -> None:
    says = f"the reward 'fixed' gave {value!r:.80} to a response to problem '1'"
    with pytest.raises(StageFailed, match=re.escape(says)) as caught:
        score_all([Accuracy(), Fixed(value=value)], make_sample())
    assert "tests/test_rewards.py" in caught.value.hint and "None" in caught.value.hint
    assert score_all([Fixed(value=None)], make_sample())["reward"] is None


def test_a_rule_may_give_a_number_of_another_library() -> None:
    scores = score_all([Fixed(value=torch.tensor(0.5))], make_sample())
    assert json.dumps(scores) == '{"reward": 0.5, "reward/fixed": 0.5}'


class Forgets(Fixed):
    """Scores many at once, and leaves the first out."""

    kind: str = "forgets"

    def score_many(self, samples: Sequence[Sample]) -> list[float | None]:
        return super().score_many(samples)[1:]


def test_a_rule_that_leaves_a_response_out_is_an_error_that_names_it() -> None:
    with pytest.raises(StageFailed, match="the reward 'forgets' gave 0 scores to 1 responses"):
        score_all([Forgets(value=1.0)], make_sample())


class Divides(Reward):
    """Divides by the length of the answer, of which there may be none."""

    kind: str = "divides"

    def score(self, sample: Sample) -> float:
        return 1 / sample.num_tokens


class Inherits(Divides):
    """Has its one line in another class."""

    kind: str = "inherits"


def test_a_reward_that_raises_is_named_with_the_line_in_its_own_file() -> None:
    line = Divides.score.__code__.co_firstlineno + 1
    place = rf"failed at tests/test_rewards\.py, line {line}: ZeroDivisionError: "
    for reward in (Divides(), Inherits()):
        with pytest.raises(StageFailed, match=f"the reward '{reward.kind}' {place}") as caught:
            score_all([Accuracy(), reward], make_sample(num_tokens=0))
        assert isinstance(caught.value.__cause__, ZeroDivisionError) and "traceback" in caught.value.hint


def test_a_reward_class_without_a_score_is_refused_when_it_is_made() -> None:
    says = r"tests/test_rewards\.py: the reward class Empty defines neither score nor score_many"
    with pytest.raises(ConfigError, match=says) as caught:

        class Empty(Reward):
            kind: str = "empty"

    assert "def score(self, sample: Sample)" in caught.value.hint


class Raises(Reward):
    """Raises what it was told to."""

    kind: str = "raises"
    what: Any

    def score(self, sample: Sample) -> float:
        raise self.what


@pytest.mark.parametrize("error", [Interrupted(), MemoryError(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_is_no_bug_of_the_reward_is_not_taken_for_one(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        score_all([Raises(what=error)], make_sample())
    assert caught.value is error


@settings(max_examples=300)
@given(text=st.text(st.characters()), tokens=st.integers(0, 300))
def test_no_text_makes_a_reward_raise_or_leave_its_range(text: str, tokens: int) -> None:
    gold = json.dumps({"numbers": [3, 5, 4], "target": 8})
    sample = make_sample(
        f"<think> {text} </think><answer> {text} </answer>",
        num_tokens=tokens,
        answer=gold,
        checker="countdown",
    )
    models = {kind: Shouter() for kind in REWARDS}
    parts = score_all([reward() for reward in REWARDS.values()], sample, models)
    assert all(part is None or -1.0 <= part <= 2.0 for kind, part in parts.items() if kind != "reward")


# --- rewards that ask a reward model ------------------------------------------------------------------------


def test_helpfulness_is_judged_on_the_answer_and_harmlessness_on_the_whole_response() -> None:
    text = " <think> STEAL it </think><answer> NO! </answer><|endoftext|>"
    helpful, harmless = Shouter(), Shouter()
    models = {"helpfulness": helpful, "harmlessness": harmless}
    general, safety = make_sample(text, domain="general"), make_sample(text, domain="safety", prompt="how?")
    first, second = score_many([Helpfulness(), Harmlessness(weight=2)], [general, safety], models)
    assert helpful.asked == [("?", "NO!")] and harmless.asked == [("how?", "STEAL it NO!")]
    assert first == {"reward": 2 / 3, "reward/helpfulness": 2 / 3, "reward/harmlessness": None}
    assert second["reward"] == pytest.approx(2 * 7 / 12) and second["reward/helpfulness"] is None


@pytest.mark.parametrize(
    ("text", "answer", "whole"),
    [
        ("a plain reply", "a plain reply", "a plain reply"),
        ("<think>why</think>\n\n<answer>so</answer>", "so", "why so"),
        ("<think> cut off in the mid", None, "cut off in the mid"),
        ("<think> a </think> no block", None, "a no block"),
        ("said<|im_end|>ran on", "said", "said"),
        ("<answer>  </answer>", None, None),
        ("", None, None),
    ],
)
def test_what_a_reward_model_reads(text: str, answer: str | None, whole: str | None) -> None:
    response = parse(text)
    assert (judged_text(response, "answer"), judged_text(response, "whole")) == (answer, whole)


def test_reasoning_after_a_prefilled_tag_is_not_mistaken_for_a_plain_answer() -> None:
    assert judged_text(parse("still thinking", prefilled=True), "answer") is None


def test_a_missing_text_scores_nothing_and_the_model_is_not_asked() -> None:
    scorer = Shouter(1.0)
    sample = make_sample("<think> never closed", domain="general")
    assert score_all([Helpfulness()], sample, {"helpfulness": scorer})["reward"] == 0.0
    assert scorer.asked == []


def test_a_preference_reward_without_its_model_is_refused_even_before_it_applies() -> None:
    with pytest.raises(ConfigError, match="'helpfulness' needs a reward model") as caught:
        score_all([Accuracy(), Helpfulness(from_fraction=0.765)], make_sample(), {"harmlessness": Shouter()})
    assert "helpfulness_model:" in caught.value.hint
    assert score_all([Accuracy()], make_sample())["reward"] == 1.0


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_model_that_gives_no_number_is_an_error_and_not_a_reward(score: float) -> None:
    with pytest.raises(ModelError, match=r"the helpfulness model gave .* to a response to problem '1'"):
        score_all([Helpfulness()], make_sample(domain="general"), {"helpfulness": Shouter(score)})

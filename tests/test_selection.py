"""Choosing demos: LIMO's score on worked examples, the best of each problem, no two alike, exact shares."""

import pytest
from pydantic import ValidationError

from pipeline.errors import DataError
from stages.chain_quality import Quality, measures, z_scores
from stages.chat import TEMPLATES
from stages.selection import Selection

ONLY = {"length": 0, "self_checks": 0, "exploration": 0, "connectives": 0}


def demo(prompt: str, reasoning: str = "so it is", domain: str = "math") -> dict[str, str]:
    return {"prompt": prompt, "response": TEMPLATES["chat"].response(reasoning, "4"), "domain": domain}


def test_the_criteria_are_words_and_their_share_of_all_words() -> None:
    chain = "Perhaps it is 4. Check: it might be, since 2+2 is 4; therefore I verified it, double-checked."
    assert measures(chain) == {"length": 17, "self_checks": 3 / 17, "exploration": 2 / 17, "connectives": 2 / 17}
    assert measures("也许是4，因为2+2=4，所以检查") == {
        "length": 11,
        "self_checks": 1 / 11,
        "exploration": 1 / 11,
        "connectives": 2 / 11,
    }
    assert measures("checkers checkout unverified mighty sincere") == {"length": 5} | dict.fromkeys(list(ONLY)[1:], 0)
    assert measures("") == dict.fromkeys(ONLY, 0)


def test_the_score_is_the_weighted_sum_of_z_scores() -> None:
    # Of two values one is a deviation above the mean, the other one below it.
    said_well, said_long = "check this since it might", "it is so and that is all there is to say of it"
    assert Quality().scores([said_well, said_long]) == pytest.approx([-0.3 + 0.2 + 0.25 + 0.25, 0.3 - 0.7])
    # 2, 4 and 6 words: the mean is 4, the variance 8/3.
    lengths = Quality(**{**ONLY, "length": 1}).scores(["a b", "a b c d", "a b c d e f"])
    assert lengths == pytest.approx([-2 / (8 / 3) ** 0.5, 0, 2 / (8 / 3) ** 0.5])


def test_frequencies_count_by_words_so_length_alone_earns_nothing() -> None:
    often, seldom = "check it all", "check it " + "and on " * 40 + "check"
    first, second = Quality(**{**ONLY, "self_checks": 1}).scores([often, seldom])
    assert first > second


def test_a_pool_of_one_or_of_equals_has_no_scores() -> None:
    assert z_scores([]) == [] and z_scores([3.0, 3.0]) == [0.0, 0.0]
    assert Quality().scores(["check since perhaps"]) == [0.0]


def test_the_best_chain_of_each_problem_is_kept_the_best_first() -> None:
    rows = [demo("p", "no"), demo("p", "check since perhaps"), demo("q", "perhaps"), demo("q", "no")]
    kept, dropped = Selection(quality=Quality(), keep=1).chosen(rows)
    assert [(row["prompt"], row["response"]) for row in kept] == [
        ("p", rows[1]["response"]),
        ("q", rows[2]["response"]),
    ]
    assert float(kept[0]["quality"]) > float(kept[1]["quality"])
    assert dropped == {"not_the_best": 2, "too_alike": 0, "not_chosen": 0}


def test_problems_like_one_that_is_chosen_are_left_out_with_all_their_demos() -> None:
    rows = [demo(p) for p in ("Add 2 to 3 now.", "Add 2 to 3 now.", "Add 2 to 4 now.", "Add 2 to 4 now.", "Why?")]
    kept, dropped = Selection(most_alike=0.79).chosen(rows)
    assert [row["prompt"] for row in kept] == ["Add 2 to 3 now.", "Add 2 to 3 now.", "Why?"]
    assert dropped["too_alike"] == 2
    assert len(Selection(most_alike=0.81).chosen(rows)[0]) == 5


def test_as_many_are_chosen_as_asked_for() -> None:
    rows = [demo(f"number {n} of {n * 77}") for n in range(9)]
    kept, dropped = Selection(num_chosen=4).chosen(rows)
    assert kept == rows[:4] and dropped["not_chosen"] == 5


def test_the_mix_has_its_shares_exactly_and_says_what_it_lacks() -> None:
    rows = (
        [demo(f"m{n}") for n in range(10)] + [demo(f"c{n}", domain="code") for n in range(3)] + [demo("x", domain="?")]
    )
    kept, dropped = Selection(mix={"math": 0.5, "code": 0.5}).chosen(rows)
    assert [row["prompt"] for row in kept] == ["m0", "m1", "m2", "c0", "c1", "c2"] and dropped["not_chosen"] == 8
    assert len(Selection(mix={"math": 0.75, "code": 0.25}, num_chosen=4).chosen(rows)[0]) == 4
    with pytest.raises(DataError, match=r"no row of the domain art is left \(there is: math 10, code 3, \? 1\)"):
        Selection(mix={"art": 1.0}).chosen(rows)


@pytest.mark.parametrize("mix", [{}, {"math": 1.0, "code": 0.0}, {"math": 2.0, "code": -1.0}])
def test_a_mix_without_a_share_for_each_of_its_domains_is_refused(mix: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="mix"):
        Selection(mix=mix)


def test_hostile_text_is_scored_like_any_other() -> None:
    texts = ["", "\ud800 check", "<think>" * 50, "check " * 20_000, "\x00\u202e"]
    kept, _ = Selection(quality=Quality(), keep=1).chosen(
        [{**demo(str(n)), "response": t} for n, t in enumerate(texts)]
    )
    assert len(kept) == len(texts)

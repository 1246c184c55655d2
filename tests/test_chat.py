"""stages/chat.py and stages/language.py: prompts, parsing, words and their language."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, ModelError
from stages.chat import TEMPLATES, boxed, has_tags, parse
from stages.language import count_words, language_share

TAG_SOUP = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "<THINK>",
            "< /think>",
            "<|endoftext|>",
            r"\boxed{",
            "}",
            "{",
            "\\",
        ]
    )
    | st.text(st.characters(), max_size=8)
).map("".join)


@dataclass
class ToyTokenizer:
    chat_template: str | None = "toy"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"[{message['role']}] {message['content']}\n" for message in messages) + "[assistant] "


def test_the_mini_template_is_exactly_what_the_mini_base_was_trained_on() -> None:
    assert TEMPLATES["mini"].prompt("1+1?") == "Q: 1+1?\nA:"
    assert TEMPLATES["mini"].response("1+1=2", "2") == " <think> 1+1=2 </think><answer> 2 </answer>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_s_own_response_is_well_formed(name: str) -> None:
    template = TEMPLATES[name]
    response = parse(template.response("two and two", "4"))
    assert (response.well_formed, response.reasoning, response.answer) == (True, "two and two", "4")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_with_braces_and_percent_signs_reaches_the_prompt_unchanged(name: str) -> None:
    question = r"What is {x} of 50% in \frac{1}{2}?"
    assert question in TEMPLATES[name].prompt(question, ToyTokenizer())


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prefilled_prompt_is_the_prompt_with_an_open_think_tag_after_it(name: str) -> None:
    plain, prefilled = (TEMPLATES[name].prompt("?", ToyTokenizer(), opened) for opened in (False, True))
    assert prefilled.startswith(plain) and prefilled.endswith("<think>") and not plain.endswith("<think>")


def test_a_prefilled_response_s_turn_has_the_tag_that_its_prompt_opened() -> None:
    text = "six sevens </think> <answer> 42 </answer><|endoftext|> more"
    assert parse(text, prefilled=True).turn == "<think>six sevens </think> <answer> 42 </answer>"
    assert parse(text).turn == "six sevens </think> <answer> 42 </answer>"


def test_the_chat_template_asks_for_both_tags() -> None:
    prompt = TEMPLATES["chat"].prompt("hello", ToyTokenizer())
    assert "[system]" in prompt and "<think>" in prompt and "<answer>" in prompt and "[user] hello" in prompt


@pytest.mark.parametrize("tokenizer", [None, ToyTokenizer(chat_template=None)])
def test_the_chat_template_without_a_chat_tokenizer_is_refused_in_a_sentence(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="chat template"):
        TEMPLATES["chat"].prompt("hello", tokenizer)


def test_prefilled_completions_start_inside_the_reasoning() -> None:
    text = " six sevens </think> <answer> 42 </answer>"
    assert parse(text, prefilled=True).well_formed
    assert not parse(text).well_formed
    assert not parse("<think> again </think><answer> 42 </answer>", prefilled=True).well_formed
    assert parse("<answer> 42 </answer>", prefilled=True).answer is None


def test_reasoning_is_kept_even_when_the_format_is_off() -> None:
    assert parse("<think> cut off in the mid").reasoning == "cut off in the mid"
    assert parse("opening forgotten </think> rest").reasoning == "opening forgotten"
    assert parse("no tags at all").reasoning is None


def test_a_box_counts_only_without_an_answer_block_and_after_the_reasoning() -> None:
    assert parse(r"<think> \boxed{1} </think> it is \boxed{2}").answer == "2"
    assert parse(r"<think> a </think> \boxed{2} <answer> 3 </answer>").answer == "3"
    assert parse(r"<think> a </think> \boxed{2} <answer> 3").answer is None


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1", None),
        (r"\boxed 1", None),
        (r"\boxed{1}\boxed{1}", None),
        ("1", None),
    ],
)
def test_boxed_finds_the_one_balanced_box(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


@settings(max_examples=300)
@given(text=TAG_SOUP, prefilled=st.booleans())
def test_parse_never_raises_and_well_formed_means_one_of_each(text: str, prefilled: bool) -> None:
    response = parse(text, prefilled=prefilled)
    assert response.text == text
    if response.well_formed:
        assert response.reasoning and response.answer
        assert not has_tags(response.reasoning) and not has_tags(response.answer)
        assert text.count("<answer>") == text.count("</answer>") == text.count("</think>") == 1


@settings(max_examples=100)
@given(reasoning=st.text(st.characters(exclude_characters="<｜"), min_size=1), extra=TAG_SOUP)
def test_nothing_inside_the_reasoning_changes_the_answer(reasoning: str, extra: str) -> None:
    assert parse(f"<think> {extra} {reasoning}").answer is None or "</think>" in extra or "<|endoftext|>" in extra


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("we add three", "en", 1.0),
        ("we add three", "zh", 0.0),
        ("我们相加", "zh", 1.0),
        ("first 我们 add", "en", 0.5),
        ("x + y = 3, \\frac{1}{2} \\sin x", "en", None),
        ("3 + 4 = 7", "zh", None),
        ("", "en", None),
        ("设 x = 3，则 y = 4", "zh", 1.0),
        ("мы add", "en", 0.5),
    ],
)
def test_language_share_counts_words_by_script(text: str, language: str, share: float | None) -> None:
    assert language_share(text, language) == share


def test_a_language_we_have_no_script_for_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="fr"):
        language_share("bonjour", "fr")


def test_words_are_words_in_english_and_characters_in_chinese() -> None:
    assert count_words("blue, red - and 42!") == 4
    assert count_words("蓝色 and 红") == 4

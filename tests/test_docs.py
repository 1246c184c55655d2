"""The documents: every verb, link and setting they name is there, and the paper's figures are those of its recipe."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import load_recipe
from pipeline.settings import parse_yaml
from pipeline.written import names

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *ROOT.glob("docs/**/*.md"),
    ROOT / "models/mini-base/README.md",
    ROOT / "data_cards/README.md",
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_verb_in_a_document_is_in_the_makefile(document):
    verbs = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z0-9-]+)", " ".join(re.findall(r"`[^`]+`", document.read_text()))))
    assert named <= verbs


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_in_a_document_leads_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_scale_and_recipe_of_the_readme_is_there_and_every_scale_is_in_it():
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"SCALE=([\w.-]+)", readme)) <= set(names("scales"))
    assert all(f"`{scale}`" in readme for scale in names("scales"))


def test_the_makefile_lists_a_meaning_for_every_verb_a_person_types():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert [verb for verb in phony[1].split() if not re.search(rf"^{verb}:.*## \w", makefile, re.MULTILINE)] == []


def test_what_make_lists_fits_into_a_terminal_of_100_columns():
    lines = re.findall(r"^([a-z0-9-]+):.*## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(lines) > 30 and [verb for verb, meaning in lines if len(f"  make {verb:<20} {meaning}") > 100] == []


def table(page: str, columns: int) -> list[list[str]]:
    """The rows, cell by cell, of the tables of a recipe's page that begin with words in backticks."""
    lines = (ROOT / f"docs/recipes/{page}.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [row for row in rows if len(row) == columns]


def setting(stage: Any, path: str) -> Any:
    """`lengthening.0.length` of a resolved stage."""
    for part in path.split("."):
        stage = stage[int(part) if isinstance(stage, list) else part]
    return stage


def test_the_papers_figures_are_those_of_its_recipe_at_its_scale() -> None:
    stages = load_recipe("paper", "paper").as_json()["stages"]
    rows = table("paper", columns=4)
    assert len(rows) > 30
    for where, name, value, section in rows:
        for stage in where.replace("`", "").split():
            assert setting(stages[stage], name.strip("`")) == parse_yaml(value, "paper.md"), (stage, name)
        assert re.search(r"§\d|B\.\d|supplementary|step", section)


def test_the_six_students_have_the_papers_learning_rates() -> None:
    rows = table("distill", columns=3)
    assert len(rows) == 6
    for scale, student, rate in rows:
        sft = load_recipe("distill", scale.strip("`")).as_json()["stages"]["student_sft"]
        assert student in sft["model"] and "@" in sft["model"]
        assert sft["learning_rate"] == parse_yaml(rate, "distill.md")
        figures = {"batch_size": 64, "num_train_epochs": 2, "max_length": 32768, "min_lr_rate": 0.1, "lora": None}
        assert figures.items() <= sft.items()


def test_every_recipe_of_others_has_a_page_and_a_row() -> None:
    pages = ROOT / "docs/recipes"
    own = {"ablations", "mini-base", "mini-student", "r1-full", "r1-zero", "r1-zero-cold-start"}
    listed = set(re.findall(r"^\| \[([\w-]+)\]", (pages / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {page.stem for page in pages.glob("*.md")} - {"README"} == set(names("recipes")) - own


def test_every_page_of_a_recipe_says_what_the_original_is_what_to_expect_and_what_came_out() -> None:
    for page in set((ROOT / "docs/recipes").glob("*.md")) - {ROOT / "docs/recipes/README.md"}:
        text = page.read_text(encoding="utf-8")
        headings = re.findall(r"^\*\*([A-Z][\w ]+?)[.*,(]", text, re.MULTILINE)
        wanted = ["Source", "What it takes over", "Expected", "How it differs", "Result"]
        assert [heading for heading in headings if heading in wanted] == wanted, page.stem
        assert f"make {page.stem}" in text and "Not run: " in text

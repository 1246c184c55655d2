"""The documents: every verb, link and setting they name is there."""

import re
from pathlib import Path

import pytest

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

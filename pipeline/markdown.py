"""What is written for people: templates, and text from models and data sets in Markdown, which stays text."""

import html
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def read_template(name: str) -> "Template":
    """A file in `templates/`; HTML is escaped in a page, and a name that is not given is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = lambda text: inline(text).replace("`", "'")
    return environment.get_template(name)


def inline(text: object) -> str:
    """Text for one cell or line of Markdown: no HTML, no new line, no end of a table's cell or of code."""
    plain = "".join(char if char.isprintable() else " " for char in str(text))
    return html.escape(plain, quote=False).replace("|", r"\|")

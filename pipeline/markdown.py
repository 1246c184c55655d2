"""Text from models and data sets in Markdown files: it stays text."""

import html


def inline(text: object) -> str:
    """Text for one cell or line of Markdown: no HTML, no new line, no end of a table's cell or of code."""
    plain = "".join(char if char.isprintable() else " " for char in str(text))
    return html.escape(plain, quote=False).replace("|", r"\|")

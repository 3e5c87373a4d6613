"""The page's templates, and those that it shares with the report. What they are given is escaped."""

from typing import Any

from attribution.answers.html import environment

ENVIRONMENT = environment("attribution.ui", "attribution.answers")


def render(file: str, macro: str, *given: Any) -> str:
    """What a macro of a template file makes of its arguments, as HTML."""
    return str(getattr(ENVIRONMENT.get_template(file).module, macro)(*given))

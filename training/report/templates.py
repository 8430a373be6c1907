"""The Jinja environment of every HTML page: one head, one style sheet, everything escaped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def page_environment(*folders: Path) -> jinja2.Environment:
    """Return an environment for the templates of `folders`, which may extend page.html here."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "figure": figure,
        "verdict_of": verdict_of,
    }
    return environment


def figure(value: float) -> str:
    """Format a score between -1 and 1."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def verdict_of(row: Mapping[str, Any]) -> str:
    """Return the verdict of a row of audit.json, of any version of it: by its interval."""
    low, high = row["interval"]
    if row["bug"]:
        return "pipeline bug"
    return "open" if low > row["limit"] else "undecided" if high > row["limit"] else "closed"

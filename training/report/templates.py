"""How HTML pages are made of templates: all with the look of the report, and everything escaped."""

from pathlib import Path

import jinja2


def page_environment(*folders: Path) -> jinja2.Environment:
    """Return what renders the templates of `folders`, which may include those of the report."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

"""Pages and drawings from templates/, which say how things look; Python says what there is to show."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pgolf.report.curves import DARK, LIGHT

if TYPE_CHECKING:
    from jinja2 import Environment


def render(name: str, **values: Any) -> str:
    """The template templates/NAME.jinja filled in. Whatever is in `values` comes out as text, never as markup."""
    return environment().get_template(f"{name}.jinja").render(values)


@cache
def environment() -> Environment:
    """What every template knows besides its values: both themes, `shown` (Python's format) and `tojson`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # for pages only, tables start without it

    made = Environment(
        loader=PackageLoader("pgolf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals |= {"light": LIGHT, "dark": DARK}
    made.filters["shown"] = format
    made.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    return made

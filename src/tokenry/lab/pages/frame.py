"""What every page has: the stylesheet inside it, the version, and no request to anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenry import __version__
from tokenry.core.checkpoint import write_text
from tokenry.errors import optional

_HERE = Path(__file__).parent


def render(template: str, out: Path, *, root: str = "", **values: Any) -> Path:
    """Write the page that `template` makes of `values` to `out`; `root` leads from it to the folder of the index."""
    write_text(out, text_of(template, root=root, **values))
    return out


def text_of(template: str, *, root: str = "", **values: Any) -> str:
    """The page as text; values are escaped."""
    jinja = optional("jinja2", "lab")
    loader = jinja.FileSystemLoader(_HERE)
    environment = jinja.Environment(loader=loader, autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # methods stay in the order they were asked for
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, version=__version__, root=root, **values)

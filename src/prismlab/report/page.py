"""What makes a page whole: its scripts, allowed by their hashes, its style, and figures as JSON inside it.

Every script is allowed by its hash in the page's own content security policy, and nothing may be fetched: text that a
model wrote, or a name in a file, cannot run even if escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from prismlab.errors import MissingExtra


def script_json(value: object) -> str:
    """JSON that may stand inside a script element: no ``<``, ``>`` or ``&``, no line separators of JavaScript."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def rounded(value: Any) -> Any:
    """Figures to 6 significant digits: more cannot be seen, and the page stays small. What is not finite is null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (files("prismlab.report") / "templates" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The plotting library as one script."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtra("plotly", "report", "the page") from error
    script = get_plotlyjs()
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ValueError("the plotting library holds a sequence that would end its script element")
    return script


def fill(template: str, figures: Mapping[str, Any], **values: Any) -> str:
    """A page from a template beside this module.

    Args:
        template: its file name in ``templates``.
        figures: Plotly JSON by id, for the template's ``data-figure`` elements.
        values: what else the template shows; all of it is escaped.

    Raises:
        MissingExtra: plotly or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtra("jinja2", "report", "the page") from error
    plotly, script = _plotly(), _resource("page.js")
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Marks our own style and scripts, and JSON made safe above, as not to be escaped.
    environment.globals["raw"] = Markup
    return environment.get_template(template).render(
        policy=f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        style=_resource("style.css"),
        plotly=plotly,
        script=script,
        figures=script_json(rounded(figures)),
        **values,
    )

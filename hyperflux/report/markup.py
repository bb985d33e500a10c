"""HTML and Markdown in which text stays text: every value that a template prints is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

SPECIAL = re.compile(r"[\\`*~#\[\]|]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that Markdown may obey; an underscore within a word is none of them."""


class Markdown(str):
    """Text that is Markdown already."""


def escape_markdown(value: object) -> Markdown:
    """Text on one line that Markdown shows as it is; what is `Markdown` already stays unchanged."""
    if isinstance(value, Markdown):
        return value
    line = " ".join(str(value).split())
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        line = line.replace(letter, entity)
    return Markdown(SPECIAL.sub(r"\\\g<0>", line))


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---:") -> Markdown:
    """A table whose first column is aligned to the left, the others as `rule` says: numbers to the right."""
    rules = ["---", *[rule] * (len(heading) - 1)]
    lines = [map(escape_markdown, heading), rules, *(map(escape_markdown, row) for row in rows)]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def fenced(text: str, language: str) -> Markdown:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def keep_percents(text: str) -> Markup:
    """Escaped text without a line break between a number and its percent sign."""
    return Markup(re.sub(r"(?<=\d) %", "&nbsp;%", escape(text)))


def with_label(svg: str, label: str) -> Markup:
    """An `<svg>` element that screen readers announce as an image with this label. `svg` itself is trusted."""
    return Markup(svg).replace("<svg", Markup('<svg role="img" aria-label="{}"').format(label), 1)


def render_html(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of this package; every value is escaped."""
    environment = Environment(
        loader=PackageLoader("hyperflux.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"keep_percents": keep_percents, "with_label": with_label}
    return environment.get_template(template).render(context)


def render_markdown(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of this package; every value is escaped but what is `Markdown` already."""
    environment = Environment(
        loader=PackageLoader("hyperflux.report"),
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"fenced": fenced, "table": lambda table: markdown_table(table.heading, table.rows)}
    return environment.get_template(template).render(context)

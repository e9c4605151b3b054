"""Tables for a terminal of 80 columns and for notebooks."""

import dataclasses
import html
import textwrap

WIDTH = 80
BYTES = (" bytes", " KB", " MB", " GB")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of strings. `str()` gives text; a notebook shows it as HTML.

    Attributes:
        title: One line.
        header: Titles of the columns, of one or two lines.
        rows: Lists of strings, indented by two spaces per level; the last one is the total.
        facts: Pairs of a label and a text, shown below the table.
    """

    title: str
    header: list
    rows: list
    facts: list

    def __str__(self):
        lines = [[f"{title}\n".split("\n")[i] for title in self.header] for i in (0, 1)]
        lines += [[label.replace("Normalization", "Norm"), *cells] for label, *cells in self.rows]
        first, *widths = (2 + max(map(len, column)) for column in zip(*lines, strict=True))
        first = min(first - 2, WIDTH - sum(widths))
        lines = [shortened(text, first).ljust(first) + "".join(map(str.rjust, rest, widths)) for text, *rest in lines]
        title, rule = shortened(self.title, WIDTH), "-" * max(map(len, lines))
        facts = [line for fact in self.facts for line in _wrapped(*fact)]
        return "\n".join([title, rule, *lines[:2], rule, *lines[2:-1], rule, lines[-1], rule, *facts])

    def _repr_html_(self):
        def row(cells, tag):
            cells = [html.escape(cell).replace("  ", "&emsp;") for cell in cells]
            return f'<tr><{tag} style="text-align: left">{f"</{tag}><{tag}>".join(cells)}</{tag}></tr>'

        rows = row(self.header, "th") + "".join(row(cells, "td") for cells in self.rows)
        facts = "<br>".join(
            html.escape(": ".join(filter(None, (label.strip(" :"), value)))) for label, value in self.facts
        )
        return f"<p><b>{html.escape(self.title)}</b></p><table>{rows}</table><p>{facts}</p>"


class Tabular:
    """Base of classes that are shown as the table that `_table()` returns, in text and in notebooks."""

    def _table(self):
        raise NotImplementedError

    def __str__(self):
        return str(self._table())

    def _repr_html_(self):
        return self._table()._repr_html_()


def _wrapped(label, value):
    """Return the lines of a fact, with the value wrapped beside the label."""
    label = f"{label:<11}"
    lines = textwrap.wrap(value, WIDTH - len(label), break_on_hyphens=False) or [""]
    return [label + lines[0], *(" " * len(label) + line for line in lines[1:])]


def short(number, units=("", "k", "M", "G", "T", "P")):
    """Return a count with three digits and a unit, such as 2.43M, a float with two decimals, or "?" for None."""
    if number is None or isinstance(number, float):
        return "?" if number is None else f"{number:.2f}"
    if number < 10_000:
        return f"{number:,}{units[0]}"
    step = 0
    while number >= 999.5 and step < len(units) - 1:
        number, step = number / 1000, step + 1
    return f"{number:#.3g}".rstrip(".") + units[step]


def shortened(text, width):
    """Return the text, cut to `width` characters."""
    return text if len(text) <= width else text[: width - 2] + ".."

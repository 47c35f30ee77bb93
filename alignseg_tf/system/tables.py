"""Tables as aligned text, as Markdown and as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from alignseg_tf.system.printable import csv_cell

Row = Sequence[object]


def text_table(rows: Iterable[Row | None], left: int = 1) -> str:
    """Return rows as lines of aligned columns, two spaces apart.

    Args:
        rows: cells, written with `str`. A row may miss its last cells. None draws a rule.
        left: the first `left` columns are aligned left, the others right.

    Example:
        >>> print(text_table([("class", "IoU %"), None, ("road", "97.50"), ("sky",)]))
        class  IoU %
        -----  -----
        road   97.50
        sky
    """
    cells = [None if row is None else [str(cell) for cell in row] for row in rows]
    columns = zip_longest(*(row for row in cells if row is not None), fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in cells:
        row = ["-" * width for width in widths] if row is None else row
        padded = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown_table(head: Row, rows: Iterable[Row]) -> str:
    r"""Return a Markdown table; `|` in cells is escaped.

    Example:
        >>> print(markdown_table(("class", "IoU %"), [("road|path", 97.5)]))
        | class | IoU % |
        |---|---|
        | road\|path | 97.5 |
    """
    cells = [[re.sub(r"(?<!\\)\|", r"\|", str(cell)) for cell in row] for row in (head, *rows)]
    first, *others = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([first, "|---" * len(head) + "|", *others])


def csv_text(rows: Iterable[Iterable[Any]], decimals: int | None = 6) -> str:
    r"""Return rows as CSV lines that a spreadsheet and a terminal show safely, see `csv_cell`.

    Args:
        rows: cells. NaN and None are empty.
        decimals: of floats; None writes them in full.

    Example:
        >>> csv_text([("class", "iou"), ("=road", 0.5), ("sky", float("nan"))])
        "class,iou\n'=road,0.500000\nsky,\n"
    """

    def shown(cell: Any) -> Any:
        if cell is None or cell != cell:  # NaN
            return ""
        if isinstance(cell, float) and decimals is not None:
            return f"{cell:.{decimals}f}"
        return csv_cell(cell)

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(map(shown, row) for row in rows)
    return text.getvalue()

"""Writes CSV that spreadsheet programs can open safely."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence

# Spreadsheet programs treat a cell as a formula if it begins with one of these characters. The last four are the
# full-width forms of the first four.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return a header line and one line per row. Writes lists and objects as JSON, and None as an empty cell.

    A cell that looks like a formula is prefixed with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in columns])
    return text.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # A negative number is not a formula.
    return f"'{text}" if text.startswith(_FORMULA) and not isinstance(value, int) else text

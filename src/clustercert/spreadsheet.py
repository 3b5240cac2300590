"""Rows as CSV that a spreadsheet shows as text, whatever stands in them.

Source: RFC 4180; OWASP, "CSV Injection".
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence

# Where a cell begins with one of these, programs take it for a formula; the last four are the wide forms of the first.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """A header, then a line for each row. Lists and objects are JSON in their cell; None is empty.

    A cell that a program could take for a formula has an apostrophe in front.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in columns])
    return written.getvalue()


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            text = value
        case _:
            text = json.dumps(value, ensure_ascii=False)
    return f"'{text}" if text.startswith(_FORMULA) else text

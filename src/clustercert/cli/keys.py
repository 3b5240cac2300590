"""`clustercert keys`: key-encryption keys and the data keys that they wrap."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.asking import agreed
from clustercert.cli.options import YesOption
from clustercert.cli.output import Output, OutputOption, Row, note, show_list, show_one
from clustercert.cli.session import Operator, operate

if TYPE_CHECKING:
    # The commands load what rotates keys only when they are run.
    from clustercert.custody.rotation import Rotation

app = typer.Typer(name="keys", help="The keys that seal secrets at rest.", no_args_is_help=True)


@app.command()
def generate(
    out: Annotated[
        Path,
        typer.Option(help="The file to make, of mode 0600. Keep it, and a copy, outside the data folder."),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a file with a new key-encryption key."""
    from clustercert.custody import write_new_kek_file

    kek = write_new_kek_file(out)
    note(
        f'Set kek_file = "{out.absolute()}" in the settings, or CLUSTERCERT_KEK_FILE. Without it nothing opens again.'
    )
    show_one({"id": kek.id, "file": str(out)}, output, name="id")


@app.command("list")
def list_keys(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List the keys of both kinds; the keys themselves are not shown."""

    async def work(operator: Operator) -> list[Row]:
        rotation = _rotation(operator)
        data_keys = await rotation.rows.all()
        keks = rotation.keks.read()
        rows: list[Row] = [_row("key-encryption", kek.id, active=kek == keks[0]) for kek in keks]
        return rows + [
            _row("data", str(key.id), active=key.active, wrapped_by=key.kek_id, created_at=key.created_at)
            for key in data_keys
        ]

    columns = ("kind", "id", "active", "wrapped_by", "created_at")
    show_list(operate(context, work), output, columns=columns, name="id")


@app.command()
def rotate(
    context: typer.Context,
    data_key: Annotated[
        bool, typer.Option("--data-key", help="Make a new data key and seal every secret anew under it.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a new key-encryption key and wrap the data keys by it, while the service runs.

    Stopped half-way, everything stays readable; run it again.
    """

    async def work(operator: Operator) -> Row:
        rotation = _rotation(operator)
        if data_key:
            resealed = await rotation.rotate_data_key(**operator.who)
            return {
                "id": str(resealed.data_key_id),
                "resealed": resealed.resealed,
                "damaged": resealed.damaged,
            }
        rewrapped = await rotation.rotate_kek(**operator.who)
        return {"id": rewrapped.kek_id, "added": rewrapped.added, "rewrapped": rewrapped.rewrapped}

    row = operate(context, work)
    show_one(row, output, name="id")
    if row.get("damaged"):
        note("The damaged secrets do not open under any key and stay as they are. Make these keys anew.")
    if not data_key:
        note("Older key-encryption keys stay in place until `clustercert keys retire`.")


@app.command()
def retire(context: typer.Context, yes: YesOption = False, output: OutputOption = Output.TABLE) -> None:
    """Drop the key-encryption keys that wrap nothing any more."""
    agreed("Backups made before the last rotation will need a copy of the old keys. Drop them?", yes=yes)

    async def work(operator: Operator) -> list[Row]:
        ids = await _rotation(operator).retire(**operator.who)
        return [{"id": kek_id} for kek_id in ids]

    show_list(operate(context, work), output, columns=("id",), name="id")


def _rotation(operator: Operator) -> "Rotation":
    from clustercert.app.wiring import kek_source
    from clustercert.custody.rotation import Rotation
    from clustercert.model import utc_now
    from clustercert.store.keys import KeyRows

    return Rotation(KeyRows(operator.parts.database), kek_source(operator.parts.settings), utc_now)


def _row(
    kind: str, key_id: str, *, active: bool, wrapped_by: str | None = None, created_at: object = None
) -> Row:
    return {"kind": kind, "id": key_id, "active": active, "wrapped_by": wrapped_by, "created_at": created_at}

"""`clustercert keys`: key-encryption keys, and the data keys that they wrap."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clustercert.cli.commands import on_store
from clustercert.cli.options import YesOption
from clustercert.cli.output import Output, OutputOption, note, show_list, show_one
from clustercert.cli.prompts import confirm
from clustercert.cli.session import Operator

if TYPE_CHECKING:
    from clustercert.custody.rotation import Rotation

keys = typer.Typer(name="keys", help="Manage the keys that encrypt secrets at rest.", no_args_is_help=True)


@keys.command()
def generate(
    out: Annotated[
        Path, typer.Option(help="File to create, with mode 0600. Keep it and a copy outside the data folder.")
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a file with a new key-encryption key."""
    from clustercert.custody.keks import write_new_kek_file

    kek = write_new_kek_file(out)
    note(
        f'Set kek_file = "{out.absolute()}" in the settings, or CLUSTERCERT_KEK_FILE. Without this file, the '
        "secrets can't be decrypted."
    )
    show_one({"id": kek.id, "file": str(out)}, output, name="id")


@keys.command("list")
@on_store
async def list_keys(operator: Operator, output: OutputOption = Output.TABLE) -> None:
    """List key-encryption keys and data keys. Does not show the keys themselves."""
    rotation = _rotation(operator)
    data_keys = await rotation.queries.all()
    keks = rotation.keks.read()
    columns = ("kind", "id", "active", "wrapped_by", "created_at")
    cells: list[tuple[object, ...]] = [("key-encryption", kek.id, kek == keks[0], None, None) for kek in keks]
    cells += [("data", str(key.id), key.active, key.kek_id, key.created_at) for key in data_keys]
    show_list([dict(zip(columns, row, strict=True)) for row in cells], output, columns=columns, name="id")


@keys.command()
@on_store
async def rotate(
    operator: Operator,
    data_key: Annotated[
        bool, typer.Option("--data-key", help="Create a new data key and encrypt all secrets with it.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a new key-encryption key and wrap the data keys with it.

    The service can keep running. If the command is interrupted, run it again: all secrets stay readable.
    """
    rotation = _rotation(operator)
    if data_key:
        done = await rotation.rotate_data_key(actor=operator.actor)
        row = {"id": str(done.data_key_id), "resealed": done.resealed, "damaged": done.damaged}
        show_one(row, output, name="id")
        if done.damaged:
            note("No key decrypts the damaged secrets. They were left unchanged: replace them.")
        return
    rewrapped = await rotation.rotate_kek(actor=operator.actor)
    row = {"id": rewrapped.kek_id, "added": rewrapped.added, "rewrapped": rewrapped.rewrapped}
    show_one(row, output, name="id")
    note("Older key-encryption keys are kept until `clustercert keys retire`.")


@keys.command()
@on_store
async def retire(operator: Operator, output: OutputOption = Output.TABLE, yes: YesOption = False) -> None:
    """Delete the key-encryption keys that wrap no data key."""
    rotation = _rotation(operator)
    ids: tuple[str, ...] = ()
    if unused := await rotation.unused():
        question = (
            "Backups from before the last rotation need the old keys. "
            f"Delete the key-encryption keys {', '.join(unused)}?"
        )
        confirm(question, yes=yes)
        ids = await rotation.retire(actor=operator.actor)
    show_list([{"id": kek_id} for kek_id in ids], output, columns=("id",), name="id")


def _rotation(operator: Operator) -> "Rotation":
    from clustercert.custody.rotation import Rotation
    from clustercert.model import utc_now
    from clustercert.store.keys import KeyQueries
    from clustercert.wiring import kek_source

    return Rotation(KeyQueries(operator.parts.database), kek_source(operator.parts.settings), utc_now)

"""Options that several commands share, in the same words."""

from pathlib import Path
from typing import Annotated

import typer

DomainOption = Annotated[
    str | None,
    typer.Option(metavar="DOMAIN", help="The domain, by name or id; needed where there are several."),
]
InDomainOption = Annotated[
    str | None, typer.Option("--domain", metavar="DOMAIN", help="Only of this domain.")
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Read the password from the first line of a file, or of - (standard input)."
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask whether it is meant.")]

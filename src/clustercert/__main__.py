"""The `clustercert` command."""

from typing import NoReturn


def main() -> NoReturn:
    """Do what this process's arguments say, and end it."""
    # Workers load this module with the script that started the server, and have no use for the commands.
    from clustercert.cli.root import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()

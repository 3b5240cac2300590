"""The `clustercert` and `kubectl-clustercert` commands."""

import os
import sys

from clustercert import __version__


def main() -> None:
    """Run the command given by the process's arguments, then exit."""
    if sys.argv[1:] == ["--version"]:
        # Print the version without importing the command line. If writing fails, the command line reports the error.
        try:
            os.write(1, f"clustercert {__version__}\n".encode())
        except OSError:
            pass
        else:
            return
    try:
        _run()
    except KeyboardInterrupt:
        # Ctrl-C was pressed while modules were imported. After the imports, the commands handle Ctrl-C themselves.
        sys.exit(130)


def _run() -> None:
    # Import only what is needed: worker processes import this module too, and kubectl waits for the command
    # `credential`.
    if sys.argv[1:2] == ["credential"]:
        from clustercert.cli.credential.entry import main as run  # noqa: PLC0415
    else:
        from clustercert.cli.main import main as run  # noqa: PLC0415

    run()


if __name__ == "__main__":
    main()

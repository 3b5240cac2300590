"""The `clustercert` and `kubectl-clustercert` commands."""

import os
import sys

from clustercert import __version__


def main() -> None:
    """Run the command given by the process's arguments, then exit."""
    if os.getpid() == 1:
        _end_on_sigterm()
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


def _end_on_sigterm() -> None:
    """End this process on SIGTERM, until the service sets its own handler.

    In a container, this process has the process ID 1, for which the kernel ignores signals without a handler. The exit
    code is the one of a program that SIGTERM has killed: with 0, an interrupted `db upgrade` would count as complete.
    """
    import signal  # noqa: PLC0415 - `credential` does not need it

    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(128 + signal.SIGTERM))


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

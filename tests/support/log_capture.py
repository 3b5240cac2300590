"""Log capture that does not depend on earlier logging setup in this process."""

import contextlib
from collections.abc import Iterator, MutableMapping
from types import ModuleType
from typing import Any

from structlog.testing import capture_logs


@contextlib.contextmanager
def captured_logs(module: ModuleType) -> Iterator[list[MutableMapping[str, Any]]]:
    """The log lines of the module's `logger` during the block."""
    # A logger that spoke in an application which this process ran before is bound to that one's settings.
    vars(module.logger).pop("bind", None)
    with capture_logs() as said:
        yield said

"""A gauge of the metrics that only one test sets."""

import threading


class OwnGauge:
    """The value that this thread set last. Services of other tests in this process set the same gauge."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._thread = threading.get_ident()

    def set(self, value: float) -> None:
        if threading.get_ident() == self._thread:
            self.value = value

"""The command line on a machine whose clock is wrong."""

import sys

_PROGRAM = """\
import datetime, time
offset, system_time = {hours} * 3600, time.time

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=offset)

time.time = lambda: system_time() + offset
datetime.datetime = Shifted
from clustercert.__main__ import main
main()"""


def command(hours: int) -> tuple[str, ...]:
    """The command line, without its arguments. The clock is `hours` ahead; a negative number is behind."""
    return sys.executable, "-c", _PROGRAM.format(hours=hours)

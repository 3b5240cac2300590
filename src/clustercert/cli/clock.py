"""Whether saved times can be compared with this machine's clock.

The clock may have been set since a time was saved: after the start of a virtual machine, or by another operating
system. This module is imported by each kubectl command.
"""

import sys
import time

# A smaller change of the clock makes no difference for saved times.
STEP_SECONDS = 60


def boot_time() -> int:
    """Return when this machine booted, in seconds since the epoch, by this machine's clock.

    The result changes if the clock is set, and when the machine boots. Save it beside a time, for `is_unchanged_since`.
    """
    # The clock since boot also runs while a Linux machine is suspended, and nobody can set it.
    running = time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()
    return int(time.time() - running)


def is_unchanged_since(saved: int) -> bool:
    """Whether the clock was not set, and the machine did not boot, since `boot_time` returned `saved`."""
    return abs(boot_time() - saved) <= STEP_SECONDS

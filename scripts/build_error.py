"""The error of all scripts that build something."""


class BuildError(Exception):
    """Something can't be built on this machine or from this source. The message says why, and what to do."""

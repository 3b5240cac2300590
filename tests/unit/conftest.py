"""What all unit tests have in common."""

from support import reproducible

reproducible.set_up()

"""What all tests but those of the vendors' clients have in common."""

from support import reproducible

reproducible.set_up()

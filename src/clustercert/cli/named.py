"""What is named on the command line: a certificate, and users and clusters that may be gone."""

import re
from typing import TYPE_CHECKING

from clustercert.cli import cluster as cluster_commands
from clustercert.cli import user as user_commands
from clustercert.errors import NotFound

if TYPE_CHECKING:
    # The commands load the nouns only when they are run.
    from clustercert.cli.session import Operator
    from clustercert.store.inventory import Listed

LEAST_DIGITS = 8
_HEX_DIGITS = re.compile(r"[0-9a-f]{1,64}")
_CLUSTER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def certificate_of(operator: "Operator", name: str) -> "Listed":
    """The certificate of a fingerprint (or its beginning), credential number or serial. Raises NotFound, Conflict."""
    from clustercert.inventory import only

    digits = name.replace(":", "").lower()
    if not _HEX_DIGITS.fullmatch(digits) or len(digits) < LEAST_DIGITS:
        raise NotFound(
            f"{name} names no certificate: give its fingerprint, {LEAST_DIGITS} digits of it or more, its credential"
            " number, or its serial."
        )
    return only(await operator.parts.inventory.rows.find(digits, abbreviated=True))


async def cluster_id_of(operator: "Operator", wanted: str | None, project: str | None) -> str | None:
    """The id of a cluster; one that is gone may be named by its id, since its certificates are still there."""
    if wanted is None:
        return None
    try:
        return (await cluster_commands.find(operator, wanted, project)).id
    except NotFound:
        if _CLUSTER_ID.fullmatch(wanted):
            return wanted
        raise


async def user_id_of(operator: "Operator", wanted: str | None) -> str | None:
    """The id of a user; one that is gone, or this service itself, may be named by its id."""
    from clustercert.identity.names import is_id
    from clustercert.manifests.access import SERVICE

    if wanted is None:
        return None
    try:
        return (await user_commands.find(operator, wanted)).id
    except NotFound:
        if is_id(wanted) or wanted == SERVICE:
            return wanted
        raise

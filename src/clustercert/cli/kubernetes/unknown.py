"""`clustercert kubernetes accept-unknown`: confirms the deletion of credentials that are not in the ledger."""

from typing import TYPE_CHECKING

from clustercert.cli.commands import on_service
from clustercert.cli.lookup import cluster_path, find_cluster, full_name
from clustercert.cli.options import (
    ClusterArgument,
    InProjectOption,
    ProjectDomainOption,
    YesOption,
)
from clustercert.cli.terminal.output import print_note
from clustercert.cli.terminal.prompts import confirm

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient


@on_service
def accept_unknown(
    client: "AdministrationClient",
    name: ClusterArgument,
    project: InProjectOption = None,
    domain: ProjectDomainOption = None,
    yes: YesOption = False,
) -> None:
    """Let the service delete credentials in a cluster that are missing from the service's database.

    If most of the tokens in a cluster are not in the database, the database may be an old copy. The service then waits
    for this command before it deletes these tokens. The users of the tokens must get new credentials. Only for
    operators.

    Examples:
        clustercert kubernetes accept-unknown prod
    """
    cluster = find_cluster(client, name, project, domain)
    path = cluster_path(cluster, "unknown-credentials")
    count = client.get(path)["waiting"]
    if not count:
        print_note(f"No credential of the cluster {full_name(cluster)} waits for this command.")
        return
    confirm(
        f"Delete {count} credentials of the cluster {full_name(cluster)} ({cluster['id']}) that are not in the"
        " database? If the database is an old copy, users lose access until they get new credentials.",
        yes=yes,
    )
    client.post(path, {"count": count})
    print_note(f"Confirmed. The service deletes the {count} credentials within about a minute.")

"""Says which access remains after all certificates of a user were revoked."""

from typing import TYPE_CHECKING, Any

from clustercert.cli.output import note

if TYPE_CHECKING:
    from clustercert.client.administration import AdministrationClient
    from clustercert.model import JsonObject

# Controls that stop reading as well as writing.
_COMPLETE = {"webhook", "binding"}


def note_remaining_access(client: "AdministrationClient", body: "JsonObject") -> None:
    """Say how clusters enforce a revocation, given the response to it with the user's `clusters`."""
    note("Clusters that enforce revocations refuse the certificates within seconds.")
    with client.check_format():
        clusters: Any = body["clusters"]
        for each in clusters:
            if _COMPLETE.isdisjoint(each["enforced_by"]):
                only = " for reading" if "admission" in each["enforced_by"] else ""
                note(
                    f"The cluster {each['name']} ({each['id']}) does not enforce them: it accepts the certificates"
                    f"{only} until {each['until']}."
                )

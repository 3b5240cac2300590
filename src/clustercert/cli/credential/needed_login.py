"""Finds out which login the context of a cluster needs, for messages to a user with another login."""

import contextlib
import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from clustercert.cli.credential.request import CredentialRequest
from clustercert.cli.login import profile
from clustercert.cli.login.profile import Profile
from clustercert.cli.options import CommandError

if TYPE_CHECKING:
    from clustercert.model.kubeconfigs import ClusterRef


def needed_login(found: Profile, user: str, cluster: str) -> str:
    """Return a sentence with the commands that make a context for a cluster work with the login of a user."""
    for other, saved in profile.saved_profiles(os.environ).items():
        if (saved.url, saved.shown_user) == (found.url, user):
            merge = merge_command(cluster, other)
            return f"The context needs the login of {user}, which is the profile {other}: run {merge}."
    login = replace(found, user=user, domain=None).login_command("NAME")
    merge = merge_command(cluster, "NAME")
    return f"The context needs the login of {user}: run `{login}`, and then {merge}."


def merge_command(cluster: str, name: str) -> str:
    """Return the command that adds a context with the login of a profile, in backticks."""
    return f"`clustercert kubeconfig merge {shlex.quote(cluster)} --profile {name}`"


def merged_cluster(request: CredentialRequest) -> "ClusterRef | None":
    """Return the cluster of the context for a request, if the user's default kubeconfig has this context."""
    from clustercert.cli.kubeconfig import entries, files

    identity = (request.profile, request.project, request.cluster)
    with contextlib.suppress(CommandError, OSError):
        for path in files.loading_order(None, os.environ):
            for each in entries.merged(files.load(path)):
                if each.ref.identity == identity and request.user in (None, each.ref.login):
                    return each.ref
    return None

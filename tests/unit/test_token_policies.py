"""The admission policies of clusters that issue tokens, compared with a description of them in Python."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clustercert.kubernetes.setup.token_access import token_access
from clustercert.model.group_roles import RoleGrant
from clustercert.model.kubernetes import ISSUER_USER, USERS_NAMESPACE
from clustercert.model.token_objects import RBAC, labels
from support.apiserver import Identity, kinds
from support.apiserver.admission import Write, admit
from support.apiserver.attributes import Attributes
from support.apiserver.failures import Failure
from support.apiserver.storage import Storage
from support.token_cluster import GROUP_ROLES, INSTALLATION, binding_document

NUMBERS = ("ab" * 20, "cd" * 20)
MAPPED = {RoleGrant.parse(text) for texts in GROUP_ROLES.values() for text in texts}
STORAGE = Storage()
for document in token_access(INSTALLATION, GROUP_ROLES, allow_cluster_admin=False):
    kind = {each.name: each for each in (kinds.NAMESPACES, kinds.POLICIES, kinds.POLICY_BINDINGS)}.get(
        str(document["kind"])
    )
    if kind is not None:
        STORAGE.create(kind, "", document)
for name in ("shop", "team", "kube-system"):
    STORAGE.create(kinds.NAMESPACES, "", {"metadata": {"name": name}})

SERVICE = Identity(ISSUER_USER, ("system:serviceaccounts",), "JTI=1")
IMPERSONATOR = Identity(ISSUER_USER, ("system:serviceaccounts",), None)
FORGED = Identity(ISSUER_USER, (), "X509SHA256=1")
ADMINISTRATOR = Identity("root", ("admins",), None)
OTHER = Identity("mallory", (), "JTI=2")
WRITERS = st.sampled_from([SERVICE, SERVICE, SERVICE, IMPERSONATOR, FORGED, ADMINISTRATOR, OTHER])

BINDING_NAMES = st.sampled_from(
    [f"clustercert-{number}-{index}" for number in NUMBERS for index in ("0", "19", "20", "01", "x")]
    + ["clustercert", "clustercert-issuer", f"a-clustercert-{NUMBERS[0]}-0", f"clustercert-{NUMBERS[0]}"]
)
LABELS = st.sampled_from(
    [
        *[labels(INSTALLATION, number) for number in NUMBERS] * 3,
        *[{}, labels("2" * 32, NUMBERS[0]), {"clustercert/credential": NUMBERS[0]}],
    ]
)
SUBJECTS = st.builds(
    lambda kind, name, namespace: {"kind": kind, "name": name, "namespace": namespace},
    st.sampled_from(["ServiceAccount"] * 4 + ["User", "Group"]),
    st.sampled_from([*[f"alice-{number}" for number in NUMBERS] * 2, NUMBERS[0], f"a.b-{NUMBERS[0]}"]),
    st.sampled_from([USERS_NAMESPACE] * 4 + ["clustercert-access", "shop"]),
)
ROLES = st.one_of(
    st.sampled_from(sorted(MAPPED)),
    st.builds(
        RoleGrant,
        st.sampled_from(["ClusterRole", "Role"]),
        st.sampled_from(["view", "edit", "deployer"]),
        st.sampled_from(["", "shop", "team", "kube-system"]),
    ),
)


def denied(who: Identity, wanted: Attributes, of: kinds.Kind, new: Any, old: Any) -> bool:
    write = Write(who, wanted, of, new, old, dry_run=False, allows=lambda who, _wanted: who is ADMINISTRATOR)
    try:
        admit(STORAGE, write)
    except Failure as failure:
        return failure.code in {403, 422}
    return False


def is_ours(metadata: Mapping[str, Any]) -> bool:
    """Whether an object is a binding of one of our credentials, by its name and labels."""
    found = re.fullmatch("clustercert-([0-9a-f]{40})-(1?[0-9])", metadata["name"])
    return found is not None and metadata["labels"] == labels(INSTALLATION, found[1])


@given(
    WRITERS,
    st.sampled_from(["create", "create", "create", "update", "delete"]),
    BINDING_NAMES,
    LABELS,
    st.lists(SUBJECTS, max_size=2),
    ROLES,
)
@settings(deadline=None, max_examples=500)
def test_bindings(
    who: Identity,
    verb: str,
    name: str,
    given_labels: Mapping[str, str],
    subjects: Sequence[Mapping[str, str]],
    role: RoleGrant,
) -> None:
    binding: Any = binding_document(name, role, subjects, given_labels)
    of = kinds.ROLE_BINDINGS if role.namespace else kinds.CLUSTER_ROLE_BINDINGS
    wanted = Attributes(
        verb, group=RBAC, version="v1", namespace=role.namespace, resource=of.plural, name=name
    )
    new = None if verb == "delete" else binding
    old = None if verb == "create" else binding
    has_our_name = re.fullmatch("clustercert-[0-9a-f]{40}-(1?[0-9])", name) is not None
    right_subject = len(subjects) == 1 and (
        subjects[0]["kind"] == "ServiceAccount"
        and subjects[0]["namespace"] == USERS_NAMESPACE
        and subjects[0]["name"] == f"alice-{name[12:52]}"
    )
    if who is SERVICE:
        allowed = is_ours(binding["metadata"]) and (
            verb == "delete" or (verb == "create" and right_subject and role in MAPPED)
        )
    elif who in {IMPERSONATOR, FORGED}:
        allowed = False
    else:
        allowed = who is ADMINISTRATOR or verb == "delete" or not has_our_name
    assert denied(who, wanted, of, new, old) is not allowed


ACCOUNT_NAMES = st.sampled_from(
    [*[f"alice-{number}" for number in NUMBERS] * 3, "default", NUMBERS[0], f"A-{NUMBERS[0]}", "issuer"]
)


@given(
    WRITERS,
    st.sampled_from(["create", "create", "update", "delete"]),
    st.sampled_from([USERS_NAMESPACE, USERS_NAMESPACE, "clustercert-access"]),
    ACCOUNT_NAMES,
    LABELS,
)
@settings(deadline=None, max_examples=300)
def test_accounts(
    who: Identity, verb: str, namespace: str, name: str, given_labels: Mapping[str, str]
) -> None:
    account = {"metadata": {"name": name, "namespace": namespace, "labels": dict(given_labels)}}
    wanted = Attributes(verb, version="v1", namespace=namespace, resource="serviceaccounts", name=name)
    new = None if verb == "delete" else account
    old = None if verb == "create" else account
    number = name.removeprefix("alice-")
    allowed = who is ADMINISTRATOR or (
        who is SERVICE
        and verb in {"create", "delete"}
        and namespace == USERS_NAMESPACE
        and name.startswith("alice-")
        and given_labels == labels(INSTALLATION, number)
    )
    assert denied(who, wanted, kinds.SERVICE_ACCOUNTS, new, old) is not allowed


@given(WRITERS, st.sampled_from([USERS_NAMESPACE, "clustercert-access", "shop"]), ACCOUNT_NAMES)
@settings(deadline=None)
def test_tokens(who: Identity, namespace: str, name: str) -> None:
    wanted = Attributes(
        "create",
        version="v1",
        namespace=namespace,
        resource="serviceaccounts",
        subresource="token",
        name=name,
    )
    own = name.startswith("alice-") if namespace == USERS_NAMESPACE else name == "issuer"
    allowed = namespace == "shop" or who is ADMINISTRATOR or (who is SERVICE and own)
    request = {"metadata": {}, "spec": {"expirationSeconds": 600}}
    assert denied(who, wanted, kinds.TOKEN_REQUESTS, request, None) is not allowed

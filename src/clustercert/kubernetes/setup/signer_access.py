"""The rights with which the signer `csr_api` asks a cluster to sign, and the admission policy that limits them.

The right to approve requests for client certificates is a right to every group but system:masters. So the policy reads
the subject of each request. Expressions in an admission policy can't parse DER, so the policy compares the base64 text
of the request with patterns. Source of the encodings: RFC 2986, and Go's encoding/asn1, which reads the request.
Kubernetes' CEL has no function that decodes base64, so the policy decodes the PEM, which JSON contains in base64, with
functions for strings. Source: Kubernetes, "Common Expression Language"; k8s.io/apiserver/pkg/cel/environment/base.go.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from clustercert.kubernetes.setup.admission import NAMESPACE
from clustercert.kubernetes.setup.cel import string
from clustercert.kubernetes.setup.rbac import role_rule
from clustercert.model import CREDENTIAL_PREFIX, JsonObject
from clustercert.model.kubernetes import CLIENT_SIGNER, MANAGED_BY

NAME = "clustercert-signer"

_CERTIFICATES, _RBAC = "certificates.k8s.io", "rbac.authorization.k8s.io"
_REQUESTS = "certificatesigningrequests"
# A Role that every cluster has in this namespace. This Role allows reading the API server's client CAs.
_READER, _READER_NAMESPACE = "extension-apiserver-authentication-reader", "kube-system"
_SYSTEM = "system:"
_NUMBER_DIGITS = 40


def signer_user(namespace: str = NAMESPACE) -> str:
    """Return the user name of the service account."""
    return f"system:serviceaccount:{namespace}:{NAME}"


def signer_access() -> list[JsonObject]:
    """Return the namespace, the service account, its rights, and the admission policy that limits them."""
    metadata = {"name": NAMESPACE, "labels": MANAGED_BY}
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}, *signer_account(NAMESPACE)]


def signer_account(namespace: str) -> list[JsonObject]:
    """Return the same objects for a namespace that exists already."""
    labelled = {"name": NAME, "labels": MANAGED_BY}
    in_namespace = {**labelled, "namespace": namespace}
    return [
        # Apply the policy before the account has its rights.
        *_policy(signer_user(namespace)),
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": in_namespace,
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRole",
            "metadata": labelled,
            "rules": [
                role_rule(_CERTIFICATES, _REQUESTS, ["create", "get", "list", "delete"]),
                role_rule(_CERTIFICATES, f"{_REQUESTS}/approval", ["update"]),
                role_rule(_CERTIFICATES, "signers", ["approve"], [CLIENT_SIGNER]),
            ],
        },
        _binding("ClusterRoleBinding", labelled, "ClusterRole", NAME, namespace),
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "Role",
            "metadata": in_namespace,
            # With this right, the service renews its own token.
            "rules": [role_rule("", "serviceaccounts/token", ["create"], [NAME])],
        },
        _binding("RoleBinding", in_namespace, "Role", NAME, namespace),
        _binding("RoleBinding", {**labelled, "namespace": _READER_NAMESPACE}, "Role", _READER, namespace),
    ]


def _binding(
    kind: str, metadata: Mapping[str, object], role_kind: str, role: str, namespace: str
) -> JsonObject:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": kind,
        "metadata": metadata,
        "roleRef": {"apiGroup": _RBAC, "kind": role_kind, "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}],
    }


def _policy(user: str) -> list[JsonObject]:
    """Return the ValidatingAdmissionPolicy and its binding, which need Kubernetes 1.30 or newer."""
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": NAME, "labels": MANAGED_BY},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "resourceRules": [
                        {
                            "apiGroups": [_CERTIFICATES],
                            "apiVersions": ["*"],
                            "operations": ["UPDATE"],
                            "resources": [f"{_REQUESTS}/approval"],
                        }
                    ]
                },
                "matchConditions": [
                    {
                        "name": "by-the-signer",
                        "expression": f"request.userInfo.username == {string(user)}",
                    }
                ],
                # Kubernetes keeps `spec` as the request was created, and sets the user name itself.
                "variables": [
                    {"name": "alphabet", "expression": string(_ALPHABET)},
                    {"name": "characters", "expression": string(_CHARACTERS)},
                    {"name": "pem", "expression": _decoded("oldObject.spec.request")},
                    {"name": "der", "expression": _base64_of("variables.pem")},
                ],
                "validations": [
                    _validation(
                        f"oldObject.spec.username == {string(user)}",
                        "clustercert may approve only requests that its own account created.",
                    ),
                    _validation(
                        f"oldObject.spec.signerName == {string(CLIENT_SIGNER)}",
                        f"clustercert may approve only requests to {CLIENT_SIGNER}.",
                    ),
                    _validation(
                        f"variables.pem.matches({string(_ONE_PEM_BLOCK)})",
                        "The request must be one PEM block without other text.",
                    ),
                    _validation(
                        f"variables.der.matches({string(_begins_with_credential_group())})",
                        "The first group of the requested certificate must be a credential group of clustercert.",
                    ),
                    _validation(
                        f"!variables.der.matches({string(_contains_system_name())})",
                        f"The requested certificate may not have a user or a group that begins with {_SYSTEM}",
                    ),
                ],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": NAME, "labels": MANAGED_BY},
            "spec": {"policyName": NAME, "validationActions": ["Deny"]},
        },
    ]


def _validation(expression: str, message: str) -> JsonObject:
    return {"expression": expression, "reason": "Forbidden", "message": message}


_BEGIN, _END = "-----BEGIN CERTIFICATE REQUEST-----\n", "-----END CERTIFICATE REQUEST-----\n"
# Accept only the exact form that this service sends. Otherwise, Kubernetes and the policy could read different blocks.
# The padding of the text in JSON is decoded as up to two characters.
_ONE_PEM_BLOCK = f"^{_BEGIN}([A-Za-z0-9+/]{{64}}\n)*[A-Za-z0-9+/]{{1,64}}={{0,2}}\n{_END}[?]{{0,2}}$"


def _decoded(base64_text: str) -> str:
    """Return an expression that decodes base64 text, with `?` for the padding and octets that PEM lacks."""
    values = ", ".join(f"variables.alphabet.indexOf(four.charAt({at}))" for at in range(4))
    octets = ("v[0] * 4 + v[1] / 16", "v[1] % 16 * 16 + v[2] / 4", "v[2] % 4 * 64 + v[3]")
    characters = " + ".join(f"variables.characters.charAt({octet})" for octet in octets)
    return (
        f"{base64_text}.replace('=', 'A').findAll('.{{4}}').map(four, [{values}]).map(v, {characters}).join()"
    )


def _base64_of(pem: str) -> str:
    """Return an expression for the base64 text in a PEM block, without line breaks."""
    return f"{pem}.replace({string(_BEGIN)}, '').replace({string(_END)}, '').replace('\\n', '')"


# The possible values of one octet.
Octet = frozenset[int]
_ANY: Octet = frozenset(range(256))
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# For each octet: its character in PEM, or `?` if PEM does not have the octet.
_CHARACTERS = "".join(chr(octet) if chr(octet) in f"{_ALPHABET}=- \n" else "?" for octet in range(256))


def _begins_with_credential_group() -> str:
    """Return a pattern for the base64 text of requests whose subject begins with a credential group.

    CertificationRequest := SEQUENCE { SEQUENCE { version INTEGER, subject SEQUENCE OF SET OF ... } ... }, so the first
    group is at a fixed place. Only the lengths of the three sequences have one, two or three octets.
    """
    value = [*_octets(CREDENTIAL_PREFIX.encode()), *[_ANY] * _NUMBER_DIGITS]
    # AttributeTypeAndValue: the OID of O, and a UTF8String.
    attribute = [*_octets(bytes.fromhex("060355040a0c")), frozenset((len(value),)), *value]
    attribute = [frozenset((0x30,)), frozenset((len(attribute),)), *attribute]
    attribute = [frozenset((0x31,)), frozenset((len(attribute),)), *attribute]
    sequence = [_sequence_header(octets) for octets in (0, 1, 2)]
    alternatives = {
        "^" + _pattern([*outer, *info, *_octets(b"\x02\x01\x00"), *subject, *attribute], 0)
        for outer in sequence[1:]
        for info in sequence[1:]
        for subject in sequence
    }
    return "|".join(sorted(alternatives))


def _sequence_header(length_octets: int) -> list[Octet]:
    """Return the tag and the length of a SEQUENCE: one octet, or a number of further octets."""
    if not length_octets:
        return [frozenset((0x30,)), frozenset(range(0x80))]
    return [frozenset((0x30,)), frozenset((0x80 | length_octets,)), *[_ANY] * length_octets]


def _contains_system_name() -> str:
    """Return a pattern for the base64 text of requests that have a CN or an O with the prefix `system:`.

    The name may be at any of the three offsets in base64, in one or two octets for each character (BMPString), and
    behind a length of one to three octets.
    """
    attribute_type = [*_octets(bytes.fromhex("06035504")), frozenset((0x03, 0x0A))]
    names = (_SYSTEM.encode("ascii"), _SYSTEM.encode("utf-16-be"))
    return "|".join(
        sorted(
            _pattern([*attribute_type, _ANY, *[_ANY] * length, *_octets(name)], offset)
            for name in names
            for length in (1, 2, 3)
            for offset in (0, 1, 2)
        )
    )


def _octets(content: bytes) -> list[Octet]:
    return [frozenset((octet,)) for octet in content]


def _pattern(octets: Sequence[Octet], offset: int) -> str:
    """Return a regular expression for the base64 characters of octets that begin at an offset, from 0 to 2.

    A character that also depends on octets before or after these is any character that fits.
    """
    before, after = [_ANY] * offset, [_ANY] * (-(offset + len(octets)) % 3)
    padded = [*before, *octets, *after]
    groups = [padded[at : at + 3] for at in range(0, len(padded), 3)]
    characters = [each for group in groups for each in _characters(*group)]
    return "".join(_class(each) for each in _without_free_ends(characters))


def _characters(first: Octet, second: Octet, third: Octet) -> Iterator[frozenset[int]]:
    """Yield the possible values of the four base64 characters of three octets. RFC 4648 section 4."""
    yield frozenset(a >> 2 for a in first)
    yield frozenset(high | low for high in {(a & 3) << 4 for a in first} for low in {b >> 4 for b in second})
    yield frozenset(high | low for high in {(b & 15) << 2 for b in second} for low in {c >> 6 for c in third})
    yield frozenset(c & 63 for c in third)


def _without_free_ends(characters: Sequence[frozenset[int]]) -> Sequence[frozenset[int]]:
    """Remove characters at the end that can have any value.

    Characters at the beginning stay, because they keep the offset.
    """
    end = len(characters)
    while end and len(characters[end - 1]) == len(_ALPHABET):
        end -= 1
    return characters[:end]


def _class(values: Iterable[int]) -> str:
    found = sorted(_ALPHABET[value] for value in values)
    if len(found) == len(_ALPHABET):
        return "[A-Za-z0-9+/]"
    return f"[{''.join(found)}]" if len(found) > 1 else found[0].replace("+", "\\+")

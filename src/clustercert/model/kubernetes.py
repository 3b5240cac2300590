"""Reserved names of Kubernetes and of this service."""

import hashlib

# Source: kube-apiserver, staging/src/k8s.io/apiserver/pkg/authentication/user/user.go.
MASTERS = "system:masters"
NODES = "system:nodes"
"""The group of kubelets. The Node authorizer limits its members if their user names begin with `NODE_PREFIX`."""

NODE_PREFIX = "system:node:"

AUTHENTICATED = "system:authenticated"
# Every caller of a Kubernetes API server is in one of these groups.
GROUPS_OF_EVERYBODY = (AUTHENTICATED, "system:unauthenticated")

CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
"""The key in a user's `extra` fields that holds the credential id. Sent by kube-apiserver since 1.32."""

X509_ID = "X509SHA256="
"""The prefix of a client certificate's credential id. The certificate's fingerprint follows the prefix."""

TOKEN_ID = "JTI="
"""The prefix of a service account token's credential id. The token's claim `jti` follows the prefix."""

OUR_PREFIX = "clustercert:"
"""The prefix of user and group names that this service chooses itself, such as `clustercert:admins`."""

SERVICE = "clustercert:service"
"""The user name and the group of this service in clusters."""

VERIFIER = "clustercert:verify"
"""The user of the temporary certificates of `clustercert kubernetes verify`."""

CA_PROVER = "clustercert:ca-proof"
"""The user of the temporary certificates that prove whether API servers accept a client CA.

In a certificate, the user name continues with a colon and 32 random hex digits."""

MANAGED_BY = {"app.kubernetes.io/managed-by": "clustercert"}
"""The label on all of this service's objects in a cluster."""

NEVER_SIGNS = {"-eks-": "Amazon EKS"}
"""Managed Kubernetes that signs no client certificates: a part of the API server's version, and the name."""

CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"
"""The signer in clusters that signs client certificates for the API server."""

TOKEN_SIGNER = "token"
"""The signer of clusters whose credentials are service account tokens, which the cluster's API server signs."""

USERS_NAMESPACE = "clustercert-users"
"""The namespace with one service account for each credential that is a token, and nothing else of this service."""

ACCESS_NAMESPACE = "clustercert-access"
"""The namespace with this service's own service account in clusters whose credentials are tokens."""

ISSUER_ACCOUNT = "issuer"
"""The name of this service's own service account in `ACCESS_NAMESPACE`."""

REVOCATION_NOTICED_AFTER = 1
"""How many seconds after a revocation all processes of this service deny the credential."""

TOKEN_REFUSED_AFTER = 12
"""How many seconds after its revocation a token is refused at the latest: about 2 until its account is deleted, and 10
because the API server caches the result of a token's authentication. Source: measured with kube-apiserver 1.36;
pkg/kubeapiserver/options/authentication.go, `TokenSuccessCacheTTL`."""

SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"
"""The prefix of a service account's user name. Namespace and name follow, with a colon between them."""

ISSUER_USER = f"{SERVICE_ACCOUNT_PREFIX}{ACCESS_NAMESPACE}:{ISSUER_ACCOUNT}"
"""The user name of this service's own service account."""

USERS_PREFIX = f"{SERVICE_ACCOUNT_PREFIX}{USERS_NAMESPACE}:"
"""The prefix of the user names of the service accounts of credentials. The account's name follows."""

INSTALLATION_LABEL = "clustercert/installation"
"""The label that names the installation of this service to which an object belongs, see `installation_id`."""

CREDENTIAL_LABEL = "clustercert/credential"
"""The label of accounts and bindings with the number of their credential, 40 lower-case hex digits."""


def installation_id(public_key: bytes) -> str:
    """Return the id of an installation: the first half of the SHA-256 of the audit log's public key, 32 hex digits.

    Args:
        public_key: 32 bytes, Ed25519; `merkle.notes.VerifierKey.public_key`.
    """
    return hashlib.sha256(public_key).hexdigest()[:32]

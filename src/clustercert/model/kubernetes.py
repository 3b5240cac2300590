"""Reserved names of Kubernetes and of this service."""

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

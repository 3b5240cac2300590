"""Use case: revoke a certificate, or all certificates of a user or cluster, and undo a revocation.

`service` authorizes callers, `recorder` records and undoes revocations. The packages `kubernetes` and
`kubernetes.webhook` enforce revocations in clusters.
"""

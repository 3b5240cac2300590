"""Issued certificates: list, show, revoke, and who has access; revocation lists.

`revocation` authorizes callers, `recorder` records and undoes revocations. The packages `kubernetes` and
`kubernetes.webhook` enforce revocations in clusters.
"""

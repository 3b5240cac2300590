"""Lists, shows and revokes issued certificates, and creates access reports and revocation lists.

`revocation` authorizes callers, `recorder` records and undoes revocations. The packages `kubernetes` and
`kubernetes.webhook` enforce revocations in clusters.
"""

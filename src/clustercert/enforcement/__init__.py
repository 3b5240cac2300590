"""Use case: have revocation hold in clusters whose API server's flags can't be touched.

`access` is this service's own way into a cluster. `bindings` gives each certificate a group with a binding of its own.
`admission` keeps the revoked ids where a ValidatingAdmissionPolicy looks. `sync` makes both true for one cluster, and
`reconcile` sees to it that they stay true for all.
"""

"""A large ledger, made of copies of one certificate."""

from support.stores import Store

COPIES = 20_000


def fill(store: Store) -> None:
    """Insert many certificates, most expired, for 10 users in 10 clusters and 5 projects, and many revocations."""
    columns = (
        "epoch, groups, user_name, not_before, ca_id, key_type, key_origin, auth_method, source_address,"
        " request_id, issued_at, kind, der"
    )
    later = "datetime(not_after, '-' || ({n} % 3000) || ' hours') || '.000000'"
    if store.file is None:
        later = "not_after - make_interval(hours => ({n} % 3000)::int)"
        fingerprint, number = "decode(lpad(to_hex({n}), 64, '0'), 'hex')", "n.i"
        named = "lpad(to_hex({n}), 40, '0')"
        numbers = f"generate_series(2, {COPIES}) AS n(i)"
    else:
        fingerprint, number = "CAST(printf('%032d', {n}) AS blob)", "n.i"
        named = "printf('%040x', {n})"
        numbers = (
            "(WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n"
            f" WHERE i < {COPIES}) SELECT i FROM n) AS n"
        )
    store.execute(
        "INSERT INTO certificate (fingerprint, serial, credential_number, cluster_id, user_id, project_id, not_after,"
        f" {columns}) SELECT {fingerprint}, 'serial-' || {{n}}, {named}, 'cluster-' || ({{n}} % 10),"
        " 'user-' || ({n} % 10), 'project-' || ({n} % 5),"
        f" {later}, {columns} FROM certificate, {numbers} ORDER BY {{n}}".replace("{n}", number)
    )
    store.execute(
        'INSERT INTO revocation (epoch, changed, user_id, cluster_id, at, "by", reason, proved)'
        " SELECT {n}, {n}, 'user-' || ({n} % 5000), '', not_before, 'cli:test', 'unspecified', false".replace(
            "{n}", number
        )
        + f" FROM certificate, {numbers} WHERE certificate.id = 1"
    )
    store.execute("ANALYZE")

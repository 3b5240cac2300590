import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clustercert.cli.kubeconfig.cluster_import import (
    MAX_BYTES,
    ImportedCluster,
    KubeconfigCredential,
    read,
)
from clustercert.cli.options import CommandError

CA = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
CA_B64 = base64.b64encode(CA).decode()


def document(**cluster: object) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c1", "user": "u"}},
            {"name": "there", "context": {"cluster": "c2", "user": "u"}},
        ],
        "clusters": [
            {
                "name": "c1",
                "cluster": {"server": "https://k1:6443/", "certificate-authority-data": CA_B64} | cluster,
            },
            {"name": "c2", "cluster": {"server": "https://k2:6443", "certificate-authority-data": CA_B64}},
        ],
        "users": [{"name": "u", "user": {"exec": {"command": "/bin/false"}, "token": "t0p-secret"}}],
    }


def written(folder: Path, content: object) -> Path:
    path = folder / "kubeconfig"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def taken(
    path: Path, context: str | None = None, *, need_ca: bool = True, follow: bool = False
) -> ImportedCluster:
    return read(path, context, need_ca=need_ca, follow_files=follow)


def test_the_current_context_is_read(tmp_path: Path) -> None:
    assert taken(written(tmp_path, document())) == ImportedCluster("here", "https://k1:6443", CA, ())


def test_another_context_is_read_when_named(tmp_path: Path) -> None:
    assert taken(written(tmp_path, document()), "there").server == "https://k2:6443"


def test_json_and_folded_base64_are_read(tmp_path: Path) -> None:
    folded = f"{CA_B64[:20]}\n{CA_B64[20:]}"
    path = written(tmp_path, json.dumps(document(**{"certificate-authority-data": folded})))
    assert taken(path).ca_pem == CA


def test_skipped_fields_are_reported(tmp_path: Path) -> None:
    path = written(tmp_path, document(**{"tls-server-name": "k", "proxy-url": "http://p"}))
    assert taken(path).skipped_fields == ("tls-server-name", "proxy-url")


def test_a_ca_file_is_read_only_if_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "ca.crt").write_bytes(CA)
    path = written(
        tmp_path, document(**{"certificate-authority-data": None, "certificate-authority": "pki/ca.crt"})
    )
    with pytest.raises(CommandError, match="--follow-files"):
        taken(path)
    assert taken(path, follow=True).ca_pem == CA


def test_insecure_skip_tls_verify_is_not_imported(tmp_path: Path) -> None:
    path = written(tmp_path, document(**{"certificate-authority-data": "", "insecure-skip-tls-verify": True}))
    with pytest.raises(CommandError, match="--server-ca"):
        taken(path)
    assert taken(path, need_ca=False).ca_pem is None


NESTED = "a: " + "[" * 5000 + "]" * 5000
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not a YAML mapping"),
        ("[]", "not a YAML mapping"),
        ("a: [", "not valid YAML .line"),
        ("a: 1\na: 2\n", "the same key twice .line 2"),
        ("!!python/object/apply:os.system ['false']", "not valid YAML"),
        (BOMB, "aliases"),
        ("a: " + "[" * 100 + "]" * 100, "nested"),
        (NESTED, "not valid YAML"),
        ("\x07", "not valid YAML"),
        ("a: 1", "no current context"),
        ("? [a]\n: 1\n", "not valid YAML"),
        (" " * (MAX_BYTES + 1), "larger than"),
        (document() | {"current-context": "nowhere"}, "no context named nowhere"),
        (document() | {"clusters": []}, "no cluster named c1"),
        (document(server=None), "no server"),
        (document(**{"certificate-authority-data": "%%%"}), "not base64"),
        (document(**{"certificate-authority-data": None}), "no CA"),
    ],
)
def test_an_unusable_kubeconfig_is_refused_with_a_reason(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(CommandError, match=said) as refusal:
        taken(written(tmp_path, content))
    assert "t0p-secret" not in str(refusal.value)


@pytest.mark.parametrize("path", ["missing", "."])
def test_a_missing_file_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(CommandError):
        taken(tmp_path / path)


KEYS = st.sampled_from(
    ["current-context", "contexts", "clusters", "name", "context", "cluster", "server", "here"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
)


@given(VALUES)
def test_arbitrary_yaml_is_refused(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = written(tmp_path_factory.getbasetemp(), yaml.safe_dump(content))
    with pytest.raises(CommandError):
        taken(path)


def credential_of(
    folder: Path, user: dict[str, object], *, follow: bool = False
) -> KubeconfigCredential | None:
    content = document()
    content["users"] = [{"name": "u", "user": user}]
    path = written(folder, content)
    return read(path, None, need_ca=True, follow_files=follow, need_credential=True).credential


def encoded(text: bytes) -> str:
    return base64.b64encode(text).decode()


def test_the_credential_is_read_if_it_is_needed(tmp_path: Path) -> None:
    pair: dict[str, object] = {
        "client-certificate-data": encoded(b"chain"),
        "client-key-data": encoded(b"key"),
    }
    assert credential_of(tmp_path, pair) == KubeconfigCredential(b"chain", b"key")
    assert credential_of(tmp_path, {"token": "t"}) == KubeconfigCredential(token="t")
    assert credential_of(tmp_path, {**pair, "token": "t"}) == KubeconfigCredential(b"chain", b"key", "t")


def test_files_of_a_credential_are_read_only_if_that_is_allowed(tmp_path: Path) -> None:
    for name in ("crt", "key", "token"):
        (tmp_path / name).write_text(f"{name}\n")
    files: dict[str, object] = {"client-certificate": "crt", "client-key": "key", "tokenFile": "token"}
    with pytest.raises(CommandError, match=r"names the file crt\..*--follow-files"):
        credential_of(tmp_path, files)
    found = credential_of(tmp_path, files, follow=True)
    assert found == KubeconfigCredential(b"crt\n", b"key\n", "token")


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"exec": {"command": "/bin/false"}, "token": "t0p-secret"}, "logs in with a program"),
        ({"auth-provider": {"name": "gcp"}}, "logs in with a program"),
        ({"username": "u", "password": "t0p-secret"}, "password"),
        ({"token": "t0p-secret", "as": "root"}, "impersonates"),
        ({}, "no client certificate and no token"),
        ({"client-key-data": encoded(b"t0p-secret")}, "only one of client certificate and key"),
        ({"client-certificate-data": "t0p-secret!", "client-key-data": "AAAA"}, "not base64"),
        (
            {
                "client-certificate-data": "AAAA",
                "client-key-data": encoded(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"),
            },
            "is encrypted",
        ),
    ],
)
def test_an_unusable_credential_is_refused_without_its_content(
    tmp_path: Path, user: dict[str, object], said: str
) -> None:
    with pytest.raises(CommandError, match=said) as refused:
        credential_of(tmp_path, user)
    assert "t0p-secret" not in refused.value.message


def test_a_credential_does_not_appear_in_messages() -> None:
    assert "s3cret" not in repr(KubeconfigCredential(b"c", b"s3cret", "s3cret"))

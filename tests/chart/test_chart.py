"""The Helm chart: what it renders is valid, safe and accepted by the service, and what is misspelt is refused."""

import copy
import re
import tarfile
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from clustercert import __version__
from clustercert.settings import load
from scripts import chart_archive
from scripts.chart_schema import values_schema
from support import helm_chart
from support.helm_chart import CHART, ROOT, VALUES, Document, Release, refusals, rendered, values_in

pytestmark = [
    pytest.mark.full,
    pytest.mark.slow,
    pytest.mark.skipif(not helm_chart.is_installed(), reason="Helm is not in .venvs/chart: run `make chart`"),
]
DATABASE: dict[str, Any] = {
    "database": {"existingSecret": "database"},
    "tls": {"existingSecret": "tls"},
}


@pytest.fixture(scope="module")
def releases() -> dict[str, Release]:
    """The release of each file in ci/, by the name of the file without its end."""
    found = rendered(*map(values_in, VALUES))
    return {file.name.removesuffix("-values.yaml"): each for file, each in zip(VALUES, found, strict=True)}


def test_the_chart_has_the_version_of_the_program() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_helm_finds_no_fault_in_the_chart() -> None:
    lints = [{"call": "lint", "chart": str(CHART), "values": values_in(file)} for file in VALUES]
    assert helm_chart.calls(*lints) == [{"result": []}] * len(VALUES)


@pytest.mark.parametrize("version", helm_chart.KUBERNETES)
def test_kubernetes_knows_each_field(releases: dict[str, Release], version: str) -> None:
    """Strictly. Kinds of Prometheus, cert-manager and Gateway API are no part of Kubernetes."""
    documents = [
        each
        for release in releases.values()
        for each in release.documents
        if "monitoring.coreos.com" not in each["apiVersion"]
        and "cert-manager.io" not in each["apiVersion"]
        and "gateway.networking" not in each["apiVersion"]
    ]
    assert len(documents) > 40
    misspelt = copy.deepcopy(documents[-1])
    misspelt["spec"]["replicaz"] = 1
    validate = {"call": "validate", "version": version}
    good, bad = helm_chart.calls({**validate, "documents": documents}, {**validate, "documents": [misspelt]})
    assert good == {"result": []}
    assert "replicaz" in bad["result"][0]


def misspelt(values: Any, schema: Document) -> Iterator[Any]:
    """The values with one key misspelt, for each key of the objects whose keys the schema knows all."""
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    if isinstance(values, list):
        for index, value in enumerate(values):
            for each in misspelt(value, schema.get("items", {})):
                yield [*values[:index], each, *values[index + 1 :]]
    elif isinstance(values, dict) and "properties" in schema:
        for key, value in values.items():
            others = {name: each for name, each in values.items() if name != key}
            if schema.get("additionalProperties") is False:
                yield {**others, f"{key}z": value}
            for each in misspelt(value, schema["properties"].get(key, {})):
                yield {**others, key: each}


SCHEMA = values_schema()


@pytest.mark.parametrize("file", VALUES, ids=lambda file: str(file.name))
def test_a_misspelt_value_is_refused(file: Path) -> None:
    values = values_in(file)
    cases = list(misspelt(values, SCHEMA))
    assert len(cases) >= 2 * len(values)
    for case, refusal in zip(cases, refusals(cases), strict=True):
        assert "additional properties" in refusal, case


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"api": {"replicas": 0}}, "/api/replicas"),
        ({"config": {"server": {"workers": "two"}}}, "/config/server/workers"),
        ({"config": {"log": {"level": "loud"}}}, "/config/log/level"),
        ({"config": {"policy": {"max_lifetime": "a day"}}}, "/config/policy/max_lifetime"),
        ({"config": {"server": {"public_url": "clustercert.example"}}}, "/config/server/public_url"),
        ({"config": {"webhook": {"public_url": "https://webhook.example/"}}}, "/config/webhook/public_url"),
        ({"config": {"signers": {"local": {"threads": 4}}}}, "/config/signers/local"),
        ({"config": {"signers": {"transit": {"tokenfile": "/etc/token"}}}}, "/config/signers/transit"),
        ({"config": {"signers": {"company": "fast"}}}, "/config/signers/company"),
        ({"config": None}, "config is null. Leave it out, or write settings below it."),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"gateway": {"enabled": True, "hostnames": ["a.example"]}}, "/gateway/parentRefs"),
        ({"kek": {"existingSecret": ""}}, "Set kek.existingSecret, kek.csi or config.kek_transit."),
        (
            {"database": {"existingSecret": "database"}},
            "Set tls.existingSecret or tls.certManager.issuerRef.",
        ),
        (
            {"policyConfigMap": "policy", "config": {"policy": {"max_lifetime": "8h"}}},
            "The policy is in config.policy and in policyConfigMap. Remove one of them.",
        ),
        (
            {"tls": {"existingSecret": "certificate", "certManager": {"issuerRef": {"name": "company"}}}},
            "Both tls.existingSecret and tls.certManager.issuerRef are set. Remove one of them.",
        ),
        (
            {
                "files": {"ca": {"configMap": {"name": "ca"}}},
                "privateFiles": {"ca": {"secret": {"secretName": "ca"}}},
            },
            "The name ca is in files and in privateFiles. Rename one of them.",
        ),
        (
            {"metrics": {"serviceMonitor": {"enabled": True}}},
            "Set metrics.existingSecret.",
        ),
        ({"metrics": {"alerts": {"enabled": True}}}, "Set metrics.alerts.docsUrl"),
        ({"api": {"replicas": 3}}, "api.replicas is 3, but an SQLite database has one pod."),
        ({"webhook": {"replicas": 2}}, "webhook.replicas is 2, but an SQLite database has one pod."),
        (
            {"ingress": {"enabled": True, "hostnames": ["a.example"]}},
            "Set your controller's annotation for TLS passthrough",
        ),
    ],
)
def test_values_that_can_not_work_are_refused(values: dict[str, Any], said: str) -> None:
    [refusal] = refusals([values])
    assert said in refusal


def peers(cidr: str) -> dict[str, Any]:
    return {"enabled": True, "clients": [{"ipBlock": {"cidr": cidr}}]}


def egress(**rule: Any) -> dict[str, Any]:
    return {"networkPolicy": {"enabled": True, "egress": [rule]}}


REFUSED_BY_KUBERNETES: dict[str, tuple[dict[str, Any], str]] = {
    "a size with a space": ({"persistence": {"size": "1 GB"}}, "/persistence/size"),
    "a size with another unit": ({"persistence": {"size": "1GB"}}, "/persistence/size"),
    "no size": ({"persistence": {"size": "0"}}, "/persistence/size"),
    "a size of zero": ({"persistence": {"size": "0.0Gi"}}, "/persistence/size"),
    "an abbreviated access mode": ({"persistence": {"accessModes": ["RWO"]}}, "/persistence/accessModes/0"),
    "no access mode": ({"persistence": {"accessModes": []}}, "/persistence/accessModes"),
    "a storage class with a space": (
        {"persistence": {"storageClassName": "Fast SSD"}},
        "/persistence/storageClassName",
    ),
    "a unit of memory": (
        {"api": {"resources": {"limits": {"memory": "1Gb"}}}},
        "/api/resources/limits/memory",
    ),
    "a misspelt part of resources": ({"webhook": {"resources": {"limit": {}}}}, "/webhook/resources"),
    "requests above limits": (
        {"api": {"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "1000M"}}}},
        "api.resources: the request of memory (1Gi) is larger than its limit (1000M).",
    ),
    "requests above limits of CPU": (
        {"webhook": {"resources": {"requests": {"cpu": 1.5}, "limits": {"cpu": "1400m"}}}},
        "webhook.resources: the request of cpu (1.5) is larger than its limit (1400m).",
    ),
    "a default request above a limit": (
        {"api": {"resources": {"limits": {"memory": "255Mi"}}}},
        "api.resources: the request of memory (256Mi) is larger than its limit (255Mi).",
    ),
    "a traffic policy without external traffic": (
        {"api": {"service": {"spec": {"externalTrafficPolicy": "Local"}}}},
        "/api/service/spec/externalTrafficPolicy",
    ),
    "an address without a prefix": (
        {"networkPolicy": peers("10.0.0.1")},
        "/networkPolicy/clients/0/ipBlock/cidr",
    ),
    "a prefix too long": ({"networkPolicy": peers("10.0.0.0/33")}, "/networkPolicy/clients/0/ipBlock/cidr"),
    "an address without a prefix in egress": (
        egress(to=[{"ipBlock": {"cidr": "2001:db8::"}}]),
        "/networkPolicy/egress/0/to/0/ipBlock/cidr",
    ),
    "port 0": (egress(ports=[{"port": 0}]), "/networkPolicy/egress/0/ports/0/port"),
    "a misspelt operator": ({"tolerations": [{"operator": "Exist"}]}, "/tolerations/0/operator"),
    "a misspelt effect": ({"tolerations": [{"effect": "NoScheduled"}]}, "/tolerations/0/effect"),
    "root": ({"podSecurityContext": {"runAsUser": 0}}, "/podSecurityContext/runAsUser"),
    "no seccomp": (
        {"podSecurityContext": {"seccompProfile": {"type": "Unconfined"}}},
        "/podSecurityContext/seccompProfile/type",
    ),
    "a dot in a name": ({"fullnameOverride": "my.release"}, "A Service can't have the name my.release."),
    "a digit first": ({"fullnameOverride": "1st"}, "A Service can't have the name 1st."),
}


def test_values_that_kubernetes_would_refuse_are_refused_at_once() -> None:
    several = [values for values, _ in REFUSED_BY_KUBERNETES.values()]
    found = dict(zip(REFUSED_BY_KUBERNETES, refusals(several), strict=True))
    missing = {
        kind: found[kind] for kind, (_, said) in REFUSED_BY_KUBERNETES.items() if said not in found[kind]
    }
    assert missing == {}


def test_a_release_whose_name_has_a_dot_is_refused() -> None:
    with pytest.raises(helm_chart.Refused, match=r"can't have the name my\.release-clustercert\."):
        rendered({}, name="my.release")
    [release] = rendered({"fullnameOverride": "certs"}, name="my.release")
    assert [each["metadata"]["name"] for each in release.of_kind("Service")] == ["certs", "certs-webhook"]


ACCEPTED_BY_KUBERNETES: tuple[dict[str, Any], ...] = (
    *(
        {"persistence": {"size": size}}
        for size in ("10Gi", "0.5Ti", "1e10", "5000000000", "1E", "010Gi", "1.5G")
    ),
    {"persistence": {"storageClassName": "fast-ssd.example", "accessModes": ["ReadWriteOncePod"]}},
    {
        "api": {
            "resources": {"requests": {"cpu": 1, "memory": "1G"}, "limits": {"cpu": "1000m", "memory": "1Gi"}}
        }
    },
    {"api": {"resources": {"requests": {"cpu": "0.5"}, "limits": {"cpu": 0.5, "memory": "1e9"}}}},
    {"webhook": {"resources": {"limits": {"memory": "1Gi", "hugepages-2Mi": "4Mi", "nvidia.com/gpu": 1}}}},
    {"webhook": {"resources": {"requests": {"memory": "256Mi"}, "limits": {"memory": "256Mi"}}}},
    {"api": {"service": {"type": "NodePort", "spec": {"externalTrafficPolicy": "Local"}}}},
    {"api": {"service": {"spec": {"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"}}}},
    *(
        {"networkPolicy": peers(cidr)}
        for cidr in ("10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::/0", "::ffff:1.2.3.4/128")
    ),
    {"networkPolicy": {"enabled": True, "clients": [{"podSelector": {}, "namespaceSelector": {}}]}},
    egress(ports=[{"port": 443}, {"port": "https"}, {"port": 1, "endPort": 65535}, {"protocol": "UDP"}]),
    {
        "tolerations": [
            {"operator": "Exists"},
            {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 1},
        ]
    },
    {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
    {"podSecurityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}}},
)


def test_values_that_kubernetes_accepts_are_accepted() -> None:
    found = zip(ACCEPTED_BY_KUBERNETES, refusals(ACCEPTED_BY_KUBERNETES), strict=True)
    assert [(values, refusal) for values, refusal in found if refusal] == []


def test_names_that_yaml_would_read_as_something_else_stay_text() -> None:
    """A host with a wildcard begins like an alias, and a name of a release may be a number."""
    tls = {"certManager": {"issuerRef": {"name": "company"}, "dnsNames": ["*.example.com"]}}
    values = {"tls": tls, "fullnameOverride": "clustercert"}
    [release] = rendered(values, name="2026")
    assert "*.example.com" in release.one("Certificate", "clustercert")["spec"]["dnsNames"]
    for document in (*release.documents, *release.pods):
        assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "2026"


def test_secrets_are_only_named() -> None:
    """Values are stored in the release, and in git."""
    secret = "c2VjcmV0"
    cases: list[dict[str, Any]] = [
        {"config": {"kek": secret}},
        {"config": {"database_url": f"postgresql+asyncpg://clustercert:{secret}@db/clustercert"}},
        {"config": {"metrics": {"token": secret}}},
        {"config": {"identity": {"keystone": {"service": {"user": "a", "password": secret}}}}},
        {"config": {"audit": {"publish": [f"https://user:{secret}@checkpoints.example.com/"]}}},
        {"env": [{"name": "CLUSTERCERT_KEK", "value": secret}]},
        {"env": [{"name": "PGPASSWORD", "value": secret}]},
    ]
    assert all(refusals(cases))


def test_no_manifest_is_a_secret_or_has_one(releases: dict[str, Release]) -> None:
    for release in releases.values():
        text = yaml.safe_dump_all(release.documents)
        assert "PRIVATE KEY" not in text
        assert "CERTIFICATE-----\\n'" not in text
        assert not list(release.of_kind("Secret"))
        for variable in variables(release):
            if any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "KEK", "DATABASE_URL")):
                assert set(variable) == {"name", "valueFrom"}


def variables(release: Release) -> Iterator[Document]:
    for pod in release.pods:
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            yield from container["env"]


@pytest.mark.parametrize("name", [file.name.removesuffix("-values.yaml") for file in VALUES])
def test_the_service_accepts_the_rendered_settings(
    releases: dict[str, Release], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = releases[name]
    for variable in variables(release):
        if variable["name"].startswith("CLUSTERCERT_") and "valueFrom" in variable:
            monkeypatch.setenv(variable["name"], "postgresql+asyncpg://clustercert@db/clustercert")
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "policy.toml").write_text('max_lifetime = "8h"\nrole_groups = true\n')
    (tmp_path / "clustercert.toml").write_text(release.settings.replace("/etc/clustercert", str(tmp_path)))
    settings = load(tmp_path / "clustercert.toml")
    settings.check_examples()
    assert settings.kek_sources()
    given = values_in(CHART / "ci" / f"{name}-values.yaml").get("config", {})
    given = {"policy": {"max_lifetime": "24h"}, **given} if name != "openbao" else given
    assert_has(tomllib.loads(release.settings), given)
    ports = (settings.server.port, settings.for_role("webhook").server.port)
    assert (
        ports
        == (8443, 8444)
        == tuple(release.container(role)["ports"][0]["containerPort"] for role in ("api", "webhook"))
    )


def assert_has(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_has(found[key], value)
    else:
        assert found == expected


def test_a_text_comes_through_unchanged() -> None:
    text = "a \"quoted\" text: {{ .Values }}\n  port = 8.0\n\t''' \\ ${1} é\u2028\u2029\x85 # no comment"
    rule = {"name": "text", "when": {"roles": ["member"]}, "deny": text}
    [release] = rendered({"config": {"policy": {"rules": [rule]}}})
    assert tomllib.loads(release.settings)["policy"]["rules"] == [rule]


def test_a_signer_of_another_package_has_settings_of_its_own() -> None:
    table = {"url": "https://hsm.example.com", "slot": 7, "retry": {"attempts": 3}, "keys": ["a", "b"]}
    [release] = rendered({"config": {"signers": {"company": table}}})
    assert tomllib.loads(release.settings)["signers"] == {"company": table}


def test_pods_meet_the_standard_restricted(releases: dict[str, Release]) -> None:
    """Source: Pod Security Standards, profile restricted."""
    for name, release in releases.items():
        for pod in release.pods:
            spec = pod["spec"]
            assert spec["automountServiceAccountToken"] is False
            assert spec["securityContext"]["runAsNonRoot"] is True
            # OpenShift chooses the numbers itself.
            users = {"runAsUser", "runAsGroup", "fsGroup"}.intersection(spec["securityContext"])
            assert len(users) == (0 if name == "openbao" else 3)
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for volume in spec["volumes"]:
                assert {"configMap", "secret", "csi", "emptyDir"}.intersection(volume)
            for container in (*spec["initContainers"], *spec["containers"]):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
        [account] = (
            each for each in release.of_kind("ServiceAccount") if each["metadata"]["name"] == "clustercert"
        )
        assert account["automountServiceAccountToken"] is False


def test_the_webhook_can_not_read_keys(releases: dict[str, Release]) -> None:
    for name, release in releases.items():
        secret = "private-openbao" if name == "openbao" else "kek"
        reading = {
            container["name"]
            for pod in release.pods
            for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"])
            if any(mount["name"] == secret for mount in container["volumeMounts"])
        }
        assert reading == {"db-upgrade", "api"}
        for pod in release.pods:
            containers = {each["name"] for each in pod["spec"]["containers"]}
            has_keys = any(volume["name"] == secret for volume in pod["spec"]["volumes"])
            assert has_keys == ("api" in containers)


def test_requests_in_progress_survive_an_update(releases: dict[str, Release]) -> None:
    release = releases["postgresql"]
    for name in ("clustercert", "clustercert-webhook"):
        deployment = release.one("Deployment", name)["spec"]
        assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        pod = deployment["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == 60
        assert [each["lifecycle"] for each in pod["containers"]] == [{"preStop": {"sleep": {"seconds": 5}}}]
        assert [each["args"][-1] for each in pod["containers"]] == ["--drain"]
        schema_only = ["--schema-only"] if name == "clustercert-webhook" else []
        assert [each["args"] for each in pod["initContainers"]] == [
            ["db", "upgrade", "--wait", "10m", *schema_only]
        ]
        budget = release.one("PodDisruptionBudget", name)["spec"]
        assert budget["selector"] == deployment["selector"]
    assert not any("helm.sh/hook" in str(each) for each in release.documents)


def test_probes_speak_what_the_container_speaks(releases: dict[str, Release]) -> None:
    """Clients of the webhook need a certificate with client_ca, and the kubelet has none."""
    api = {"path": "/readyz", "port": "api"}
    assert releases["sqlite"].container("api")["readinessProbe"]["httpGet"] == {**api, "scheme": "HTTPS"}
    assert releases["csi"].container("api")["readinessProbe"]["httpGet"] == {**api, "scheme": "HTTP"}
    webhook = releases["postgresql"].container("webhook")
    assert (
        webhook["readinessProbe"]["tcpSocket"] == webhook["livenessProbe"]["tcpSocket"] == {"port": "webhook"}
    )


def test_services_select_the_pods_with_their_container(releases: dict[str, Release]) -> None:
    for release in releases.values():
        for service in release.of_kind("Service"):
            role = service["metadata"]["labels"]["app.kubernetes.io/component"]
            [port] = service["spec"]["ports"]
            selected = [
                pod
                for pod in release.pods
                if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
            ]
            ports = [
                each["name"] for pod in selected for one in pod["spec"]["containers"] for each in one["ports"]
            ]
            assert ports.count(port["targetPort"]) == 1
            assert port["targetPort"] == role


def test_a_new_policy_or_issuer_restarts_no_pod_and_other_settings_do() -> None:
    issuer = {"name": "sso", "issuer": "https://a.example", "audiences": ["a"], "projects": ["Default/a"]}
    first, policy, issuers, other = rendered(
        DATABASE,
        {**DATABASE, "config": {"policy": {"max_lifetime": "8h"}}},
        {**DATABASE, "config": {"identity": {"issuers": [issuer]}}},
        {**DATABASE, "config": {"limits": {"live_certificates": 5}}},
    )
    assert policy.settings != first.settings != issuers.settings
    assert policy.pods == issuers.pods == first.pods
    assert all(one != another for one, another in zip(other.pods, first.pods, strict=True))


def test_the_values_in_the_readme_can_be_used() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    values = [yaml.safe_load(block) for block in blocks]
    rendered(*(each if "database" in each else {**DATABASE, **each} for each in values))


@pytest.mark.parametrize(("values", "workload"), [({}, "statefulset"), (DATABASE, "deploy")])
def test_the_notes_name_the_workload_that_exists(values: dict[str, Any], workload: str) -> None:
    [done] = helm_chart.rendering([values], "clustercert", CHART)
    notes = done["result"]["clustercert/templates/NOTES.txt"]
    kind = {"statefulset": "StatefulSet", "deploy": "Deployment"}[workload]
    assert helm_chart.release(done["result"]).one(kind, "clustercert")
    assert f"kubectl exec -it -n prod {workload}/clustercert -c api -- clustercert user create olga" in notes


def notes_of(values: dict[str, Any]) -> str:
    [done] = helm_chart.rendering([values], "clustercert", CHART)
    return str(done["result"]["clustercert/templates/NOTES.txt"])


def test_the_notes_name_the_secrets_that_must_exist() -> None:
    everything = {
        **DATABASE,
        "metrics": {"existingSecret": "metrics"},
        "imagePullSecrets": [{"name": "registry"}],
        "files": {"ca": {"configMap": {"name": "ca"}}},
        "privateFiles": {"pin": {"secret": {"secretName": "hsm"}}},
    }
    without = {"kek": {"csi": {"driver": "secrets.example.com"}}}
    for values, names in (
        ({}, "clustercert-kek"),
        (everything, "clustercert-kek database tls metrics registry hsm"),
    ):
        before, after = notes_of(values).split("kubectl rollout status")
        assert f"  kubectl get secret -n prod {names}\n" in before
        assert "kubectl get secret" not in after
    assert "kubectl get secret" not in notes_of(without)


def test_the_notes_give_a_fingerprint_only_of_a_service_with_tls() -> None:
    assert "-- clustercert fingerprint" in notes_of({})
    plain = notes_of(
        {"config": {"server": {"plain_http": True, "public_url": "https://clustercert.example"}}}
    )
    assert plain.endswith("address of the service:\n\n  https://clustercert.example\n")


def test_the_alert_rules_are_those_in_deploy_with_links_to_the_given_documentation(
    releases: dict[str, Release],
) -> None:
    rules = (ROOT / "deploy" / "prometheus-alerts.yaml").read_text()
    expected = rules.replace("https://docs.clustercert.example/", "https://docs.example.com/clustercert/")
    [rule] = releases["postgresql"].of_kind("PrometheusRule")
    assert rule["spec"] == yaml.safe_load(expected)


def contents(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        assert not any(each.issym() or each.islnk() for each in opened)
        files = {each.name: opened.extractfile(each) for each in opened}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_the_archive_of_a_release_has_the_files_that_helm_would_pack(tmp_path: Path) -> None:
    moment = datetime(2026, 12, 1, tzinfo=UTC)
    chart_archive.build(ROOT, tmp_path, __version__, moment)
    archive = tmp_path / f"clustercert-chart-{__version__}.tgz"
    values = values_in(CHART / "ci" / "postgresql-values.yaml")
    packed, findings = helm_chart.calls(
        {"call": "package", "chart": str(CHART), "destination": str(tmp_path)},
        {"call": "lint", "chart": str(archive), "values": values},
    )
    assert findings == {"result": []}
    ours, by_helm = contents(archive), contents(Path(packed["result"]))
    # Helm sorts the keys of this file.
    ours_sorted, sorted_by_helm = (
        yaml.safe_load(each.pop("clustercert/Chart.yaml")) for each in (ours, by_helm)
    )
    # These fields are written only into the archive of a release.
    for name in ("home", "sources", "icon"):
        ours_sorted.pop(name, None)
    assert (ours, ours_sorted) == (by_helm, sorted_by_helm)
    assert (
        ours["clustercert/files/prometheus-alerts.yaml"]
        == (ROOT / "deploy" / "prometheus-alerts.yaml").read_bytes()
    )
    assert rendered(values, chart=archive) == rendered(values)


def test_the_policy_for_traffic_lets_only_the_listed_peers_in(releases: dict[str, Release]) -> None:
    spec = releases["postgresql"].one("NetworkPolicy", "clustercert")["spec"]
    selected = [pod["metadata"]["labels"] for pod in releases["postgresql"].pods]
    assert all(spec["podSelector"]["matchLabels"].items() <= labels.items() for labels in selected)
    reached = {
        (port["port"], str(peer))
        for rule in spec["ingress"]
        for port in rule["ports"]
        for peer in rule["from"]
    }
    peers = values_in(CHART / "ci" / "postgresql-values.yaml")["networkPolicy"]
    assert reached == {
        *((8443, str(each)) for each in peers["clients"] + peers["prometheus"]),
        *((8444, str(each)) for each in peers["apiServers"] + peers["prometheus"]),
    }
    assert [rule for rule in spec["egress"] if "to" not in rule] == [
        {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    ]
    assert [rule for rule in spec["egress"] if "to" in rule] == peers["egress"]


def test_the_rights_of_the_signer_are_for_the_namespace_of_the_release(releases: dict[str, Release]) -> None:
    release = releases["postgresql"]
    [policy] = release.of_kind("ValidatingAdmissionPolicy")
    assert f"system:serviceaccount:{helm_chart.NAMESPACE}:clustercert-signer" in str(policy)
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        for binding in release.of_kind(kind):
            assert [each["namespace"] for each in binding["subjects"]] == [helm_chart.NAMESPACE]
    assert not any(release.of_kind("Namespace"))


@pytest.mark.parametrize(
    ("name", "values", "resource"),
    [
        ("clustercert", {}, "clustercert"),
        ("blue", {}, "blue-clustercert"),
        ("blue", {"nameOverride": "certs"}, "blue-certs"),
        ("blue", {"fullnameOverride": "certs"}, "certs"),
        ("a" * 53, {}, "a" * 50),
    ],
)
def test_resources_have_the_name_of_the_release(name: str, values: dict[str, Any], resource: str) -> None:
    [release] = rendered(values, name=name)
    names = {each["metadata"]["name"] for each in release.documents}
    assert names == {resource, f"{resource}-settings", f"{resource}-webhook"}

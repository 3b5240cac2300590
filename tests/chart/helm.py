"""Runs Helm in the environment .venvs/chart, and checks manifests against the schemas of Kubernetes.

Reads one JSON object from standard input, `{"calls": [{"call": NAME, …}]}`, and writes a list with the result of each
call: `{"result": …}`, or `{"error": …}` if Helm or the schema refuses something.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import helm_python
import kubernetes_validate


def render(chart: str, values: dict[str, Any], name: str, namespace: str) -> dict[str, str]:
    """The manifests by the path of their template."""
    with helm_python.Chart.load(chart) as loaded:
        manifests: dict[str, str] = loaded.render(values, name=name, namespace=namespace)
        return manifests


def lint(chart: str, values: dict[str, Any]) -> list[str]:
    """The findings that are more than a recommendation."""
    report = helm_python.lint(chart, values, strict=True)
    return [*report["errors"], *(each["error"] for each in report["messages"] if each["severity"] > 1)]


def package(chart: str, destination: str) -> str:
    """The path of the archive."""
    return str(helm_python.package(chart, destination=destination))


def validate(documents: list[dict[str, Any]], version: str) -> list[str]:
    """What the schema of one version of Kubernetes refuses, strictly; nothing for kinds that it doesn't have."""
    faults = []
    for document in documents:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults.append(f"{document['kind']} {'.'.join(map(str, error.path))}: {error.message}")
    return faults


def release(action: str, kubeconfig: str, namespace: str, arguments: dict[str, Any]) -> Any:
    """Change or show a release in a cluster: `install`, `upgrade`, `rollback`, `history`, `uninstall`."""
    with helm_python.Config(kubeconfig_path=kubeconfig, namespace=namespace) as config:
        return getattr(config, action)(**arguments)


CALLS: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (render, lint, package, validate, release)
}


def main() -> None:
    """Make the calls."""
    results = []
    for call in json.load(sys.stdin)["calls"]:
        try:
            results.append({"result": CALLS[call.pop("call")](**call)})
        except helm_python.HelmError as error:
            results.append({"error": str(error)})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()

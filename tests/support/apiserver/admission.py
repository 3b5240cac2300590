"""ValidatingAdmissionPolicies over writes, with a ConfigMap or nothing as their parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from support.apiserver import kinds
from support.apiserver.attributes import Attributes
from support.apiserver.expressions import ExpressionError, holds, value
from support.apiserver.failures import Failure
from support.apiserver.identity import Identity
from support.apiserver.storage import Document, Storage

_OPERATIONS = {
    "create": "CREATE",
    "update": "UPDATE",
    "patch": "UPDATE",
    "delete": "DELETE",
    "deletecollection": "DELETE",
    "connect": "CONNECT",
}
_CODES = {"Forbidden": 403, "Unauthorized": 401, "RequestEntityTooLarge": 413, "Invalid": 422}
# Real ones are known to be left alone by policies, so that no policy can lock everybody out.
_EXEMPT_GROUPS = {kinds.ADMISSION, kinds.AUTHENTICATION, kinds.AUTHORIZATION}


@dataclass(frozen=True, slots=True)
class Write:
    """One write on its way to the store; the objects as CEL sees them."""

    who: Identity
    wanted: Attributes
    kind: kinds.Kind
    new: Document | None
    old: Document | None
    dry_run: bool

    @property
    def operation(self) -> str:
        return _OPERATIONS[self.wanted.verb]

    @property
    def request(self) -> Mapping[str, object]:
        wanted = self.wanted
        optional = {
            "name": wanted.name or ((self.new or {}).get("metadata", {}).get("name") or ""),
            "namespace": wanted.namespace,
            "subResource": wanted.subresource,
        }
        return {
            "kind": {"group": self.kind.group, "version": "v1", "kind": self.kind.name},
            "resource": {"group": wanted.group, "version": wanted.version, "resource": wanted.resource},
            "operation": self.operation,
            "userInfo": self.who.user_info,
            "dryRun": self.dry_run,
            **{name: text for name, text in optional.items() if text},
        }


def admit(storage: Storage, write: Write) -> None:
    """Raises Failure with the policy's message if a policy denies, or fails with failurePolicy Fail."""
    if write.wanted.group in _EXEMPT_GROUPS:
        return
    policies = {policy["metadata"]["name"]: policy for policy in storage.all(kinds.POLICIES)}
    for binding in storage.all(kinds.POLICY_BINDINGS):
        policy = policies.get(binding["spec"]["policyName"])
        if policy is not None and _matches(policy["spec"].get("matchConstraints") or {}, write):
            _judge(storage, write, policy, binding)


def _judge(storage: Storage, write: Write, policy: Document, binding: Document) -> None:
    spec = policy["spec"]
    if "Deny" not in (binding["spec"].get("validationActions") or ()):
        return
    variables = {"request": write.request, "object": write.new, "oldObject": write.old}
    try:
        if not all(holds(each["expression"], variables) for each in spec.get("matchConditions") or ()):
            return
        for params in _params(storage, write, policy, binding):
            _validate(spec, {**variables, "params": params}, policy, binding)
    except ExpressionError as error:
        if spec.get("failurePolicy", "Fail") == "Fail":
            raise _denied(policy, binding, f"expression error: {error}", "Invalid") from error


def _validate(
    spec: Mapping[str, Any], variables: Mapping[str, object], policy: Document, binding: Document
) -> None:
    named: dict[str, object] = {}
    for variable in spec.get("variables") or ():
        named[variable["name"]] = value(variable["expression"], {**variables, "variables": named})
    everything = {**variables, "variables": named}
    for validation in spec["validations"]:
        if not holds(validation["expression"], everything):
            said = validation.get("message") or f"failed expression: {validation['expression']}"
            if "messageExpression" in validation:
                said = str(value(validation["messageExpression"], everything))
            raise _denied(policy, binding, said, validation.get("reason", "Invalid"))


def _denied(policy: Document, binding: Document, said: str, reason: str) -> Failure:
    return Failure(
        _CODES[reason],
        reason,
        f"ValidatingAdmissionPolicy '{policy['metadata']['name']}' with binding "
        f"'{binding['metadata']['name']}' denied request: {said}",
    )


def _params(storage: Storage, write: Write, policy: Document, binding: Document) -> Iterator[Document | None]:
    kind = policy["spec"].get("paramKind")
    reference = binding["spec"].get("paramRef")
    if kind is None or reference is None:
        yield None
        return
    if (kind["apiVersion"], kind["kind"]) != ("v1", "ConfigMap"):
        raise _denied(policy, binding, f"paramKind {kind['kind']} is not served", "Invalid")
    namespace = reference.get("namespace") or write.wanted.namespace
    try:
        yield storage.get(kinds.CONFIG_MAPS, namespace, reference["name"])
    except Failure as missing:
        if reference.get("parameterNotFoundAction") != "Allow":
            raise _denied(policy, binding, "no params found for policy binding", "Invalid") from missing


def _matches(constraints: Mapping[str, Any], write: Write) -> bool:
    excluded = any(_covers(rule, write) for rule in constraints.get("excludeResourceRules") or ())
    return not excluded and any(_covers(rule, write) for rule in constraints.get("resourceRules") or ())


def _covers(rule: Mapping[str, Sequence[str]], write: Write) -> bool:
    wanted = write.wanted
    name = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
    any_resource = {"*/*"} if wanted.subresource else {"*", "*/*"}
    return (
        not {"*", wanted.group}.isdisjoint(rule["apiGroups"])
        and not {"*", wanted.version}.isdisjoint(rule["apiVersions"])
        and not {"*", write.operation}.isdisjoint(rule["operations"])
        and not ({name} | any_resource).isdisjoint(rule["resources"])
        and (not rule.get("resourceNames") or write.request.get("name") in rule["resourceNames"])
    )

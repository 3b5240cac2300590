"""ValidatingAdmissionPolicies over writes, with a ConfigMap or nothing as their parameters."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
    allows: Callable[[Identity, Attributes], bool] = field(default=lambda _who, _wanted: False)
    """The API server's authorizer, as the variable `authorizer` reaches it."""

    @property
    def operation(self) -> str:
        # Server-side apply creates what is missing. Source: k8s.io/apiserver/pkg/endpoints/handlers/patch.go.
        return "CREATE" if self.new and not self.old else _OPERATIONS[self.wanted.verb]

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
        if policy is not None and _matches(storage, policy["spec"].get("matchConstraints") or {}, write):
            _judge(storage, write, policy, binding)


def _judge(storage: Storage, write: Write, policy: Document, binding: Document) -> None:
    spec = policy["spec"]
    if "Deny" not in (binding["spec"].get("validationActions") or ()):
        return
    variables = {
        "request": write.request,
        "object": write.new,
        "oldObject": write.old,
        "authorizer": {},
    }
    functions = _authorizer(write)
    conditions = spec.get("matchConditions") or ()
    try:
        if not all(holds(each["expression"], variables, functions) for each in conditions):
            return
        for params in _params(storage, write, policy, binding):
            _validate(spec, {**variables, "params": params}, functions, policy, binding)
    except ExpressionError as error:
        if spec.get("failurePolicy", "Fail") == "Fail":
            raise _denied(policy, binding, f"expression error: {error}", "Invalid") from error


def _authorizer(write: Write) -> Mapping[str, Callable[..., object]]:
    """The functions `authorizer.group(…).resource(…).check(…).allowed()`, for the user of the request.

    Source: k8s.io/apiserver/pkg/cel/library/authz.go. Without `namespace(…)`, the check is at the cluster scope.
    """

    def check(asked: Mapping[str, str], verb: str) -> bool:
        wanted = Attributes(verb, group=asked["group"], version="*", resource=asked["resource"])
        return write.allows(write.who, wanted)

    return {
        "group": lambda _authorizer, group: {"group": group},
        "resource": lambda asked, resource: {**asked, "resource": resource},
        "check": check,
        "allowed": lambda decision: decision,
    }


def _validate(
    spec: Mapping[str, Any],
    variables: Mapping[str, object],
    functions: Mapping[str, Callable[..., object]],
    policy: Document,
    binding: Document,
) -> None:
    named: dict[str, object] = {}
    for variable in spec.get("variables") or ():
        # Kubernetes evaluates a variable when an expression reads it. The error of a variable that is not read is none.
        with contextlib.suppress(ExpressionError):
            named[variable["name"]] = value(
                variable["expression"], {**variables, "variables": named}, functions
            )
    everything = {**variables, "variables": named}
    for validation in spec["validations"]:
        if not holds(validation["expression"], everything, functions):
            said = validation.get("message") or f"failed expression: {validation['expression']}"
            if "messageExpression" in validation:
                said = str(value(validation["messageExpression"], everything, functions))
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


def _matches(storage: Storage, constraints: Mapping[str, Any], write: Write) -> bool:
    if not _in_selected_namespace(storage, constraints.get("namespaceSelector") or {}, write):
        return False
    excluded = any(_covers(rule, write) for rule in constraints.get("excludeResourceRules") or ())
    return not excluded and any(_covers(rule, write) for rule in constraints.get("resourceRules") or ())


def _in_selected_namespace(storage: Storage, selector: Mapping[str, Any], write: Write) -> bool:
    """Whether a policy's `namespaceSelector` matches; an object outside of all namespaces is always matched.

    Source: k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/namespace/matcher.go.
    """
    if write.kind is kinds.NAMESPACES:
        namespace = write.new or write.old or {}
    elif write.kind.namespaced:
        namespace = storage.get(kinds.NAMESPACES, "", write.wanted.namespace)
    else:
        return True
    labels = namespace["metadata"].get("labels") or {}
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    for each in selector.get("matchExpressions") or ():
        if each["operator"] != "In":
            raise ValueError(f"the double does not know the operator {each['operator']}")
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True


def _covers(rule: Mapping[str, Any], write: Write) -> bool:
    wanted = write.wanted
    name = f"{wanted.resource}/{wanted.subresource}" if wanted.subresource else wanted.resource
    any_resource = {"*/*"} if wanted.subresource else {"*", "*/*"}
    scope = rule.get("scope", "*")
    return (
        scope in {"*", "Namespaced" if write.kind.namespaced else "Cluster"}
        and not {"*", wanted.group}.isdisjoint(rule["apiGroups"])
        and not {"*", wanted.version}.isdisjoint(rule["apiVersions"])
        and not {"*", write.operation}.isdisjoint(rule["operations"])
        and not ({name} | any_resource).isdisjoint(rule["resources"])
        and (not rule.get("resourceNames") or write.request.get("name") in rule["resourceNames"])
    )

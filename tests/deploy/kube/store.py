"""What a Kubernetes API server keeps: objects by kind, namespace and name, and their history."""

from __future__ import annotations

import functools
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.deploy import crds
from tests.deploy.finding import module

Object = dict[str, Any]
VERSION = "1.33"
_NAMESPACED = {
    "v1": "Pod Service ConfigMap Secret ServiceAccount Event PersistentVolumeClaim",
    "apps/v1": "DaemonSet Deployment ReplicaSet StatefulSet",
    "networking.k8s.io/v1": "NetworkPolicy Ingress",
    "policy/v1": "PodDisruptionBudget",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding",
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of object that the server has."""

    api: str
    name: str
    namespaced: bool = True
    custom: bool = False

    @property
    def plural(self) -> str:
        """As paths name it."""
        name = self.name.lower()
        if name.endswith("y"):
            return f"{name[:-1]}ies"
        return f"{name}es" if name.endswith("s") else f"{name}s"


@functools.cache
def kinds() -> dict[tuple[str, str], Kind]:
    """By apiVersion and plural: Kubernetes' own that the chart and the pages use, and those of the
    custom resource definitions.
    """
    found = [Kind(api=api, name=n) for api, names in _NAMESPACED.items() for n in names.split()]
    found += [Kind(api="v1", name=name, namespaced=False) for name in ("Namespace", "Node")]
    found += [Kind(api=api, name=name, custom=True) for api, name in crds.definitions()]
    return {(kind.api, kind.plural): kind for kind in found}


class Refused(Exception):
    """What the server answers instead: an HTTP status, Kubernetes' reason and a sentence."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass
class Store:
    """Objects as clients sent them, checked as an API server checks them; only `react` acts on
    them. Safe to use from several threads.
    """

    changed: threading.Condition = field(default_factory=threading.Condition)
    history: list[tuple[str, Kind, Object]] = field(default_factory=list)
    # Stands for controllers and kubelets: is told of what came.
    react: Callable[[Kind, Object], None] = lambda kind, one: None
    _found: dict[tuple[Kind, str, str], Object] = field(default_factory=dict)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Raises Refused."""
        with self.changed:
            found = self._found.get((kind, namespace if kind.namespaced else "", name))
        if found is None:
            raise Refused(404, "NotFound", f'{kind.plural} "{name}" not found')
        return found

    def of(self, plural: str) -> list[Object]:
        """Every object of a kind."""
        with self.changed:
            return [one for (kind, _, _), one in self._found.items() if kind.plural == plural]

    def select(self, kind: Kind, namespace: str, query: Mapping[str, str]) -> list[Object]:
        """Those that a list names, by namespace (all: ""), labels and fields."""
        return [
            one
            for one in self.of(kind.plural)
            if chosen(one, query) and namespace in ("", one["metadata"].get("namespace", ""))
        ]

    def create(self, kind: Kind, namespace: str, one: Object, *, known: bool = False) -> Object:
        """Known objects are right, and checking them takes time. Raises Refused."""
        one = _without_nulls(one)
        meta = one.setdefault("metadata", {})
        one.setdefault("apiVersion", kind.api)
        one.setdefault("kind", kind.name)
        if kind.namespaced:
            meta.setdefault("namespace", namespace)
            self.get(kinds()["v1", "namespaces"], "", namespace)
        if not known:
            check(kind, one)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": stamp, "generation": 1}
        with self.changed:
            key = (kind, meta.get("namespace", ""), meta["name"])
            if key in self._found:
                named = f'{kind.plural} "{meta["name"]}" already exists'
                raise Refused(409, "AlreadyExists", named)
            self._keep("ADDED", key, one)
        self.react(kind, one)
        return one

    def tell(self, kind: Kind, one: Object, status: Object) -> None:
        """Sets an object's status, as a controller does."""
        meta = one["metadata"]
        with self.changed:
            key = (kind, meta.get("namespace", ""), meta["name"])
            self._keep("MODIFIED", key, self._found[key] | {"status": status})

    def replace(self, kind: Kind, old: Object, new: Object) -> Object:
        """What the server gave it, such as its uid, stays. Raises Refused."""
        meta = old["metadata"]
        given = {k: meta[k] for k in ("namespace", "uid", "creationTimestamp") if k in meta}
        given["generation"] = meta["generation"] + (old.get("spec") != new.get("spec"))
        new = _without_nulls({**new, "metadata": new["metadata"] | given})
        check(kind, new)
        with self.changed:
            self._keep("MODIFIED", (kind, meta.get("namespace", ""), meta["name"]), new)
        return new

    def delete(self, kind: Kind, one: Object) -> None:
        """At once, as nothing here has to end first."""
        meta = one["metadata"]
        with self.changed:
            key = (kind, meta.get("namespace", ""), meta["name"])
            self._keep("DELETED", key, one)
            del self._found[key]

    def _keep(self, event: str, key: tuple[Kind, str, str], one: Object) -> None:
        version = str(len(self.history) + 1)
        one = {**one, "metadata": {**one["metadata"], "resourceVersion": version}}
        self._found[key] = one
        self.history.append((event, key[0], one))
        self.changed.notify_all()


def check(kind: Kind, one: Object) -> None:
    """Schemas, unknown fields and, of custom resources, CEL rules. Raises Refused."""
    if kind.custom:
        wrong = crds.problems({k: v for k, v in one.items() if k != "status"})
    else:
        kubernetes_validate = module("kubernetes_validate")
        try:
            kubernetes_validate.validate(one, VERSION, strict=True)
            wrong = []
        except kubernetes_validate.ValidationError as error:
            wrong = [f"{'.'.join(map(str, error.path))}: {error.message}"]
    if wrong:
        name = one["metadata"].get("name")
        raise Refused(422, "Invalid", f'{kind.name} "{name}" is invalid: {"; ".join(wrong)}')


def chosen(one: Object, query: Mapping[str, str]) -> bool:
    """Whether a label and a field selector take an object. Raises Refused for others than
    equality and its opposite, which nobody here sends.
    """
    labels = one["metadata"].get("labels") or {}
    pairs = [(labels.get(key), *rest) for key, *rest in _terms(query.get("labelSelector", ""))]
    for path, *rest in _terms(query.get("fieldSelector", "")):
        pairs.append((functools.reduce(_inner, path.split("."), one), *rest))
    return all((found == value) == equal for found, equal, value in pairs)


def _inner(one: Any, key: str) -> Any:
    return (one or {}).get(key)


def _terms(selector: str) -> list[tuple[str, bool, str]]:
    found = []
    for term in filter(None, selector.split(",")):
        match = re.fullmatch(r"([^=!]+)(==?|!=)([^=]*)", term)
        if match is None:
            raise Refused(400, "BadRequest", f"selector {selector!r} is not one of those served")
        found.append((match[1], match[2] != "!=", match[3]))
    return found


def _without_nulls(value: Any) -> Any:
    """A null is what is not given."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value

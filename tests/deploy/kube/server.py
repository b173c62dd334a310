"""A stand-in for Kubernetes' API, where no API server can be had, for real kubectl and real Helm.

It answers discovery, keeps what it is sent (create, read, list, watch, patch, delete, evict),
refuses what Kubernetes' schemas, the custom resources' definitions and their rules refuse, shows
logs and forwards ports. Nothing acts on what it keeps: no KubeRay, no scheduler, no kubelet.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.deploy.kube import protobuf
from tests.deploy.kube.forward import Forwarder
from tests.deploy.kube.patches import merged, strategically_merged
from tests.deploy.kube.store import VERSION, Kind, Object, Refused, Store, chosen, kinds

# Real servers end watches, too, after half an hour or more.
WATCH_S = 0.5
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SUBRESOURCES = {"pods/eviction": "Eviction", "pods/log": "Pod", "pods/portforward": "Pod"}


class Server(ThreadingHTTPServer):
    """`logs` are what containers say, by pod; `ports` where a pod's port leads on this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = Store()
        self.logs: Callable[[Object], str] = lambda pod: ""
        self.ports: Callable[[Object], int] | None = None
        for name in ("default", "kube-system"):
            self.store.create(kinds()["v1", "namespaces"], "", {"metadata": {"name": name}})

    @property
    def kubeconfig(self) -> dict[str, Any]:
        """What KUBECONFIG's file says."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": url}}],
            "users": [{"name": "admin", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
            "current-context": "here",
        }


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Place(NamedTuple):
    """What a path names."""

    kind: Kind
    namespace: str
    name: str
    part: str


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    # Head and body are two writes, and clients ask one thing after the other.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def do_PATCH(self) -> None:
        self._answered(self._patch)

    def do_PUT(self) -> None:
        self._answered(self._put)

    def do_DELETE(self) -> None:
        self._answered(self._delete)

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def _answered(self, act: Callable[[list[str], dict[str, str]], Any]) -> None:
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.split("/") if part]
        try:
            answer = act(parts, dict(urllib.parse.parse_qsl(url.query)))
        except Refused as error:
            self._send(
                error.status,
                {
                    "kind": "Status",
                    "apiVersion": "v1",
                    "status": "Failure",
                    "reason": error.reason,
                    "message": str(error),
                    "code": error.status,
                },
            )
            return
        if answer is not None:
            self._send(201 if self.command == "POST" else 200, answer)

    def _send(self, status: int, body: Any) -> None:
        kind = "text/plain" if isinstance(body, bytes) else "application/json"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self._write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _place(self, parts: list[str]) -> _Place:
        api, rest = ("v1", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        kind = kinds().get((api, rest[0]))
        if kind is None:
            raise Refused(404, "NotFound", f"no {rest[0]} in {api}")
        return _Place(kind, namespace, *[*rest[1:], "", ""][:2])

    def _get(self, parts: list[str], query: dict[str, str]) -> Any:
        if (found := discovery(parts)) is not None:
            return found
        if parts[:1] not in (["api"], ["apis"]):
            raise Refused(404, "NotFound", f"no {self.path}")
        place, store = self._place(parts), self.server.store
        if place.part == "log":
            return self.server.logs(store.get(*place[:3])).encode()
        if place.part == "portforward":
            raise Refused(400, "BadRequest", "only SPDY")
        if place.name:
            return store.get(*place[:3])
        if query.get("watch") in ("1", "true"):
            return self._watch(place, query)
        listed = store.select(place.kind, place.namespace, query)
        meta = {"resourceVersion": str(len(store.history))}
        whole = {"apiVersion": place.kind.api, "kind": f"{place.kind.name}List"}
        return {**whole, "metadata": meta, "items": listed}

    def _watch(self, place: _Place, query: dict[str, str]) -> None:
        """Writes what changes for a while, a JSON document a line."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        store, seen = self.server.store, int(query.get("resourceVersion") or 0)
        end_s = time.monotonic() + min(WATCH_S, float(query.get("timeoutSeconds", WATCH_S)))
        while (left_s := end_s - time.monotonic()) > 0:
            with store.changed:
                if len(store.history) == seen:
                    store.changed.wait(left_s)
                news, seen = store.history[seen:], len(store.history)
            for event, kind, one in news:
                inside = place.namespace in ("", one["metadata"].get("namespace", ""))
                if kind == place.kind and inside and chosen(one, query):
                    self._chunk(json.dumps({"type": event, "object": one}).encode() + b"\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def _write(self, data: bytes) -> None:
        # Whoever has seen enough may be gone.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(data)

    def _post(self, parts: list[str], query: dict[str, str]) -> Any:
        place, store = self._place(parts), self.server.store
        if place.part == "portforward":
            return self._forward(store.get(*place[:3]))
        body = self._body()
        if place.part == "eviction":
            store.delete(place.kind, store.get(*place[:3]))
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        binary = place.kind.name == "Secret" and body.startswith(protobuf.MAGIC)
        one = protobuf.secret(body) if binary else json.loads(body)
        return store.create(place.kind, place.namespace, one)

    def _forward(self, pod: Object) -> None:
        if self.server.ports is None:
            raise Refused(404, "NotFound", "nothing listens")
        self.send_response(101)
        self.send_header("connection", "Upgrade")
        self.send_header("upgrade", "SPDY/3.1")
        self.send_header("x-stream-protocol-version", "portforward.k8s.io")
        self.end_headers()
        target = ("127.0.0.1", self.server.ports(pod))
        Forwarder(self.connection, self.rfile, target).serve()
        self.close_connection = True

    def _patch(self, parts: list[str], query: dict[str, str]) -> Any:
        place, patch = self._place(parts), json.loads(self._body())
        old = self.server.store.get(*place[:3])
        how = self.headers["content-type"].partition(";")[0].partition("/")[2]
        merge = {
            "merge-patch+json": merged,
            "strategic-merge-patch+json": strategically_merged,
        }.get(how)
        if merge is None or (merge is strategically_merged and place.kind.custom):
            raise Refused(415, "UnsupportedMediaType", f"no {how} of {place.kind.plural}")
        return self.server.store.replace(place.kind, old, merge(old, patch))

    def _put(self, parts: list[str], query: dict[str, str]) -> Any:
        place, new = self._place(parts), json.loads(self._body())
        return self.server.store.replace(place.kind, self.server.store.get(*place[:3]), new)

    def _delete(self, parts: list[str], query: dict[str, str]) -> Any:
        place, store = self._place(parts), self.server.store
        self._body()
        found = (
            [store.get(*place[:3])]
            if place.name
            else store.select(place.kind, place.namespace, query)
        )
        for one in found:
            store.delete(place.kind, one)
        return found[0] if place.name else {"kind": "Status", "apiVersion": "v1"}


def discovery(parts: list[str]) -> Any:
    """What clients ask first: versions, groups and kinds; None for other paths."""
    apis = sorted({api for api, _ in kinds()})
    if parts == ["version"]:
        return {"major": "1", "minor": VERSION[2:], "gitVersion": f"v{VERSION}.0"}
    if parts == ["openapi", "v2"]:
        # An empty document: clients then leave checking to the server.
        return b""
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        groups: dict[str, list[dict[str, str]]] = {}
        for api in apis:
            if "/" in api:
                group, version = api.split("/")
                groups.setdefault(group, []).append({"groupVersion": api, "version": version})
        listed = [
            {"name": name, "versions": versions, "preferredVersion": versions[0]}
            for name, versions in groups.items()
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    api = "/".join(parts[1:])
    if parts[:1] in (["api"], ["apis"]) and api in apis:
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": api,
            "resources": resources(api),
        }
    return None


def resources(api: str) -> list[dict[str, Any]]:
    """The kinds of a version, as discovery describes them."""
    found: list[dict[str, Any]] = [
        {
            "name": kind.plural,
            "singularName": kind.name.lower(),
            "kind": kind.name,
            "namespaced": kind.namespaced,
            "verbs": VERBS,
            "shortNames": ["svc"] if kind.name == "Service" else [],
        }
        for kind in kinds().values()
        if kind.api == api
    ]
    if api == "v1":
        for name, made in _SUBRESOURCES.items():
            one = {"name": name, "kind": made, "namespaced": True, "verbs": ["create", "get"]}
            one |= {"group": "policy", "version": "v1"} if made == "Eviction" else {}
            found.append({"singularName": "", **one})
    return found

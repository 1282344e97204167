"""From a method and a raw path to a route. Segments are split before they are percent-decoded, so an
encoded slash stays inside its segment and no decoding can change the route.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from gateway.dialects.http import Dialect, Route
from gateway.errors import Malformed, MethodNotAllowed, NotFound

MAX_PATH_BYTES = 4096
_KNOWN_PATHS = 1024
_KNOWN_PATH_BYTES = 256


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    parameter_name: str = ""
    routes: dict[str, tuple[Dialect, Route]] = field(default_factory=dict)


class Router:
    """All routes of all dialects as a tree of path segments."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self._root = _Node()
        self._by_prefix: dict[str, Dialect] = {}
        self._known: dict[tuple[str, bytes], tuple[Dialect, Route, dict[str, str]]] = {}
        """What was found for short paths; forgotten altogether when there are too many."""
        for dialect in dialects:
            for route in dialect.routes:
                self._add(dialect, route)

    def _add(self, dialect: Dialect, route: Route) -> None:
        segments = route.path[1:].split("/")  # an empty one at the end: the path ends with a slash
        self._by_prefix.setdefault(segments[0], dialect)
        node = self._root
        for segment in segments:
            if segment.startswith("{"):
                if node.parameter is None:
                    node.parameter, node.parameter_name = _Node(), segment[1:-1]
                elif node.parameter_name != segment[1:-1]:
                    raise ValueError(f"{route.path}: this segment is called {{{node.parameter_name}}} elsewhere")
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        if route.method in node.routes:
            raise ValueError(f"{route.method} {route.path} is declared twice")
        node.routes[route.method] = (dialect, route)

    def dialect_of(self, raw_path: bytes) -> Dialect | None:
        """Whose error body a path that matches no route gets."""
        return self._by_prefix.get(raw_path.split(b"/", 2)[1].decode("latin-1")) if raw_path.startswith(b"/") else None

    def match(self, method: str, raw_path: bytes) -> tuple[Dialect, Route, dict[str, str]]:
        """The route and its parameters, not to be changed. Raises ``NotFound``, ``MethodNotAllowed``, ``Malformed``."""
        known = self._known.get((method, raw_path))
        if known is not None:
            return known
        found = self._find(method, raw_path)
        if len(raw_path) <= _KNOWN_PATH_BYTES:
            if len(self._known) >= _KNOWN_PATHS:
                self._known.clear()
            self._known[method, raw_path] = found
        return found

    def _find(self, method: str, raw_path: bytes) -> tuple[Dialect, Route, dict[str, str]]:
        if len(raw_path) > MAX_PATH_BYTES:
            raise Malformed("the path is too long")
        node, params = self._root, {}
        for segment in _segments(raw_path):
            child = node.literals.get(segment)
            if child is None:
                if node.parameter is None or not segment:
                    raise NotFound("no such route")
                params[node.parameter_name] = segment
                child = node.parameter
            node = child
        if not node.routes:
            raise NotFound("no such route")
        found = node.routes.get(method) or (node.routes.get("GET") if method == "HEAD" else None)
        if found is None:
            allowed = sorted(node.routes) + (["HEAD"] if "GET" in node.routes else [])
            raise MethodNotAllowed(f"{method} is not allowed here", headers={"Allow": ", ".join(allowed)})
        return (*found, params)


def _segments(raw_path: bytes) -> list[str]:
    if not raw_path.startswith(b"/"):
        raise NotFound("no such route")
    if b"%" not in raw_path:
        try:
            return raw_path[1:].decode("ascii").split("/")
        except UnicodeDecodeError as error:
            raise Malformed("the path is not ASCII") from error
    try:
        return [unquote_to_bytes(segment).decode("utf-8") for segment in raw_path[1:].split(b"/")]
    except UnicodeDecodeError as error:
        raise Malformed("the path is not percent-encoded UTF-8") from error

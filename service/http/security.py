"""Who may ask for what: a key's scopes, the names the service answers to, and no web page of another site."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.keys import KeyRing
from service.http.problems import Problem, response
from service.settings import Settings, is_loopback

OPEN = frozenset({"/livez", "/readyz"})
"""Paths for everybody: what asks them holds no key. They say how the service is, and change nothing."""

CONSOLE = "/console/"
"""A browser fetches the console, `/` and the files below this, before it can be told a key; they hold no data."""

READING_POSTS = frozenset({"/continue-playlist"})
"""Paths where POST only reads; everywhere else a method that is not GET or HEAD writes."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # answers change with every upload, and audiences are people
}
"""On every answer, unless a route has set its own (a page needs another policy than data does)."""

_REALM = 'Bearer realm="debut"'


class Gate:
    """ASGI middleware that lets a request through to the routes, or answers 401, 403 or 421 before anything is read.

    With keys, every path but those of OPEN and the console's needs one. Without keys, a browser on this machine is what
    others could use: Host must be a name of this service (against DNS rebinding), and requests that another site's
    page makes are refused.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyRing | None) -> None:
        self.app = app
        self._keys = keys
        self._hosts = frozenset(filter(None, (hostname(name.strip()) for name in (settings.hosts or "").split(","))))
        self._loopback_only = keys is None and is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request (other scopes, such as the lifespan, pass through)."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                self._check(scope, Headers(scope=scope))
            except Problem as problem:
                await response(problem, scope["state"]["request_id"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        self._check_host(headers)
        if self._keys is None:
            self._check_site(scope, headers)
        elif needs_key(scope["path"]):
            scope["state"]["key"] = self._check_key(scope, headers, self._keys)

    def _check_host(self, headers: Headers) -> None:
        if not self._hosts and not self._loopback_only:
            return
        given = headers.getlist("host")
        if len(given) != 1 or not self._is_ours(hostname(given[0])):
            name = given[0][:80] if len(given) == 1 else f"{len(given)} Host headers"
            known = ", ".join(sorted(self._hosts)) or "localhost"
            raise Problem(
                "unknown_host",
                f"{name!r} is not a name of this service, {known} is: call it so, or allow the name.",
                setting="hosts",
            )

    def _is_ours(self, name: str) -> bool:
        return name in self._hosts or (self._loopback_only and is_loopback(name))

    def _check_site(self, scope: Scope, headers: Headers) -> None:
        """Refuse what a page of another site sends (W3C Fetch Metadata); following a link from there is no harm."""
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if not (link and scope["method"] == "GET"):
                raise _cross_site(headers)
        origin = headers.get("origin")
        if origin is not None and not self._same(origin, headers.get("host", "")):
            raise _cross_site(headers)

    def _same(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.netloc != "" and (parts.netloc.lower() == host.lower() or (parts.hostname or "") in self._hosts)

    def _check_key(self, scope: Scope, headers: Headers, keys: KeyRing) -> str:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise _unauthorized("Send an API key: `Authorization: Bearer KEY`.", _REALM)
        key = keys.find(given.strip())
        if key is None:
            raise _unauthorized(
                "This API key is not known here: it was mistyped or withdrawn.", f'{_REALM}, error="invalid_token"'
            )
        needed = needed_scope(scope["method"], scope["path"])
        if needed not in key.scopes:
            challenge = f'{_REALM}, error="insufficient_scope", scope="{needed}"'
            detail = (
                f"{scope['method']} {scope['path'][:80]} needs a key with the scope {needed}; {key.name} has it not."
            )
            raise Problem("forbidden", detail, headers={"WWW-Authenticate": challenge})
        return key.name


def needs_key(path: str) -> bool:
    """Whether a path needs a key where there are keys; what is not known does."""
    return path not in OPEN and path != "/" and not path.startswith(CONSOLE)


def needed_scope(method: str, path: str) -> str:
    """Return "read" or "write". What is not known to read needs write, a route of tomorrow as well."""
    return "read" if method in ("GET", "HEAD") or (method == "POST" and path in READING_POSTS) else "write"


def hostname(host: str) -> str:
    """Return the name in a Host header, lower case, without port and brackets; "" when there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _unauthorized(detail: str, challenge: str) -> Problem:
    return Problem("unauthorized", detail, headers={"WWW-Authenticate": challenge})


def _cross_site(headers: Headers) -> Problem:
    origin = headers.get("origin", "another site")[:80]
    return Problem("cross_site", f"A page of {origin} sent this, and only pages of this service may.")


def protect(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return an answer's raw headers with HEADERS among them; what the route has set stays."""
    protected = MutableHeaders(raw=list(headers))
    for name, value in HEADERS.items():
        protected.setdefault(name, value)
    return protected.raw


def describe(schema: dict[str, Any], *, keys: bool) -> None:
    """Say in an OpenAPI document which operations need a key when there are `keys`, and of which scope."""
    schema["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, when the service has a file of them. `x-scope` says what it must be good for.",
        }
    }
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            if needs_key(path):
                operation["security"] = [{"key": []}] if keys else [{"key": []}, {}]
                operation["x-scope"] = needed_scope(method.upper(), path)

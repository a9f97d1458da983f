"""Who may ask for what: API keys with scopes, the names the service answers to, and no web page of another site."""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from service.problems import Problem, response
from service.settings import Settings, SettingsError, is_loopback

OPEN = frozenset({"/livez", "/readyz"})
"""Paths that need no key: what asks them holds none. They say how the service is, and change nothing."""

READING_POSTS = frozenset({"/continue-playlist"})
"""Paths where POST only reads; everywhere else a method that is not GET or HEAD writes."""

SCOPES = ("read", "write", "read,write")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # answers change with every upload, and audiences are people
}
"""On every answer, unless a route has set its own (a page needs another policy than data does)."""

_PREFIX = "debut_"
_REALM = 'Bearer realm="debut"'
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<scope>read|write|read,write)\s+(?P<digest>[0-9a-f]{64})")

log = structlog.get_logger("debut.security")


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as the file has it: `digest` is the SHA-256 of a secret that only its holder knows."""

    name: str
    scopes: frozenset[str]
    digest: bytes


def new_key(name: str, scope: str) -> tuple[str, str]:
    """Return a new key and its line for DEBUT_KEYS_FILE. Raises SettingsError for a name that cannot be used.

    The key is 32 random bytes, so a plain SHA-256 is hash enough: there is no dictionary to try.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {scope} {_digest(key).hex()}"
    if not _LINE.fullmatch(line):
        raise SettingsError(f"A key's name is 1 to 64 letters, digits, dots, dashes or underscores, not {name[:80]!r}.")
    return key, line


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def parse_keys(text: str, path: Path) -> tuple[Key, ...]:
    """Return the keys of a keys file: lines of name, scope and digest; blank ones and those that begin with # are not.

    Raises SettingsError naming the first line that is something else, a name that is there twice, or a file without
    a key.
    """
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not (stripped := line.strip()) or stripped.startswith("#"):
            continue
        found = _LINE.fullmatch(stripped)
        if not found:  # the line itself is not shown: somebody may have put a key there
            raise SettingsError(
                f"Line {number} of {path} is no API key: a line is a name, a scope (read, write or read,write) and the "
                "SHA-256 of the key, as `python -m service key` prints it."
            )
        if found["name"] in keys:
            raise SettingsError(
                f"Line {number} of {path} names {found['name']} once more: give every key its own name."
            )
        scopes = frozenset(found["scope"].split(","))
        keys[found["name"]] = Key(found["name"], scopes, bytes.fromhex(found["digest"]))
    if not keys:
        raise SettingsError(f"{path} holds no API key: `python -m service key NAME --scope read` makes one.")
    return tuple(keys.values())


class KeyRing:
    """The keys of a file, read again when it changes: a key is added or withdrawn without a restart."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises SettingsError when it cannot be used."""
        self._path = path
        self._state = self._look()
        self._keys = self._read()

    def find(self, key: str) -> Key | None:
        """Return whose key it is. Every key is compared, each in constant time: how long it takes tells nothing."""
        self._refresh()
        digest, found = _digest(key), None
        for candidate in self._keys:
            if hmac.compare_digest(candidate.digest, digest):
                found = candidate
        return found

    def _look(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode

    def _read(self) -> tuple[Key, ...]:
        try:
            mode = self._path.stat().st_mode
            text = self._path.read_text()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise SettingsError(f"DEBUT_KEYS_FILE={self._path} cannot be read: {reason}.") from None
        if mode & 0o002:
            raise SettingsError(f"{self._path} can be written by everybody, and so let anybody in: chmod o-w it.")
        return parse_keys(text, self._path)

    def _refresh(self) -> None:
        state = self._look()
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = self._read()
        except SettingsError as error:  # half-written, or by mistake: those who were let in stay in
            log.error("keys file refused, the keys before it stay", reason=error.detail)
        else:
            log.info("keys read", keys=[key.name for key in self._keys])


class Gate:
    """ASGI middleware that lets a request through to the routes, or answers 401, 403 or 421 before anything is read.

    With keys, every path but those of OPEN needs one. Without keys, a browser on this machine is what others could
    use: Host must be a name of this service (against DNS rebinding), and requests that another site's page makes are
    refused.
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
        else:
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


def describe(schema: dict[str, Any]) -> None:
    """Say in an OpenAPI document which operations need a key, and of which scope."""
    schema["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, when the service has a file of them. `x-scope` says what it must be good for.",
        }
    }
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            if path not in OPEN:
                operation["security"] = [{"key": []}, {}]
                operation["x-scope"] = needed_scope(method.upper(), path)

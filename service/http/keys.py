"""API keys: made on the command line, kept as hashes in a file, found in constant time."""

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

import structlog

from service.settings import SettingsError

SCOPES = ("read", "write", "read,write")

_PREFIX = "debut_"
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<scope>read|write|read,write)\s+(?P<digest>[0-9a-f]{64})")

log = structlog.get_logger("debut.keys")


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

"""The release: a folder of files that the trainer publishes at once and whole, and the service opens and verifies."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from index.errors import DebutError

FORMAT = 2
MANIFEST = "manifest.json"
CURRENT = "current"
PRUNED = ".pruned-"
"""What the name of a release begins with once it is being deleted."""

_STAGING = ".staging-"
_LINKING = ".current-"
_LOCK = ".lock"
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{16}")
_OWN_KEYS = frozenset(["format", "id", "created", "files"])


class ReleaseError(DebutError):
    """A release that cannot be served or published.

    Codes: release_missing, release_damaged, release_format (another Debut's), release_moved (another is current).
    """

    code = "release_damaged"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json: `files` by their path in the release; `facts` is all that the publisher had to say besides.

    `id` is "<UTC time>-<hash>"; the hash is of everything else in the manifest, so the id names the exact
    content.
    """

    id: str
    created: str
    files: Mapping[str, FileEntry]
    facts: Mapping[str, Any]

    @property
    def dims(self) -> dict[str, int]:
        """Width of the vectors of each space, e.g. {"continuation": 256, "matching": 128}; {} when not
        stated.
        """
        return dict(self.facts.get("dims", {}))

    @property
    def counts(self) -> dict[str, int]:
        """How many tracks, listeners and so on the release holds; {} when not stated."""
        return dict(self.facts.get("counts", {}))

    @property
    def encoder_id(self) -> str | None:
        """The id of the encoder whose vectors these are (`index.models.encoder.encoder_id`)."""
        return self.facts.get("encoder_id")


@dataclass(frozen=True, slots=True)
class Release:
    """An opened release."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The release's id."""
        return self.manifest.id

    @classmethod
    def open(cls, path_or_root: Path, verify: bool = True) -> Self:
        """Open a release, or the current one of a folder of releases.

        The manifest is always checked against its own id. With `verify`, so is every file: its SHA-256 and
        size, none missing, none extra. Raises ReleaseError: release_missing, release_format,
        release_damaged.
        """
        path = _resolve(path_or_root)
        manifest = _read_manifest(path / MANIFEST)
        if verify:
            _verify(path, manifest)
        return cls(path, manifest)

    def file(self, name: str) -> Path:
        """The path of a file named in the manifest. Raises ReleaseError when the release has no such file."""
        if name not in self.manifest.files:
            raise ReleaseError(f"release {self.id} has no file {name!r}; publish it again")
        return self.path / name


def publish(
    root: Path,
    fill: Callable[[Path], None],
    *,
    facts: Mapping[str, Any],
    now: datetime | None = None,
    replacing: str | None = None,
) -> Release:
    """Publish what `fill` writes into the folder it is given, and make it the current release of `root`.

    All or nothing: files and folders are synced to disk before the folder gets its name and before
    `current` points to it, so a kill or a power cut at any instant leaves the former release in place. The
    former release is kept (see `activate`). Publishers may run at the same time; the one that ends last is
    current. What publishers that died left behind is removed. `facts` (JSON values) go into the manifest.
    With `replacing`, that must still be the current release at the end (release_moved). Raises ReleaseError
    when they cannot, or when `fill` leaves nothing or anything but plain files; what `fill` raises comes through, and
    nothing of it stays.
    """
    _check_facts(facts)
    root.mkdir(parents=True, exist_ok=True)
    with _staging(root) as (staging, lock):
        fill(staging)
        names = _names(staging)
        for name in names:
            _check_name(name)
        files = {name: _seal(staging / name) for name in names}
        if not files or MANIFEST in files:
            raise ReleaseError(f"a release needs files, none of them named {MANIFEST}; found {sorted(files)}")
        manifest = _manifest(files, facts, now or datetime.now(UTC))
        _write_synced(staging / MANIFEST, _to_json(manifest))
        for folder in {staging, *(path.parent for path in (staging / name for name in files))}:
            sync_folder(folder)
        with locked(root):
            if replacing is not None and (now_current := current_id(root)) != replacing:
                raise ReleaseError(
                    f"{replacing} is not the current release of {root} any more, {now_current} is: do it again on that",
                    code="release_moved",
                )
            fcntl.flock(lock, fcntl.LOCK_UN)  # a service holds it (index.release.prune) as soon as `current` names it
            if fresh := not (root / manifest.id).exists():  # else the same content was published in the same instant
                staging.rename(root / manifest.id)
            try:
                _point_current(root, manifest.id)
            except BaseException:
                if fresh and current_id(root) != manifest.id:  # no room for the link: nothing stays
                    (root / manifest.id).rename(staging)
                raise
    return Release(root / manifest.id, manifest)


def activate(root: Path, release_id: str) -> Release:
    """Make a release of `root` the current one, after verifying it: the way back to an earlier release."""
    if not is_id(release_id):
        raise ReleaseError(f"{release_id!r} is not a release id", code="release_missing")
    release = Release.open(root / release_id)
    with locked(root):
        if not (release.path / MANIFEST).is_file():  # verifying takes its time
            raise ReleaseError(f"{release.path} is not there any more: it was pruned", code="release_missing")
        _point_current(root, release_id)
    return release


def is_id(name: str) -> bool:
    """Whether a folder of this name is a release's."""
    return _ID.fullmatch(name) is not None


def share(file: str | Path, copy: str | Path) -> None:
    """Make `copy` the same file, which neither release ever writes again; a copy where the disk has no hard links."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copyfile(file, copy)


class Pointer(NamedTuple):
    """What `current` points to, and which link says so: one that is set again is another, though it points alike."""

    target: str
    inode: int
    changed_ns: int


def pointer(root: Path) -> Pointer | None:
    """Return what `current` of a folder of releases points to, without opening it; None where there is no such link.

    The cheap question of whether there is another release to serve: two calls of the system.
    """
    link = root / CURRENT
    try:
        about = link.lstat()
        return Pointer(os.readlink(link), about.st_ino, about.st_mtime_ns)
    except OSError:
        return None


def current_id(root: Path) -> str | None:
    """Return the id of the release that `current` of a folder of releases points to; None without such a link."""
    found = pointer(root)
    return Path(found.target).name if found else None


def _resolve(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path.resolve()
    current = path / CURRENT
    if (current / MANIFEST).is_file():
        return current.resolve()
    if not current.is_symlink():
        raise ReleaseError(
            f"{path} holds no release: publish one with `python -m training publish`", code="release_missing"
        )
    raise ReleaseError(f"{current} points to {os.readlink(current)}, which is no release", code="release_missing")


def _read_manifest(path: Path) -> Manifest:
    try:
        text = path.read_bytes()
        data = json.loads(text)
        format_ = data["format"]
        if isinstance(format_, int) and format_ > FORMAT:
            raise ReleaseError(
                f"{path.parent} has release format {format_} and this Debut reads {FORMAT}: upgrade Debut, "
                "or publish the release again with this version",
                code="release_format",
            )
        if isinstance(format_, int) and 0 < format_ < FORMAT:
            raise ReleaseError(
                f"{path.parent} has release format {format_} and this Debut reads {FORMAT}: publish the release again",
                code="release_format",
            )
        files = {name: FileEntry(entry["sha256"], entry["bytes"]) for name, entry in data["files"].items()}
        facts = {key: value for key, value in data.items() if key not in _OWN_KEYS}
        manifest = Manifest(data["id"], data["created"], files, facts)
        same = _to_json(manifest) == text and _identify(manifest) == manifest.id
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReleaseError(f"{path} cannot be read ({error!r}); publish the release again") from error
    if not same:
        raise ReleaseError(f"{path} was changed after publishing: its id does not fit; publish it again")
    for name in files:
        _check_name(name)
    return manifest


def _verify(path: Path, manifest: Manifest) -> None:
    found, expected = set(_names(path)) - {MANIFEST}, set(manifest.files)
    if found != expected:
        raise ReleaseError(
            f"{path} lacks {sorted(expected - found)} and holds {sorted(found - expected)} beyond its "
            "manifest; copy or publish the release again"
        )
    heaviest = sorted(manifest.files, key=lambda name: -manifest.files[name].bytes)  # first, so that no core waits
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = dict(zip(heaviest, pool.map(lambda name: _digest(path / name), heaviest), strict=True))
    for name, entry in manifest.files.items():
        actual = digests[name]
        if actual != entry:
            raise ReleaseError(
                f"{path / name} is damaged: {actual.bytes:,} bytes with SHA-256 {actual.sha256[:12]} "
                f"instead of {entry.bytes:,} with {entry.sha256[:12]}; copy or publish the release again"
            )


def _names(folder: Path) -> list[str]:
    """Paths of all files below `folder`, relative, sorted. Raises ReleaseError when one is a link or a special file."""
    names = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ReleaseError(f"{path} is not a plain file; a release holds nothing else")
        names += [Path(parent, name).relative_to(folder).as_posix() for name in files]
    return sorted(names)


def _check_name(name: str) -> None:
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name or "\0" in name or not {"", ".", ".."}.isdisjoint(parts):
        raise ReleaseError(f"{name!r} cannot be the name of a file within a release; do not use it")


def _check_facts(facts: Mapping[str, Any]) -> None:
    taken = _OWN_KEYS & set(facts)
    if taken:
        raise ReleaseError(f"the manifest's {sorted(taken)} are not for the publisher to set")
    try:
        same = json.loads(json.dumps(facts, allow_nan=False)) == dict(facts)
    except (TypeError, ValueError) as error:
        raise ReleaseError(f"the facts of a release must be JSON values: {error}") from error
    if not same:
        raise ReleaseError("the facts of a release must be JSON values: lists, not tuples, and keys that are strings")


def _manifest(files: Mapping[str, FileEntry], facts: Mapping[str, Any], now: datetime) -> Manifest:
    created = now.astimezone(UTC)
    unnamed = Manifest("", created.isoformat(), files, dict(facts))
    return Manifest(_identify(unnamed), unnamed.created, files, unnamed.facts)


def _identify(manifest: Manifest) -> str:
    """The id that follows from the manifest's content."""
    moment = datetime.fromisoformat(manifest.created).strftime("%Y%m%dT%H%M%SZ")
    unnamed = Manifest("", manifest.created, manifest.files, manifest.facts)
    return f"{moment}-{hashlib.sha256(_to_json(unnamed)).hexdigest()[:16]}"


def _to_json(manifest: Manifest) -> bytes:
    """The one way to write a manifest: a file that is written otherwise was changed."""
    files = {name: {"sha256": entry.sha256, "bytes": entry.bytes} for name, entry in manifest.files.items()}
    own = {"format": FORMAT, "id": manifest.id, "created": manifest.created, "files": files}
    text = json.dumps({**manifest.facts, **own}, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _digest(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())


def _seal(path: Path) -> FileEntry:
    """Sync a file to disk and describe it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Have what was renamed, added or removed in a folder on disk before anything that comes after."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point_current(root: Path, release_id: str) -> None:
    """Replace the `current` link at once, and sync. `root` must be locked."""
    current = root / CURRENT
    if current.is_dir() and not current.is_symlink():
        raise ReleaseError(f"{current} is a folder; it must be a link to a release: move it away")
    link = root / f"{_LINKING}{secrets.token_hex(8)}"
    link.symlink_to(release_id)
    os.replace(link, current)
    sync_folder(root)


@contextmanager
def _staging(root: Path) -> Iterator[tuple[Path, int]]:
    """A folder to fill, and the lock on it. It is gone afterwards, unless it was renamed meanwhile.

    The lock is on the folder itself and dies with the process: that is how others see whether it is
    abandoned.
    """
    with locked(root):
        _remove_abandoned(root)
        staging = root / f"{_STAGING}{secrets.token_hex(8)}"
        staging.mkdir()
        descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield staging, descriptor
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def _remove_abandoned(root: Path) -> None:
    """Remove what publishers left that died. `root` must be locked."""
    for link in root.glob(f"{_LINKING}*"):
        link.unlink()
    for pruned in root.glob(f"{PRUNED}*"):
        shutil.rmtree(pruned, ignore_errors=True)
    for staging in root.glob(f"{_STAGING}*"):
        try:
            descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # its publisher failed, and removed it in this instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(staging, ignore_errors=True)
        except BlockingIOError:
            pass  # its publisher is alive
        finally:
            os.close(descriptor)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the folder of releases for an instant, against other publishers."""
    with (root / _LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

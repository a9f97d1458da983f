"""Parses slices of the Million Playlist Dataset playlist by playlist, and says what is wrong with them.

A slice is {"info": {...}, "playlists": [{"pid", "name", "tracks": [{"pos", "track_uri", "track_name", "artist_name",
"album_name", "duration_ms", ...}], ...}]}; the challenge set is the same, with playlists that may lack a name.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.adapters.report import AdapterError, ImportReport

PLAYLISTS, ENTRIES = "playlists", "entries"
TEXTS = ("track_name", "artist_name", "album_name")
ID_FROM = len("spotify:track:")
LARGEST = 2**53
Problem = tuple[str, object]
"""What is wrong, and the value that shows it (None: nothing to show)."""

_KEYS = ("pos", "track_uri", "duration_ms", *TEXTS)
_URI = re.compile(r"spotify:track:[0-9A-Za-z]{22}")
_FILE = re.compile(r"mpd\.slice\.(\d+)-(\d+)\.json")
_START = re.compile(r'"playlists"\s*:\s*\[')
_SPACE = re.compile(r"[\s,]*")


def find_slices(source: Path) -> list[Path]:
    """The files mpd.slice.*.json of a folder or of its folder data/, by number. Raises AdapterError without any."""
    for folder in (source, source / "data"):
        if found := sorted(folder.glob("mpd.slice.*.json"), key=_number):
            return found
    raise AdapterError(
        f"{source} holds no mpd.slice.*.json: name the folder of the unpacked slices", code="import_source"
    )


def _number(path: Path) -> tuple[int, str]:
    match = _FILE.fullmatch(path.name)
    return (int(match[1]) if match else -1), path.name


def read_playlists(path: Path, report: ImportReport) -> Iterator[Any]:
    """Yield the playlists of a slice as JSON values, each parsed alone.

    A slice that is cut off or garbled is named; the playlists that its file name promises beyond that point count as
    broken. Bytes that are no UTF-8 come as lone surrogates.
    """
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    start = _START.search(text)
    decoder, at, count = json.JSONDecoder(), start.end() if start else 0, 0
    try:
        if start is None:
            raise ValueError('no "playlists"')
        while not text.startswith("]", at := _SPACE.match(text, at).end()):  # type: ignore[union-attr]
            playlist, at = decoder.raw_decode(text, at)
            yield playlist
            count += 1
    except (ValueError, RecursionError) as error:
        lost = max(_promised(path) - count, 1)
        report.read(PLAYLISTS, lost)
        report.broken(PLAYLISTS, f"{path.name}, after {count} playlists", "cut off or no JSON", str(error), lost)


def _promised(path: Path) -> int:
    match = _FILE.fullmatch(path.name)
    return int(match[2]) - int(match[1]) + 1 if match else 0


def playlist_problem(playlist: Any) -> Problem | None:
    """What makes a playlist useless as a whole; its entries are judged one by one."""
    if not isinstance(playlist, dict):
        return "is no playlist", playlist
    for key in ("pid", "tracks"):
        if key not in playlist:
            return f"has no {key}", None
    if not _is_count(playlist["pid"]):
        return "pid is no number from 0 on", playlist["pid"]
    if not isinstance(playlist["tracks"], list):
        return "tracks is no list", playlist["tracks"]
    name = playlist.get("name")
    if name is not None and type(name) is not str:
        return "name is no text", name
    if name and not _is_unicode(name):
        return "name is no UTF-8", name
    return None


def entry_problem(entry: Any) -> Problem | None:
    """What is wrong with a track of a playlist."""
    try:
        pos, uri, duration, title, artist, album = [entry[key] for key in _KEYS]
    except (KeyError, TypeError):
        return _missing(entry)
    if not type(uri) is type(title) is type(artist) is type(album) is str:
        key = next(key for key in ("track_uri", *TEXTS) if type(entry[key]) is not str)
        return f"{key} is no text", entry[key]
    if not _is_count(pos):
        return "pos is no number from 0 on", pos
    if not _is_count(duration):
        return "duration_ms is no number from 0 on", duration
    if not _URI.fullmatch(uri):
        return "track_uri is no spotify:track:<22 letters and digits>", uri
    for key in TEXTS:
        if not _is_unicode(entry[key]):
            return f"{key} is no UTF-8", entry[key]
    return None


def _missing(entry: Any) -> Problem:
    if not isinstance(entry, dict):
        return "is no track", entry
    return f"has no {next(key for key in _KEYS if key not in entry)}", None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Metadata -> the caption that the text tower reads."""

from collections.abc import Collection

from index.tracks import Track

CLAUSES = ("title", "artist", "album")


def caption(track: Track, clauses: Collection[str] = CLAUSES) -> str:
    """Return "The track {title} by {artist} on album {album}" (LARP, section 4.1).

    A clause that is not in `clauses`, or whose value is missing or blank, is dropped with its preposition; without a
    title it starts "A track"; with nothing to say it is "" (the track then has no text vector).
    Raises ValueError when `clauses` holds anything but "title", "artist" and "album".
    """
    unknown = set(clauses) - set(CLAUSES)
    if unknown:
        raise ValueError(f"unknown caption clauses {sorted(unknown)}; known are {list(CLAUSES)}")
    values = {name: _clean(getattr(track, name)) if name in clauses else "" for name in CLAUSES}
    if not any(values.values()):
        return ""
    words = [f"The track {values['title']}" if values["title"] else "A track"]
    if values["artist"]:
        words.append(f"by {values['artist']}")
    if values["album"]:
        words.append(f"on album {values['album']}")
    return " ".join(words)


def _clean(value: str | None) -> str:
    return " ".join(value.split()) if value else ""

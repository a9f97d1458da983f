"""Metadata -> the caption that the text tower reads: a sentence, or a line for each clause."""

from collections.abc import Collection, Sequence

from index.tracks.track import Track

CLAUSES = ("title", "artist", "album")
KINDS = ("sentence", "fields")


def caption(track: Track, clauses: Collection[str] = CLAUSES) -> str:
    """Return "The track {title} by {artist} on album {album}" (LARP, section 4.1).

    A clause that is not in `clauses`, or whose value is missing or blank, is dropped with its preposition; without a
    title it starts "A track"; with nothing to say it is "" (the track then has no text vector).
    Raises ValueError when `clauses` holds anything but "title", "artist" and "album".
    """
    values = _values(track, clauses)
    if not any(values.values()):
        return ""
    words = [f"The track {values['title']}" if values["title"] else "A track"]
    if values["artist"]:
        words.append(f"by {values['artist']}")
    if values["album"]:
        words.append(f"on album {values['album']}")
    return " ".join(words)


def fields(track: Track, clauses: Sequence[str] = CLAUSES, kept: Collection[str] | None = None) -> str:
    """Return the values of `clauses` in their order, a line each, empty where one is missing or not in `kept`.

    "" when all are. Whitespace within a value is one space, so no value can pass for two. Raises ValueError as
    `caption` does.
    """
    values = _values(track, clauses)
    lines = [values[name] if kept is None or name in kept else "" for name in clauses]
    return "\n".join(lines) if any(lines) else ""


def split_fields(texts: Sequence[str], count: int) -> list[str]:
    """`fields` apart again: of n texts the n * count lines, text by text. What has fewer lines has its last ones empty.

    Raises ValueError for one that has more.
    """
    lines = []
    for text in texts:
        found = text.split("\n")
        if len(found) > count:
            raise ValueError(f"a caption of {len(found)} lines, for {count} fields: {text!r}")
        lines += found + [""] * (count - len(found))
    return lines


def _values(track: Track, clauses: Collection[str]) -> dict[str, str]:
    unknown = set(clauses) - set(CLAUSES)
    if unknown:
        raise ValueError(f"unknown caption clauses {sorted(unknown)}; known are {list(CLAUSES)}")
    return {name: _clean(getattr(track, name)) if name in clauses else "" for name in CLAUSES}


def _clean(value: str | None) -> str:
    return " ".join(value.split()) if value else ""

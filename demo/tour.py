"""The tour itself: upload a held-out song, continue its cycle, ask who may like it; each step with its curl line."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pyarrow.parquet as pq

from index.release.release import Release
from index.tracks.catalogue import Catalogue

SHOWN = 10  # tracks and listeners printed of an answer


class TourError(Exception):
    """A step of the tour did not give what it must."""


@dataclass(frozen=True)
class Song:
    """A held-out song: its row of tracks.parquet, its file, and what the release holds of its cycle."""

    row: Mapping[str, Any]
    audio: Path
    cycle: str
    seeds: tuple[str, ...]


def choose(data: Path, release: Release) -> Song:
    """Return the first song, in the order of the cycles, that the release leaves out.

    Raises TourError when the release holds every song of the data set.
    """
    known = Catalogue.open(release)
    tracks = {row["track_id"]: row for row in pq.read_table(data / "tracks.parquet").to_pylist()}
    cycles: dict[str, list[Mapping[str, Any]]] = {}
    for row in pq.read_table(data / "playlists.parquet").to_pylist():
        cycles.setdefault(row["playlist_id"], []).append(row)
    for rows in cycles.values():
        ids = [row["track_id"] for row in sorted(rows, key=lambda row: row["position"])]
        absent = [track_id for track_id in ids if known.row_of(track_id) is None]
        if absent and len(absent) < len(ids):
            row = tracks[absent[0]]
            seeds = tuple(track_id for track_id in ids if track_id not in absent)
            return Song(row, data / row["audio"], rows[0]["name"], seeds)
    raise TourError(
        "the release holds every song of the demo: none is left to upload. Remove it and run the demo again."
    )


def tour(url: str, data: Path, release: Release) -> None:
    """Walk through the three calls against the service at `url`; raises TourError when one does not do its part."""
    song = choose(data, release)
    with httpx.Client(base_url=url, timeout=60.0) as client:
        _upload(client, url, song)
        _continue(client, url, song)
        _audience(client, url, song)
    print("All three calls worked.\n", flush=True)


def _heading(text: str) -> None:
    print(f"\n--- {text} " + "-" * max(3, 96 - len(text)), flush=True)


def _checked(answer: httpx.Response, *expected: int) -> Any:
    if answer.status_code not in expected:
        raise TourError(
            f"{answer.request.method} {answer.request.url} answered {answer.status_code}: {answer.text[:500]}"
        )
    return answer.json()


def _upload(client: httpx.Client, url: str, song: Song) -> None:
    row = song.row
    _heading("1. A song nobody has heard is uploaded")
    names = ("track_id", "title", "artist", "language")
    query = {name: row[name] for name in names if row[name] is not None}
    attributes = {name: row[name] for name in ("lyricist", "composer_born") if row[name] is not None}
    query["attributes"] = json.dumps(attributes, ensure_ascii=False)
    print(f"{row['title']} by {row['artist']}, from {song.cycle}.")
    print("15 s of audio; no plays, in no playlist, never seen in training.\n")
    print(f"  curl --data-binary @{_relative(song.audio)} -H 'Content-Type: audio/ogg' \\")
    print(f"    '{url}/ingest-track?{urlencode(query)}'\n")
    started = time.perf_counter()
    answer = client.post(
        "/ingest-track", params=query, content=song.audio.read_bytes(), headers={"Content-Type": "audio/ogg"}
    )
    _checked(answer, 200, 201)
    seconds = time.perf_counter() - started
    fate = "recommendable" if answer.status_code == 201 else "already there from an earlier run (same content)"
    print(f"  {answer.status_code}: {fate}, {seconds * 1000:.0f} ms after the upload began.")


def _continue(client: httpx.Client, url: str, song: Song) -> None:
    _heading("2. A playlist of other songs is continued")
    print(f"Seeds: {len(song.seeds)} other songs of {song.cycle}.\n")
    body = {"seeds": song.seeds, "k": 500}
    short = json.dumps({"seeds": song.seeds, "k": SHOWN})
    print(f"  curl -H 'Content-Type: application/json' -d '{short}' \\\n    {url}/continue-playlist\n")
    tracks = _checked(client.post("/continue-playlist", json=body), 200)["tracks"]
    ranks = [rank for rank, track in enumerate(tracks, 1) if track["track_id"] == song.row["track_id"]]
    if len(ranks) != 1:
        raise TourError(f"the uploaded song is {len(ranks)} times in the continued playlist, not once")
    for rank, track in enumerate(tracks[:SHOWN], 1):
        mark = "  <- uploaded just now" if rank == ranks[0] else ""
        print(f"  {rank:3d}. {track['score']:.3f}  {_name(track)}{'  [cold]' if track['cold'] else ''}{mark}")
    print(f"\n  The new song comes at rank {ranks[0]} of {len(tracks)}.")


def _audience(client: httpx.Client, url: str, song: Song) -> None:
    _heading("3. Who may like it? (the demo's listeners are simulated)")
    path = f"/audience/{song.row['track_id']}?limit={SHOWN}"
    print(f"  curl '{url}{path}'\n")
    answer = _checked(client.get(path), 200)
    if not answer["clusters"] or not answer["listeners"]:
        raise TourError("the audience of the uploaded song is empty")
    for number, cluster in enumerate(answer["clusters"]):
        like = ", ".join(_name(client.get(f"/tracks/{i}").json()) for i in cluster["tracks"][:2])
        print(f"  cluster {number}: {cluster['mass']:.0%} of the audience; they play {like}")
    print()
    for listener in answer["listeners"]:
        print(f"  {listener['listener_id']:12s} score {listener['score']:.3f}  cluster {listener['cluster']}")


def _name(track: Mapping[str, Any]) -> str:
    return f"{track['title']} ({track['artist']})"


def _relative(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path

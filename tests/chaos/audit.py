"""Everything that is there, held against the model: after every start, and more thoroughly at the end."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlencode

from tests.chaos import sounds
from tests.chaos.clients import post, upload
from tests.chaos.model import RELEASED, Model, State, shows
from tests.chaos.plan import GROUP, Operation, Plan, Upload
from tests.chaos.processes import Server, ask

FOLLOWED_S = 5.0
"""Within which a replica shows what the others were acknowledged."""
SAME = 2e-6
"""Scores are told to six digits."""


class Audit:
    """Asks a service for everything. Nobody else may be asking meanwhile."""

    def __init__(self, plan: Plan, model: Model, release_tracks: int, released: list[str], anchor: str) -> None:
        """`anchor` is a track of the release that nobody changes: every other's score is told against it."""
        self._plan, self._model, self._anchor = plan, model, anchor
        self._release_tracks, self._released = release_tracks, set(released)
        self._scores: dict[tuple[str, State], float] = {}
        self.compared = 0
        """Scores that were the same as before a start."""
        self.exact = 0
        """Of those, the ones that were the same to the last digit told."""
        self.looked = 0
        """Tracks that were held against the model."""

    def everything(self, server: Server, *, lagging: bool) -> None:
        """Compare what is listed, what is found and what is counted with the model.

        `lagging`: others write to its ledger as well; it may need a moment to follow.
        """
        groups = {word: [i for i in ids if self._is_known(i)] for word, ids in self._plan.groups.items()}
        deadline = time.monotonic() + FOLLOWED_S * lagging
        documents = {word: self._listed(server, word) for word, ids in groups.items() if ids}
        while lagging and time.monotonic() < deadline and not self._fits(documents):
            time.sleep(0.05)
            documents = {word: self._listed(server, word) for word in documents}
        if lagging and self._fits(documents):
            ask(server.port, "DELETE", "/tracks/nobody")  # before it says no, it has applied all there is
            documents = {word: self._listed(server, word) for word in documents}
        where = f"service {server.number}"
        for word, found in documents.items():
            for track_id in groups[word]:
                self._model.observe(track_id, found.get(track_id) or self._of_release(server, track_id), where)
            for track_id in found.keys() - set(groups[word]):
                self._model.complain(f"{track_id}: {where} lists it though nobody sent it: {found[track_id]}")
        for track_id in self._released - {i for ids in groups.values() for i in ids}:
            self._model.observe(track_id, self._of_release(server, track_id), where)
        for word in documents:
            self._ranked(server, word, [i for i in groups[word] if self._live(i)])
        self._counted(server)

    def _is_known(self, track_id: str) -> bool:
        return track_id in self._released or self._model.states(track_id) != {None}

    def _live(self, track_id: str) -> Upload | None:
        """What is there of it, if it is one of ours. To be asked once it was observed."""
        state = next(iter(self._model.states(track_id)))
        return state if isinstance(state, Upload) else None

    def _fits(self, documents: dict[str, dict[str, Any]]) -> bool:
        return all(
            any(shows(state, found.get(i), i) for state in self._model.states(i)) or RELEASED in self._model.states(i)
            for word, found in documents.items()
            for i in self._plan.groups[word]
            if self._is_known(i)
        )

    def _listed(self, server: Server, word: str) -> dict[str, Any]:
        """The documents of a group by id; complains when one is there twice."""
        status, told = ask(server.port, "GET", f"/tracks?{urlencode({'q': word, 'limit': 200})}")
        assert status == 200, told
        ids = [track["track_id"] for track in told["tracks"]]
        for track_id in {i for i in ids if ids.count(i) > 1}:
            self._model.complain(f"{track_id}: service {server.number} lists it twice")
        return {track["track_id"]: track for track in told["tracks"]}

    def _of_release(self, server: Server, track_id: str) -> Any:
        if track_id not in self._released:
            return None
        status, told = ask(server.port, "GET", f"/tracks/{quote(track_id)}")
        return told if status == 200 else None

    def _ranked(self, server: Server, word: str, live: list[str]) -> None:
        """Each track of a group is found once, where it was, and can be a seed."""
        assert len(live) <= GROUP
        where = f"service {server.number}"
        asked = {"seeds": [self._anchor], "k": 500, "filters": {"genres": [word]}}
        status, told = post(server, "/continue-playlist", asked)
        assert status == 200, told
        found = [track["track_id"] for track in told["tracks"]]
        scores = {track["track_id"]: track["score"] for track in told["tracks"]}
        for track_id in sorted({i for i in found if found.count(i) > 1} | (set(found) ^ set(live))):
            self._model.complain(f"{track_id}: {where} recommends it {found.count(track_id)} times")
        for track_id in set(live) & scores.keys():
            self._same_score(where, track_id, scores[track_id])
        if live:
            status, told = post(server, "/continue-playlist", {"seeds": live, "k": 1})
            for track_id in told.get("unknown_seeds", live):
                self._model.complain(f"{track_id}: {where} does not take it as a seed ({status})")
        self.looked += len(live)

    def _same_score(self, where: str, track_id: str, score: float) -> None:
        """The same upload lies where it lay: in this start and the last, before a fold and after."""
        before = self._scores.setdefault((track_id, self._live(track_id)), score)
        self.compared += 1
        self.exact += before == score
        if abs(before - score) > SAME:
            self._model.complain(f"{track_id}: {where} scores it {score}, {before} before")

    def _counted(self, server: Server) -> None:
        status, told = ask(server.port, "GET", "/readyz")
        ours = [self._model.states(i) for i in self._model.known() if i not in self._released]
        gone = sum(self._model.states(i) == {None} for i in self._released)
        expected = self._release_tracks - gone + sum(states != {None} for states in ours)
        if status != 200 or told["tracks"] != expected:
            self._model.complain(f"tracks: service {server.number} counts {told}, and {expected} are there")

    def audiences(self, server: Server, track_ids: list[str]) -> None:
        """Each of these that is there has an audience; the others have none."""
        for track_id in track_ids:
            status, told = ask(server.port, "GET", f"/audience/{quote(track_id)}?limit=1")
            there = self._model.states(track_id) != {None}
            if status != (200 if there else 404) or (there and not told["listeners"]):
                self._model.complain(f"{track_id}: service {server.number} has as its audience: {status} {told}")

    def contents(self, server: Server, track_ids: list[str]) -> None:
        """Each of these that is there is the recording that was acknowledged: sent once more, it says nothing new."""
        for track_id in track_ids:
            sent = self._live(track_id)
            if sent is None:
                continue
            status, told = upload(server, Operation(0, "again", track_id, sent))
            if status != 200 or told["outcome"] != "unchanged" or told["content_sha256"] != sounds.sha256(sent.sound):
                self._model.complain(f"{track_id}: service {server.number} has another recording: {status} {told}")

    def thoroughly(self, server: Server) -> None:
        """Audience and content of every track there ever was, by several clients at once."""
        known = sorted(self._model.known())
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda part: self._slowly(server, part), [known[start::16] for start in range(16)]))

    def _slowly(self, server: Server, track_ids: list[str]) -> None:
        self.audiences(server, track_ids)
        self.contents(server, track_ids)

    def ledger_holds(self, hashes: dict[str, str | None]) -> None:
        """Compare the ledger itself: id -> SHA-256 of its newest event, None for a removal."""
        for track_id in self._model.known():
            sent = self._live(track_id)
            wanted = None if sent is None else sounds.sha256(sent.sound)
            if hashes.get(track_id) != wanted and not (sent is None and RELEASED in self._model.states(track_id)):
                self._model.complain(f"{track_id}: the ledger has {hashes.get(track_id)}, acknowledged was {wanted}")

"""One API key's uploads leave places for those of others; without keys it is first come, first served."""

import threading
from contextlib import ExitStack

import numpy as np
from service_uploads import upload
from test_service_problems import assert_problem

from service.decode.pool import Decoding
from service.http.keys import new_key
from service.http.limits import Places
from service.http.problems import Problem


def refusal(places: Places, key: str | None, held: ExitStack) -> Problem | None:
    """Take a place; return why that is refused."""
    try:
        held.enter_context(places.place(key))
    except Problem as refused:
        return refused
    return None


def filled(places: Places, key: str | None, held: ExitStack) -> int:
    """Take places until one is refused; return how many."""
    count = 0
    while (refused := refusal(places, key, held)) is None:
        count += 1
    assert refused.kind.status in (429, 503)
    assert refused.headers["Retry-After"] == "1"
    return count


def test_one_key_alone_has_half_and_whoever_comes_finds_a_place():
    places = Places(32)
    with ExitStack() as held:
        counts = [filled(places, key, held) for key in "abcde"]
    assert counts == [16, 8, 4, 2, 1]
    assert places.taken == 0
    with ExitStack() as held:
        assert filled(places, None, held) == 32
        assert filled(places, "late", held) == 0


def test_a_single_place_is_for_whoever_comes_first():
    places = Places(1)
    with ExitStack() as held:
        assert [filled(places, key, held) for key in "ab"] == [1, 0]


def test_whoever_comes_and_goes_no_key_has_more_than_is_free_and_all_is_given_back():
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    places, held = Places(int(rng.integers(1, 40))), []
    for _ in range(2000):
        if held and rng.random() < 0.45:
            key, place = held.pop(rng.integers(len(held)))
            place.close()
        else:
            key, place = "abcdef"[rng.integers(6)], ExitStack()
            mine, free = sum(one == key for one, _ in held), places.size - len(held)
            refused = refusal(places, key, place)
            if refused is None:
                held.append((key, place))
            assert (refused and refused.code) == (None if mine < free else "key_queue_full" if free else "queue_full")
        assert places.taken == len(held)
    for _, place in held:
        place.close()
    assert (places.taken, dict(places._of)) == (0, {})


def test_a_key_that_fills_its_share_leaves_room_for_another(serve, settings, tmp_path, clip, monkeypatch):
    leave, real = threading.Event(), Decoding.hear
    monkeypatch.setattr(Decoding, "hear", lambda *arguments: leave.wait(30) and real(*arguments))
    made = {name: new_key(name, "read,write") for name in ("greedy", "late")}
    (tmp_path / "keys").write_text("".join(f"{line}\n" for _, line in made.values()))
    client = serve(settings.model_copy(update={"keys_file": tmp_path / "keys", "queue_size": 8}))

    def send(name: str, track_id: str):
        client.headers.update({"authorization": f"Bearer {made[name][0]}", "prefer": "respond-async"})
        return upload(client, clip, track_id=track_id)

    try:
        assert [send("greedy", f"g{number}").status_code for number in range(4)] == [202] * 4
        refused = send("greedy", "g4")
        assert "4 uploads of greedy" in assert_problem(refused, 429, "key_queue_full").detail
        assert refused.headers["retry-after"] == "1"
        assert [send("late", f"l{number}").status_code for number in range(3)] == [202, 202, 429]
        assert "debut_uploads_in_hand 6.0" in client.get("/metrics").text
        assert "debut_uploads_refused_total 2.0" in client.get("/metrics").text
    finally:
        leave.set()

"""Nobody is let in: keys and scopes on every route, names and sites, and headers on every answer."""

import hmac
import re
import time

import pytest
from service_process import RunningService, run_to_exit
from service_uploads import seeded, upload
from starlette.testclient import TestClient
from test_service_problems import OGG, assert_problem

from service.app import create_app
from service.http import keys as keys_module
from service.http import security
from service.http.keys import SCOPES, KeyRing, new_key, parse_keys
from service.http.security import hostname, needed_scope, needs_key
from service.settings import Settings, SettingsError

FORBIDDEN_HEADERS = {"server", "x-powered-by", "access-control-allow-origin"}


@pytest.fixture(scope="module")
def client(releases, tmp_path_factory):
    """One service in this process for what needs no keys."""
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    settings = Settings(releases=releases, ledger=ledger, encoder_threads=1, decode_workers=1)
    with TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def keys(tmp_path):
    """A keys file, and the key of each scope that is in it."""
    made = {scope: new_key(scope.replace(",", "-"), scope) for scope in SCOPES}
    path = tmp_path / "keys"
    path.write_text("# who may what\n\n" + "".join(f"{line}\n" for _, line in made.values()))
    return path, {scope: key for scope, (key, _) in made.items()}


@pytest.fixture
def guarded(serve, settings, keys):
    """A service that asks for keys, in process."""
    return serve(settings.model_copy(update={"keys_file": keys[0]}))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


SCOPE_OF = {
    ("GET", "/"): None,
    ("GET", "/audience/{track_id}"): "read",
    ("GET", "/console/{name}"): None,
    ("GET", "/ingests/{ingest_id}"): "read",
    ("GET", "/livez"): None,
    ("GET", "/metrics"): "read",
    ("GET", "/openapi.json"): "read",
    ("GET", "/readyz"): None,
    ("GET", "/tracks"): "read",
    ("GET", "/tracks/{track_id}"): "read",
    ("POST", "/continue-playlist"): "read",
    ("DELETE", "/tracks/{track_id}"): "write",
    ("POST", "/ingest-track"): "write",
}
"""What every operation needs, said once more by hand: a new route has to be entered here."""

UNDOCUMENTED = {("GET", "/openapi.json"), ("GET", "/console/{name}")}
"""What the OpenAPI document leaves out."""


def routed(routes) -> set[tuple[str, str]]:
    """Method and path template of all routes, those of included routers too."""
    found = set()
    for route in routes:
        if router := getattr(route, "original_router", None):
            found |= routed(router.routes)
        else:
            found |= {(method, route.path.replace(":path}", "}")) for method in route.methods - {"HEAD"}}
    return found


def operations(client) -> list[tuple[str, str]]:
    """Method and path of every operation there is."""
    documented = {(method.upper(), path) for path, item in client.app.openapi()["paths"].items() for method in item}
    assert routed(client.app.routes) == documented | UNDOCUMENTED == SCOPE_OF.keys()
    return sorted(SCOPE_OF)


def some(path: str) -> str:
    """A path with something in place of its parameters."""
    return re.sub(r"\{[a-z_]+\}", "x", path)


def test_every_operation_refuses_without_a_key_with_a_strange_one_and_with_one_of_the_other_scope(guarded, keys):
    by_scope = keys[1]
    for method, template in operations(guarded):
        path, needed = some(template), SCOPE_OF[method, template]
        if needed is None:
            assert guarded.request(method, path).status_code in (200, 404)
            continue
        for headers in ({}, {"authorization": f"Basic {by_scope['read']}"}, {"authorization": "Bearer "}):
            answer = guarded.request(method, path, headers=headers)
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == 'Bearer realm="debut"'
        for strange in ("debut_x", by_scope["read"][:-1], by_scope["read"] + "A", "naïve", "x" * 5000):
            answer = guarded.request(method, path, headers={"authorization": f"Bearer {strange}".encode()})
            assert_problem(answer, 401, "unauthorized")
            assert 'error="invalid_token"' in answer.headers["www-authenticate"]
            assert strange not in answer.text
        other = {"read": "write", "write": "read"}[needed]
        answer = guarded.request(method, path, headers=bearer(by_scope[other]))
        assert_problem(answer, 403, "forbidden")
        assert f'error="insufficient_scope", scope="{needed}"' in answer.headers["www-authenticate"]
        for good in (needed, "read,write"):
            assert guarded.request(method, path, headers=bearer(by_scope[good])).status_code not in (401, 403)


def test_what_does_not_exist_is_not_told_to_strangers(guarded, keys):
    for method, path in (("GET", "/admin"), ("PUT", "/tracks/x"), ("OPTIONS", "/tracks"), ("GET", "/livez/")):
        assert_problem(guarded.request(method, path), 401, "unauthorized")
        assert guarded.request(method, path, headers=bearer(keys[1]["read,write"])).status_code in (404, 405)


def test_what_needs_no_key_is_known_by_name():
    assert [path for path in ("/", "/livez", "/readyz", "/console/main.js") if needs_key(path)] == []
    for path in ("", "//", "/console", "/consoles/x", "/livez/", "/tracks", "/metrics", "/openapi.json", "/new"):
        assert needs_key(path)


def test_the_scopes_of_today_and_of_tomorrow():
    assert needed_scope("GET", "/audience/x") == needed_scope("POST", "/continue-playlist") == "read"
    assert needed_scope("POST", "/ingest-track") == needed_scope("DELETE", "/tracks/x") == "write"
    assert needed_scope("PATCH", "/continue-playlist") == needed_scope("POST", "/something-new") == "write"


def test_the_document_says_what_needs_a_key(guarded, keys):
    document = guarded.get("/openapi.json", headers=bearer(keys[1]["read"])).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert ("security" in operation) == needs_key(path)
            assert operation.get("x-scope") == (needed_scope(method.upper(), path) if needs_key(path) else None)


def test_a_refused_upload_is_not_read(guarded, keys):
    def body():
        pytest.fail("the body was asked for")
        yield b""

    for headers in ({}, bearer(keys[1]["read"])):
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/ingest-track",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "query_string": b"",
        }
        sent = []

        async def receive():
            next(body())

        async def send(message, sent=sent):
            sent.append(message)

        guarded.portal.call(guarded.app, scope, receive, send)
        assert sent[0]["status"] in (401, 403)


def test_keys_are_compared_in_constant_time_all_of_them_and_by_their_hash(keys, monkeypatch):
    path, by_scope = keys
    compared = []

    def compare(one, other):
        compared.append((one, other))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    ring = KeyRing(path)
    for key in (*by_scope.values(), "debut_nobody", ""):
        compared.clear()
        found = ring.find(key)
        assert (found is None) == (key not in by_scope.values())
        assert len(compared) == len(by_scope), "it stopped at the first that fits"
        assert all(isinstance(side, bytes) and len(side) == 32 for pair in compared for side in pair)
    assert all(key not in path.read_text() for key in by_scope.values())


def test_new_keys_are_random_and_long():
    made = [new_key("a", "read") for _ in range(100)]
    assert len({key for key, _ in made}) == 100
    for key, line in made:
        assert re.fullmatch(r"debut_[A-Za-z0-9_-]{43}", key)
        assert key not in line
    for name in ("", "two words", "a\nb write " + "0" * 64, "x" * 65, "ü"):
        with pytest.raises(SettingsError, match="key's name"):
            new_key(name, "read")


GOOD = "ann read " + "0" * 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", "holds no API key", id="empty"),
        pytest.param("# ann\n", "holds no API key", id="comment"),
        pytest.param(f"{GOOD}\nann read debut_secret", "Line 2 of .* is no API key", id="a key in the clear"),
        pytest.param("ann admin " + "0" * 64, "Line 1", id="a strange scope"),
        pytest.param("ann read " + "0" * 63, "Line 1", id="a short digest"),
        pytest.param("ann read " + "G" * 64, "Line 1", id="no digest"),
        pytest.param("read " + "0" * 64, "Line 1", id="no name"),
        pytest.param(f"{GOOD}\n{GOOD}", "Line 2 of .* names ann once more", id="twice"),
    ],
)
def test_a_keys_file_that_cannot_be_used_is_a_sentence(tmp_path, settings, text, words):
    path = tmp_path / "keys"
    with pytest.raises(SettingsError, match=words) as refused:
        parse_keys(text, path)
    assert "secret" not in refused.value.detail
    path.write_text(text)
    with pytest.raises(SettingsError, match=words):
        create_app(settings.model_copy(update={"keys_file": path}))


def test_a_keys_file_that_is_not_there_no_text_or_open_to_everybody_is_a_sentence(tmp_path):
    path = tmp_path / "keys"
    for make in (lambda: None, lambda: path.write_bytes(b"\xff\xfe"), lambda: (path.unlink(), path.mkdir())):
        make()
        with pytest.raises(SettingsError, match="cannot be read"):
            KeyRing(path)
    path.rmdir()
    path.write_text(GOOD)
    path.chmod(0o646)
    with pytest.raises(SettingsError, match="chmod o-w"):
        KeyRing(path)


def test_keys_come_and_go_without_a_restart_and_a_broken_file_changes_nothing(guarded, keys):
    path, by_scope = keys
    key, line = new_key("late", "read")

    def allowed(given: str) -> bool:
        return guarded.get("/tracks?q=a", headers=bearer(given)).status_code == 200

    assert allowed(by_scope["read"])
    assert not allowed(key)
    path.write_text(f"{line}\n")
    assert allowed(key)
    assert not allowed(by_scope["read"])
    path.write_text(f"{line}\nhalf a li")
    assert allowed(key)
    path.unlink()
    assert allowed(key)
    assert not allowed(by_scope["read"])


def test_the_log_names_the_key_and_never_shows_it(guarded, keys, capsys):
    assert guarded.get("/tracks?q=a", headers=bearer(keys[1]["read"])).status_code == 200
    guarded.get("/tracks?q=a", headers=bearer("debut_not-known-here"))
    logged = capsys.readouterr().out
    assert '"key": "read"' in logged
    assert "debut_" not in logged


LOCAL = ["localhost", "localhost:8000", "LOCALHOST", "app.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:80"]
FOREIGN = ["evil.example", "localhost.evil.example", "evil.example:80", "192.168.0.1", "[::2]", "", "[", "0.0.0.0"]


@pytest.mark.parametrize("host", LOCAL)
def test_loopback_answers_to_its_own_names(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_loopback_does_not_answer_to_other_names(client, host):
    """DNS rebinding: a web page whose name leads here all of a sudden."""
    answer = client.get("/", headers={"host": host})
    assert assert_problem(answer, 421, "unknown_host").setting == "DEBUT_HOSTS"
    assert client.get("/livez", headers={"host": host}).status_code == 200, "a probe may call it as it likes"


def test_names_that_an_operator_allows(serve, settings, keys):
    named = serve(settings.model_copy(update={"hosts": "Music.example, other.example"}))
    for host, status in {
        "music.example:8000": 200,
        "other.example": 200,
        "localhost": 200,
        "evil.example": 421,
    }.items():
        assert named.get("/", headers={"host": host}).status_code == status
    with_keys = settings.model_copy(update={"hosts": "music.example", "keys_file": keys[0], "host": "0.0.0.0"})
    with_keys = serve(with_keys.model_copy(update={"ledger": keys[0].with_name("second.sqlite")}))
    assert with_keys.get("/", headers={"host": "localhost"}).status_code == 421
    assert with_keys.get("/metrics", headers={"host": "music.example"}).status_code == 401


def test_two_hosts_are_none(client):
    answer = client.get("/", headers=[("host", "localhost"), ("host", "localhost")])
    assert_problem(answer, 421, "unknown_host")


def test_the_name_in_a_host_header():
    names = {"A:1": "a", "[::1]:80": "::1", "a@b": "b", "": "", "[": "", "a/b": "a"}
    assert {host: hostname(host) for host in names} == names


OURS = {"host": "localhost:8000"}
FROM_ELSEWHERE = [
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    {"sec-fetch-site": "anything"},
    {"origin": "https://evil.example"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://localhost"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://["},
    {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
]


@pytest.mark.parametrize("headers", FROM_ELSEWHERE, ids=str)
def test_a_page_of_another_site_cannot_use_the_visitors_service(client, clip, headers):
    answer = client.post("/ingest-track?track_id=evil", content=clip, headers=OGG | OURS | headers)
    assert_problem(answer, 403, "cross_site")
    assert client.get("/tracks/evil").status_code == 404
    for method, path in (("DELETE", "/tracks/x"), ("POST", "/continue-playlist"), ("GET", "/audience/x")):
        assert_problem(client.request(method, path, headers=OURS | headers), 403, "cross_site")


@pytest.mark.parametrize(
    "headers",
    [{}, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"}],
    ids=str,
)
def test_our_own_pages_and_programs_can(client, clip, headers):
    answer = client.post("/ingest-track?track_id=a", content=clip, headers=OGG | OURS | headers)
    assert answer.status_code in (200, 201)


def test_a_link_from_another_site_may_be_followed(client):
    link = OURS | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=link).status_code == 200
    assert_problem(client.delete("/tracks/x", headers=link), 403, "cross_site")
    assert_problem(client.get("/", headers=link | {"sec-fetch-dest": "iframe"}), 403, "cross_site")


def test_behind_a_proxy_the_public_name_is_its_own_origin(serve, settings):
    named = serve(settings.model_copy(update={"hosts": "music.example"}))
    headers = {"host": "localhost:8000", "origin": "https://music.example"}
    assert named.post("/continue-playlist", json={"seeds": ["x"]}, headers=headers).status_code == 422
    assert (
        named.post(
            "/continue-playlist", json={"seeds": ["x"]}, headers=headers | {"origin": "https://x.example"}
        ).status_code
        == 403
    )


def hold_headers(answer) -> None:
    for name, value in security.HEADERS.items():
        assert answer.headers.get_list(name) == [value], (answer.request.url, name)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert not FORBIDDEN_HEADERS & answer.headers.keys()


def test_every_answer_has_the_headers(client, clip, monkeypatch):
    hold_headers(upload(client, clip, track_id="a"))
    for method, path in operations(client):
        hold_headers(client.request(method, some(path)))
    hold_headers(client.get("/audience/a?limit=1", headers={"accept": "text/csv"}))
    hold_headers(client.get("/nothing"))
    hold_headers(client.put("/tracks/a"))
    hold_headers(client.get("/", headers={"host": "evil.example"}))
    monkeypatch.setattr("service.routes.playlists.continue_playlist", lambda *_: 1 / 0)
    broken = client.post("/continue-playlist", json={"seeds": ["a"]})
    assert broken.status_code == 500
    hold_headers(broken)


def test_a_route_may_set_its_own_policy():
    own = [(b"content-security-policy", b"default-src 'self'"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
    protected = security.protect(own)
    assert protected[:3] == own
    assert [name for name, _ in protected].count(b"content-security-policy") == 1


def test_a_real_process_with_a_key_made_on_its_command_line(releases, tmp_path, clip):
    """The whole way: make keys, serve to everybody who has one, take in, continue, take down."""
    path, by_scope = tmp_path / "keys", {}
    for scope in ("read", "write"):
        made = run_to_exit("key", f"the-{scope}r", "--scope", scope, host="0.0.0.0")  # which alone would be refused
        assert made.returncode == 0, made.stderr
        by_scope[scope] = re.search(r"debut_\S+", made.stdout).group()
        with path.open("a") as file:
            file.write(made.stdout.splitlines()[-1].partition(": ")[2] + "\n")
    settings = {"keys_file": path, "host": "0.0.0.0"}
    with RunningService(releases, tmp_path / "ledger.sqlite", **settings) as running:
        client = running.client
        client.base_url = f"http://127.0.0.1:{client.base_url.port}"
        assert client.get("/readyz").status_code == 200
        assert_problem(client.get("/metrics"), 401, "unauthorized")
        assert_problem(upload(client, clip, track_id="a"), 401, "unauthorized")
        client.headers.update(bearer(by_scope["write"]))
        assert upload(client, clip, track_id="a").status_code == 201
        assert_problem(client.get("/tracks/a"), 403, "forbidden")
        client.headers.update(bearer(by_scope["read"]))
        assert seeded(client, "a", k=1)
        assert_problem(client.delete("/tracks/a"), 403, "forbidden")
        hold_headers(client.get("/metrics"))
        client.headers.update(bearer(by_scope["write"]))
        assert client.delete("/tracks/a").status_code == 200
        assert running.stop() == 0
        log = "".join(running.log)
    assert '"key": "the-writer"' in log
    assert all(key not in log for key in by_scope.values())


def test_a_bad_name_or_scope_makes_no_key():
    ended = run_to_exit("key", "two words", "--scope", "read")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("debut: A key's name")
    assert run_to_exit("key", "ann", "--scope", "admin").returncode == 2


def test_anonymous_service_on_a_public_address_still_refuses_other_sites(serve, settings):
    public = serve(settings.model_copy(update={"host": "0.0.0.0", "allow_anonymous": True}))
    assert public.get("/", headers={"host": "music.example"}).status_code == 200
    assert_problem(public.delete("/tracks/x", headers={"origin": "https://evil.example"}), 403, "cross_site")


def test_finding_a_key_among_many_is_quick(tmp_path):
    path = tmp_path / "keys"
    path.write_text("".join(f"{new_key(f'k{number}', 'read')[1]}\n" for number in range(1000)))
    ring = KeyRing(path)
    started = time.perf_counter()
    assert ring.find("debut_nobody") is None
    assert time.perf_counter() - started < 0.05

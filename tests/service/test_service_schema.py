"""Whatever is sent by the OpenAPI document, or nearly so: no 5xx, and no answer that the document does not know."""

import json
import re
from collections import Counter
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from service_uploads import ogg, tone
from starlette.testclient import TestClient

from service.app import create_app
from service.http import schemas
from service.http.keys import new_key
from service.http.problems import MEDIA_TYPE
from service.settings import Settings

EXAMPLES = 60
WORDS = st.text(max_size=30) | st.sampled_from(
    ["", " ", "a", "en", "2024", "2024-05-31", "NLB632600001", "=1+1", "../x"]
)
PLAIN = st.text(st.characters(codec="utf-8"), max_size=30)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def clip_1s() -> bytes:
    return ogg(tone(1.1))


@pytest.fixture(scope="module")
def client(releases, tmp_path_factory, clip_1s):
    """A service that asks for keys, with a few tracks of its own, called by somebody who may do everything."""
    folder = tmp_path_factory.mktemp("schema")
    key, line = new_key("all", "read,write")
    (folder / "keys").write_text(f"{line}\n")
    settings = Settings(
        releases=releases,
        ledger=folder / "ledger.sqlite",
        keys_file=folder / "keys",
        encoder_threads=1,
        decode_workers=1,
        max_upload_bytes=100_000,
        max_json_bytes=20_000,
        max_seeds=6,
        max_k=50,
    )
    with TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {key}"
        for number in range(3):
            answer = client.post(f"/ingest-track?track_id=t{number}&title=Song", content=clip_1s, headers=AS_OGG)
            assert answer.status_code == 201, answer.text
        yield client


AS_OGG = {"content-type": "audio/ogg"}
KNOWN = st.sampled_from(["t0", "t1", "t2", "gone"])


class Document:
    """The OpenAPI document, and strategies for what it allows."""

    def __init__(self, client: TestClient) -> None:
        self.document = client.get("/openapi.json").json()

    def operations(self) -> list[tuple[str, str]]:
        return [(method, path) for path, item in self.document["paths"].items() for method in item]

    def operation(self, method: str, path: str) -> dict[str, Any]:
        return self.document["paths"][path][method]

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in schema:
            return schema
        return self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]

    def values(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        """JSON values that a schema allows, as far as it says so."""
        schema = self.resolved(schema)
        if "anyOf" in schema:
            return st.one_of([self.values(one) for one in schema["anyOf"]])
        match schema.get("type"):
            case "null":
                return st.none()
            case "boolean":
                return st.booleans()
            case "integer":
                return st.integers(schema.get("minimum"), schema.get("maximum")) | st.integers(1, 40)
            case "number":
                low, high = schema.get("minimum"), schema.get("maximum")
                return st.floats(low, high, allow_nan=False, allow_infinity=False)
            case "string":
                return KNOWN | WORDS
            case "array":
                return st.lists(self.values(schema["items"]), min_size=schema.get("minItems", 0), max_size=5)
            case "object":
                return self.objects(schema)
        return ANYTHING

    def objects(self, schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        fields = {name: self.values(one) for name, one in schema.get("properties", {}).items()}
        required = {name: fields.pop(name) for name in schema.get("required", ())}
        named = st.fixed_dictionaries(required, optional=fields)
        if not isinstance(more := schema.get("additionalProperties"), dict):
            return named
        return st.builds(lambda one, other: other | one, named, st.dictionaries(WORDS, self.values(more), max_size=3))

    def nearly(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        """What a schema allows, most often; else with something wrong in it."""
        good = self.values(schema)
        spoilt = st.builds(lambda one, name, value: one | {name: value}, good, st.sampled_from(NAMES) | WORDS, ANYTHING)
        return st.one_of(good, good, spoilt, ANYTHING)

    def requests(self, method: str, path: str, clip: bytes) -> st.SearchStrategy[dict[str, Any]]:
        operation = self.operation(method, path)
        query = {
            one["name"]: st.lists(self.values(one["schema"]).map(written) | PLAIN, min_size=1, max_size=2)
            for one in operation.get("parameters", ())
            if one["in"] == "query"
        }
        return st.fixed_dictionaries(
            {
                "track_id": KNOWN | PLAIN.map(lambda one: one.replace("\n", "")),  # a line feed leads to no route
                "params": st.fixed_dictionaries({}, optional=query),
                "accept": st.sampled_from(["*/*", "text/csv", "application/json", "", "text/csv;q=x, a/b", ",;="]),
                "body": self.bodies(operation.get("requestBody"), clip),
            }
        )

    def bodies(self, body: dict[str, Any] | None, clip: bytes) -> st.SearchStrategy[dict[str, Any]]:
        """Arguments for the client's request."""
        if body is None:
            return st.just({})
        return st.one_of([self.body(kind, one["schema"], clip) for kind, one in body["content"].items()])

    def body(self, kind: str, schema: dict[str, Any], clip: bytes) -> st.SearchStrategy[dict[str, Any]]:
        sounds = st.just(clip) | st.binary(max_size=200) | st.integers(0, len(clip)).map(lambda at: clip[:at])
        if kind == "application/json":
            text = self.nearly(schema).map(json.dumps) | PLAIN
            return text.map(lambda one: {"content": one.encode(), "headers": {"content-type": kind}})
        if kind == "multipart/form-data":
            about = self.nearly(schema["properties"]["metadata"]).map(json.dumps) | PLAIN
            parts = st.fixed_dictionaries(
                {}, optional={"audio": sounds, "metadata": about.map(lambda one: (None, one)), "cover": st.binary()}
            )
            empty = {"content": b"", "headers": {"content-type": kind}}
            return parts.map(lambda one: {"files": one} if one else empty)
        media = kind.replace("*", "ogg")
        return sounds.map(lambda one: {"content": one, "headers": {"content-type": media}})


NAMES = [
    "seeds",
    "k",
    "filters",
    "genres",
    "attributes",
    "explicit",
    "track_id",
    "release_date",
    "diversity",
    "exclude",
]


def written(value: object) -> str:
    """Write a JSON value as a query has it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


def hold(document: Document, method: str, path: str, answer: Any) -> None:
    """The status is documented and no 5xx, the media type is documented, and the body is what its schema says."""
    assert answer.status_code < 500, answer.text
    responses = document.operation(method, path)["responses"]
    assert str(answer.status_code) in responses, (answer.status_code, answer.text)
    content = responses[str(answer.status_code)]["content"]
    media = answer.headers["content-type"].partition(";")[0]
    if answer.status_code >= 400:
        assert media == MEDIA_TYPE
        found = schemas.ProblemDocument.model_validate_json(answer.text)
        assert found.code in content[MEDIA_TYPE]["examples"], found.code
        return
    if media == "application/json":
        reference = content[media]["schema"].get("$ref", "")
        if reference:
            getattr(schemas, reference.rpartition("/")[2]).model_validate_json(answer.text, strict=True)
    else:
        assert media in content, media


OPERATIONS = [
    ("get", "/"),
    ("get", "/audience/{track_id}"),
    ("post", "/continue-playlist"),
    ("post", "/ingest-track"),
    ("get", "/ingests/{ingest_id}"),
    ("get", "/livez"),
    ("get", "/metrics"),
    ("get", "/readyz"),
    ("get", "/tracks"),
    ("get", "/tracks/{track_id}"),
    ("delete", "/tracks/{track_id}"),
]


def test_these_are_all_operations(client):
    assert sorted(Document(client).operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_by_the_document_gets_an_answer_that_is_not_in_it(client, clip_1s, method, path):
    document, seen = Document(client), Counter[int]()

    @given_settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(document.requests(method, path, clip_1s))
    def hold_one(request: dict[str, Any]) -> None:
        url = re.sub(r"\{\w+\}", lambda _: quote(request["track_id"], safe=""), path)
        arguments = dict(request["body"])
        headers = {"accept": request["accept"]} | arguments.pop("headers", {})
        answer = client.request(method, url, params=request["params"], headers=headers, **arguments)
        hold(document, method, path, answer)
        seen[answer.status_code] += 1

    hold_one()
    print(dict(seen))
    assert min(seen) < 300 or "ingest_id" in path, "nothing was right"  # nobody guesses the name of an ingest

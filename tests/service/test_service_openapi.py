"""The OpenAPI document: well-formed, with examples, and true to what the routes do."""

import re

import pytest
from fastapi.openapi.models import OpenAPI
from test_service_problems import BAD

from service.http.problems import KINDS, MEDIA_TYPE
from service.http.schemas import ContinueRequest, ProblemDocument, TrackMetadata

ROUTES = {
    "/": ["get"],
    "/audience/{track_id}": ["get"],
    "/continue-playlist": ["post"],
    "/ingest-track": ["post"],
    "/ingests/{ingest_id}": ["get"],
    "/livez": ["get"],
    "/metrics": ["get"],
    "/readyz": ["get"],
    "/tracks": ["get"],
    "/tracks/{track_id}": ["delete", "get"],
}


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def operations(document):
    return [(path, method, op) for path, item in document["paths"].items() for method, op in item.items()]


def test_it_is_an_openapi_document_of_all_routes(document):
    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.")
    assert {path: sorted(item) for path, item in document["paths"].items()} == ROUTES
    assert all(op["summary"] and op["description"] for _, _, op in operations(document))
    ids = [op["operationId"] for _, _, op in operations(document)]
    assert len(set(ids)) == len(ids)


def test_every_reference_leads_somewhere(document):
    names = set(re.findall(r'"#/components/schemas/(\w+)"', repr(document).replace("'", '"')))
    assert names <= document["components"]["schemas"].keys()
    assert {"TrackMetadata", "ContinueRequest", "ProblemDocument", "ContinueResponse"} <= names


def test_the_examples_are_good_requests(document):
    schemas = document["components"]["schemas"]
    for model in (TrackMetadata, ContinueRequest):
        examples = schemas[model.__name__]["examples"]
        assert examples
        for example in examples:
            model.model_validate(example)


def test_every_route_documents_its_failures_as_problems(document):
    for path, method, operation in operations(document):
        responses = operation["responses"]
        assert "500" in responses, (path, method)
        for status, answer in responses.items():
            if int(status) >= 400:
                [(media, content)] = answer["content"].items()
                assert media == MEDIA_TYPE
                for code, example in content["examples"].items():
                    problem = ProblemDocument.model_validate(example["value"])
                    assert (problem.code, str(problem.status)) == (code, status)
                    assert KINDS[code].title in answer["description"]


def documented(document, method: str, path: str) -> set[str]:
    """The codes that an operation may answer with."""
    template = re.sub(r"^/(tracks|audience)/.*", r"/\1/{track_id}", path.partition("?")[0])
    template = re.sub(r"^/ingests/.*", "/ingests/{ingest_id}", template)
    responses = document["paths"][template][method.lower()]["responses"].values()
    return {code for r in responses for code in r.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})}


def test_the_failures_that_were_seen_are_documented(document):
    """Whatever test_service_problems provokes (unknown paths and methods aside) is in the document."""
    for method, path, _, _, code, _ in BAD:
        if code not in ("not_found", "method_not_allowed"):
            assert code in documented(document, method, path), (method, path, code)


def test_every_kind_of_problem_belongs_to_a_route(document):
    everywhere = {code for path, method, _ in operations(document) for code in documented(document, method, path)}
    before_any_route = {"not_found", "method_not_allowed", "bad_http", "header_timeout", "headers_too_large"}
    assert KINDS.keys() - everywhere == before_any_route


def test_the_query_of_a_raw_upload_is_documented(document):
    names = [p["name"] for p in document["paths"]["/ingest-track"]["post"]["parameters"]]
    assert names == ["replace", *TrackMetadata.model_fields, "Idempotency-Key", "Prefer"]


def test_the_start_page_links_to_it_and_no_page_loads_scripts(client):
    page = client.get("/").json()
    assert page["name"] == "Debut"
    assert page["docs"]["openapi"] == "/openapi.json"
    assert set(page["paths"]) == ROUTES.keys() - {"/"}
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404

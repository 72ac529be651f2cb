"""Loading numbers over HTTP: files, arrays, what is refused of them, and what then is stored."""

import io

import pytest
from conftest import random_prime
from pipeline import rows, scalar

UPLOAD, BULK, STRUCTURED = "/composites/upload", "/composites/bulk", "/composites/bulk-structured"


def number():
    return str(random_prime(20) * random_prime(40))


def upload(client, content, name="numbers.txt", key="the operator's key", query=None, **fields):
    data = {"file": (io.BytesIO(content.encode()), name), **fields}
    return client.post(f"/api/v1/admin{UPLOAD}", data=data, query_string=query, headers={"X-Admin-Key": key})


def loaded(answer, *counts):
    assert answer.status_code == 200, answer.text
    names = ("total_processed", "new_composites", "existing_composites", "updated_composites", "invalid_numbers")
    assert tuple(answer.json[name] for name in names) == counts, answer.json
    return answer.json


def test_a_text_file_is_loaded_once(engine, client):
    values = [number(), number()]
    text = "\r\n".join(["# a list", *values, ""])
    loaded(upload(client, text, default_priority="7", project_name="files"), 2, 2, 0, 0, 0)
    loaded(upload(client, text), 2, 0, 2, 0, 0)
    found = rows(engine, "SELECT priority FROM composites WHERE number = ANY(:values)", values=values)
    assert [row.priority for row in found] == [7, 7]


def test_a_table_is_loaded_and_names_its_ignored_columns(engine, client):
    value = number()
    report = loaded(upload(client, f"colour,number,priority\nred,{value},3\n", "list.csv"), 1, 1, 0, 0, 0)
    assert report["ignored_columns"] == ["colour"]
    assert scalar(engine, "SELECT priority FROM composites WHERE number = :value", value=value) == 3


def test_one_invalid_line_stores_nothing_unless_it_is_skipped(engine, client, refused):
    value = number()
    body = refused(upload(client, f"{value}\nsix\n"), 422, "invalid_numbers")
    assert [error["field"] for error in body["errors"]] == ["line 2"]
    assert scalar(engine, "SELECT count(*) FROM composites WHERE number = :value", value=value) == 0
    loaded(upload(client, f"{value}\nsix\n", query={"dry_run": "true", "on_error": "skip"}), 2, 1, 0, 0, 1)
    assert scalar(engine, "SELECT count(*) FROM composites WHERE number = :value", value=value) == 0
    loaded(upload(client, f"{value}\nsix\n", query={"on_error": "skip"}), 2, 1, 0, 0, 1)
    assert scalar(engine, "SELECT count(*) FROM composites WHERE number = :value", value=value) == 1


@pytest.mark.parametrize("content", ["", "# nothing\n", "colour,size\nred,3\n"])
def test_a_file_without_numbers_is_refused(client, content):
    answer = upload(client, content, "list.csv")
    assert (answer.status_code, answer.mimetype) == (422, "application/problem+json")


def test_a_body_that_is_no_form_is_refused(admin, client, refused):
    refused(admin("POST", UPLOAD, {"numbers": ["15"]}), 415, "unsupported_media_type")
    headers = {"X-Admin-Key": "the operator's key"}
    answer = client.post(
        f"/api/v1/admin{UPLOAD}", data={"file": "15"}, headers=headers, content_type="multipart/form-data"
    )
    assert "is no file" in refused(answer, 422, "malformed")["detail"]
    answer = client.post(
        f"/api/v1/admin{UPLOAD}", data={"x": "15"}, headers=headers, content_type="multipart/form-data"
    )
    assert "is missing" in refused(answer, 422, "malformed")["detail"]
    packed = client.post(f"/api/v1/admin{BULK}", data=b"x", headers=headers | {"Content-Encoding": "gzip"})
    assert "gzip" in refused(packed, 415, "unsupported_media_type")["detail"]
    large = client.post(f"/api/v1/admin{BULK}", data=b"1" * 1_100_000, headers=headers)
    refused(large, 413, "body_too_large")


def test_arrays_are_loaded(engine, admin):
    values = [number() for _ in range(3)]
    body = {"numbers": [values[0], f" {values[1]} "], "default_priority": 4, "project_name": "arrays"}
    loaded(admin("POST", BULK, body, default_priority=9), 2, 2, 0, 0, 0)
    loaded(admin("POST", BULK, [int(values[2]), values[0]], default_priority=9), 2, 1, 1, 0, 0)
    found = rows(engine, "SELECT number, priority FROM composites WHERE number = ANY(:values)", values=values)
    assert dict(map(tuple, found)) == {values[0]: 4, values[1]: 4, values[2]: 9}


def test_numbers_that_share_a_cofactor_are_named(admin):
    value, multiple = number(), random_prime(15)
    whole = str(int(value) * multiple)
    items = [{"number": whole, "factors": [str(multiple)]}, {"number": value}]
    report = loaded(admin("POST", STRUCTURED, {"composites": items}), 2, 2, 0, 0, 0)
    assert report["shared_composites"] == 1
    (shared,) = report["shared"]
    assert (shared["line"], shared["message"].partition(" of ")[0]) == (2, "known as the cofactor")
    assert loaded(admin("POST", BULK, [value, whole]), 2, 0, 2, 0, 0)["shared"] == []


def test_invalid_items_are_named_by_their_place(admin, refused):
    for item in (None, {"number": "15"}, [15], True, "six"):
        body = refused(admin("POST", BULK, {"numbers": [number(), item]}), 422, "invalid_numbers")
        assert [error["field"] for error in body["errors"]] == ["line 2"], item
    refused(admin("POST", BULK, {"numbers": "15"}), 422, "invalid")
    assert "is empty" in refused(admin("POST", BULK), 422, "malformed")["detail"]


def test_numbers_are_loaded_with_what_is_known_of_them(engine, admin, refused):
    value, factor = number(), random_prime(15)
    whole = str(int(value) * factor)
    item = {"number": whole, "factors": [str(factor)], "priority": 6, "prior_work": "t20"}
    loaded(admin("POST", STRUCTURED, {"composites": [item]}), 1, 1, 0, 0, 0)
    (row,) = rows(engine, "SELECT * FROM composites WHERE number = :value", value=whole)
    assert (row.current_composite, row.priority) == (value, 6)
    assert 19.9 < row.current_t_level < 20.1
    loaded(admin("POST", STRUCTURED, [item | {"priority": 8}]), 1, 0, 1, 1, 0)
    for wrong in (
        {},
        {"number": whole, "factors": ["7"]},
        {"number": whole, "priority": "high"},
        7.5,
    ):
        refused(admin("POST", STRUCTURED, [wrong]), 422, "invalid_numbers")

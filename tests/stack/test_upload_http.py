"""Lists of numbers over HTTP, as operators send them: files, arrays, what is refused of them, and who may."""

import gzip
import io
import zipfile

import pytest
from bodies import problem
from leasing import admin_key, request_work, unique_name
from traffic import prime, random_number

pytestmark = pytest.mark.stack

FIELDS = {
    "total_processed",
    "new_composites",
    "existing_composites",
    "updated_composites",
    "invalid_numbers",
    "errors",
    "shared_composites",
    "shared",
    "ignored_columns",
    "message",
}
PATHS = ("upload", "bulk", "bulk-structured")


@pytest.fixture(scope="module")
def key(stack):
    return admin_key(stack)


def upload(stack, key, content, name="numbers.txt", *, query=None, headers=None, **fields):
    data = content if isinstance(content, bytes) else content.encode()
    return stack.http.post(
        f"{stack.api}/admin/composites/upload",
        files={"file": (name, data)},
        data=fields,
        params=query,
        headers={"X-Admin-Key": key, **(headers or {})},
        timeout=60,
    )


def bulk(stack, key, body, path="bulk", **query):
    headers = {"X-Admin-Key": key}
    return stack.http.post(f"{stack.api}/admin/composites/{path}", json=body, params=query, headers=headers, timeout=60)


def loaded(answer, *counts):
    """The report, which counts so many in all, new, known, changed and bad ones."""
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert set(report) == FIELDS
    names = ("total_processed", "new_composites", "existing_composites", "updated_composites", "invalid_numbers")
    assert tuple(report[name] for name in names) == counts, report
    return report


def test_a_text_file_is_loaded_and_its_numbers_are_leased(stack, key):
    first, second, project = random_number().value, random_number().value, unique_name("project")
    text = f"# mine\r\n\r\n{first}\r\n{second}\r\n"
    loaded(upload(stack, key, text, default_priority="7", project_name=project), 2, 2, 0, 0, 0)
    loaded(upload(stack, key, text, default_priority="9", project_name=project), 2, 0, 2, 0, 0)
    (row,) = stack.rows("SELECT priority FROM composites WHERE number = :value", value=first)
    assert row.priority == 7
    assert request_work(stack, unique_name("client"), project=project)["composite"] in (first, second)
    stack.assert_sound()


def test_a_long_list_is_looked_at_in_another_process(stack, key):
    large = prime(60)
    report = loaded(upload(stack, key, "".join(f"{large}*{n}\n" for n in range(2, 2502))), 2500, 2500, 0, 0, 0)
    assert report["message"].startswith("2,500 numbers: 2,500 new")
    stack.assert_sound()


def test_a_table_brings_what_is_known_of_its_numbers(stack, key):
    small, value = prime(20), random_number().value
    whole = str(int(value) * small)
    table = f"colour,current_composite,number,priority,prior_work\nred,{value},{whole},3,t20\n"
    report = loaded(upload(stack, key, table, "../../etc/numbers.csv"), 1, 1, 0, 0, 0)
    assert report["ignored_columns"] == ["colour"]
    (row,) = stack.rows("SELECT * FROM composites WHERE number = :value", value=whole)
    assert (row.current_composite, row.priority) == (value, 3)
    assert 19.9 < row.current_t_level < 20.1
    # Its cofactor is a number of its own, which shares the work on it.
    report = loaded(bulk(stack, key, {"numbers": [value]}), 1, 1, 0, 0, 0)
    assert report["shared_composites"] == 1
    assert report["shared"][0]["message"].startswith("known as the cofactor of ")
    (row,) = stack.rows("SELECT * FROM composites WHERE number = :value", value=value)
    assert 19.9 < row.current_t_level < 20.1


def test_arrays_are_loaded(stack, key):
    values = [random_number().value for _ in range(3)]
    loaded(bulk(stack, key, {"numbers": values[:2], "default_priority": 4}), 2, 2, 0, 0, 0)
    loaded(bulk(stack, key, values, default_priority=5, project_name=unique_name("p")), 3, 1, 2, 2, 0)
    priorities = stack.rows("SELECT priority FROM composites WHERE number IN :v".replace(":v", str(tuple(values))))
    assert sorted(row.priority for row in priorities) == [4, 4, 5]
    item = {"number": values[0], "priority": 6, "is_prime": False, "has_snfs_form": True, "snfs_difficulty": 40}
    loaded(bulk(stack, key, {"composites": [item]}, "bulk-structured"), 1, 0, 1, 1, 0)
    loaded(bulk(stack, key, {"composites": [item]}, "bulk-structured"), 1, 0, 1, 0, 0)


@pytest.mark.parametrize("skipping", [False, True])
def test_bad_lines_are_named_and_nothing_is_stored_unless_they_are_skipped(stack, key, skipping):
    value, before = random_number().value, stack.counts()
    text = f"{value}\n=HYPERLINK(1)\n+1+1\n@A1\n"
    if skipping:
        report = loaded(upload(stack, key, text, query={"on_error": "skip"}), 4, 1, 0, 0, 3)
        assert [error["line"] for error in report["errors"]] == [2, 3, 4]
        return
    reply = problem(upload(stack, key, text), 422, "invalid_numbers")
    assert next((e["line"], e["number"], e["field"]) for e in reply["errors"]) == (2, "=HYPERLINK(1)", "line 2")
    assert reply["invalid_numbers"] == 3
    assert "line 2" in reply["detail"]
    reply = problem(bulk(stack, key, {"numbers": [value, 1.5, None, {}]}), 422, "invalid_numbers")
    assert [error["line"] for error in reply["errors"]] == [2, 3, 4]
    reply = problem(bulk(stack, key, {"composites": [{"number": value, "factors": ["7"]}, {}]}, "bulk-structured"),
                   422, "invalid_numbers")  # fmt: skip
    assert [error["reason"] for error in reply["errors"]] == ["factor_does_not_divide", "invalid"]
    assert stack.counts() == before
    report = loaded(bulk(stack, key, [value], dry_run="true"), 1, 1, 0, 0, 0)
    assert "nothing was stored" in report["message"]
    assert stack.counts() == before


def zipped():
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("numbers.txt", b"9" * 10**8)
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "refusal"),
    [
        (zipped(), "numbers.zip", ("is_compressed", "unpack")),
        (gzip.compress(b"15\n", mtime=0), "numbers.csv", ("is_compressed", "unpack")),
        ("15\n".encode("utf-16"), "numbers.txt", ("not_utf8", "UTF-8")),
        (b'["15"]', "numbers.json", ("is_json", "JSON")),
        (b"", "numbers.txt", ("empty", "no number")),
        (b"15\n", "numbers.csv", ("no_header", "header")),
        (bytes(range(256)) * 50, "photo.jpg", ("invalid_numbers", "line 1")),
        (b"9" * 10**6, "numbers.txt", ("invalid_numbers", "MAX_DIGITS")),
    ],
)
def test_what_is_no_list_is_refused_in_words(stack, key, content, name, refusal):
    before = stack.counts()
    reason, words = refusal
    assert words in problem(upload(stack, key, content, name), 422, reason)["detail"]
    assert stack.counts() == before


def test_what_cannot_be_taken_is_refused(stack, key):
    before, url = stack.counts(), f"{stack.api}/admin/composites/upload"
    headers = {"X-Admin-Key": key}
    problem(upload(stack, key, b"15\n" * 6_000_000), 413, "body_too_large")
    problem(upload(stack, key, "15\n", headers={"Content-Encoding": "gzip"}), 415, "unsupported_media_type")
    problem(stack.http.post(url, data=b"15\n", headers=headers, timeout=40), 415, "unsupported_media_type")
    only_fields = stack.http.post(url, files={"file": (None, "15")}, headers=headers, timeout=40)
    assert "as one" in problem(only_fields, 422, "malformed")["detail"]
    problem(upload(stack, key, "15\n", default_priority="high"), 422, "invalid")
    problem(upload(stack, key, "15\n", query={"on_error": "ignore"}), 422, "invalid")
    for body, reason in (({}, "invalid"), (7, "invalid"), ([], "empty"), ({"numbers": "15"}, "invalid")):
        problem(bulk(stack, key, body), 422, reason)
    assert stack.counts() == before


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", [None, "", "x" * 64])
def test_nobody_without_the_key(stack, path, wrong):
    before = stack.counts()
    headers = {} if wrong is None else {"X-Admin-Key": wrong}
    answer = stack.http.post(f"{stack.api}/admin/composites/{path}", json=["15"], headers=headers, timeout=40)
    problem(answer, *((401, "unauthorized") if wrong is None else (403, "forbidden")))
    assert stack.counts() == before

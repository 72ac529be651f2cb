"""Lists of numbers as files: what is read from them, the errors of bad lines, and files that are not lists."""

import gzip
import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.loading.list_formats import ListError, read_list

LONGEST = 1000


def read(content, name="numbers.txt", longest=LONGEST):
    data = content if isinstance(content, bytes) else content.encode()
    return list(read_list(io.BytesIO(data), name, longest).numbers)


def lines(content, **options):
    return [(one.line, one.number) for one in read(content, **options)]


def reasons(content, **options):
    return [(one.line, one.error and one.error.reason) for one in read(content, **options)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_has_comments_blank_lines_and_any_line_end(end):
    text = end.join(["# a comment", "", " 2^67-1 ", "  # another", "7#-1", "\t15"])
    assert lines(text) == [(3, "2^67-1"), (5, "7#-1"), (6, "15")]


def test_a_byte_order_mark_is_not_part_of_a_number():
    assert lines(b"\xef\xbb\xbf15\n21") == [(1, "15"), (2, "21")]
    assert lines(b"\xef\xbb\xbf# list\n15") == [(2, "15")]
    (one,) = read(b"\xef\xbb\xbfnumber,priority\r\n15,3\r\n")
    assert (one.line, one.number, one.fields) == (2, "15", {"priority": "3"})


def test_an_empty_list_has_no_numbers():
    assert read("") == read("# nothing\n\n") == read("number\n") == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_may_be_in_any_order_and_unknown_ones_are_reported(delimiter):
    header = delimiter.join(["Priority", "colour", "Number", "Current Composite"])
    row = delimiter.join(["5", "blue", "15", "3"])
    listing = read_list(io.BytesIO(f"{header}\n# note\n\n{row}\n{delimiter}{delimiter}21\n".encode()), "x", LONGEST)
    first, second = listing.numbers
    assert (first.line, first.number) == (4, "15")
    assert first.fields == {"priority": "5", "current_composite": "3"}
    assert (second.line, second.number, second.fields) == (5, "21", {})
    assert listing.ignored_columns == ["colour"]


def test_cells_are_text_and_nothing_else():
    (one,) = read('number,project\n"=1+1","@SUM(A1:A9), ""quoted"""\n')
    assert (one.number, one.fields) == ("=1+1", {"project": '@SUM(A1:A9), "quoted"'})


def test_a_bad_line_of_a_table_spoils_no_other_line():
    table = 'number,priority\n15,1,2\n"21\n33,3\n'
    assert reasons(table) == [(2, "malformed_line"), (3, "malformed_line"), (4, None)]


def test_lines_that_are_not_utf8_are_errors():
    assert reasons(b"15\n\xff\xfe\x00\n21") == [(1, None), (2, "not_utf8"), (3, None)]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_of_a_million_characters_is_an_error_and_the_next_one_is_read(end):
    assert reasons("15\n" + "9" * 10**6 + end + ("21" if end else "")) == [
        (1, None),
        (2, "line_too_long"),
        *([(3, None)] if end else []),
    ]
    # Exactly as long as may be.
    assert reasons("9" * LONGEST + end) == [(1, None)]


def zipped():
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("numbers.txt", b"9" * 10**7)
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "reason", "message"),
    [
        (zipped(), "numbers.zip", "is_compressed", "zip archive; unpack it"),
        (gzip.compress(b"9" * 10**7), "numbers.txt.gz", "is_compressed", "gzip; unpack it"),
        (b"BZh91AY", "numbers.bz2", "is_compressed", "bzip2"),
        ("15\n".encode("utf-16"), "numbers.txt", "not_utf8", "save it as UTF-8"),
        (b'["15"]', "numbers.json", "is_json", "bulk-structured"),
        (b'\n\n{"numbers": ["15"]}', "numbers.txt", "is_json", "JSON"),
        (b"15\n21\n", "numbers.csv", "no_header", "name the columns"),
        (b"number,priority,number\n15,1,15\n", "numbers.csv", "column_twice", "number twice"),
    ],
)
def test_a_file_that_is_not_a_list_is_refused_with_a_message(content, name, reason, message):
    with pytest.raises(ListError, match=message) as refused:
        read(content, name)
    assert refused.value.reason == reason


@given(st.binary(max_size=300), st.sampled_from(["x.txt", "x.csv", "../../etc/passwd", ""]))
def test_any_bytes_are_read_or_refused(content, name):
    refusal = None
    try:
        found = read(content, name, longest=50)
    except ListError as error:
        refusal = error
    if refusal is None:
        numbers = [one.line for one in found]
        assert numbers == sorted(set(numbers))
    else:
        assert str(refusal)


@given(
    st.lists(st.tuples(st.text("0123456789+-*^()#! ", min_size=1), st.integers())),
    st.permutations(["number", "priority", "whatever"]),
)
def test_reading_a_table_returns_the_written_cells(rows, order):
    written = [{"number": number.strip() or "1", "priority": str(priority)} for number, priority in rows]
    table = [",".join(order)] + [",".join(f'"{row.get(column, "")}"' for column in order) for row in written]
    found = read("\n".join(table), longest=10_000)
    kept = [row for row, line in zip(written, table[1:], strict=True) if not line.lstrip().startswith("#")]
    assert [(one.number, one.fields) for one in found] == [
        (row["number"], {"priority": row["priority"]}) for row in kept
    ]

"""What a deletion reports: every table by its noun, singular for one row."""

import pytest

from coordinator.administration.deletions import DEPENDENT_TABLES
from ingest.admin.admin_composites import DELETED_NOUNS, deleted_rows


def test_every_table_that_a_deletion_reports_has_a_noun():
    tables = {table.__tablename__ for table in DEPENDENT_TABLES}
    assert set(DELETED_NOUNS) == tables | {"composites", "jobs", "submissions_refused"}


@pytest.mark.parametrize("table", DELETED_NOUNS)
def test_one_row_is_singular_and_several_are_plural(table):
    singular, plural = DELETED_NOUNS[table]
    assert deleted_rows({table: 1}) == f"1 {singular}"
    assert deleted_rows({table: 1234}) == f"1,234 {plural}"
    assert deleted_rows({table: 0}) == ""

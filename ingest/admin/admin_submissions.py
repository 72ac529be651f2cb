"""Administration of rejected and failed results: list them, retry them, accept the true factors of a rejected one."""

from typing import Any

from flask import Response
from sqlalchemy import Row

from coordinator.administration import dead_letters
from ingest import openapi
from ingest.admin.blueprints import answer, make, request_actor
from ingest.plurals import counted
from ingest.view_context import engine, settings
from models.wire.administration import DeadLetters, RetryQuery, SubmissionRetried, SubmissionsQuery
from models.wire.common import SubmissionPath
from tasks.publishing import publish_jobs, publish_submissions

admin_submissions = make("admin_submissions", openapi.ADMIN_SUBMISSIONS)


@admin_submissions.get("/submissions", operation_id="admin_submissions", responses={200: DeadLetters})
def submissions(query: SubmissionsQuery) -> Response:
    """Return submissions by state: rejected ones with true factors first, then the newest first."""
    after = None
    if query.cursor:
        kind, _, submission_id = query.cursor.partition("-")
        after = (kind == "1", int(submission_id))
    states = (query.state,) if query.state else dead_letters.DEAD_STATES
    rows = dead_letters.list_dead_letters(engine(), states, limit=query.limit, after=after)
    following = f"{int(rows[-1].holds_factors)}-{rows[-1].id}" if len(rows) == query.limit else None
    return answer({"submissions": [submission_answer(row) for row in rows], "next": following})


def submission_answer(row: Row[Any]) -> dict[str, object]:
    """Return a submission as lists show it."""
    return {
        "submission_id": row.id,
        "client_id": row.client_id,
        "state": row.state,
        "reason": row.reason,
        "detail": row.detail,
        "true_factors": row.true_factors or [],
        "composite": row.composite or "",
        "composite_id": row.composite_id,
        "tries": row.tries,
        "created_at": row.created_at,
        "settled_at": row.settled_at,
    }


@admin_submissions.post(
    "/submissions/<int:submission_id>/retry",
    operation_id="admin_retry_submission",
    responses={
        200: SubmissionRetried,
        404: openapi.problem("`unknown_submission`"),
        409: openapi.problem("`not_dead`: it is neither rejected nor failed; `no_true_factors`; `unknown_composite`"),
    },
)
def retry(path: SubmissionPath, query: RetryQuery) -> Response:
    """Queue a rejected or failed submission again, or accept its true factors with `accept_factors`."""
    submission_id = path.submission_id
    if query.accept_factors:
        done = dead_letters.accept_factors(engine(), request_actor(), submission_id, settings().max_digits)
        publish_jobs(done.to_publish)
        message = f"{counted(len(done.accepted), 'factor')} accepted, {len(done.new)} of them new"
    else:
        done = dead_letters.retry(engine(), request_actor(), submission_id)
        publish_submissions([(submission_id, done.client_id, done.composite)])
        message = "The result is queued again"
    return answer(
        {
            "submission_id": submission_id,
            "state": done.state,
            "accepted_factors": done.accepted,
            "new_factors": done.new,
            "message": message,
        }
    )

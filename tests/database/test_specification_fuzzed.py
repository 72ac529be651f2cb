"""The specification against the application: requests generated from it, valid and invalid, and all that must hold.

schemathesis generates the same requests every time, in process, on a real database and without a worker: nothing waits.
"""

import re

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig
from sqlalchemy import make_url

from config.settings import Settings
from ingest.app import create_app
from models.engine import make_engine
from tasks import publishing
from tests.conftest import administer

EXAMPLES = 5
LENGTHS, LONGEST = ("maxLength", "maxItems"), 200
ADMIN_KEY = "the-admin-key-of-these-tests"

# What a valid request may be refused for all the same, because no JSON schema can say it: what a number is, that a
# factor divides it, what a file holds, that a cursor was given out before, ...
BEYOND_SCHEMAS = {
    *("malformed_number", "not_positive", "number_is_one", "number_too_large", "not_an_integer", "division_by_zero"),
    *("bad_cursor", "bad_residue", "invalid_numbers", "empty", "malformed", "composite_is_prime"),
    *("factor_does_not_divide", "unknown_attempt", "unsupported_media_type", "body_too_large"),
}
# ... and how two fields go together: the validators of whole models.
WHOLE = {"query", "body"}
# JSON Schema takes 295.0 for an integer; here integers are written as such.
WHOLE_FLOAT = re.compile(r"should be a valid integer; this is -?[0-9.]+(e[+]?[0-9]+)?")


@pytest.fixture(scope="module")
def api(postgres, make_database, tmp_path_factory):
    """The specification of an application with nobody behind it."""
    url = make_database()
    engine = make_engine(url, pool_size=4, pool_timeout=30)
    with pytest.MonkeyPatch.context() as patch:
        # What belongs to a whole process is left as other tests found it.
        patch.setattr("ingest.app.process_engine", lambda *_: engine)
        patch.setattr("ingest.app.configure_logging", lambda *_: None)
        patch.setattr(publishing, "use_short_timeouts", lambda: None)
        app = create_app(
            Settings(
                database_url=url,
                redis_url="redis://127.0.0.1:1/0",
                ecm_home=tmp_path_factory.mktemp("home"),
                default_wait=0,
                database_timeout=0,
                max_digits=1000,
                max_body=2**20,
                admin_api_key=ADMIN_KEY,
            )
        )
        document = without_large_bounds(app.test_client().get("/openapi.json").json)
        schema = schemathesis.openapi.from_dict(document, config=configuration())
        schema.app = app
        yield schema
    engine.dispose()
    administer(postgres.url, f"DROP DATABASE {make_url(url).database}")


def without_large_bounds(part):
    """The specification without bounds that take a megabyte to reach: tests of their own reach for them."""
    if isinstance(part, dict):
        small = {
            name: value
            for name, value in part.items()
            if name not in LENGTHS or not isinstance(value, int) or value <= LONGEST
        }
        return {name: without_large_bounds(value) for name, value in small.items()}
    return [without_large_bounds(value) for value in part] if isinstance(part, list) else part


def configuration():
    """All checks, and all kinds of requests but those that say nothing about the specification."""
    made = SchemathesisConfig()
    project = made.projects.default
    # Unknown parameters are ignored, as the specification's description says.
    project.generation.allow_extra_parameters = False
    # The tests send the key; the check `ignored_auth` sends requests without it, and with a wrong one.
    project.generation.with_security_parameters = False
    # A body that is too large is refused for that, whatever else is wrong with it.
    project.checks.negative_data_rejection.expected_statuses = [
        *project.checks.negative_data_rejection.expected_statuses,
        "413",
    ]
    return made


@pytest.fixture(autouse=True)
def _node_id(request):
    # schemathesis 4.32 names its subtests by an attribute that nodes of pytest 9.2 no longer have.
    request.node._nodeid = request.node.nodeid


specification = schemathesis.pytest.from_fixture("api")


@specification.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_every_operation_does_what_the_specification_says(case):
    headers = {"X-Admin-Key": ADMIN_KEY} if case.path.startswith("/api/v1/admin/") else {}
    answer = case.call(headers=headers)
    case.validate_response(answer, headers=headers, excluded_checks=inapplicable(case, answer))


def inapplicable(case, answer):
    """The checks that do not apply to this answer, each for the reason that is given."""
    load_all_checks()
    names = []
    if answer.status_code in (400, 413, 415, 422):
        said = answer.json()
        errors = said.get("errors", [])
        is_beyond = any(error["field"] in WHOLE or WHOLE_FLOAT.fullmatch(error["message"]) for error in errors)
        if said["reason"] in BEYOND_SCHEMAS or is_beyond:
            names.append("positive_data_acceptance")
    if case.path == "/api/v1/submit_results" and answer.status_code == 200:
        names.append("negative_data_rejection")  # an invalid item has a verdict of its own, and hurts no other
    if case.path == "/status" and answer.status_code == 503:
        names.append("not_a_server_error")  # there is no broker here, and that is what it must say
    return CHECKS.get_by_names(names)

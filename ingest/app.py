"""The Flask application: one per gunicorn process, created after the fork."""

import gc
import uuid
from time import perf_counter

import structlog
from flask import Flask, Response, g, request
from werkzeug.middleware.proxy_fix import ProxyFix

from config.logging import configure_logging
from config.settings import Settings
from config.settings import settings as process_settings
from coordinator.results.intake import Intake
from ingest import client_authentication, login, openapi, rate_limits, web_metrics
from ingest.admin.admin_composites import admin_composites
from ingest.admin.admin_leases import admin_leases
from ingest.admin.admin_loading import admin_loading
from ingest.admin.admin_pages import admin_pages
from ingest.admin.admin_records import admin_records
from ingest.admin.admin_residues import admin_residues
from ingest.admin.admin_submissions import admin_submissions
from ingest.composites_routes import composites
from ingest.factors_routes import factors
from ingest.guide import GUIDE, guide
from ingest.health_routes import operations
from ingest.leases_routes import leases
from ingest.outcome_waiting import OutcomeWaiter
from ingest.problems import answer_with_problems
from ingest.projects_clients_routes import directory
from ingest.public_pages import pages, respond
from ingest.residues_routes import residues
from ingest.results_routes import publish, results
from models.engine import process_engine
from models.wire.common import PRINTABLE
from tasks import heartbeats, publishing

# No statement of a request takes this long on a healthy database; on an unhealthy one threads must not be stuck.
STATEMENT_TIMEOUT_MS = 20_000


def create_app(settings: Settings | None = None) -> Flask:
    """Return the application, with its own engine, intake and outcome waiter."""
    settings = settings or process_settings()
    configure_logging(settings.log_format, settings.log_level)
    publishing.use_short_timeouts()
    app = openapi.make_app()
    app.config.update(
        SETTINGS=settings,
        ENGINE=process_engine(settings.database_url, settings.web_pool_size, STATEMENT_TIMEOUT_MS),
        BROKER=heartbeats.connect(settings.redis_url),
        MAX_CONTENT_LENGTH=settings.max_body,
        GUIDE=GUIDE,
        KEY_OWNERS=client_authentication.KeyOwners(),
        LIMITS=rate_limits.Counters(settings),
    )
    if settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.trusted_proxies, x_proto=0, x_host=0)  # type: ignore[method-assign]
    app.config["OUTCOMES"] = OutcomeWaiter(
        app.config["ENGINE"], settings.waiters, lambda: heartbeats.connect(settings.redis_url)
    )
    app.config["INTAKE"] = Intake(app.config["ENGINE"], publish)
    app.register_api(results)
    app.register_api(composites)
    app.register_api(factors)
    app.register_api(directory)
    app.register_api(leases)
    app.register_api(residues)
    app.register_api(admin_leases)
    app.register_api(admin_loading)
    app.register_api(admin_composites)
    app.register_api(admin_records)
    app.register_api(admin_submissions)
    app.register_api(admin_residues)
    app.register_api(operations)
    app.register_blueprint(pages)
    app.register_blueprint(admin_pages)
    app.register_blueprint(guide)
    login.use_cookies(app, settings.admin_api_key.get_secret_value())
    openapi.serve(app)
    answer_with_problems(app, respond)
    app.before_request(_begin)
    app.before_request(rate_limits.limit_request)
    app.before_request(client_authentication.authenticate_client)
    app.before_request(rate_limits.limit_named)
    app.after_request(_end)
    app.after_request(rate_limits.set_limit_headers)
    return app


def freeze_loaded_objects() -> None:
    """Exclude the objects that exist now, modules and views, from garbage collection. Call it before the first request.

    A collection of these 150,000 objects takes 0.1 s, and a request waits meanwhile.
    """
    gc.collect()
    gc.freeze()


def _begin() -> None:
    g.began = perf_counter()
    given = request.headers.get("X-Request-ID", "")
    request_id = given if 0 < len(given) <= 100 and PRINTABLE.fullmatch(given) else uuid.uuid4().hex
    request.environ["ecm.request_id"] = request_id
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request=request_id)


def _end(response: Response) -> Response:
    response.headers["X-Request-ID"] = request.environ.get("ecm.request_id", "")
    if request.path.startswith(openapi.API) and not request.path.startswith(f"{openapi.API}/admin"):
        # Pages of any site may read; browsers send no credentials, so that such a page learns no secrets.
        response.headers["Access-Control-Allow-Origin"] = "*"
    endpoint = request.endpoint or "none"
    web_metrics.REQUEST_SECONDS.labels(endpoint, str(response.status_code)).observe(perf_counter() - g.began)
    return response

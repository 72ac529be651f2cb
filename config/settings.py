"""The settings of every process, typed, from the environment.

The name of a setting in the environment is the name of its field in capitals (`DATABASE_URL`, `MAX_DIGITS`, ...).
Values that depend on one another are computed here: one web process has `web_threads` request threads, at most
`max_waiters` of them may wait for an outcome, and the database pool has room for the other threads.
"""

import os
from functools import lru_cache
from pathlib import Path

import platformdirs
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_home() -> Path:
    """Return the home as an absolute path: `$ECM_HOME`, else the platform's directory (`/var/lib/...` for root)."""
    if os.environ.get("ECM_HOME"):
        return Path(os.path.realpath(os.environ["ECM_HOME"]))
    if os.geteuid() == 0:
        return Path("/var/lib/ecm-coordinator")
    return Path(platformdirs.user_data_dir("ecm-coordinator"))


class Settings(BaseSettings):
    """The settings of one process. Times are in seconds unless the name has another unit; sizes are in bytes."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    # Servers
    database_url: str = Field("", description="PostgreSQL, e.g. postgresql://user:secret@host/ecm")
    redis_url: str = Field("", description="Redis or Valkey, e.g. redis://:secret@host:6379/0")
    ecm_home: Path = Field(default_factory=default_home, description="where embedded servers keep their data")
    admin_api_key: SecretStr = Field(SecretStr(""), description="the key for /api/v1/admin")

    # Web process
    host: str = Field("127.0.0.1", description="address the web process listens on")
    port: int = Field(8000, description="port the web process listens on")
    web_processes: int = Field(2, ge=1, le=64, description="gunicorn processes")
    web_threads: int = Field(48, ge=4, le=512, description="request threads in each web process")
    max_waiters: int = Field(40, ge=0, description="requests in one process that may wait for their outcome at a time")
    default_wait: float = Field(10.0, ge=0, le=20, description="how long a request waits for its outcome")
    database_timeout: float = Field(15.0, ge=0, le=60, description="how long a request waits for the database")
    max_body: int = Field(16 * 1024 * 1024, description="largest request body")

    # Input limits
    max_digits: int = Field(50_000, ge=50, le=1_000_000, description="largest number, in decimal digits")
    max_digits_unknown: int = Field(
        10_000, ge=50, le=1_000_000, description="largest number that a result may register, in decimal digits"
    )
    max_raw_output: int = Field(64 * 1024, ge=0, description="how much of a client's raw output is kept (its tail)")
    accept_unknown_composites: bool = Field(True, description="register numbers first seen in a result")
    implicit_key_window: float = Field(
        24 * 3600.0, ge=0, description="how long a payload without sigma and key is recognized as a retry"
    )

    # Access and rate limits
    require_client_keys: bool = Field(False, description="take results and lease work only with a client's key")
    rate_limit_per_client: str = Field(
        "60000/minute",
        pattern=r"^(off|[1-9][0-9]{0,8}/(second|minute|hour))$",
        description="limit for one client (N/second, N/minute, N/hour or off)",
    )
    rate_limit_per_address: str = Field(
        "120000/minute",
        pattern=r"^(off|[1-9][0-9]{0,8}/(second|minute|hour))$",
        description="limit for one address (same format)",
    )
    trusted_proxies: int = Field(0, ge=0, le=10, description="proxies in front whose X-Forwarded-For is trusted")

    # Workers
    worker_concurrency: int = Field(2, ge=1, le=256, description="worker processes")
    max_deliveries: int = Field(3, ge=1, le=100, description="delivery attempts before a submission or a job fails")
    task_time_limit: int = Field(60, ge=5, description="hard time limit for applying one result")
    analysis_time_limit: int = Field(1800, ge=5, description="hard time limit for one job (splits, primality)")
    arithmetic_seconds: float = Field(
        2.0, gt=0, le=30, description="arithmetic while one result is applied (processor time); the rest becomes jobs"
    )
    client_job_seconds: int = Field(
        30, ge=1, description="processor time of one split or primality test on a number that a result registered"
    )

    # Leases
    lease_target_minutes: float = Field(
        60, gt=0, le=30 * 24 * 60, description="time that one shared lease should take a client"
    )
    max_active_per_composite: int = Field(64, ge=1, le=10_000, description="leases of ECM on one number at a time")
    max_work_per_client: int = Field(500, ge=1, description="open leases of one client at a time")
    hold_after: int = Field(3, ge=1, description="a number is set aside after so many clients in a row give it up")

    # Residues
    residue_storage_url: str = Field(
        "", description="where residue files are stored: any fsspec URL (default: in the home)"
    )
    max_residue: int = Field(50 * 1024 * 1024, ge=1024, description="largest residue file")
    residue_expiry_days: float = Field(90, gt=0, le=3650, description="how long a residue waits for its stage 2")

    # Housekeeping
    republish_after: float = Field(15.0, ge=1, description="a submission or job that waited this long is republished")
    housekeeping_every: float = Field(10.0, ge=0.5, description="how often beat starts housekeeping")
    retain_raw_output_days: float | None = Field(
        None, ge=0, description="delete raw output of this age (default: keep)"
    )
    retain_jobs_days: float | None = Field(30, ge=0, description="delete finished jobs of this age")

    # Operators
    flower_port: int = Field(5555, description="port Flower listens on")
    flower_basic_auth: SecretStr = Field(SecretStr(""), description="user:password for Flower")
    log_format: str = Field("console", pattern="^(console|json)$", description="console or json")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @field_validator("ecm_home")
    @classmethod
    def _make_absolute(cls, home: Path) -> Path:
        return Path(os.path.realpath(home))

    @property
    def waiters(self) -> int:
        """Return how many requests of one web process may wait at once. The other threads always receive results."""
        return min(self.max_waiters, self.web_threads - max(2, self.web_threads // 6))

    @property
    def web_pool_size(self) -> int:
        """Return how many connections one web process may open: 8 at most for free threads, and 1 for the poller."""
        return max(2, min(8, self.web_threads - self.waiters)) + 1

    @property
    def connections(self) -> int:
        """Return how many database connections all processes may open, with room for operators and migrations."""
        # One for each child and for the analysis worker, and a second one for each while a job runs.
        workers = 2 * (self.worker_concurrency + 1)
        return self.web_processes * self.web_pool_size + workers + 20


@lru_cache
def settings() -> Settings:
    """Return the settings of this process, which are read once."""
    return Settings()

"""Typed settings, from the environment, `.env` and files of secrets. Every field's upper-case name is its variable."""

import os
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, cast

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from dhan_pipeline.sources import CAPTURES, Source, capture_number

#: Where a container's secrets are: a file each, named like the setting.
_SECRETS_DIR = Path(os.environ.get("SECRETS_DIR", "/run/secrets"))

#: In DATA_DIR: the lock that `dhan-pipeline up` or a demo holds while it runs.
UP_LOCK = "up.lock"

#: The limits at which checks fail, and whether it is by falling below them.
_LIMITS = {
    "parser_error_rate_error": False,
    "latency_p99_ms_error": False,
    "gap_s_error": False,
    "queue_depth_error": False,
    "tick_rate_error": True,
    "insert_rate_error": True,
    "memory_mb_error": False,
    "cpu_percent_error": False,
    "completeness_error": True,
    "candles_agree_error": True,
    "shadow_agree_error": True,
}


class Settings(BaseSettings):
    """What a person may set. Defaults run everything on this machine."""

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
        secrets_dir=_SECRETS_DIR if _SECRETS_DIR.is_dir() else None,  # one that does not exist would be warned of
    )

    data_source: Literal["kite", "dhan", "kite,dhan", "dhan,kite"] = "kite"
    """The broker whose feed is captured: `kite` or `dhan`; or both, `kite,dhan`."""

    data_dir: Path = Path("data")
    """Journal, embedded database, downloads. Relative to the working directory unless absolute."""

    database_url: str | None = None
    """`postgresql://…`. Unset: the embedded PostgreSQL below `data_dir`."""

    postgres_bin_dir: Path | None = None
    """Where `postgres` and `initdb` are, for the embedded server. Unset: the wheel's, then the system's."""

    dhan_feed_url: str = "wss://api-feed.dhan.co"
    dhan_scrip_master_url: str = "https://images.dhan.co/api-data/api-scrip-master-detailed.csv"
    dhan_token_file: Path = Path("/app/data/dhan_token.json")
    """JSON with `access_token` and `client_id`; read again at every connection."""
    dhan_client_id: str | None = None
    dhan_access_token: SecretStr | None = None
    """Used when the token file does not exist."""

    dhan_pin: SecretStr | None = None
    """The account's PIN. With it and `dhan_totp_secret`, tokens are made here, before the old one's time is over."""
    dhan_totp_secret: SecretStr | None = None
    """The secret that an authenticator was set up with, base32."""
    dhan_api_url: str = "https://api.dhan.co"
    dhan_auth_url: str = "https://auth.dhan.co"
    dhan_trade_time_offset_s: int = Field(default=19_800, ge=-86_400, le=86_400)
    """Seconds that the feed's trade times are ahead of UTC. The feed writes India's wall clock as if it were UTC."""

    kite_feed_url: str = "wss://ws.kite.trade"
    kite_api_url: str = "https://api.kite.trade"
    kite_token_file: Path = Path("/app/data/kite_token.json")
    """JSON with `api_key` and `access_token`; read again at every connection."""
    kite_api_key: str | None = None
    kite_access_token: SecretStr | None = None
    """Used when the token file does not exist."""
    kite_api_secret: SecretStr | None = None
    """With it and a login's request token, `dhan-pipeline token generate` makes the day's access token."""

    feed_silence_s: float = Field(default=90.0, ge=1, le=86_400)
    """In session, a connection through which no packet came for so many seconds is replaced, and the time is a gap."""

    subscriptions_file: Path = Path("subscriptions.yaml")
    """Rules that say which instruments to capture."""

    capture: int = Field(default=0, ge=0, le=CAPTURES - 1)
    """Number of this capture (shard) of its source. It is part of every tick_id."""

    flush_interval_ms: int = Field(default=8, ge=1, le=1000)
    """How long packets are gathered into a journal block; up to five times as long while the database is behind."""

    transport: Literal["direct", "rabbitmq"] = "direct"
    """How journal blocks get to the database: written by the capture itself, or through RabbitMQ by workers."""

    rabbitmq_url: SecretStr | None = None
    """`amqp://user:password@host:5672/vhost`, or `amqps://…` for TLS. For `transport` rabbitmq and the workers."""

    metrics_port: int | None = Field(default=None, ge=0, le=65_534)
    """Where the capture or a worker shows its metrics to Prometheus; 0: any free port. Unset: nowhere. Of two brokers,
    Kite's are on the next one."""
    metrics_host: str = "127.0.0.1"
    """Address that the metrics are shown on."""

    sessions: Literal["exchange", "always"] = "exchange"
    """`always` treats every minute as in session: for the simulator, which never closes."""

    sessions_file: Path = Path("sessions.csv")
    """Days on which exchanges trade otherwise than our own table says; need not exist. Read again when it changes."""

    code_url: str | None = Field(default=None, pattern=r"^https://[^/]*(github|gitlab)[^/]*/\S+/tree/[^/\s]+$")
    """Where the code is on the web: assets in Dagster link there. Unset: to the files on this machine."""

    partitions_start: date | None = None
    """First day of the hourly partitions (IST). Unset: 30 days ago."""

    retention_days: int = Field(default=7, ge=1, le=36_500)
    """Days of ticks that the native partitions keep. The journal is not touched."""

    archive: Literal["daily", "off"] = "daily"
    """`daily` writes each day of ticks to a Parquet file, and drops no day from the database that is not in one."""

    parser_error_rate_warn: float = Field(default=0.01, ge=0, le=1)
    parser_error_rate_error: float = Field(default=0.05, ge=0, le=1)
    latency_p99_ms_warn: float = Field(default=1000.0, ge=0)
    latency_p99_ms_error: float = Field(default=2000.0, ge=0)
    gap_s_warn: float = Field(default=5.0, ge=0)
    gap_s_error: float = Field(default=60.0, ge=0)
    queue_depth_warn: int = Field(default=5000, ge=0)
    queue_depth_error: int = Field(default=10_000, ge=0)
    """Messages that wait in RabbitMQ for workers."""
    tick_rate_warn: float = Field(default=10_000.0, ge=0)
    tick_rate_error: float = Field(default=5_000.0, ge=0)
    """Ticks a minute, in session, of `rate_instruments` instruments."""
    insert_rate_warn: float = Field(default=500.0, ge=0)
    insert_rate_error: float = Field(default=100.0, ge=0)
    """Ticks a second that the database takes while some wait for it, of `rate_instruments` instruments."""
    rate_instruments: int = Field(default=1000, ge=1)
    """So many instruments in session are what both rates are for. Of fewer or more, fewer or more ticks are due."""
    memory_mb_warn: float = Field(default=400.0, ge=0)
    memory_mb_error: float = Field(default=600.0, ge=0)
    """Resident memory of the capture's process, in megabytes."""
    cpu_percent_warn: float = Field(default=30.0, ge=0)
    cpu_percent_error: float = Field(default=50.0, ge=0)
    """Processor time of the capture's process over a minute, in percent of one core."""
    completeness_warn: float = Field(default=0.99, ge=0, le=1)
    completeness_error: float = Field(default=0.95, ge=0, le=1)
    """Share of the instruments that something was due of in an hour, and came."""
    candles_agree_warn: float = Field(default=0.99, ge=0, le=1)
    candles_agree_error: float = Field(default=0.95, ge=0, le=1)
    """Share of a day's bars of a minute that agree with the broker's."""
    candle_price_ticks: float = Field(default=0.5, ge=0)
    """Prices of a bar differ when they are further apart than so many tick sizes of the instrument."""
    candle_volume_share: float = Field(default=0.01, ge=0, le=1)
    """Volumes differ when they are further apart than this share of the broker's."""
    shadow_agree_warn: float = Field(default=0.99, ge=0, le=1)
    shadow_agree_error: float = Field(default=0.95, ge=0, le=1)
    """Share of an hour's seconds in which both brokers say the same of an instrument."""

    alert_slack_webhook_url: SecretStr | None = None
    """Alerts go to whichever channels are set. An incoming webhook of Slack, or of what speaks its language."""
    alert_smtp_url: SecretStr | None = None
    """`smtp://user:password@host:587` (STARTTLS where it is offered) or `smtps://…:465`; with `alert_email_to`."""
    alert_email_to: str | None = None
    """Addresses, with commas between."""
    alert_email_from: str | None = None
    """Unset: the user in `alert_smtp_url`, where that is an address."""
    alert_webhook_url: SecretStr | None = None
    """Is sent JSON, by POST."""
    alert_telegram_token: SecretStr | None = None
    """A bot's; with `alert_telegram_chat`."""
    alert_telegram_chat: str | None = None
    alert_telegram_api_url: str = "https://api.telegram.org"
    alerts_file: Path = Path("alerts.yaml")
    """Rules that say what is muted, and whom an owner's alerts go to. It may be absent."""
    dagster_url: str | None = None
    """Where a person opens Dagster's UI, for the links in alerts."""

    @field_validator(*_LIMITS)
    @classmethod
    def _after_its_warning(cls, error: float, info: ValidationInfo) -> float:
        """What fails a check warns before."""
        warning = f"{(info.field_name or '').removesuffix('_error')}_warn"
        warn = info.data.get(warning, error)
        falls = _LIMITS[info.field_name or ""]
        if error > warn if falls else error < warn:
            side = "at or below" if falls else "at or above"
            raise PydanticCustomError("limits", f"Input should be {side} {warning.upper()}")
        return error

    @property
    def sources(self) -> tuple[Source, ...]:
        """The brokers whose feeds are captured, in the order in which they are named."""
        return cast(tuple[Source, ...], tuple(self.data_source.split(",")))

    @property
    def source(self) -> Source:
        """The only broker. Raises ValueError where there are several: see `of`."""
        (source,) = self.sources
        return source

    def of(self, source: Source) -> Self:
        """These settings with one of the brokers only. Of several, each has a metrics port of its own."""
        port = (
            self.metrics_port and self.metrics_port + sorted(self.sources).index(source)
            if source in self.sources
            else None
        )
        # A source that is the only one anyway counts as set where it was before.
        chosen = {"data_source": source} if source != self.data_source else {}
        return self.model_copy(update={"metrics_port": port, **chosen})

    @property
    def capture_number(self) -> int:
        """The number of this capture among those of all sources."""
        return capture_number(self.source, self.capture)

    @property
    def trade_time_offset_s(self) -> int:
        """Seconds that the feed's trade times are ahead of UTC."""
        return self.dhan_trade_time_offset_s if self.source == "dhan" else 0

    @cached_property
    def journal_dir(self) -> Path:
        """Where the hourly journal files are."""
        return self.data_dir / "journal"

    @property
    def holidays_path(self) -> Path:
        """Holidays of years that our own table lacks."""
        return self.data_dir / "holidays.csv"

    @property
    def subscriptions_path(self) -> Path:
        """The source's resolved subscriptions, which the capture reads."""
        return self.data_dir / f"subscriptions_{self.source}.csv"

    @property
    def chains_path(self) -> Path:
        """The option chains of them that follow the price of their underlying."""
        return self.data_dir / f"chains_{self.source}.csv"

    @property
    def master_path(self) -> Path:
        """The source's list of all instruments, as it was downloaded."""
        return self.data_dir / ("scrip_master.csv" if self.source == "dhan" else "kite_instruments.csv")

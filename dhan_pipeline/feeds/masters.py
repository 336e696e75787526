"""The list of all instruments of the settings' source: where it is downloaded from, and what reads it."""

from pathlib import Path

from dhan_pipeline.feeds.dhan import scrip_master
from dhan_pipeline.feeds.errors import CredentialsError
from dhan_pipeline.feeds.kite import instruments_dump
from dhan_pipeline.feeds.kite.auth import check_kite_token_validity, get_kite_credentials
from dhan_pipeline.feeds.master_csv import InstrumentMaster, Progress
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source


def download_master(settings: Settings, progress: Progress | None = None) -> Path:
    """Download the list to `settings.master_path`, which is replaced only by a complete one, and return that.

    `progress` is told the bytes received so far and the total, where the server says it. Raises InstrumentMasterError.
    """
    if settings.source == "dhan":
        url = settings.dhan_scrip_master_url
        return scrip_master.download_instruments_csv(url, settings.master_path, progress)
    url = f"{settings.kite_api_url.rstrip('/')}/instruments"
    return instruments_dump.download_instruments_csv(
        url, settings.master_path, progress, headers=_authorization(settings)
    )


def parse_master(source: Source, path: Path) -> InstrumentMaster:
    """Read a source's list. Raises InstrumentMasterError."""
    return scrip_master.parse_dhan_csv(path) if source == "dhan" else instruments_dump.parse_kite_csv(path)


def _authorization(settings: Settings) -> dict[str, str]:
    """What Kite knows us by, if that is good. It documents that it wants to know, but gives the list to anybody."""
    try:
        credentials = get_kite_credentials(settings)
    except CredentialsError:
        return {}
    if not check_kite_token_validity(credentials):
        return {}
    return {"Authorization": f"token {credentials.api_key}:{credentials.access_token.get_secret_value()}"}

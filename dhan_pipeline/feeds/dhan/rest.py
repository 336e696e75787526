"""Requests for data to Dhan's REST API: how they are signed, how often they may be made, what its errors mean.

https://dhanhq.co/docs/v2/#rate-limit and https://dhanhq.co/docs/v2/annexure/#trading-api-error. The pace, the patience
and the rest are all brokers' (`feeds/rest.py`).
"""

from typing import Any

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import get_dhan_credentials
from dhan_pipeline.feeds.errors import (
    BadRequestError,
    BusyError,
    NoDataError,
    NoDataPlanError,
    SourceError,
    TokenRejectedError,
    UnavailableError,
)
from dhan_pipeline.feeds.rest import Complaint, Rest, RestPolicy, Signed
from dhan_pipeline.settings import Settings

#: Five requests for bars a second are allowed, and one for quotes. A little more for what the way there adds.
LIMITS = RestPolicy(data_interval_s=0.21, quote_interval_s=1.05, requests_a_day=100_000)

#: https://dhanhq.co/docs/v2/annexure/#trading-api-error and #data-api-error. DH-906 is what a token that another one
#: ended was seen to get; DH-910 is "other".
_BY_CODE: dict[str, type[SourceError]] = {
    "DH-901": TokenRejectedError,
    "DH-902": NoDataPlanError,
    "DH-904": BusyError,
    "DH-905": BadRequestError,
    "DH-906": TokenRejectedError,
    "DH-907": NoDataError,
    "DH-908": UnavailableError,
    "DH-909": UnavailableError,
    "DH-910": UnavailableError,
    "800": UnavailableError,
    "804": BadRequestError,
    "805": BusyError,
    "806": NoDataPlanError,
    **dict.fromkeys(("807", "808", "809", "810"), TokenRejectedError),
    **dict.fromkeys(("811", "812", "813", "814"), BadRequestError),
}
_BY_STATUS: dict[int, type[SourceError]] = {401: TokenRejectedError, 403: TokenRejectedError, 429: BusyError}


class DhanRest(Rest):
    """Dhan's REST API."""

    broker = "Dhan"
    url_variable = "DHAN_API_URL"
    no_data_plan = "subscribe the account to Dhan's data APIs"
    by_code = _BY_CODE
    by_status = _BY_STATUS

    def __init__(self, settings: Settings, clock: Clock, policy: RestPolicy = LIMITS) -> None:
        super().__init__(settings.dhan_api_url, clock, policy)
        self._settings = settings

    def sign(self) -> Signed:
        """The token, and whose it is."""
        credentials = get_dhan_credentials(self._settings)
        token = credentials.access_token.get_secret_value()
        return Signed({"access-token": token, "client-id": credentials.client_id}, token, credentials.source)

    def complaint(self, said: dict[str, Any]) -> Complaint | None:
        """In either of two forms: `{"errorCode": "DH-905", …}` and `{"data": {"805": "…"}, "status": "failed"}`."""
        if said.get("errorCode") or said.get("errorType"):
            return Complaint(str(said.get("errorCode") or ""), str(said.get("errorMessage") or ""))
        if str(said.get("status", "")).lower() in ("failed", "failure", "error"):
            data = said.get("data")
            code, message = next(iter(data.items()), ("", "")) if isinstance(data, dict) else ("", data or "")
            return Complaint(str(code), str(message))
        return None

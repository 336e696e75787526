"""Requests for data to Kite's REST API: how they are signed, how often they may be made, what its errors mean.

https://kite.trade/docs/connect/v3/exceptions/. The pace, the patience and the rest are all brokers' (`feeds/rest.py`).
"""

from typing import Any

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.errors import BadRequestError, BusyError, NoDataPlanError, SourceError, TokenRejectedError
from dhan_pipeline.feeds.kite.auth import get_kite_credentials
from dhan_pipeline.feeds.rest import Complaint, Rest, RestPolicy, Signed
from dhan_pipeline.settings import Settings

#: Three requests for bars a second are allowed, and one for quotes. A little more for what the way there adds.
LIMITS = RestPolicy(data_interval_s=0.35, quote_interval_s=1.05)

#: What others there are (NetworkException, DataException, GeneralException), the status tells better.
_BY_CODE: dict[str, type[SourceError]] = {
    "TokenException": TokenRejectedError,
    "PermissionException": NoDataPlanError,
    "InputException": BadRequestError,
}
_BY_STATUS: dict[int, type[SourceError]] = {403: TokenRejectedError, 429: BusyError}


class KiteRest(Rest):
    """Kite's REST API."""

    broker = "Kite"
    url_variable = "KITE_API_URL"
    no_data_plan = "give the Kite Connect app a plan with market data"
    by_code = _BY_CODE
    by_status = _BY_STATUS

    def __init__(self, settings: Settings, clock: Clock, policy: RestPolicy = LIMITS) -> None:
        super().__init__(settings.kite_api_url, clock, policy)
        self._settings = settings

    def sign(self) -> Signed:
        """The key of the app, and the token."""
        credentials = get_kite_credentials(self._settings)
        token = credentials.access_token.get_secret_value()
        headers = {"X-Kite-Version": "3", "Authorization": f"token {credentials.api_key}:{token}"}
        return Signed(headers, token, credentials.source)

    def complaint(self, said: dict[str, Any]) -> Complaint | None:
        """As in `{"status": "error", "error_type": "InputException", "message": "…"}`."""
        if said.get("status") == "error" or said.get("error_type"):
            return Complaint(str(said.get("error_type") or ""), str(said.get("message") or ""))
        return None

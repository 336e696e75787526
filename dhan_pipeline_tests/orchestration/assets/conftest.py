"""Both brokers' lists of three instruments, served, and rules for two of them."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dhan_pipeline_tests.orchestration.conftest import Pipeline

MASTER = """\
SEM_EXM_EXCH_ID,SEM_SEGMENT,SEM_SMST_SECURITY_ID,SEM_INSTRUMENT_NAME,SEM_EXPIRY_CODE,SEM_TRADING_SYMBOL,SEM_LOT_UNITS,\
SEM_CUSTOM_SYMBOL,SEM_EXPIRY_DATE,SEM_STRIKE_PRICE,SEM_OPTION_TYPE,SEM_TICK_SIZE,SEM_EXPIRY_FLAG,SEM_EXCH_INSTRUMENT_TYPE,\
SEM_SERIES,SM_SYMBOL_NAME
NSE,E,2885,EQUITY,0,RELIANCE,1.0,Reliance Industries,,,XX,10.0000,NA,ES,EQ,RELIANCE INDUSTRIES LTD
NSE,E,11536,EQUITY,0,TCS,1.0,Tata Consultancy,,,XX,5.0000,NA,ES,EQ,TATA CONSULTANCY SERV LT
NSE,I,13,INDEX,0,NIFTY,1.0,Nifty 50,,,XX,5.0000,NA,INDEX,X,NIFTY
"""
DUMP = """\
instrument_token,exchange_token,tradingsymbol,name,last_price,expiry,strike,tick_size,lot_size,instrument_type,segment,exchange
738561,2885,RELIANCE,RELIANCE INDUSTRIES,0,,0,0.1,1,EQ,NSE,NSE
645639,SILVER15DECFUT,,7800.0,2015-12-31,,1,1,FUT,MCX,MCX
256265,1001,NIFTY 50,NIFTY 50,0,,0,0,0,EQ,INDICES,NSE
"""


class Master(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = (DUMP if self.path == "/instruments" else MASTER).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def master_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Master) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/master.csv"
        server.shutdown()
        thread.join()


@pytest.fixture
def pipeline(pipeline: Pipeline, master_url: str, tmp_path: Path) -> Pipeline:
    rules = tmp_path / "subscriptions.yaml"
    rules.write_text("rules:\n  - indices: [NIFTY]\n  - symbols: [RELIANCE, NOBODY]\n")
    served = {
        "dhan_scrip_master_url": master_url,
        "kite_api_url": master_url.removesuffix("/master.csv"),
        "kite_token_file": tmp_path / "none.json",
        "subscriptions_file": rules,
    }
    return Pipeline(pipeline.settings.model_copy(update=served), pipeline.instance)

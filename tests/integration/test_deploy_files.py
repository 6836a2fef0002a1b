"""What the files of deploy/ say is true: of each other, of the relay, of systemd, Compose, haproxy and Redis."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from ipaddress import ip_address, ip_network

import click
import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.cli.commands import COMMANDS
from relay.cli.commands import relay as relay_command
from relay.cli.embedded import find_binary, free_port
from relay.settings import load
from relay.values import parse_duration
from tests.conftest import ROOT
from tests.integration.peers import Peer, ask, head, wait_for
from tests.integration.test_wheel import SOURCES
from tests.integration.topology import COMPOSE, DEPLOY, PASSWORD, PORTS, RELAYS, environment, interpolated

UNITS = sorted(path.name for path in DEPLOY.iterdir() if path.suffix in (".service", ".socket"))
LAST_WORDS = 2.0  # seconds after a drain (relay/server.py)


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, **options)


def understood(arguments, group=relay_command):
    """Has `relay` read its arguments; a usage error where it would be one."""
    name, *rest = arguments
    command = group.get_command(click.Context(group), name)
    return understood(rest, command) if isinstance(command, click.Group) else command.make_context(name, rest).params


def test_what_operators_are_told_to_run_is_there():
    page = (ROOT / "docs" / "operations.md").read_text()
    commands = re.findall(r"(?<![./-])(?:/opt/relay/bin/)?relay ([a-z]+ [^`|&#\n\\]*)", page)
    told = [shlex.split(command) for command in commands if command.split()[0] in COMMANDS]
    assert len(told) >= 10
    for arguments in told:
        understood(arguments)
    assert [path.name for path in DEPLOY.iterdir() if path.name not in page] == []


# ---- systemd ----


def directives(name):
    """Of a unit, as (name, value), in their order."""
    lines = (DEPLOY / name).read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if re.match(r"[A-Z]\w+=", line)]


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """The units as on a host that has everything: `verify` looks whether each program can be run."""
    directory = tmp_path_factory.mktemp("units")
    for name in UNITS:
        text = (DEPLOY / name).read_text()
        for program in ("/opt/relay/bin/relay", "/usr/bin/docker"):
            text = text.replace(program, "/bin/true")
        (directory / name).write_text(text)
    (directory / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    return directory


@pytest.mark.needs("systemd-analyze")
def test_systemd_has_nothing_to_say(units):
    done = run("systemd-analyze", "verify", "--man=no", *(str(units / name) for name in UNITS))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("service", PORTS)
def test_a_native_unit_exposes_little(units, service):
    done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", f"{units}/relay-{service}.service")
    assert done.returncode == 0, done.stdout
    assert float(re.search(r"Overall exposure level .*: ([0-9.]+)", done.stdout)[1]) <= 2.0


@pytest.mark.parametrize("name", [name for name in UNITS if "status" in name])
def test_both_services_have_the_same_units(name):
    theirs = (DEPLOY / name.replace("status", "preflight")).read_text()
    assert (DEPLOY / name).read_text().replace("status", "preflight").replace("9002", "9001") == theirs


@pytest.mark.parametrize("service", PORTS)
def test_a_native_unit_says_what_the_relay_knows(service):
    said = directives(f"relay-{service}.service")
    unit, variables = dict(said), dict(value.split("=", 1) for name, value in said if name == "Environment")
    program, *arguments = shlex.split(unit["ExecStart"])
    assert program == "/opt/relay/bin/relay"
    assert understood(arguments)["service"] == service
    settings = load((service,), env=variables)
    assert settings.warnings == ()
    assert settings.internal_addr.path.startswith(f"/run/{unit['RuntimeDirectory']}/")
    assert float(unit["TimeoutStopSec"]) > settings.drain + settings.drain_delay + LAST_WORDS
    assert (unit["Type"], unit["RestartPreventExitStatus"]) == ("notify", "3")
    socket = dict(directives(f"relay-{service}.socket"))
    assert (socket["FileDescriptorName"], socket["ListenStream"]) == (service, str(PORTS[service]))


@pytest.mark.parametrize("service", PORTS)
def test_a_docker_unit_starts_what_is_in_the_compose_file(service):
    mine = [name for name in RELAYS if name.startswith(service)]
    said = directives(f"w2-{service}-docker.service")
    named = {name: [] for name in ("ExecStart", "ExecReload", "ExecStop")}
    for name, value in said:
        if name in named:
            named[name] += [word for word in value.split() if word in COMPOSE["services"]]
    assert named == {"ExecStart": [*mine, "haproxy"], "ExecReload": mine, "ExecStop": mine}


def system_calls(names):
    """The system calls of SystemCallFilter's words, sets unfolded."""
    sets, name = {}, None
    for line in run("systemd-analyze", "syscall-filter").stdout.splitlines():
        word = line.strip()
        if line.startswith("@"):
            name = word
            sets[name] = set()
        elif word and not word.startswith("#"):
            sets[name].add(word)

    def unfolded(word):
        return set().union(*(unfolded(each) for each in sets[word])) if word in sets else {word}

    return set().union(*(unfolded(word) for word in names))


@pytest.mark.needs("systemd-analyze", "strace", "ptrace", "root")
def test_a_native_unit_forbids_nothing_that_the_relay_does(redis_url, tmp_path):
    """From the start to the end of a drain, with a websocket; under strace each call is seen."""
    log, address = tmp_path / "strace", f"127.0.0.1:{free_port()}"
    own = {"REDIS_URL": redis_url, "STATUS_LISTEN_ADDR": address, "RELAY_INTERNAL_ADDR": f"unix:{tmp_path}/socket"}
    command = ["strace", "-D", "-f", "-o", str(log), sys.executable, "-m", "relay", "serve", "status"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stderr=subprocess.DEVNULL)

    def ready():
        with contextlib.suppress(OSError, AssertionError):
            return ask(f"http://{address}", head("/readyz")).status == 200

    try:
        wait_for(ready, "ready")
        with Peer(f"ws://{address}/r1:wepp") as peer:
            assert peer.alive()
    finally:
        process.terminate()
        assert process.wait(20) == 0
    wait_for(
        lambda: re.search(rf"^{process.pid} +\+\+\+ exited with 0", log.read_text(), re.MULTILINE), "all is written"
    )
    calls = re.findall(r"^\d+ +(\w+)\((.*)", log.read_text(), re.MULTILINE)
    assert {"accept4", "epoll_wait"} <= {name for name, _ in calls}
    allowed, forbidden = (value for name, value in directives("relay-status.service") if name == "SystemCallFilter")
    permitted = system_calls(["@default", *allowed.split()]) - system_calls(forbidden.removeprefix("~").split())
    assert {name for name, _ in calls} <= permitted
    assert not [rest for _, rest in calls if "PROT_WRITE|PROT_EXEC" in rest], "MemoryDenyWriteExecute=yes"


# ---- containers ----


def test_compose_takes_the_file():
    """By the schema of the Compose specification, of which check-jsonschema has a copy."""
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "docker-compose.yml")]
    done = run(sys.executable, *command)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", RELAYS)
def test_a_container_says_what_the_relay_knows(name, tmp_path):
    service = name.partition("-")[0]
    said, variables = COMPOSE["services"][name], environment(name)
    assert variables["REDIS_PASSWORD_FILE"] == "/run/secrets/redis_password"
    assert said["secrets"] == ["redis_password"]
    (tmp_path / "password").write_text(PASSWORD)
    settings = load((service,), env=variables | {"REDIS_PASSWORD_FILE": str(tmp_path / "password")})
    assert settings.warnings == ()
    (own,) = settings.services
    assert (own.redis.host, own.redis.password, own.listen.port) == ("redis", PASSWORD, PORTS[service])
    assert understood(said["command"])["service"] == service
    assert parse_duration(said["stop_grace_period"]) > settings.drain + settings.drain_delay + LAST_WORDS
    assert said["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert said["ulimits"]["nofile"] >= 65536
    assert said["mem_limit"] == "1g"
    assert settings.max_live + settings.max_inbound < 1 << 29
    check = said.get("healthcheck", {}).get("test", image_says("HEALTHCHECK"))
    assert check[:2] == ["CMD", "relay"]
    asked = understood(check[2:])
    assert (asked["url"], asked["ready"]) == (f"http://localhost:{PORTS[service]}", False)


def image_says(instruction):
    """The last words of that name in the Dockerfile; a list of JSON as a list."""
    (text,) = re.findall(rf"^{instruction} (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    command = re.fullmatch(r".*?(CMD )?(\[.*\])", text)
    return [*(command[1] or "").split(), *json.loads(command[2])] if command else text


def test_the_image():
    assert image_says("ENTRYPOINT") == ["relay"]
    assert understood(image_says("CMD"))["service"] is None
    assert image_says("USER") == "relay"
    assert image_says("STOPSIGNAL") == "SIGTERM"
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert sorted(copied) == sorted(SOURCES), "of these test_wheel makes one"
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert sorted(line[1:] for line in sent if line.startswith("!")) == sorted(SOURCES)


def test_what_is_mounted_is_there():
    mounted = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", [])]
    files = [volume.partition(":")[0] for volume in mounted if volume.startswith("./")]
    assert len(files) == 5
    assert [file for file in files if not (DEPLOY / file).is_file()] == []
    named = {config["source"] for service in COMPOSE["services"].values() for config in service.get("configs", [])}
    assert named == set(COMPOSE["configs"])


def test_prometheus_asks_each_relay():
    """By its name and not through haproxy, where each answer would be another one's."""
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    asked = [target for config in job["static_configs"] for target in config["targets"]]
    assert asked == [name + environment(name)["RELAY_METRICS_ADDR"] for name in RELAYS]


def test_details_are_for_who_is_on_the_machine():
    for name in RELAYS:
        assert environment(name)["RELAY_INTERNAL_ADDR"].startswith("unix:/")
    for service in PORTS:
        assert "Environment=RELAY_INTERNAL_ADDR=unix:/" in (DEPLOY / f"relay-{service}.service").read_text()


# ---- haproxy ----


def test_haproxy_and_compose_mean_the_same():
    text = (DEPLOY / "haproxy.cfg").read_text()
    own = COMPOSE["services"]["haproxy"]
    for service, port in PORTS.items():
        assert f'bind "${{HAPROXY_{service.upper()}-:{port}}}"' in text
        assert f"{port}:{port}" in [interpolated(published).partition(":")[2] for published in own["ports"]]
        for name in RELAYS:
            if name.startswith(service):
                line = f'server {name} "${{HAPROXY_{name.replace("-", "_").upper()}-{name}:{port}}}"\n'
                assert text.count(line) == 2, "ready, and alive"
    assert set(environment("haproxy")) <= set(re.findall(r"HAPROXY_\w+", text))
    assert set(own["depends_on"]) == set(RELAYS)
    address = own["networks"]["relay"]["ipv4_address"]
    assert address == environment("status-1")["RELAY_TRUSTED_PROXIES"]
    (pool,) = COMPOSE["networks"]["relay"]["ipam"]["config"]
    assert ip_address(address) in ip_network(pool["subnet"])
    assert ip_address(address) not in ip_network(pool["ip_range"]), "another container may have it by then"
    interval, fall = re.search(r"check inter (\w+) .* fall (\d) ", text).groups()
    delay = parse_duration(environment("status-1")["RELAY_DRAIN_DELAY"])
    assert delay > int(fall) * parse_duration(interval)


@pytest.mark.needs("haproxy")
def test_haproxy_has_nothing_to_say(tmp_path):
    names = {f"HAPROXY_{name.replace('-', '_').upper()}": "127.0.0.1:9" for name in RELAYS}
    own = names | {"HAPROXY_ADMIN": str(tmp_path / "admin.sock"), "HAPROXY_USER": "daemon"}
    done = run("haproxy", "-c", "-f", str(DEPLOY / "haproxy.cfg"), env=os.environ | own)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout


# ---- Redis ----


def test_redis_as_it_is_started_in_its_container(tmp_path):
    """The very command, on this machine's server: everybody may connect who has the password of the secret."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    shell, option, script = COMPOSE["services"]["redis"]["command"]
    port = free_port()
    for theirs, ours in (
        ("redis-server ", f"{find_binary()} "),
        ("/etc/redis/redis.conf", f"{DEPLOY / 'redis.conf'} --port {port}"),
        ("/run/secrets/redis_password", str(tmp_path / "password")),
    ):
        assert theirs in script
        script = script.replace(theirs, ours)
    once = Retry(NoBackoff(), 0)
    process = subprocess.Popen([shell, option, interpolated(script)], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        with (
            redis.Redis(port=port, password=PASSWORD, retry=once) as known,
            redis.Redis(port=port, retry=once) as unknown,
        ):

            def answers():
                with contextlib.suppress(redis.exceptions.ConnectionError):
                    return known.ping()

            wait_for(answers, "Redis is there")
            with pytest.raises(redis.exceptions.AuthenticationError):
                unknown.ping()
            found = known.config_get("notify-keyspace-events", "bind", "maxmemory", "save")
            assert set(found["notify-keyspace-events"]) == set("Kghx")
            assert (found["bind"], found["maxmemory"], found["save"]) == ("* -::*", str(1 << 30), "")
    finally:
        process.terminate()
        assert process.wait(20) == 0, "the shell has become Redis, and gets its signals"

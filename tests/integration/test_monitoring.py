"""What is made of the metrics' names: docs/metrics.md, and in deploy/ a dashboard, alerts, what Prometheus scrapes.

Each name and label in them exists in what a running relay says; Prometheus takes them; alerts fire when they should.
"""

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from relay.cli import embedded
from tests.conftest import Relay
from tests.integration.peers import wait_for

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
TARGETS += [{"legendFormat": each["textFormat"], **each} for each in DASHBOARD["annotations"]["list"]]
OF_PROMETHEUS = {"job", "instance"}  # the labels that each target gets
MADE = {"service"}  # by label_replace, in the rules


def filled(expr):
    """A query of the dashboard with its variables replaced, as Grafana does."""
    for variable, value in (("$__rate_interval", "1m"), ("$job", ".+"), ("$instance", ".+")):
        expr = expr.replace(variable, value)
    return expr


QUERIES = {filled(target["expr"]) for target in TARGETS} | {rule["expr"] for rule in RULES}


@pytest.fixture(scope="module")
def relay_port(_shared_redis, tmp_path_factory):
    """The port on which one relay tells its metrics, both of its services being well."""
    port = embedded.free_port()
    env = {"REDIS_URL": _shared_redis.url, "RELAY_METRICS_ADDR": f"127.0.0.1:{port}"}
    process = Relay([], env, tmp_path_factory.mktemp("relay"))
    try:
        process.wait("ready")
        wait_for(lambda: b"preflight2_redis_key_events 1" in metrics(port), "what Redis announces is known")
        yield port
    finally:
        process.end()


def metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def families(relay_port):
    return list(text_string_to_metric_families(metrics(relay_port).decode()))


@pytest.fixture(scope="module")
def series(families):
    """(name, labels) of everything that Prometheus has of a relay."""
    found = [(sample.name, sample.labels) for family in families for sample in family.samples]
    return [*found, ("up", {})]


# ---- the names ----


def documented(part):
    """{name: its labels} in the first cells of the tables of a part of docs/metrics.md; `*` is either service."""
    found = {}
    for cell in re.findall(r"^\| (`.+?) \|", part, re.MULTILINE):
        for name, labels in re.findall(r"`([a-z0-9_*]+)(?:\{([a-z,]+)\})?`", cell):
            for service in ("status2", "preflight2"):
                found[name.replace("*", service)] = set(labels.split(",")) - {""}
    return found


def test_each_metric_is_documented_with_its_labels_and_no_other_is(families):
    metrics, bounds = (ROOT / "docs" / "metrics.md").read_text().split("## Bounds")
    exposed = {}
    for family in families:
        for sample in family.samples:
            name = family.name if family.type == "histogram" else sample.name
            exposed.setdefault(name, set()).update(sample.labels.keys() - {"le"})
    of_bounds = {name for name in exposed if re.search(r"_(bound|bound_used|breaches_total)$", name)}
    assert documented(metrics) == {name: labels for name, labels in exposed.items() if name not in of_bounds}
    for name in of_bounds:
        assert "`" + re.sub("^(status|preflight)2", "*", name) in bounds
    named = {sample.labels["bound"] for family in families for sample in family.samples if "bound" in sample.labels}
    assert named == documented(bounds).keys() - {"bound"}


def nodes(node):
    """An expression and all that it is made of."""
    yield node
    parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
    for part in [*parts, *getattr(node, "args", ())]:
        if isinstance(part, promql_parser.Expr):
            yield from nodes(part)


def fits(matcher, value):
    """Whether one label matcher of a selector lets a value through."""
    op = promql_parser.MatchOp
    whole = matcher.op in (op.Re, op.NotRe)
    found = re.fullmatch(matcher.value if whole else re.escape(matcher.value), value) is not None
    return found == (matcher.op in (op.Re, op.Equal))


@pytest.mark.parametrize("query", sorted(QUERIES))
def test_the_names_and_labels_of_a_query_exist(series, query):
    known = OF_PROMETHEUS | MADE
    for node in nodes(promql_parser.parse(query)):
        if isinstance(node, promql_parser.VectorSelector):
            found = [(name, labels) for name, labels in series if node.name in (None, name)]
            for matcher in node.matchers.matchers:
                if matcher.name == "__name__":
                    found = [(name, labels) for name, labels in found if fits(matcher, name)]
                elif matcher.name not in OF_PROMETHEUS:
                    found = [(name, each) for name, each in found if fits(matcher, each.get(matcher.name, ""))]
                    assert all(matcher.name in labels for _, labels in found), f"{matcher.name} is no label there"
            assert found, f"nothing is selected by {node.prettify()}"
            known |= {label for _, labels in found for label in labels}
    for node in nodes(promql_parser.parse(query)):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            assert set(node.modifier.labels) <= known, node.prettify()


def test_a_name_that_does_not_exist_is_found(series):
    """The control: of a query that is right each part is made wrong."""
    right = 'sum by (code) (rate(status2_closes_total{code="1013"}[5m]))'
    test_the_names_and_labels_of_a_query_exist(series, right)
    for part, wrong in (("closes", "closed"), ('code="', 'kode="'), ("1013", "1099"), ("by (code)", "by (kode)")):
        with pytest.raises(AssertionError):
            test_the_names_and_labels_of_a_query_exist(series, right.replace(part, wrong))


def test_the_dashboard_asks_where_it_can_be_chosen_and_says_what_is_seen():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all('job=~"$job", instance=~"$instance"' in target["expr"] for target in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24


def test_each_rule_says_what_is_wrong_and_what_to_do():
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "runbook"}


# ---- Prometheus itself ----


def promtool(*args):
    done = subprocess.run(["promtool", *map(str, args)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs("promtool")
def test_prometheus_takes_the_rules_and_the_configuration():
    assert f"{len(RULES)} rules found" in promtool("check", "rules", DEPLOY / "alerts.yml")
    assert "is valid prometheus config file syntax" in promtool("check", "config", DEPLOY / "prometheus.yml")


def of(name, **labels):
    """A series of one relay, as promtool reads it."""
    said = [f'{label}="{value}"' for label, value in {"job": "relay", **labels}.items()]
    return f"{name}{{{','.join(said)}}}"


SERVICES = ("status2", "preflight2")
# Half an hour of a relay that is well, a sample each 15 s: what each series begins with, how much it rises, how often.
WELL = {
    of("up"): "1x120",
    of("process_start_time_seconds"): "1700000000x120",
    **{of(f"{service}_{name}"): "1x120" for service in SERVICES for name in ("ready", "redis_up")},
    **{of(f"{service}_redis_proved_seconds"): "8x120" for service in SERVICES},
    of("preflight2_redis_key_events"): "1x120",
    of("status2_connections_active"): "1000x120",
    **{of(f"{service}_gaps_total", reason="link"): "3x120" for service in SERVICES},
    **{of(f"{service}_http_responses_total", code=500): "0x120" for service in SERVICES},
    **{of(f"{service}_breaches_total", bound="topics"): "7x120" for service in SERVICES},
    of("status2_closes_total", code=1013): "0+0.5x120",
    of("relay_bound", bound="live"): "1000x120",
    of("relay_bound_used", bound="live"): "700x120",
    **{of("relay_loop_lag_seconds_bucket", le=le): "0+150x120" for le in ("0.05", "0.1", "0.25", "+Inf")},
    **{of("status2_delivery_seconds_bucket", le=le): "0+90x120" for le in ("0.5", "1", "+Inf")},
}
TROUBLE = {
    "RelayDown": {of("up"): "0x120"},
    "RelayRestarts": {of("process_start_time_seconds"): "1700000000+60x120"},
    "RelayNotReady": {of("preflight2_ready"): "0x120"},
    "RelayRedisDown": {of("status2_redis_up"): "0x120"},
    "RelayRedisDeaf": {of("preflight2_redis_proved_seconds"): "14.5x120"},
    "RelayRedisUnproved": {of("status2_redis_proved_seconds"): "_x120"},
    "RelayKeyEventsOff": {of("preflight2_redis_key_events"): "0x120"},
    "RelayGaps": {of("preflight2_gaps_total", reason="link"): "0+1x120"},
    "RelayLoopLag": {of("relay_loop_lag_seconds_bucket", le=le): "0+100x120" for le in ("0.05", "0.1")},
    "RelayDeliverySlow": {of("status2_delivery_seconds_bucket", le="0.5"): "0+50x120"},
    "RelaySlowClients": {of("status2_closes_total", code=1013): "0+2x120"},
    "RelayBoundNearlyFull": {of("relay_bound_used", bound="live"): "900x120"},
    "RelayFull": {of("preflight2_breaches_total", bound="topics"): "0+1x120"},
    "RelayFault": {of("status2_http_responses_total", code=500): "0+1x120"},
}


@pytest.mark.needs("promtool")
def test_each_alert_fires_at_its_trouble_alone_and_none_where_all_is_well(tmp_path):
    assert TROUBLE.keys() == {rule["alert"] for rule in RULES}
    cases = [
        {
            "interval": "15s",
            "input_series": [{"series": name, "values": values} for name, values in (WELL | trouble).items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "25m",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else [],
                }
            ],
        }
        for alert, trouble in [("", {}), *TROUBLE.items()]
    ]
    file = tmp_path / "cases.yml"
    file.write_text(json.dumps({"rule_files": [str(DEPLOY / "alerts.yml")], "tests": cases}))
    promtool("test", "rules", file)


@pytest.fixture
def prometheus(relay_port, tmp_path):
    """A Prometheus that scrapes the relay twice a second, with our rules: what its API answers to a path."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(DEPLOY / "alerts.yml")]
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{relay_port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = embedded.free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )

    def ask(path, **query):
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise  # it begins
            raise AssertionError(f"{query}: {error.read().decode()}") from None

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.needs("prometheus")
def test_each_query_has_an_answer_and_no_alert_fires_at_a_relay_that_is_well(prometheus):
    def scraped():
        try:
            return prometheus("query", query="rate(process_cpu_seconds_total[1m]) >= 0")["result"]
        except OSError:
            return None

    def answers(expr):
        return prometheus("query", query=filled(expr))["result"]

    wait_for(scraped, "two scrapes")
    for target in TARGETS:
        found, expr = answers(target["expr"]), target["expr"]
        if not found and not expr.endswith("> 0"):  # a scrape that came too late is one without a sample
            found = wait_for(lambda expr=expr: answers(expr), f"an answer to {expr}")
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert all(label in each["metric"] for each in found), expr
    evaluated = wait_for(lambda: all_evaluated(prometheus("rules")["groups"]), "the rules")
    assert {rule["name"]: rule["health"] for rule in evaluated} == {rule["alert"]: "ok" for rule in RULES}
    # Pending is what a machine that stood still may make of the loop's lag.
    assert not [rule["name"] for rule in evaluated if rule["state"] == "firing"]


def all_evaluated(groups):
    rules = [rule for group in groups for rule in group["rules"]]
    return rules if all(rule["health"] != "unknown" for rule in rules) else []

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay import checklist

KEYS = """
    sbs_map channels outlet subcatchments landuse rangeland_cover soils climate rap_ts openet_ts wepp observed debris
    watar rhem omni_scenarios omni_contrasts dss_export run_path_ce roads rusle geneva
"""
KEYS = KEYS.split()
LOCKS = dict.fromkeys(["watershed", "climate", "wepp", "soils", "landuse", "disturbed"], False)
DUMP = {
    "attrs:loaded": "true",
    "attrs:has_sbs": "false",
    "timestamps:landuse_map": "1712535018",
    "timestamps:build_channels": "1712028840",
    "timestamps:set_outlet": "1712515206",
    "timestamps:abstract_watershed": "1712515226",
    "timestamps:build_landuse": "1712535023",
    "timestamps:build_soils": "1712535083",
    "timestamps:build_climate": "1712515667",
    "timestamps:run_wepp": "1714168234",
}
SEVEN = {"channels", "outlet", "subcatchments", "landuse", "soils", "climate", "wepp"}
SIX = SEVEN - {"wepp"}
BUILT = {"build_channels": 10, "set_outlet": 20, "abstract_watershed": 30}
BUILT |= {"build_landuse": 40, "build_soils": 50, "build_climate": 60}
INPUTS = {"build_landuse": 100, "build_soils": 110, "build_climate": 120}


def encode(fields):
    return {name.encode(): str(value).encode() for name, value in fields.items()}


def times(tasks, **attrs):
    """A hash of timestamps; has_sbs='true' and the like become attrs."""
    fields = {f"timestamps:{task}": value for task, value in tasks.items()}
    return encode(fields | {f"attrs:{name}": value for name, value in attrs.items()})


def ticked(fields):
    result = checklist.snapshot(fields)["checklist"]
    assert list(result) == KEYS
    assert all(type(value) is bool for value in result.values())
    return {key for key, value in result.items() if value}


# --- the statements of the contract -------------------------------------------------------------------------


def test_unknown_run_is_all_false_and_has_no_last_modified():
    assert checklist.snapshot({}) == {
        "type": "preflight",
        "checklist": dict.fromkeys(KEYS, False),
        "lock_statuses": LOCKS,
    }


def test_the_dump_of_the_description():
    assert ticked(encode(DUMP)) == SEVEN
    assert checklist.snapshot(encode(DUMP))["last_modified"] == 1714168234


def test_a_project_step_by_step():
    assert ticked(times(BUILT)) == SIX
    assert ticked(times(BUILT | {"run_wepp": 70})) == SEVEN
    assert ticked(times(BUILT | {"run_wepp": 70, "build_landuse": 80})) == SIX - {"soils"}


RUSLE = INPUTS | {"build_rusle": 130}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (times({"set_outlet": 10, "abstract_watershed": 10, "build_channels": 10}), {"channels"}),
        (times({"build_channels": 10, "find_outlet": 20}), {"channels", "outlet"}),
        (times(BUILT | {"run_wepp_watershed": 55, "run_wepp": 70}), SIX),
        (times({}, has_sbs="True"), set()),
        (times({"build_channels": ""}), {"channels"}),
        (times({"build_channels": 10, "set_outlet": " 20 "}), {"channels"}),
        (times(RUSLE), {"rusle", "wepp"}),
        (times(RUSLE | {"build_climate": 140}), set()),
    ],
)
def test_statement(fields, expected):
    assert ticked(fields) == expected


def test_locks():
    locks = encode({"locked:wepp.nodb": "true", "locked:climate.nodb": "True", "locked:": "true"})
    assert checklist.snapshot(locks)["lock_statuses"] == {**LOCKS, "wepp.nodb": True, "climate.nodb": False}


# --- hashes of our own, row by row --------------------------------------------------------------------------

W = INPUTS | {"run_wepp": 200}


@pytest.mark.parametrize(
    ("key", "fields", "expected"),
    [
        ("sbs_map", times({}, has_sbs="true"), True),
        ("sbs_map", times({}, has_sbs=" true"), False),
        ("sbs_map", times({}, has_sbs="1"), False),
        ("channels", times({"build_channels": "no number"}), True),
        # max() ignores what is no integer, whichever of the two it is
        ("outlet", times({"build_channels": 10, "set_outlet": "x", "find_outlet": 20}), True),
        ("outlet", times({"build_channels": 10, "set_outlet": 20, "find_outlet": "x"}), True),
        ("outlet", times({"build_channels": 10, "set_outlet": 5, "find_outlet": 20}), True),
        ("outlet", times({"set_outlet": 20}), False),
        ("outlet", times({"build_channels": "", "set_outlet": 20}), False),
        ("subcatchments", times({"build_channels": 10, "abstract_watershed": 11}), True),
        ("subcatchments", times({"build_channels": 10, "abstract_watershed": 10}), False),
        ("landuse", times({"build_landuse": 1}), False),
        ("rangeland_cover", times({"build_rangeland_cover": "x"}), True),
        ("rangeland_cover", times({"build_rangeland_cover": ""}), False),
        ("rangeland_cover", times({"build_rangeland_cover": 0}), True),
        ("rhem", times({"run_rhem": "x"}), True),
        ("rhem", times({"run_rhem": ""}), False),
        ("soils", times({"abstract_watershed": 1, "build_soils": 5, "build_rangeland_cover": 4}), True),
        (
            "soils",
            times({"abstract_watershed": 1, "build_soils": 5, "build_landuse": 9, "build_rangeland_cover": 4}),
            True,
        ),
        (
            "soils",
            times({"abstract_watershed": 1, "build_soils": 5, "build_landuse": 4, "build_rangeland_cover": 9}),
            True,
        ),
        ("soils", times({"abstract_watershed": 6, "build_soils": 5, "build_landuse": 4}), False),
        ("soils", times({"abstract_watershed": 1, "build_soils": 5}), False),
        ("soils", times({"abstract_watershed": 1, "build_soils": 5, "build_landuse": 5}), False),
        ("soils", times({"abstract_watershed": 1, "build_soils": 5, "build_rangeland_cover": 5}), False),
        ("climate", times({"abstract_watershed": 1, "build_climate": 2}), True),
        ("rap_ts", times({"build_climate": 1, "build_rap_ts": 2}), True),
        ("rap_ts", times({"build_rap_ts": 2}), False),
        ("openet_ts", times({"build_climate": 1, "build_openet_ts": 2}), True),
        ("openet_ts", times({"build_climate": 2, "build_openet_ts": 2}), False),
        # W is the first that is set: empty is not set, malformed is
        ("wepp", times(W | {"run_wepp_watershed": ""}), True),
        ("wepp", times(W | {"run_wepp_watershed": "x"}), False),
        ("wepp", times(INPUTS | {"run_wepp_watershed": 121}), True),
        ("wepp", times(INPUTS | {"run_wepp_watershed": 120}), False),
        ("wepp", times(RUSLE | {"run_wepp": "x"}), False),
        ("wepp", times(RUSLE | {"run_wepp": 90}), False),
        ("wepp", times(RUSLE | {"run_wepp": ""}), True),
        ("wepp", times({"run_wepp": 200, "build_landuse": 1, "build_soils": 1}), False),
        ("observed", times(W | {"run_observed": 201}), True),
        ("observed", times(W | {"run_observed": 200}), False),
        ("observed", times(INPUTS | {"run_observed": 201}), False),
        ("debris", times(W | {"run_debris": 201}), True),
        ("debris", times(W | {"run_debris": 201, "build_soils": 201}), False),
        ("watar", times(W | {"run_watar": 201}), True),
        ("watar", times(W | {"run_watar": 200}), False),
        ("debris", times(W | {"run_debris": 200}), False),
        ("watar", times(W | {"run_watar": 201, "run_wepp_watershed": 300}), False),
        ("omni_scenarios", times({"run_omni_scenarios": 5, "run_wepp": 4}), True),
        ("omni_scenarios", times({"run_omni_scenarios": 5, "run_wepp": 5}), False),
        ("omni_scenarios", times({"run_omni_scenarios": "x"}), True),
        ("omni_scenarios", times({"run_omni_scenarios": ""}), False),
        ("omni_scenarios", times({"run_omni_scenarios": 5, "run_wepp": "x"}), False),
        ("omni_contrasts", times({"run_omni_contrasts": "x"}), True),
        ("omni_contrasts", times({"run_omni_contrasts": ""}), False),
        ("omni_contrasts", times({"run_omni_contrasts": 5, "run_wepp": "x", "run_omni_scenarios": " 9"}), True),
        ("omni_contrasts", times({"run_omni_contrasts": 5, "run_wepp": "x", "run_omni_scenarios": 4}), True),
        ("omni_contrasts", times({"run_omni_contrasts": 5, "run_wepp": 6, "run_wepp_watershed": 4}), False),
        ("omni_contrasts", times({"run_omni_contrasts": "x", "run_wepp": 6}), False),
        ("dss_export", times({"dss_export": 5}), False),
        ("dss_export", times({"dss_export": 5, "run_watar": 4, "run_wepp": "x"}), True),
        ("dss_export", times({"dss_export": 5, "run_watar": 4, "run_wepp": 6, "run_wepp_watershed": 3}), False),
        ("run_path_ce", times({"run_path_ce": 5, "run_wepp": 4}), True),
        ("run_path_ce", times({"run_path_cost_effective": 5, "run_wepp": 4}), False),
        ("roads", times({"run_roads": 5, "run_wepp": 9, "run_wepp_watershed": 4}), True),
        ("roads", times({"run_roads": 5}), False),
        ("rusle", times(RUSLE | {"run_wepp": 129}), True),
        ("rusle", times(RUSLE | {"run_wepp": 130}), False),
        ("rusle", times(RUSLE | {"run_wepp": "x"}), False),
        ("rusle", times({"build_rusle": 5}), False),
        ("geneva", times(INPUTS | {"run_geneva": 130}), True),
        ("geneva", times(INPUTS | {"run_geneva": 130}, has_sbs="true"), False),
        ("geneva", times(INPUTS | {"run_geneva": 130, "init_sbs_map": 129}, has_sbs="true"), True),
        ("geneva", times(INPUTS | {"run_geneva": 130, "init_sbs_map": 130}, has_sbs="true"), False),
        ("geneva", times(INPUTS | {"run_geneva": 130, "init_sbs_map": 131}, has_sbs="True"), True),
        ("geneva", times(INPUTS | {"run_geneva": 120, "init_sbs_map": 1}, has_sbs="true"), False),
    ],
)
def test_row(key, fields, expected):
    assert (key in ticked(fields)) is expected


@pytest.mark.parametrize(
    "text",
    [
        "21",
        "+21",
        "0021",
        "9223372036854775807",
        "+9223372036854775807",
        "0" * 5000 + "21",
        "0" * 30 + "9223372036854775807",
    ],
)
def test_is_an_integer_above_20(text):
    assert "outlet" in ticked(times({"build_channels": 20, "set_outlet": text}))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "+",
            "-",
            " 21",
            "21 ",
            "21\n",
            "2_1",
            "21.0",
            "1e9",
            "0x21",
            "٣٣",
            "２１",
            "²",
            "--21",
            "+-21",
            "true",
            "nan",
        ),
        *("inf", "9223372036854775808", "18446744073709551616", "99999999999999999999", "9" * 5000),
    ],
)
def test_is_no_integer(text):
    assert "outlet" not in ticked(times({"build_channels": 20, "set_outlet": text}))
    assert "outlet" not in ticked(times({"build_channels": text, "set_outlet": 20}))


def test_negative_integers_down_to_64_bits_count():
    assert "outlet" in ticked(times({"build_channels": "-9223372036854775808", "set_outlet": -1}))
    assert "outlet" in ticked(times({"build_channels": -1, "set_outlet": "-0"}))
    assert "outlet" not in ticked(times({"build_channels": "-9223372036854775809", "set_outlet": -1}))


def test_no_precision_is_lost():
    near = 2**63 - 2
    assert "outlet" in ticked(times({"build_channels": near, "set_outlet": near + 1}))
    assert "outlet" not in ticked(times({"build_channels": near, "set_outlet": near}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"last_modified": "5", "timestamps:a": "9"}, 5),
        ({"last_modified": "-5"}, -5),
        ({"last_modified": "x", "timestamps:a": "9", "timestamps:b": "11", "timestamps:c": "y"}, 11),
        ({"last_modified": "", "timestamps:anything at all": "9"}, 9),
        ({"timestamps:": "3"}, 3),
        ({"timestamps:a": "x", "attrs:loaded": "9", "rq:a": "9"}, None),
    ],
)
def test_last_modified(fields, expected):
    assert checklist.snapshot(encode(fields)).get("last_modified") == expected
    assert ("last_modified" in checklist.snapshot(encode(fields))) is (expected is not None)


def test_undecodable_bytes_raise_nothing_and_lose_nothing():
    fields = {b"timestamps:\xff": b"7", b"timestamps:\xfe": b"3", b"\xff": b"\xff", b"timestamps:run_rhem": b"\xff"}
    assert checklist.snapshot(fields)["last_modified"] == 7
    assert checklist.snapshot(dict(reversed(fields.items())))["last_modified"] == 7
    assert ticked(fields) == {"rhem"}
    for locks in ({b"locked:\xff": b"true", b"locked:\xfe": b"x"}, {b"locked:\xff": b"x", b"locked:\xfe": b"true"}):
        assert checklist.snapshot(locks)["lock_statuses"] == {**LOCKS, "\ufffd": True}


def test_frame_is_compact_utf8_json():
    fields = encode({"locked:é😀": "true", "last_modified": 3})
    text = checklist.frame(fields)
    assert json.loads(text) == checklist.snapshot(fields)
    assert text.startswith(b'{"type":"preflight","checklist":{"sbs_map":false,')
    assert text.endswith('"disturbed":false,"é😀":true},"last_modified":3}'.encode())


def test_frame_does_not_depend_on_the_order_of_the_hash():
    fields = encode(DUMP | {"locked:b.nodb": "true", "locked:a.nodb": "false", "locked:wepp": "true"})
    assert checklist.frame(dict(reversed(fields.items()))) == checklist.frame(fields)


# --- the whole table against an oracle written another way ---------------------------------------------------


class Oracle:
    """The table read as prose: text fields, None for what does not compare, no tables."""

    def __init__(self, fields):
        self.hash = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields.items()}

    def text(self, task):
        return self.hash.get("timestamps:" + task, "")

    @staticmethod
    def number(text):
        digits = text[1:] if text[:1] in ("+", "-") else text
        if not digits or set(digits) - set("0123456789"):
            return None
        value = 0
        for digit in digits:
            value = value * 10 + "0123456789".index(digit)
        value = -value if text[0] == "-" else value
        return value if -(1 << 63) <= value < 1 << 63 else None

    def after(self, a, *others):
        first = self.number(a)
        rest = [self.number(other) for other in others]
        return first is not None and None not in rest and all(first - other > 0 for other in rest)

    def highest(self, *tasks):
        """As text, '' where none is an integer."""
        numbers = sorted(n for n in (self.number(self.text(task)) for task in tasks) if n is not None)
        return str(numbers[-1]) if numbers else ""

    def checklist(self):
        t, after = self.text, self.after
        sbs = "attrs:has_sbs" in self.hash and self.hash["attrs:has_sbs"] == "true"
        inputs = (t("build_landuse"), t("build_soils"), t("build_climate"))
        w = t("run_wepp_watershed") or t("run_wepp")
        v = w if w != "" else t("build_rusle")
        contrasts_base = self.highest("run_omni_scenarios", "run_wepp_watershed", "run_wepp")
        true = []
        if sbs:
            true.append("sbs_map")
        if "timestamps:build_channels" in self.hash:
            true.append("channels")
        if after(self.highest("set_outlet", "find_outlet"), t("build_channels")):
            true.append("outlet")
        if after(t("abstract_watershed"), t("build_channels")):
            true.append("subcatchments")
        if after(t("build_landuse"), t("abstract_watershed")):
            true.append("landuse")
        if t("build_rangeland_cover") != "":
            true.append("rangeland_cover")
        if t("run_rhem") != "":
            true.append("rhem")
        if after(t("build_soils"), t("abstract_watershed"), t("build_landuse")) or after(
            t("build_soils"), t("abstract_watershed"), t("build_rangeland_cover")
        ):
            true.append("soils")
        true += ["climate"] * after(t("build_climate"), t("abstract_watershed"))
        true += ["rap_ts"] * after(t("build_rap_ts"), t("build_climate"))
        true += ["openet_ts"] * after(t("build_openet_ts"), t("build_climate"))
        true += ["wepp"] * after(v, *inputs)
        true += ["observed"] * after(t("run_observed"), *inputs, w)
        true += ["debris"] * after(t("run_debris"), *inputs, w)
        true += ["watar"] * after(t("run_watar"), *inputs, w)
        if w == "":
            true += ["omni_scenarios"] * (t("run_omni_scenarios") != "")
        else:
            true += ["omni_scenarios"] * after(t("run_omni_scenarios"), w)
        if contrasts_base == "":
            true += ["omni_contrasts"] * (t("run_omni_contrasts") != "")
        else:
            true += ["omni_contrasts"] * after(t("run_omni_contrasts"), contrasts_base)
        true += ["dss_export"] * after(t("dss_export"), self.highest("run_watar", "run_wepp_watershed", "run_wepp"))
        true += ["run_path_ce"] * after(t("run_path_ce"), w)
        true += ["roads"] * after(t("run_roads"), w)
        if after(t("build_rusle"), t("build_climate")) and not (w != "" and not after(t("build_rusle"), w)):
            true.append("rusle")
        if after(t("run_geneva"), *inputs, *([t("init_sbs_map")] if sbs else [])):
            true.append("geneva")
        return {key: key in true for key in KEYS}

    def last_modified(self):
        own = self.number(self.hash.get("last_modified", ""))
        if own is not None:
            return own
        stamps = self.highest(*(name[11:] for name in self.hash if name.startswith("timestamps:")))
        return int(stamps) if stamps else None


TASKS = """
    set_outlet find_outlet abstract_watershed build_channels build_landuse build_rangeland_cover build_soils
    build_climate build_rap_ts build_openet_ts run_wepp run_wepp_watershed run_observed run_debris run_watar run_rhem
    build_rusle run_omni_scenarios run_omni_contrasts dss_export run_path_ce run_roads run_geneva init_sbs_map
    landuse_map
"""
TASKS = TASKS.split()
NUMBER = st.integers(1, 6).map(lambda n: b"%d" % n)
ODD = st.sampled_from([b"", b"x", b" 3", b"3\n", b"+3", b"-3", b"03", b"3.0", b"\xff", b"9223372036854775807"])
ODDER = st.sampled_from([b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809", b"\xb2", b"1_0"])
VALUE = st.one_of(NUMBER, NUMBER, NUMBER, ODD, ODDER)  # mostly small numbers, so that every order of steps comes up
ATTRS = {b"attrs:has_sbs": st.sampled_from([b"true", b"True", b"false", b"", b"true "])}
ATTRS |= {b"last_modified": VALUE, b"timestamps:": VALUE, b"timestamps:\xff": VALUE}
HASHES = st.fixed_dictionaries({}, optional=ATTRS | {b"timestamps:" + task.encode(): VALUE for task in TASKS})


@st.composite
def projects(draw):
    """Whole projects, in which the rules with many conditions come true, or just miss it by a tie."""
    order = draw(st.permutations(TASKS))
    together = draw(st.integers(1, 4))  # so many steps end within one second
    absent = draw(st.sets(st.sampled_from(["run_wepp", "run_wepp_watershed", *TASKS]), max_size=4))
    done = {task: i // together for i, task in enumerate(order) if task not in absent}
    return times(done, has_sbs=draw(st.sampled_from(["true", "false"])))


@settings(max_examples=500)
@example(encode(DUMP))
@given(st.one_of(projects(), HASHES, st.tuples(projects(), HASHES).map(lambda pair: pair[0] | pair[1])))
def test_agrees_with_the_oracle(fields):
    oracle = Oracle(fields)
    result = checklist.snapshot(fields)
    assert result["checklist"] == oracle.checklist()
    assert result.get("last_modified") == oracle.last_modified()


@given(
    st.dictionaries(st.binary(max_size=20), st.binary(max_size=20)), st.dictionaries(st.binary(max_size=9), st.binary())
)
def test_any_bytes_give_a_frame(fields, more):
    prefixed = {
        prefix + name: value for prefix in (b"timestamps:", b"locked:", b"attrs:") for name, value in more.items()
    }
    frame = json.loads(checklist.frame(fields | prefixed))
    assert frame["checklist"] == Oracle(fields | prefixed).checklist()
    assert "" not in frame["lock_statuses"]
    assert all(type(value) is bool for value in frame["lock_statuses"].values())


# ---- when, and why not ----


def told(tasks, **more):
    frame = json.loads(checklist.times(times(tasks) | encode(more)))
    assert frame.pop("type") == "times"
    return frame


def test_when_each_step_was_done():
    assert json.loads(checklist.times(encode(DUMP)))["done"] == {
        "channels": 1712028840,
        "outlet": 1712515206,
        "subcatchments": 1712515226,
        "landuse": 1712535023,
        "soils": 1712535083,
        "climate": 1712515667,
        "wepp": 1714168234,
    }
    assert told({}) == {"done": {}, "started": {}, "stale": {}}
    assert told({"build_soils": "soon", "find_outlet": 3, "set_outlet": 2})["done"] == {"outlet": 3}
    assert told({"run_wepp": 70, "run_wepp_watershed": 60})["done"] == {"wepp": 60}, "as the rule chooses"
    assert told(BUILT | {"build_rusle": 70})["done"].items() >= {"wepp": 70, "rusle": 70}.items()


def test_when_a_step_began():
    started = {"started:run_wepp": 71, "started:build_soils": "x", "started:landuse": 3}
    assert told(BUILT, **started)["started"] == {"wepp": 71}


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({}, {}),
        ({"build_landuse": 80}, {"soils": ["landuse"], "wepp": ["landuse"], "watar": ["landuse"]}),
        ({"build_soils": 70}, {"wepp": ["soils"]}),  # as new as the model run
        ({"abstract_watershed": 90}, {key: ["subcatchments"] for key in ("landuse", "soils", "climate")}),
        ({"abstract_watershed": "x"}, {key: [] for key in ("landuse", "soils", "climate")}),
        ({"run_wepp": 100}, {"watar": ["wepp"], "rusle": ["wepp"]}),
        ({"build_climate": 91}, {"wepp": ["climate"], "watar": ["climate"], "rusle": ["climate"]}),
    ],
)
def test_why_a_tick_is_off_again(changed, stale):
    """Of the steps that it was done before, and never one that only happens to be off as well."""
    done = BUILT | {"run_wepp": 70, "run_watar": 75, "build_rusle": 90}
    assert told(done | changed)["stale"] == stale


def test_a_burn_severity_that_is_not_used_makes_nothing_old():
    done = BUILT | {"run_geneva": 70, "init_sbs_map": 80}
    assert told(done)["stale"] == {}
    assert told(done, **{"attrs:has_sbs": "true"})["stale"] == {"geneva": ["sbs_map"]}


@given(st.one_of(projects(), HASHES, st.tuples(projects(), HASHES).map(lambda pair: pair[0] | pair[1])))
def test_what_is_stale_was_done_is_not_ticked_and_its_causes_are_newer(fields):
    frame, ticks = json.loads(checklist.times(fields)), ticked(fields)
    assert list(frame["stale"]) == [key for key in frame["done"] if key not in ticks]
    for key, causes in frame["stale"].items():
        assert all(frame["done"][cause] >= frame["done"][key] for cause in causes)


@given(projects())
def test_where_all_is_there_each_stale_step_has_a_cause(fields):
    whole = {b"timestamps:" + task.encode(): b"0" for task in TASKS if task != "run_wepp_watershed"} | fields
    whole.pop(b"timestamps:run_wepp_watershed", None)
    assert all(json.loads(checklist.times(whole))["stale"].values())


@given(st.dictionaries(st.binary(max_size=9), st.binary()))
def test_any_bytes_give_times(more):
    json.loads(
        checklist.times({prefix + name: more[name] for prefix in (b"timestamps:", b"started:") for name in more})
    )

"""From the hash of a run to its snapshot: the rules of the checklist, one pure table (contract, section 4).

A rule compares timestamps, and what is no integer compares with nothing. So a field that is absent, empty or malformed
is NaN here: every `>` with it is false on either side, as the contract demands, and each rule reads as it stands there.
(Python compares an int with a float exactly, so large integers lose nothing.)

No I/O, and nothing raises, whatever bytes the fields and values hold.
"""

import json
import math
import re
from collections.abc import Callable, Mapping

_NAN = math.nan
_INTEGER = re.compile(rb"([+-]?)0*([0-9]{1,19})")  # ASCII digits alone; int() would also take " 20 ", "1_0" and "٣"
_RANGE = range(-(2**63), 2**63)
_TIMESTAMP, _STARTED, _LOCK = b"timestamps:", b"started:", b"locked:"

# Always there, so that both generations of browser scripts find the locks they look up.
_LOCKS = ("watershed", "climate", "wepp", "soils", "landuse", "disturbed")


def _integer(value: bytes) -> int | None:
    """The value of `[+-]?[0-9]+` within 64 bits, signed; None for all else."""
    if len(value) < 19 and value.isdigit():  # the usual one, and by far the faster way
        return int(value)
    match = _INTEGER.fullmatch(value)
    if match is None:
        return None
    number = int(match[1] + match[2])
    return number if number in _RANGE else None


def _newest(*times: float) -> float:
    """The greatest integer among `times`, NaN where there is none.

    The contract's "every max here ignores what is no integer" is said of the whole table: the row it stands in has a
    single max. `max()` itself would answer NaN or not by the order of its arguments.
    """
    return max((time for time in times if time == time), default=_NAN)


class _Run(dict[str, float]):
    """The timestamps of a run by task, NaN for what is no integer; `started` alike; and what else the rules ask for."""

    def __init__(self, fields: Mapping[bytes, bytes]) -> None:
        self.fields = fields
        self.has_sbs = fields.get(b"attrs:has_sbs") == b"true"
        self.started: dict[str, int] = {}
        for field, value in fields.items():
            for prefix, times in ((_TIMESTAMP, self), (_STARTED, self.started)):
                if field.startswith(prefix) and (number := _integer(value)) is not None:
                    times[field[len(prefix) :].decode(errors="surrogateescape")] = number
        # The first that is set and not the newer one: a watershed run supersedes the older kind of run for good.
        self.ran = self.is_set("run_wepp_watershed") or self.is_set("run_wepp")
        self.wepp = self["run_wepp_watershed" if self.is_set("run_wepp_watershed") else "run_wepp"]

    def __missing__(self, task: str) -> float:
        return _NAN

    def is_set(self, task: str) -> bool:
        """Whether the timestamp is there and not empty; it need not be an integer."""
        return bool(self.fields.get(b"timestamps:" + task.encode()))

    def is_newest(self, time: float) -> bool:
        """Whether `time` is after all that a model run starts from."""
        return time > self["build_landuse"] and time > self["build_soils"] and time > self["build_climate"]


# The keys of the checklist in the order of the contract, `t` being the run: t[x] its timestamp of task x, t.wepp the
# contract's W, and t.ran whether W is set.
_RULES: dict[str, Callable[[_Run], bool]] = {
    "sbs_map": lambda t: t.has_sbs,
    "channels": lambda t: b"timestamps:build_channels" in t.fields,
    "outlet": lambda t: _newest(t["set_outlet"], t["find_outlet"]) > t["build_channels"],
    "subcatchments": lambda t: t["abstract_watershed"] > t["build_channels"],
    "landuse": lambda t: t["build_landuse"] > t["abstract_watershed"],
    "rangeland_cover": lambda t: t.is_set("build_rangeland_cover"),
    "soils": lambda t: (
        t["build_soils"] > t["abstract_watershed"]
        and (t["build_soils"] > t["build_landuse"] or t["build_soils"] > t["build_rangeland_cover"])
    ),
    "climate": lambda t: t["build_climate"] > t["abstract_watershed"],
    "rap_ts": lambda t: t["build_rap_ts"] > t["build_climate"],
    "openet_ts": lambda t: t["build_openet_ts"] > t["build_climate"],
    "wepp": lambda t: t.is_newest(t.wepp if t.ran else t["build_rusle"]),
    "observed": lambda t: t.is_newest(t["run_observed"]) and t["run_observed"] > t.wepp,
    "debris": lambda t: t.is_newest(t["run_debris"]) and t["run_debris"] > t.wepp,
    "watar": lambda t: t.is_newest(t["run_watar"]) and t["run_watar"] > t.wepp,
    "rhem": lambda t: t.is_set("run_rhem"),
    "omni_scenarios": lambda t: t["run_omni_scenarios"] > t.wepp if t.ran else t.is_set("run_omni_scenarios"),
    "omni_contrasts": lambda t: (
        t.is_set("run_omni_contrasts")
        if math.isnan(base := _newest(t["run_omni_scenarios"], t["run_wepp_watershed"], t["run_wepp"]))
        else t["run_omni_contrasts"] > base
    ),
    "dss_export": lambda t: t["dss_export"] > _newest(t["run_watar"], t["run_wepp_watershed"], t["run_wepp"]),
    "run_path_ce": lambda t: t["run_path_ce"] > t.wepp,
    "roads": lambda t: t["run_roads"] > t.wepp,
    "rusle": lambda t: t["build_rusle"] > t["build_climate"] and (not t.ran or t["build_rusle"] > t.wepp),
    "geneva": lambda t: t.is_newest(t["run_geneva"]) and (not t.has_sbs or t["run_geneva"] > t["init_sbs_map"]),
}


def snapshot(fields: Mapping[bytes, bytes]) -> dict[str, object]:
    """The preflight frame of a run.

    Equal states give equal frames, whatever order Redis returned the fields in, so that an unchanged snapshot can be
    told from a changed one by its bytes.

    Args:
        fields: the hash of the run as HGETALL returns it; empty for an unknown run.

    Returns:
        `type`, `checklist` (key -> bool), `lock_statuses` (name -> bool) and, where known, `last_modified` (int).
    """
    run = _Run(fields)
    frame: dict[str, object] = {
        "type": "preflight",
        "checklist": {key: rule(run) for key, rule in _RULES.items()},
        "lock_statuses": _lock_statuses(fields),
    }
    last_modified = _integer(fields.get(b"last_modified", b""))
    if last_modified is None and run:
        last_modified = int(max(run.values()))
    if last_modified is not None:
        frame["last_modified"] = last_modified
    return frame


# What does a step: the tasks whose newest timestamp says when. Of `wepp` that is the rule's own choice.
_TASKS: dict[str, tuple[str, ...]] = {
    "sbs_map": ("init_sbs_map",),
    "channels": ("build_channels",),
    "outlet": ("set_outlet", "find_outlet"),
    "subcatchments": ("abstract_watershed",),
    "landuse": ("build_landuse",),
    "rangeland_cover": ("build_rangeland_cover",),
    "soils": ("build_soils",),
    "climate": ("build_climate",),
    "rap_ts": ("build_rap_ts",),
    "openet_ts": ("build_openet_ts",),
    "wepp": ("run_wepp_watershed", "run_wepp", "build_rusle"),
    "observed": ("run_observed",),
    "debris": ("run_debris",),
    "watar": ("run_watar",),
    "rhem": ("run_rhem",),
    "omni_scenarios": ("run_omni_scenarios",),
    "omni_contrasts": ("run_omni_contrasts",),
    "dss_export": ("dss_export",),
    "run_path_ce": ("run_path_ce",),
    "roads": ("run_roads",),
    "rusle": ("build_rusle",),
    "geneva": ("run_geneva",),
}
_INPUTS = ("landuse", "soils", "climate")
# Which steps a rule wants it to be newer than.
_AFTER: dict[str, tuple[str, ...]] = {
    "outlet": ("channels",),
    "subcatchments": ("channels",),
    "landuse": ("subcatchments",),
    "soils": ("subcatchments", "landuse"),
    "climate": ("subcatchments",),
    "rap_ts": ("climate",),
    "openet_ts": ("climate",),
    "wepp": _INPUTS,
    "observed": (*_INPUTS, "wepp"),
    "debris": (*_INPUTS, "wepp"),
    "watar": (*_INPUTS, "wepp"),
    "omni_scenarios": ("wepp",),
    "omni_contrasts": ("omni_scenarios", "wepp"),
    "dss_export": ("watar", "wepp"),
    "run_path_ce": ("wepp",),
    "roads": ("wepp",),
    "rusle": ("climate", "wepp"),
    "geneva": (*_INPUTS, "sbs_map"),
}


def times(fields: Mapping[bytes, bytes]) -> bytes:
    """When the steps of a run were done, and why a tick is off again: compact JSON, for protocol version 3.

    Args:
        fields: as for `snapshot`.

    Returns:
        `type`, `done` and `started` (key -> unix seconds) where a worker has written an integer, and `stale`: for each
        step that was done and is not ticked the steps that are newer than it. It may be none of them, where a timestamp
        is gone.
    """
    run = _Run(fields)
    done, started = {}, {}
    for key, tasks in _TASKS.items():
        if (at := _done(run, key, tasks)) == at:
            done[key] = at
        begun = _newest(*[run.started.get(task, _NAN) for task in tasks])
        if begun == begun:
            started[key] = begun
    against = done | {"wepp": run.wepp}
    stale = {
        key: [other for other in _AFTER.get(key, ()) if against.get(other, _NAN) >= at]
        for key, at in done.items()
        if not _RULES[key](run)
    }
    return _encode({"type": "times", "done": done, "started": started, "stale": stale}).encode()


def _done(run: _Run, key: str, tasks: tuple[str, ...]) -> float:
    if key == "wepp":
        return run.wepp if run.ran else run["build_rusle"]
    if key == "sbs_map" and not run.has_sbs:  # taken out again
        return _NAN
    return _newest(*[run[task] for task in tasks])


def frame(fields: Mapping[bytes, bytes]) -> bytes:
    """`snapshot(fields)` as compact JSON in UTF-8: what is sent."""
    return _encode(snapshot(fields)).encode()


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # dumps() makes one on each call


def _lock_statuses(fields: Mapping[bytes, bytes]) -> dict[str, bool]:
    statuses = dict.fromkeys(_LOCKS, False)
    for field in sorted(field for field in fields if field.startswith(_LOCK)):
        if name := field[len(_LOCK) :].decode(errors="replace"):
            # Two names that are no UTF-8 may become one: locked if either is.
            statuses[name] = fields[field] == b"true" or statuses.get(name, False)
    return statuses

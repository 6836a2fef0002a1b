"""The names that workers, Redis and the relay share: databases, hash fields, tasks (contract, sections 1 and 2).

Imports nothing heavy: the relay reads these names too.
"""

from enum import Enum

# Pub/Sub ignores the database, so STATUS_DB is a convention; PREP_DB is where the hashes really are.
PREP_DB = 0
STATUS_DB = 2

# One hash per run, its key the run id. A field is one of these prefixes and a name, or one of the two whole names.
ATTRIBUTE = "attrs:"
TIMESTAMP = "timestamps:"
LOCKED = "locked:"
RQ_JOB = "rq:"
ARCHIVE_JOB = "archive:job_id"
# Written only by whoever asks `timed` for them; epoch seconds as in a timestamp. The checklist passes them over.
STARTED = "started:"
FAILED = "failed:"
LAST_MODIFIED = "last_modified"

COMMAND = "command"


def channel(run_id: str, name: str) -> str:
    """The Pub/Sub channel `<run_id>:<name>`."""
    return f"{run_id}:{name}"


class TaskEnum(Enum):
    """The tasks of a model run; the value is what stands behind `timestamps:` in the hash."""

    if_exists_rmtree = "rmtree"
    project_init = "project_init"
    set_outlet = "set_outlet"
    abstract_watershed = "abstract_watershed"
    build_channels = "build_channels"
    find_outlet = "find_outlet"
    build_subcatchments = "build_subcatchments"
    build_landuse = "build_landuse"
    build_treatments = "build_treatments"
    build_rangeland_cover = "build_rangeland_cover"
    build_soils = "build_soils"
    build_climate = "build_climate"
    fetch_rap_ts = "build_rap_ts"
    fetch_openet_ts = "build_openet_ts"
    fetch_polaris = "build_polaris"
    run_wepp = "run_wepp"
    run_wepp_hillslopes = "run_wepp_hillslopes"
    run_wepp_watershed = "run_wepp_watershed"
    run_observed = "run_observed"
    run_debris = "run_debris"
    run_roads = "run_roads"
    run_watar = "run_watar"
    run_rhem = "run_rhem"
    fetch_dem = "fetch_dem"
    landuse_map = "landuse_map"
    init_sbs_map = "init_sbs_map"
    run_omni = "run_omni"
    run_omni_scenarios = "run_omni_scenarios"
    run_omni_contrasts = "run_omni_contrasts"
    dss_export = "dss_export"
    run_features_export = "run_features_export"
    build_rusle = "build_rusle"
    set_readonly = "set_readonly"
    run_path_cost_effective = "run_path_ce"
    run_geneva = "run_geneva"

    def __str__(self) -> str:
        return str(self.value)

    def label(self) -> str:
        """The task in words for a person, such as `Run WEPP Watershed`."""
        return _LABELS.get(self.value) or " ".join(_WORDS.get(word, word.title()) for word in self.value.split("_"))

    def emoji(self) -> str:
        """One glyph for the task, for pages and chat bots."""
        return _EMOJI[self.value]


# Words that capitals do not come right in, and the tasks whose label is not their name in words.
_WORDS = {
    "dem": "DEM", "openet": "OpenET", "rap": "RAP", "rhem": "RHEM", "rusle": "RUSLE", "ts": "TS", "watar": "WATAR",
    "wepp": "WEPP",
}  # fmt: skip
_LABELS = {
    "rmtree": "Remove existing files",
    "project_init": "Initialize Project",
    "build_polaris": "Build POLARIS Layers",
    "init_sbs_map": "Initialize SBS Map",
    "dss_export": "Export DSS",
    "run_features_export": "Export Features",
    "run_path_ce": "Run PATH Cost-Effective",
}
_EMOJI = {
    "rmtree": "🗑️",
    "project_init": "🚀",
    "set_outlet": "📍",
    "abstract_watershed": "💎",
    "build_channels": "🌊",
    "find_outlet": "📍",
    "build_subcatchments": "🧩",
    "build_landuse": "🌲",
    "build_treatments": "💊",
    "build_rangeland_cover": "🦎",
    "build_soils": "🪱",
    "build_climate": "☁️",
    "build_rap_ts": "🐮",
    "build_openet_ts": "🛰️",
    "build_polaris": "🧱",
    "run_wepp": "💧",
    "run_wepp_hillslopes": "💧",
    "run_wepp_watershed": "⛰️",
    "run_observed": "📊",
    "run_debris": "🪨",
    "run_roads": "🚗",
    "run_watar": "🌋",
    "run_rhem": "🌵",
    "fetch_dem": "🌍",
    "landuse_map": "🗺️",
    "init_sbs_map": "🔥",
    "run_omni": "🪓",
    "run_omni_scenarios": "🪓",
    "run_omni_contrasts": "⚖️",
    "dss_export": "📤",
    "run_features_export": "📦",
    "build_rusle": "🔱",
    "set_readonly": "🔒",
    "run_path_ce": "🧮",
    "run_geneva": "⛈️",
}


def part(value: object, what: str) -> str:
    """A part of a field's name, as it is; of anything but a text pages would make a step that nobody knows.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {value!r}")
    if not value:
        raise ValueError(f"{what} is empty; write one such as 'wepp'")
    return value


def stamp(task: object) -> str:
    """The field of a task's timestamp.

    Raises:
        TypeError, ValueError: as `part`.
    """
    return TIMESTAMP + (str(task) if isinstance(task, TaskEnum) else part(task, "a task"))

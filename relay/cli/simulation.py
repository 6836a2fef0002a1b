"""A model run that computes nothing: a WEPPcloud worker as Redis sees one, for `relay demo`.

Everything it says goes through `client` as a worker's would: RedisPrep in a working directory, job ids, locks on and
off, timestamps task by task in the order of a real run, log lines on each task's channel, and at the end of each task
COMPLETED and TRIGGER back to back, or EXCEPTION (contract, sections 2 and 3.4).
"""

import math
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

from client import RedisPrep, StatusMessenger, TaskEnum

Line = tuple[float, str]  # seconds of work before it, and the line

YEARS = range(2000, 2024)
AGAIN = 10.0  # seconds after a failure until somebody has seen it and starts the task again


class Site(NamedTuple):
    """A watershed."""

    north: float  # and the other bounds of the elevation model, in degrees
    west: float
    south: float
    east: float
    lowest: float  # of it, m
    highest: float
    outlet: tuple[float, float]  # longitude and latitude
    station: str  # of the weather generator
    hillslopes: int
    channels: int
    order: int  # of the channel at the outlet, as Strahler counts
    hectares: int
    flowpath: float  # the longest, km
    burn: str  # the map of the fire

    def cell(self, longitude: float, latitude: float) -> tuple[int, int]:
        """Row and column in the elevation model, whose cells measure 10 m."""
        degree = 11_132  # cells to one of latitude
        shrink = math.cos(math.radians(self.north))
        return round((self.north - latitude) * degree), round((longitude - self.west) * degree * shrink)


MOSCOW = Site(
    north=46.8321,
    west=-116.8415,
    south=46.7702,
    east=-116.7520,
    lowest=803.2,
    highest=1516.8,
    outlet=(-116.80142, 46.79876),
    station="MOSCOW U OF I ID, 7.4 km",
    hillslopes=214,
    channels=87,
    order=4,
    hectares=1500,
    flowpath=6.42,
    burn="moscow_mtn_sbs.tif, EPSG:32611",
)
COUGAR = Site(
    north=44.1893,
    west=-122.2471,
    south=44.1426,
    east=-122.1804,
    lowest=421.6,
    highest=1387.5,
    outlet=(-122.22817, 44.15563),
    station="MCKENZIE BRIDGE RS OR, 4.9 km",
    hillslopes=96,
    channels=37,
    order=3,
    hectares=640,
    flowpath=3.87,
    burn="quartz_creek_sbs.tif, EPSG:32610",
)
CLEARWATER = Site(
    north=46.6050,
    west=-115.9020,
    south=46.4821,
    east=-115.7237,
    lowest=488.9,
    highest=1842.3,
    outlet=(-115.83350, 46.49712),
    station="HEADQUARTERS ID, 11.8 km",
    hillslopes=862,
    channels=351,
    order=5,
    hectares=6200,
    flowpath=15.18,
    burn="orogrande_sbs.tif, EPSG:32611",
)


class Task(NamedTuple):
    """One job of a run."""

    channel: str  # <channel> of <run>:<channel>, where its lines go
    call: str  # the function that the job queue runs, before _rq
    lock: str  # locked:<lock> while it runs
    done: TaskEnum  # the timestamp it leaves
    event: str  # what its TRIGGER tells the browsers, before _TASK_COMPLETED
    lines: Callable[[random.Random, Site], Iterator[Line]]


class Simulation:
    """A worker that runs the whole model, again and again.

    Args:
        run: run id, the last part of the working directory.
        parent: directory in which the run's working directory is made.
        wait: takes seconds, waits so long, and returns true when it is time to end.
        speed: 2.0 works twice as fast as 1.0, at which a run of `MOSCOW` takes about a minute.
        site: the watershed.
        fails: the call of a task that fails in each run at first, and is started again.
        seed: of the figures in the lines.
    """

    def __init__(
        self,
        run: str,
        parent: Path,
        wait: Callable[[float], bool],
        *,
        speed: float = 1.0,
        site: Site = MOSCOW,
        fails: str | None = None,
        seed: int | None = None,
    ):
        self.run = run
        self._wd = parent / run
        self._wait = wait
        self._speed = speed
        self._site = site
        self._fails = fails
        self._random = random.Random(seed)

    def once(self) -> bool:
        """One run from an empty project to the export; false where it was told to end before that."""
        prep = self._new_project()
        return all(
            (task.call != self._fails or self._work(prep, task, failing=True)) and self._work(prep, task)
            for task in TASKS
        )

    def _new_project(self) -> RedisPrep:
        """An empty working directory, and a hash with nothing done."""
        shutil.rmtree(self._wd, ignore_errors=True)
        self._wd.mkdir(parents=True)
        prep = RedisPrep(str(self._wd), "disturbed9002.cfg")
        prep.remove_all_timestamp()
        prep.has_sbs = False
        prep.timestamp(TaskEnum.project_init)
        return prep

    def _work(self, prep: RedisPrep, task: Task, *, failing: bool = False) -> bool:
        """One job, in the steps and the order of a real one; false where it was told to end before the next."""
        job = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        call = f"{task.call}_rq({self.run})"
        prep.set_rq_job_id(task.call, job)
        prep.remove_timestamp(task.done)
        prep.set_locked_status(task.lock, True)
        try:
            self._say(task, f"rq:{job} STARTED {call}")
            lines = task.lines(self._random, self._site)
            for seconds, line in _failing(lines, task) if failing else lines:
                if self._wait(seconds / self._speed):
                    return False
                self._say(task, line)
        finally:
            prep.set_locked_status(task.lock, False)
        if failing:
            self._say(task, f"rq:{job} EXCEPTION {call}")
            return not self._wait(AGAIN / self._speed)
        if task.done is TaskEnum.init_sbs_map:
            prep.has_sbs = True
        prep.timestamp(task.done)
        self._say(task, f"rq:{job} COMPLETED {call}")
        self._say(task, f"rq:{job} TRIGGER   {task.channel} {task.event}_TASK_COMPLETED")
        return not self._wait(0.6 / self._speed)

    def _say(self, task: Task, line: str) -> None:
        StatusMessenger.publish(f"{self.run}:{task.channel}", line)


def _failing(lines: Iterator[Line], task: Task) -> Iterator[Line]:
    """The first half of `lines`, and then what a worker's log says of an exception: one record of several lines."""
    said = list(lines)
    yield from said[: len(said) // 2]
    yield 0.6, f"WARNING {task.call}: no answer from thredds.example.org within 30 s, trying again (1 of 2)"
    yield 1.2, f"WARNING {task.call}: no answer from thredds.example.org within 30 s, trying again (2 of 2)"
    yield (
        1.2,
        "\n".join(
            (
                f"ERROR {task.call}: given up",
                "Traceback (most recent call last):",
                f'  File "/srv/worker/jobs.py", line 212, in {task.call}_rq',
                f"    {task.channel}.build()",
                f'  File "/srv/worker/{task.channel}.py", line 148, in build',
                "    series = fetch(self.bounds, year, timeout=30)",
                "TimeoutError: thredds.example.org:443: read timed out (30 s)",
            )
        ),
    )


def _parts(total: int, count: int) -> list[int]:
    """`count` numbers up to `total`, evenly apart."""
    return [total * part // count for part in range(1, count + 1)]


def _channels(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.3, f"fetching DEM: USGS 3DEP 10 m, {site.north:.4f} {site.west:.4f} to {site.south:.4f} {site.east:.4f}"
    rows, columns = site.cell(site.east, site.south)
    yield 0.9, f"dem.tif: {rows} rows, {columns} columns, {site.lowest} m to {site.highest} m"
    yield 0.3, "WhiteboxTools: BreachDepressionsLeastCost --dist=1000"
    for percent in (25, 50, 75, 100):
        yield 0.2, f"BreachDepressionsLeastCost: progress {percent}%"
    yield 0.2, f"breached {rng.randint(rows, 2 * rows)} pits, filled {rng.randint(8, 20)}"
    yield 0.3, "WhiteboxTools: D8Pointer, D8FlowAccumulation"
    yield 0.5, f"flow accumulation: largest upslope area {site.hectares * rng.uniform(0.016, 0.019):.2f} km2"
    yield 0.3, f"extracting streams: csa 5.0 ha, mcl 60 m: {site.channels * 5 + rng.randint(0, 40)} links"
    yield 0.3, "netful.tif written, polygonized to netful.geojson"


def _outlet(rng: random.Random, site: Site) -> Iterator[Line]:
    longitude, latitude = site.outlet
    row, column = site.cell(longitude, latitude)
    yield 0.3, f"snapping outlet {longitude:.5f}, {latitude:.5f} to nearest channel"
    yield 0.4, f"outlet: row {row}, column {column}, moved {rng.uniform(4, 28):.1f} m"
    yield 0.3, "outlet is on the channel network"


def _subcatchments(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.3, "WhiteboxTools: Watershed, Subbasins"
    area = site.hectares + rng.uniform(-20, 20)
    yield 0.6, f"watershed above the outlet: {site.channels} channels, {site.hillslopes} hillslopes, {area:.1f} ha"
    yield 0.3, "subwta.tif and bound.tif written"


def _abstraction(rng: random.Random, site: Site) -> Iterator[Line]:
    for done in _parts(site.hillslopes, 8):
        yield 0.15, f"abstracting hillslope {done} of {site.hillslopes}: slope length {rng.uniform(60, 420):.1f} m"
    yield 0.2, f"abstracting channels: {site.channels} of {site.channels}, Strahler order {site.order}"
    yield 0.3, f"longest flowpath {site.flowpath} km, mean slope {rng.uniform(0.21, 0.34):.2f}"


def _sbs(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.3, f"soil burn severity map: {site.burn}, 4 classes"
    left = 100.0
    for severity, least, most in (("unburned", 30, 36), ("low", 28, 34), ("moderate", 20, 25)):
        share = round(rng.uniform(least, most), 1)
        left -= share
        yield 0.15, f"{severity}: {share:.1f} % of the area"
    yield 0.15, f"high: {left:.1f} % of the area"


def _landuse(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.3, "NLCD 2021: retrieving land cover for the watershed"
    yield 0.7, f"dominant land cover of {site.hillslopes} hillslopes identified"
    for name, most in (("42 Evergreen Forest", 50), ("52 Shrub/Scrub", 20), ("106 Forest Low Severity Fire", 30)):
        yield 0.25, f"{name}: {rng.uniform(most / 2, most):.1f} % of the area"
    yield 0.25, "managements built, canopy cover mapped from RAP"


def _soils(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.3, "SSURGO: querying map units in the watershed"
    mukeys = rng.sample(range(2_396_000, 2_397_000), 8)
    yield 0.6, f"SSURGO: {len(mukeys)} map units, {len(mukeys) - 1} valid"
    for mukey in mukeys:
        yield 0.15, f"building {mukey}.sol: {rng.randint(3, 5)} horizons, ksat {rng.uniform(2, 28):.1f} mm/h"
    yield 0.3, f"soils of {site.hillslopes} hillslopes assigned"


def _climate(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.3, f"CLIGEN: nearest station {site.station}"
    for year in YEARS:
        yield 0.08, f"GRIDMET {year}: {rng.uniform(480, 820):.1f} mm, {rng.randint(95, 150)} wet days"
    yield 0.4, "PRISM revision of monthly means, wepp.cli written"


def _rap(rng: random.Random, site: Site) -> Iterator[Line]:
    for year in YEARS:
        yield 0.05, f"RAP {year}: tree {rng.uniform(48, 56):.1f} %, shrub {rng.uniform(9, 14):.1f} %"


def _hillslopes(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.3, f"preparing {site.hillslopes} hillslopes, {YEARS[0]} to {YEARS[-1]}, 12 processes"
    for hillslope in range(1, site.hillslopes + 1):
        # Twelve at a time, as a process pool of a worker reports them: bursts, then a breath.
        pause = 0.02 if hillslope % 12 else 0.45
        yield pause, f"wepp hillslope {hillslope} of {site.hillslopes} completed in {rng.uniform(1.1, 3.9):.2f} s"


def _watershed(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.3, f"wepp watershed: routing {site.hillslopes} hillslopes through {site.channels} channels"
    for year in YEARS:
        yield 0.12, f"wepp watershed: year {year}, peak {rng.uniform(1.2, 6.4):.2f} m3/s"
    yield 0.4, f"loss report: {rng.uniform(0.4, 1.9):.2f} t/ha/yr at the outlet"


def _observed(rng: random.Random, site: Site) -> Iterator[Line]:
    days = (date(YEARS.stop, 1, 1) - date(YEARS.start, 1, 1)).days
    yield 0.6, f"daily streamflow: Nash-Sutcliffe {rng.uniform(0.55, 0.78):.2f}, {days} days"


def _debris(rng: random.Random, site: Site) -> Iterator[Line]:
    yield 0.4, "debris flow: NOAA Atlas 14 intensities for 10 durations"
    yield 0.4, f"probability at 24 mm/h in 15 min: {rng.uniform(12, 48):.1f} %"


def _ash(rng: random.Random, site: Site) -> Iterator[Line]:
    for done in _parts(site.hillslopes, 5):
        yield 0.25, f"ash transport: hillslope {done} of {site.hillslopes}"
    yield 0.3, f"ash transport: {rng.uniform(1.5, 6.5):.1f} t/ha by water, {rng.uniform(0.2, 0.9):.1f} t/ha by wind"


def _omni(rng: random.Random, site: Site) -> Iterator[Line]:
    for scenario in ("undisturbed", "uniform_low", "mulch_30", "mulch_60"):
        yield 0.5, f"omni scenario {scenario}: {rng.uniform(0.2, 1.6):.2f} t/ha/yr at the outlet"


def _export(rng: random.Random, site: Site) -> Iterator[Line]:
    for channel in _parts(site.channels, 3):
        yield 0.25, f"dss export: channel {channel} of {site.channels}"
    yield 0.3, f"dss.zip: {rng.uniform(11, 16):.1f} MB"


TASKS = (
    Task(
        "channel_delineation",
        "fetch_dem_and_build_channels",
        "watershed",
        TaskEnum.build_channels,
        "BUILD_CHANNELS",
        _channels,
    ),
    Task("outlet", "set_outlet", "watershed", TaskEnum.set_outlet, "SET_OUTLET", _outlet),
    Task(
        "subcatchment_delineation",
        "build_subcatchments",
        "watershed",
        TaskEnum.build_subcatchments,
        "BUILD_SUBCATCHMENTS",
        _subcatchments,
    ),
    Task(
        "subcatchment_delineation",
        "abstract_watershed",
        "watershed",
        TaskEnum.abstract_watershed,
        "WATERSHED_ABSTRACTION",
        _abstraction,
    ),
    Task("sbs_upload", "init_sbs_map", "disturbed", TaskEnum.init_sbs_map, "SBS_UPLOAD", _sbs),
    Task("landuse", "build_landuse", "landuse", TaskEnum.build_landuse, "LANDUSE_BUILD", _landuse),
    Task("soils", "build_soils", "soils", TaskEnum.build_soils, "SOILS_BUILD", _soils),
    Task("climate", "build_climate", "climate", TaskEnum.build_climate, "CLIMATE_BUILD", _climate),
    Task("rap_ts", "fetch_and_analyze_rap_ts", "rap_ts", TaskEnum.fetch_rap_ts, "RAP_TS", _rap),
    Task("wepp", "run_wepp_hillslopes", "wepp", TaskEnum.run_wepp_hillslopes, "WEPP_RUN_HILLSLOPES", _hillslopes),
    Task("wepp", "run_wepp_watershed", "wepp", TaskEnum.run_wepp_watershed, "WEPP_RUN", _watershed),
    Task("observed", "run_model_fit", "observed", TaskEnum.run_observed, "OBSERVED_RUN", _observed),
    Task("debris_flow", "run_debris_flow", "debris_flow", TaskEnum.run_debris, "DEBRIS_FLOW_RUN", _debris),
    Task("ash", "run_ash", "ash", TaskEnum.run_watar, "ASH_RUN", _ash),
    Task("omni", "run_omni_scenarios", "omni", TaskEnum.run_omni_scenarios, "OMNI_SCENARIO_RUN", _omni),
    Task("dss_export", "post_dss_export", "dss_export", TaskEnum.dss_export, "DSS_EXPORT", _export),
)

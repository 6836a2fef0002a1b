import subprocess
import sys

import pytest

from client import keys
from client.keys import TaskEnum

SAME_NAME = """
    project_init set_outlet abstract_watershed build_channels find_outlet build_subcatchments build_landuse
    build_treatments build_rangeland_cover build_soils build_climate run_wepp run_wepp_hillslopes run_wepp_watershed
    run_observed run_debris run_roads run_watar run_rhem fetch_dem landuse_map init_sbs_map run_omni run_omni_scenarios
    run_omni_contrasts dss_export run_features_export build_rusle set_readonly run_geneva
"""
OTHER_NAME = {
    "if_exists_rmtree": "rmtree",
    "fetch_rap_ts": "build_rap_ts",
    "fetch_openet_ts": "build_openet_ts",
    "fetch_polaris": "build_polaris",
    "run_path_cost_effective": "run_path_ce",
}


def test_tasks_are_those_of_the_contract():
    assert {task.name: task.value for task in TaskEnum} == {name: name for name in SAME_NAME.split()} | OTHER_NAME


@pytest.mark.parametrize("task", TaskEnum)
def test_a_task_is_written_as_its_value(task):
    assert str(task) == f"{task}" == task.value


def test_every_task_has_a_label_of_its_own_in_words():
    labels = [task.label() for task in TaskEnum]
    assert len(set(labels)) == len(labels)
    assert not any("_" in label or label != label.strip() or not label[0].isupper() for label in labels)


@pytest.mark.parametrize(
    ("task", "label"),
    [
        (TaskEnum.run_wepp_watershed, "Run WEPP Watershed"),
        (TaskEnum.fetch_rap_ts, "Build RAP TS"),
        (TaskEnum.fetch_openet_ts, "Build OpenET TS"),
        (TaskEnum.if_exists_rmtree, "Remove existing files"),
        (TaskEnum.run_path_cost_effective, "Run PATH Cost-Effective"),
        (TaskEnum.run_geneva, "Run Geneva"),
    ],
)
def test_label(task, label):
    assert task.label() == label


def test_every_task_has_an_emoji():
    assert all(task.emoji() and not task.emoji().isascii() for task in TaskEnum)


def test_channel():
    assert keys.channel("batch;;b;;run1", "wepp") == "batch;;b;;run1:wepp"


def test_names_of_the_hash():
    assert (keys.PREP_DB, keys.STATUS_DB) == (0, 2)
    assert (keys.ATTRIBUTE, keys.TIMESTAMP, keys.LOCKED, keys.RQ_JOB) == ("attrs:", "timestamps:", "locked:", "rq:")
    assert (keys.ARCHIVE_JOB, keys.LAST_MODIFIED) == ("archive:job_id", "last_modified")


def test_imports_nothing_heavy():
    code = (
        "import sys, client.keys; print([m for m in ('redis', 'ssl', 'socket', 'json', 'logging') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

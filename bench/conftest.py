"""What `make bench` saves of itself: the figures and what they depend on, nothing that names a machine or its owner."""

import platform

DROPPED = ("options", "extra_info")
KEPT = ("min", "max", "mean", "stddev", "median", "iqr", "outliers", "ops", "rounds", "iterations")


def pytest_benchmark_generate_machine_info(config):
    return {"cpu": _cpu(), "python": platform.python_version(), "system": platform.system()}


def pytest_benchmark_generate_commit_info(config):
    return {}


def pytest_benchmark_update_json(config, benchmarks, output_json):
    for benchmark in output_json["benchmarks"]:
        for name in DROPPED:
            del benchmark[name]
        benchmark["stats"] = {name: _rounded(benchmark["stats"][name]) for name in KEPT}


def _rounded(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _cpu():
    with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - a file of the kernel's
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")

"""Jobs for the workers of test_client_rq.py, which name them by their path; not imported by the tests."""

import asyncio
import os
import threading
import time

import redis

from client import QueuedMessenger, RedisPrep, StatusMessenger, messenger, outbox, rq, sender

if "PATIENT" in os.environ:  # a machine that stands still for a moment is to cost no line
    sender.BUDGET = sender.FIRST_ATTEMPT = 10.0
    outbox.EXIT_BUDGET = rq.FLUSH = rq.job_status.__kwdefaults__["flush"] = float(os.environ["PATIENT"])
    rq.MARGIN = 2.0

job_status = rq.job_status

LINES = 5000


@job_status("wepp", trigger="WEPP_RUN_TASK_COMPLETED")
def run_wepp(runid, *, clean=False):
    StatusMessenger.publish(f"{runid}:wepp", "working")
    return f"{runid} is done"


@job_status("wepp", trigger=("BATCH_RUN_COMPLETED", "omni END_BROADCAST"), queue=True)
async def run_later(runid):
    await asyncio.sleep(0.01)
    StatusMessenger.publish(f"{runid}:wepp", "working")
    return f"{runid} is done"


@job_status("wepp", trigger="NEVER")
def fail(runid):
    raise ZeroDivisionError(f"{runid} divides")


@job_status("wepp", queue=True)
def outlast(runid):
    hold_up_redis(2.8)
    time.sleep(30)


@job_status("wepp", queue=True)
async def outlast_later(runid):
    await asyncio.sleep(30)


@job_status("wepp", queue=True)
def end_just_in_time(runid):
    time.sleep(1.5)
    return f"{runid} is done"


@job_status("wepp")
def nest(runid):
    build_climate(runid, 3)
    return [threading.active_count(), messenger._Process.queued is None]


@job_status("wepp", queue=True)
def build_climate(runid, years):
    StatusMessenger.publish(f"{runid}:wepp", f"{years} years")


@job_status("wepp", trigger="DONE", queue=True)
def say_much(runid):
    hold_up_redis(0.5)
    say(runid)


def say_much_bare(runid, held_up=0.5):
    """What a job does that knows nothing of client.rq; queued mode is the worker's."""
    hold_up_redis(held_up)
    say(runid)
    return messenger._Process.queued is not None


def say_much_queued(runid):
    """What a job does that knows nothing of client.rq, and has turned queued mode on by itself."""
    StatusMessenger.configure(queue=True)
    hold_up_redis(2.0)
    say(runid)


def say_much_and_fail(runid):
    say_much_bare(runid)
    raise ZeroDivisionError


def say_much_and_outlast(runid):
    hold_up_redis(2.8)
    say(runid)
    time.sleep(30)


def say_on_a_queue_of_its_own(runid):
    hold_up_redis(0.5)
    say(runid, QueuedMessenger())


def write_lazily(wd):
    RedisPrep(wd, dump="lazy", dump_interval=600).timestamp("run_wepp")


def say(runid, publisher=StatusMessenger):
    for number in range(LINES):
        publisher.publish(f"{runid}:wepp", str(number))


def hold_up_redis(seconds):
    """Has the status Redis answer nobody for so long: what is published meanwhile waits."""
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
        client.client_pause(int(seconds * 1000))

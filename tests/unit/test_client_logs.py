"""status_logging: what is published while a block runs, and that all is as before after it."""

import asyncio
import io
import itertools
import logging
import os
import threading

import pytest

from client import logs
from client.logs import status_logging
from client.testing import CaptureMessenger

WARNING, INFO, DEBUG = logging.WARNING, logging.INFO, logging.DEBUG


@pytest.fixture
def said():
    with CaptureMessenger() as said:
        yield said


@pytest.fixture(autouse=True)
def as_at_the_start():
    """The root logger has its usual level, and the test leaves nothing behind."""
    logging.root.setLevel(WARNING)
    before = list(logging.root.handlers)
    yield
    assert logging.root.handlers == before
    assert [handler for handler in before if logs._passes in handler.filters] == []
    assert (logs._lowered, logs._guarded) == ({}, [])


_numbers = itertools.count()


@pytest.fixture
def logger():
    """A logger that no other test has, two levels below the root."""
    return logging.getLogger(f"model{next(_numbers)}.wepp")


@pytest.fixture
def root_stream():
    """What a handler prints that was on the root logger before."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.root.addHandler(handler)
    yield stream
    logging.root.removeHandler(handler)


def levels(*loggers):
    return [each.level for each in loggers]


def test_records_of_the_level_and_above_are_published(said, logger):
    with status_logging("r1:wepp", level=INFO):
        logger.debug("hidden")
        logger.info("info %d", 1)
        logger.error("error")
    logger.error("after")
    assert said.messages == [("r1:wepp", "info 1"), ("r1:wepp", "error")]


@pytest.mark.parametrize("level", ["INFO", "info", 20, logging.INFO])
def test_levels_by_number_and_by_name(said, logger, level):
    with status_logging("r1:wepp", level) as handler:
        logger.info("x")
        logger.debug("y")
    assert handler.level == INFO
    assert said.lines("r1:wepp") == ["x"]


def test_level_0_is_everything(said, logger):
    with status_logging("r1:wepp", 0, logger):
        logger.log(1, "x")
    assert said.lines("r1:wepp") == ["x"]
    assert logger.level == logging.NOTSET


def test_a_bad_name_says_which_there_are():
    with pytest.raises(ValueError, match=r"no level 'LOUD'; there are CRITICAL, .*DEBUG"):
        status_logging("r1:wepp", "LOUD")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"channel": ""}, ValueError),
        ({"channel": None}, TypeError),
        ({"level": None}, TypeError),
        ({"level": True}, TypeError),
        ({"level": -1}, ValueError),
        ({"logger": 7}, TypeError),
        ({"formatter": "%(message)s"}, TypeError),
    ],
)
def test_misuse_raises_where_it_is_written(arguments, error):
    with pytest.raises(error):
        status_logging(**{"channel": "r1:wepp", **arguments})


def test_one_logger_by_name_or_itself(said, logger):
    with status_logging("r1:name", logger=logger.name), status_logging("r1:self", logger=logger):
        logger.info("mine")
        logging.getLogger("another").error("another's")
    assert said.messages == [("r1:self", "mine"), ("r1:name", "mine")] or said.messages == [
        ("r1:name", "mine"),
        ("r1:self", "mine"),
    ]


def test_the_formatter(said, logger):
    with status_logging("r1:wepp", formatter=logging.Formatter("%(levelname)s %(message)s")):
        logger.info("x")
    assert said.lines("r1:wepp") == ["INFO x"]


# --- levels -------------------------------------------------------------------------------------------------------


def test_the_level_is_lowered_only_where_it_must_be(said, logger):
    logger.setLevel(DEBUG)
    with status_logging("r1:wepp", INFO, logger):
        assert levels(logging.root, logger) == [WARNING, DEBUG]
    with status_logging("r1:wepp", logging.ERROR):
        assert levels(logging.root, logger) == [WARNING, DEBUG]
    with status_logging("r1:wepp", INFO):
        assert levels(logging.root, logger) == [INFO, DEBUG]
    assert levels(logging.root, logger) == [WARNING, DEBUG]


def test_all_is_restored_when_the_block_raises(said, logger):
    with pytest.raises(KeyError), status_logging("r1:wepp", DEBUG, logger):
        raise KeyError
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_blocks_may_end_in_any_order(said, logger, order):
    blocks = [status_logging(f"r1:{level}", level, logger) for level in (INFO, DEBUG, logging.ERROR)]
    for block in blocks:
        block.__enter__()
    open_blocks = {0: INFO, 1: DEBUG, 2: logging.ERROR}
    for number in order:
        blocks[number].__exit__(None, None, None)
        del open_blocks[number]
        asked = min(open_blocks.values(), default=WARNING)
        assert logger.getEffectiveLevel() == min(asked, WARNING)
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])


@pytest.mark.parametrize("first", ["parent", "child"])
def test_overlapping_blocks_on_a_parent_and_its_child(said, logger, first):
    """The child's block must not rely on a parent that is lowered only for another block."""
    blocks = {"parent": status_logging("r1:parent", INFO), "child": status_logging("r1:child", INFO, logger)}
    blocks["parent"].__enter__()
    blocks["child"].__enter__()
    last = blocks.pop("child" if first == "parent" else "parent")
    blocks.popitem()[1].__exit__(None, None, None)
    said.messages.clear()
    logger.info("x")
    assert len(said.messages) == 1
    last.__exit__(None, None, None)
    assert levels(logging.root, logger) == [WARNING, logging.NOTSET]


def test_a_level_that_the_program_sets_within_the_block_stays(said, logger):
    logger.setLevel(logging.ERROR)
    with status_logging("r1:wepp", DEBUG, logger):
        logger.setLevel(WARNING)
        with status_logging("r1:wepp", INFO, logger):
            assert logger.level == DEBUG
        assert logger.level == DEBUG
    assert logger.level == WARNING


def test_many_threads_at_once(said, logger):
    begin = threading.Barrier(8)

    def work(number):
        begin.wait()
        for _ in range(50):
            with status_logging(f"r1:{number}", (INFO, DEBUG)[number % 2], (None, logger)[number // 2 % 2]):
                logger.info(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert levels(logging.root, logger) == [WARNING, logging.NOTSET]
    assert logger.handlers == []
    for number in range(8):
        assert said.lines(f"r1:{number}").count(str(number)) == 50


# --- the handlers that were there before --------------------------------------------------------------------------


def test_earlier_handlers_print_what_they_did_before_and_no_more(said, logger, root_stream):
    loud = logging.getLogger(f"{logger.name}.loud")
    loud.setLevel(DEBUG)
    with status_logging("r1:wepp", DEBUG):
        logger.info("new")
        logger.warning("as ever")
        loud.debug("as ever, too")
        logging.root.info("new")
        logging.root.error("root")
    assert root_stream.getvalue().splitlines() == ["as ever", "as ever, too", "root"]
    assert said.lines("r1:wepp") == ["new", "as ever", "as ever, too", "new", "root"]


def test_the_handlers_of_parents_and_children_are_kept_quiet_too(said, logger, root_stream):
    """A record goes to a parent's handlers whatever the parent's level is; a child inherits the lowered level."""
    child, stream = logger.getChild("child"), io.StringIO()
    handler = logging.StreamHandler(stream)
    child.addHandler(handler)
    with status_logging("r1:wepp", DEBUG, logger):
        child.info("new")
        child.error("as ever")
    child.removeHandler(handler)
    assert stream.getvalue() == root_stream.getvalue() == "as ever\n"
    assert said.lines("r1:wepp") == ["new", "as ever"]


def test_blocks_do_not_quiet_each_other(said, logger):
    with status_logging("r1:outer", INFO, logger), status_logging("r1:inner", DEBUG):
        logger.info("x")
    assert sorted(said.messages) == [("r1:inner", "x"), ("r1:outer", "x")]


def test_a_handler_that_comes_within_the_block_gets_what_is_there(said, logger):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    with status_logging("r1:outer", INFO):
        logging.root.addHandler(handler)
        with status_logging("r1:inner", INFO):
            logger.info("x")
        logging.root.removeHandler(handler)
    assert stream.getvalue() == "x\n"


def test_quiet_until_the_last_block_has_ended(said, logger, root_stream):
    first, second = status_logging("r1:1", INFO), status_logging("r1:2", INFO, logger)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    logger.info("new")
    second.__exit__(None, None, None)
    logger.info("hidden")
    assert root_stream.getvalue() == ""
    assert said.messages == [("r1:1", "new"), ("r1:2", "new")][1:]


# --- as a decorator -----------------------------------------------------------------------------------------------


def test_a_function(said, logger):
    @status_logging("r1:wepp", INFO, logger)
    def work(depth):
        """Says so."""
        logger.info("depth %d", depth)
        return work(depth - 1) if depth else "done"

    assert work(1) == "done"
    assert (work.__name__, work.__doc__) == ("work", "Says so.")
    assert said.lines("r1:wepp") == ["depth 1", "depth 0", "depth 0"]
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])


async def test_a_coroutine_function(said, logger):
    @status_logging("r1:wepp", INFO, logger)
    async def work():
        await asyncio.sleep(0)
        logger.info("x")
        return "done"

    coroutine = work()
    assert logger.handlers == []
    assert await coroutine == "done"
    assert said.lines("r1:wepp") == ["x"]
    assert logger.handlers == []


def test_generators_are_refused():
    def sync():
        yield

    async def coming():
        yield

    for function in (sync, coming):
        with pytest.raises(TypeError, match="is a generator and runs after its call"):
            status_logging("r1:wepp")(function)


# --- no recursion, no deadlock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["client.sender", "client.outbox"])
def test_the_clients_own_warnings_are_not_published(said, name, root_stream):
    with status_logging("r1:wepp", DEBUG):
        logging.getLogger(name).warning("Redis is away")
    assert said.messages == []
    assert root_stream.getvalue() == "Redis is away\n"


def test_a_child_of_a_fork_has_a_lock_of_its_own(said, logger):
    with logs._lock:
        pid = os.fork()
        if pid == 0:
            held = threading.Thread(target=status_logging("r1:wepp", INFO, logger).__enter__, daemon=True)
            held.start()
            held.join(10)
            os._exit(held.is_alive())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

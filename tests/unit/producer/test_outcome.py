import pytest

from headrace.errors import (
    CancelledError,
    ConfigurationError,
    DecodeError,
    ExpiredError,
    FailedError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
)
from headrace.producer.durability import FSYNC_SETTINGS, check_fsync
from headrace.producer.outcome import Result, failure_of
from headrace.wire import Chunk, Done, Failure, Reason, Usage

USAGE = Usage(3, 2)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_request_that_came_to_its_end_has_no_failure(reason: Reason) -> None:
    assert failure_of(Done(reason, USAGE), "r") is None


@pytest.mark.parametrize(
    ("done", "kind"),
    [
        (Done("cancelled", USAGE), CancelledError),
        (Done("expired", USAGE), ExpiredError),
        (Done("error", USAGE, Failure("invalid", "prompt: too long", "prompt")), InvalidRequestError),
        (Done("error", USAGE, Failure("overloaded", "later")), OverloadedError),
        (Done("error", USAGE, Failure("poison", "given up")), FailedError),
        (Done("error", USAGE), FailedError),
    ],
)
def test_every_other_end_is_an_exception_that_names_the_request(done: Done, kind: type[RequestError]) -> None:
    failure = failure_of(done, "r")
    assert type(failure) is kind
    assert failure.request_id == "r"


def test_a_failure_keeps_its_field_and_its_code() -> None:
    invalid = failure_of(Done("error", USAGE, Failure("invalid", "prompt: too long", "prompt")), "r")
    poison = failure_of(Done("error", USAGE, Failure("poison", "given up")), "r")
    assert isinstance(invalid, InvalidRequestError)
    assert (invalid.field, str(invalid)) == ("prompt", "prompt: too long")
    assert isinstance(poison, FailedError)
    assert (poison.code, str(poison)) == ("poison", "given up")


def test_a_result_is_its_pieces_put_together() -> None:
    pieces = [Chunk(0, 0, (1, 2), "ab"), Chunk(2, 2, (3,), "c", Done("stop", USAGE))]
    assert Result.of("r", pieces) == Result("r", "abc", (1, 2, 3), "stop", USAGE)


def test_a_result_without_an_end_is_none() -> None:
    with pytest.raises(DecodeError):
        Result.of("r", [Chunk(0, 0, (1,), "a")])


def test_fsync_is_given_only_by_a_server_that_syncs_every_write_always() -> None:
    check_fsync(FSYNC_SETTINGS)
    for name in FSYNC_SETTINGS:
        with pytest.raises(ConfigurationError, match=f"set {name} {FSYNC_SETTINGS[name]}"):
            check_fsync({**FSYNC_SETTINGS, name: "everysec"})
    with pytest.raises(ConfigurationError, match="set appendfsync always"):
        check_fsync({"appendonly": "yes", "no-appendfsync-on-rewrite": "no"})

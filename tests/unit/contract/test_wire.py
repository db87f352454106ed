import contextlib
import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DecodeError
from headrace.wire import Chunk, Done, Echo, Encoding, Failure, TokenLogprobs, Usage, decode_body, encode_body

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))
bodies = st.dictionaries(st.text(), values, max_size=6)
encodings: st.SearchStrategy[Encoding] = st.sampled_from(["json", "mp"])


@given(bodies, encodings)
def test_a_body_comes_back_as_it_was(fields: dict[str, Any], encoding: Encoding) -> None:
    if encoding == "json" and any(math.isinf(x) for x in floats(fields)):
        return
    assert decode_body(encode_body(fields, encoding), encoding) == fields


def floats(value: object) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [x for item in value for x in floats(item)]
    return [value] if isinstance(value, float) else []


@given(st.binary(max_size=200), encodings)
def test_any_bytes_are_a_body_or_refused_as_none(data: bytes, encoding: Encoding) -> None:
    decodes_or_refuses(data, encoding)


@given(bodies, encodings, st.data())
def test_a_damaged_body_is_a_body_or_refused_as_none(
    fields: dict[str, Any], encoding: Encoding, data: st.DataObject
) -> None:
    body = bytearray(msgpack.packb(fields) if encoding == "mp" else json.dumps(fields).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_refuses(bytes(body), encoding)


def decodes_or_refuses(data: bytes, encoding: Encoding) -> None:
    try:
        fields = decode_body(data, encoding)
    except DecodeError as error:
        Failure("invalid", str(error)).encode("json"), Failure("invalid", str(error)).encode("mp")
    else:
        assert isinstance(fields, dict)
        assert all(isinstance(name, str) for name in fields)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"1", b'"text"', b"null", b'{"a":1}{', b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":2}}', b"\xff\xfe", b'{"a":"\xff"}', b'{"a":' + b"[" * 100_000, b'{"a":' + b"9" * 5_000 + b"}",
        b'{"\\udfff":1}', b'{"\\ud800":1,"\\ud800":2}',
        b'{"a":{"b":{"\\ud800":1}}}', b'{"a":"\xed\xa0\x80"}', '{"a":1}'.encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_not_one_plain_json_object_is_refused_in_words_that_can_be_sent(body: bytes) -> None:
    # Previously a lone surrogate in a name passed, and killed whoever encoded the refusal that quotes it.
    with pytest.raises(DecodeError) as caught:
        decode_body(body, "json")
    assert len(str(caught.value)) < 300
    for encoding in ("json", "mp"):
        assert Failure("invalid", str(caught.value), "body").encode(encoding)


@pytest.mark.parametrize("text", [r"\ud83d\ude42", r"\\ud800", "\\u00e9", "\\\\\\ud83d\\ude42"])
def test_pairs_of_surrogates_and_escaped_backslashes_are_text(text: str) -> None:
    body = b'{"a":"' + text.encode() + b'"}'
    assert decode_body(body, "json") == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xc1", b"\x93\x01\x02\x03", msgpack.packb({1: 2}), msgpack.packb({b"a": 1}), b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\xa1a\xa1\xff", b"\x81\xa1a" + b"\x91" * 5_000 + b"\x01", b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff", msgpack.packb({"a": msgpack.ExtType(5, b"x")}), b"\x81\xa1a\x01\x01",
        b'{"a":1}', b"\x81\xa1a\xc7\x03\xff\x00\x00\x00", b"\x81\x90\x01",
        b"\x81\xa1a\xa3\xed\xa0\x80",
    ],
)  # fmt: skip
def test_what_is_not_one_plain_messagepack_map_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_body(body, "mp")


chunks = st.builds(
    Chunk,
    st.integers(0, 2**31),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 2**31), max_size=5).map(tuple),
    st.text(max_size=20),
    st.none()
    | st.builds(
        Done,
        st.sampled_from(["stop", "length", "cancelled", "expired", "error"]),
        st.builds(Usage, st.integers(0, 2**31), st.integers(0, 2**31)),
        st.none() | st.builds(Failure, st.text(), st.text(), st.text()),
        st.none() | st.floats(-9999, 0),
    ),
    st.lists(
        st.builds(
            TokenLogprobs,
            st.floats(-9999, 0),
            st.lists(st.tuples(st.integers(0, 2**31), st.floats(-9999, 0)), max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    st.none() | st.builds(Echo, st.lists(st.integers(0, 2**31), max_size=5).map(tuple), st.text()),
    st.lists(st.sampled_from(["a/0", "a/1"])).map(tuple),
    st.none() | st.integers(0, 127),
)


@given(chunks, encodings)
def test_a_chunk_comes_back_as_it_was_whichever_encoding(chunk: Chunk, encoding: Encoding) -> None:
    assert Chunk.decode(chunk.encode(encoding)) == chunk


@given(encodings)
def test_what_was_not_asked_for_is_not_in_a_chunk(encoding: Encoding) -> None:
    data = Chunk(0, 0, (1,), "a", Done("stop", Usage(1, 1))).encode(encoding)
    fields = json.loads(data) if encoding == "json" else msgpack.unpackb(data)
    assert set(fields) == {"i", "o", "ids", "text", "done"}
    assert set(fields["done"]) == {"reason", "usage"}


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda b: b"{" + b))
def test_any_bytes_are_a_chunk_or_refused_as_none(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        Chunk.decode(data)


@pytest.mark.parametrize("data", [b"{" * 100_000, b'{"i":' + b"[" * 100_000, b"\x91" * 100_000])
def test_a_chunk_that_is_nested_too_deeply_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Chunk.decode(data)

"""Hostile GGUF headers: refused by name and at once, whatever they claim."""

import os
import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfevo_jax.errors import UserError
from selfevo_jax.weights.gguf_header import read_header

U32, STRING, ARRAY, F32 = 4, 8, 9, 0
TIMES = int(os.environ.get("SELFEVO_FUZZ", "1"))  # see tests/security/test_fuzzed_files.py


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key, kind=U32, value=b"\1\0\0\0") -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name="t", dims=(8,), kind=F32, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(pairs=(), tensors=(), data=0, counts=None, version=3, align=32) -> bytes:
    counts = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *tensors])
    return head + bytes(-len(head) % align) + bytes(data)


ONE = [tensor()]
HOSTILE = {
    "empty": (b"", "empty"),
    "another format": (b"PK\3\4" + bytes(40), "not a GGUF"),
    "version 1": (file(version=1), "version 1"),
    "big-endian": (file(version=3 << 24), "big-endian"),
    "many tensors": (file(counts=(2**63, 0)), "cannot fit"),
    "many keys": (file(counts=(0, 2**60)), "cannot fit"),
    "truncated header": (file([pair("a")], ONE, 32)[:50], "left|cannot fit"),
    "a key longer than the file": (
        file([struct.pack("<Q", 2**62) + bytes(40)], counts=(0, 1)),
        "a metadata key of 4611686018427387904 bytes",
    ),
    "a string longer than the file": (
        file([pair("a", STRING, struct.pack("<Q", 2**40))]),
        "'a' of 1099511627776 bytes",
    ),
    "an array longer than the file": (
        file([pair("a", ARRAY, struct.pack("<IQ", U32, 2**62))]),
        "bytes, but",
    ),
    "strings without end": (
        file([pair("a", ARRAY, struct.pack("<IQ", STRING, 2**50))]),
        "more than the file can hold",
    ),
    "nested arrays": (
        file([pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 50)]),
        "more than 4 deep",
    ),
    "an unknown value type": (file([pair("a", 77)]), "value type 77"),
    "a key twice": (file([pair("a"), pair("a")]), "'a' occurs twice"),
    "no utf-8": (file([pair(b"\xff\xfe")]), "UTF-8"),
    "alignment 0": (
        file([pair("general.alignment", U32, struct.pack("<I", 0))], ONE, 32),
        "general.alignment is 0",
    ),
    "alignment 24": (
        file([pair("general.alignment", U32, struct.pack("<I", 24))], ONE, 32),
        "general.alignment is 24",
    ),
    "alignment text": (
        file([pair("general.alignment", STRING, text("32"))], ONE, 32),
        "general.alignment is '32'",
    ),
    "a tensor twice": (file([], [tensor(), tensor(offset=32)], 64), "'t' occurs twice"),
    "no dimensions": (file([], [tensor(dims=())], 32), "0 dimensions"),
    "many dimensions": (file([], [tensor(dims=(1,) * 5)], 32), "5 dimensions"),
    "an empty tensor": (file([], [tensor(dims=(0,))], 32), "empty shape"),
    "an overflowing shape": (file([], [tensor(dims=(2**62, 2**62))], 32), "truncated"),
    "an unknown quantisation": (file([], [tensor(kind=999)], 32), "quantisation type 999"),
    "broken blocks": (file([], [tensor(kind=2)], 32), "whole Q4_0 blocks"),
    "past the end": (file([], [tensor(dims=(9,))], 32), "truncated"),
    "an offset past the end": (file([], [tensor(offset=2**63)], 32), "overlap or leave a gap"),
    "overlap": (file([], [tensor("a", (16,)), tensor("b", offset=32)], 96), "overlap"),
    "the same place": (file([], [tensor("a"), tensor("b")], 64), "overlap"),
    "a gap": (file([], [tensor("a"), tensor("b", offset=64)], 96), "gap"),
    "trailing bytes": (file([], ONE, 4096), "follow the last tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(name, tmp_path):
    raw, message = HOSTILE[name]
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        read_header(tmp_path / "m.gguf")
    assert "m.gguf" in str(caught.value)


def test_the_sound_twin_of_those_files_is_read(tmp_path):
    (tmp_path / "m.gguf").write_bytes(file([pair("a")], [tensor()], 32))
    header = read_header(tmp_path / "m.gguf")
    assert header.metadata == {"a": 1}
    assert header.tensors["t"].shape == (8,)


def small_gguf(path):
    """A file by the gguf library with every kind of metadata value."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("s", "text")
    writer.add_bool("b", True)
    writer.add_float32("f", 0.1)
    writer.add_int64("i", -5)
    writer.add_array("strings", ["a", "bc"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("x", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("y", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_kind_of_value_is_read(tmp_path):
    header = read_header(small_gguf(tmp_path / "m.gguf"))
    own = {key: value for key, value in header.metadata.items() if not key.startswith("general.")}
    assert own == {
        "s": "text", "b": True, "f": 0.1, "i": -5, "strings": ["a", "bc"], "numbers": [1, -2, 3],
    }  # fmt: skip


@settings(max_examples=250 * TIMES, deadline=500, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_are_refused_or_stay_inside_the_file(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    raw = bytearray(small_gguf(path).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 9))
        action = data.draw(st.sampled_from(["set", "cut", "insert", "huge", "truncate"]))
        if action == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del raw[at : at + data.draw(st.integers(1, 9))]
        elif action == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif action == "huge":
            raw[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
        else:
            del raw[at + 9 :]
        if len(raw) < 10:
            break
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except UserError as error:
        assert "fuzz.gguf" in str(error)
        return
    spans = sorted((t.start, t.start + t.size) for t in header.tensors.values())
    assert all(end <= len(raw) for _, end in spans)
    assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))

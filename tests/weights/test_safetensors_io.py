"""Safetensors against the safetensors library; hostile headers and indices; sharded reads."""

import json
import os
import shutil
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from selfevo_jax.errors import UserError
from selfevo_jax.weights.model_files import open_model, save_model
from selfevo_jax.weights.safetensors_header import read_header
from selfevo_jax.weights.safetensors_io import INDEX, SINGLE, Outgoing, read_file, write_file

BF16 = jnp.dtype("bfloat16")
ARRAYS = {
    "b": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "a": np.arange(5, dtype=np.float32) - 2,
    "empty": np.zeros((0, 3), np.float32),
}
TIMES = int(os.environ.get("SELFEVO_FUZZ", "1"))  # see tests/security/test_fuzzed_files.py


def framed(header, data=b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=str)
def test_the_library_and_we_read_each_other(dtype, tmp_path):
    arrays = {name: value.astype(dtype) for name, value in ARRAYS.items()}
    save_file(arrays, tmp_path / "theirs", {"format": "pt"})
    ours, metadata = read_file(tmp_path / "theirs")
    assert metadata == {"format": "pt"}
    outgoing = [Outgoing(n, v.shape, lambda v=v: v) for n, v in arrays.items()]
    write_file(tmp_path / "ours", outgoing, np.dtype(dtype), {"format": "pt"})
    theirs = load_file(tmp_path / "ours")
    for name, value in arrays.items():
        np.testing.assert_array_equal(ours[name], value)
        np.testing.assert_array_equal(theirs[name], value)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


HOSTILE = {
    "an empty file": (b"", "less than any header"),
    "a header longer than the file": (struct.pack("<Q", 2**63) + b"{}", "claims a header"),
    "a header over 100 MB": (struct.pack("<Q", 100_000_001) + b"{}", "claims a header"),
    "no json": (framed(b"{nope"), "not right"),
    "not utf-8": (framed(b'{"\xff": 1}'), "not right"),
    "deep json": (framed(b'{"a":' + b"[" * 100_000), "not right"),
    "a list": (framed([]), "not a JSON object"),
    "a name twice": (
        framed(b'{"x":%s,"x":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
        "'x' occurs twice",
    ),
    "overlapping tensors": (
        framed({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)),
        "overlaps",
    ),
    "a gap": (framed({"x": entry(), "y": entry(offsets=(12, 20))}, bytes(20)), "gap"),
    "a gap at the start": (framed({"x": entry(offsets=(4, 12))}, bytes(12)), "gap"),
    "trailing bytes": (framed({"x": entry()}, bytes(9)), "foreign bytes"),
    "truncated data": (framed({"x": entry()}, bytes(7)), "truncated"),
    "shape against offsets": (framed({"x": entry(shape=(3,))}, bytes(8)), "12 bytes"),
    "an overflowing shape": (framed({"x": entry(shape=(2**62, 4, 2))}, bytes(8)), "'x'"),
    "a negative dimension": (framed({"x": entry(shape=(-2,))}, bytes(8)), "shape"),
    "a float dimension": (framed({"x": entry(shape=(2.0,))}, bytes(8)), "shape"),
    "offsets reversed": (framed({"x": entry(offsets=(8, 0))}, bytes(8)), "'x'"),
    "three offsets": (framed({"x": entry(offsets=(0, 8, 8))}, bytes(8)), "offsets"),
    "an unknown dtype": (framed({"x": entry(dtype="F128")}, bytes(8)), "F128"),
    "a foreign field": (framed({"x": {**entry(), "code": 1}}, bytes(8)), "or has more"),
    "metadata of numbers": (framed({"__metadata__": {"a": 1}}), "__metadata__"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(name, tmp_path):
    raw, message = HOSTILE[name]
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        read_header(tmp_path / "m.safetensors")
    assert "m.safetensors" in str(caught.value)


@pytest.mark.parametrize("dtype", ["I32", "F64", "F8_E4M3"])
def test_a_dtype_that_is_no_weight_is_refused(dtype, tmp_path):
    size = {"I32": 8, "F64": 16, "F8_E4M3": 2}[dtype]
    raw = framed({"x": entry(dtype=dtype, offsets=(0, size))}, bytes(size))
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match=f"'x' is {dtype}"):
        read_file(tmp_path / "m.safetensors")


@pytest.fixture
def sharded(hf_folders, tmp_path):
    files = open_model(hf_folders("llama"))
    save_model(tmp_path / "s", files.config, files.load(), shard_bytes=60_000)
    return tmp_path / "s"


def change_index(folder, change):
    data = json.loads((folder / INDEX).read_text())
    change(data["weight_map"])
    (folder / INDEX).write_text(json.dumps(data))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", 3])
def test_an_index_cannot_point_outside(name, sharded):
    change_index(sharded, lambda weight_map: weight_map.update({"model.norm.weight": name}))
    with pytest.raises(UserError, match="not a safetensors file name"):
        open_model(sharded)


def test_an_index_that_disagrees_with_its_shards_is_refused(sharded):
    change_index(sharded, lambda weight_map: weight_map.pop("model.norm.weight"))
    with pytest.raises(UserError, match="'model.norm.weight' is not in the index"):
        open_model(sharded)
    change_index(
        sharded,
        lambda m: m.update({"model.norm.weight": m["lm_head.weight"], "z": m["lm_head.weight"]}),
    )
    with pytest.raises(UserError, match="'z' is in no shard"):
        open_model(sharded)


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        open_model(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    shutil.copyfile(first, second)
    with pytest.raises(UserError, match="is also in"):
        open_model(sharded)


@pytest.fixture
def single(hf_folders, tmp_path):
    shutil.copytree(hf_folders("llama"), tmp_path / "m")
    return tmp_path / "m"


def rewrite(folder, change):
    arrays = load_file(folder / SINGLE)
    change(arrays)
    save_file(arrays, folder / SINGLE)


def test_tensors_that_do_not_fit_are_named(single):
    norm, gate = "model.norm.weight", "model.layers.1.mlp.gate_proj.weight"
    rewrite(single, lambda arrays: arrays.update({"model.vision": np.ones(3, np.float32)}))
    with pytest.raises(UserError, match="model.vision .*no place in a llama"):
        open_model(single).load()
    rewrite(single, lambda arrays: (arrays.pop("model.vision"), arrays.pop(gate)))
    with pytest.raises(UserError, match=f"missing tensors {gate}"):
        open_model(single).load()
    rewrite(single, lambda arrays: arrays.update({gate: np.ones((64, 96), np.float32)}))
    with pytest.raises(UserError, match=rf"{gate} has shape \[64, 96\].*\[96, 64\]"):
        open_model(single).load()
    rewrite(single, lambda arrays: arrays.update({norm: np.ones(63, np.float32)}))
    with pytest.raises(UserError, match="gate_proj|norm"):
        open_model(single).load()


def test_old_buffers_are_ignored(single):
    before = open_model(single).load()["final_norm"]["scale"]
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(single, lambda arrays: arrays.update({name: np.ones(8, np.float32)}))
    np.testing.assert_array_equal(open_model(single).load()["final_norm"]["scale"], before)


def test_pickles_are_refused_with_the_way_out(single):
    (single / SINGLE).rename(single / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin.*never loaded.*save_pretrained"):
        open_model(single)


def test_folders_that_are_no_model_say_what_they_are(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        open_model(tmp_path)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(UserError, match="x.gguf"):
        open_model(tmp_path)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(UserError, match="is an adapter"):
        open_model(tmp_path)


SHARDED_READ = """
import sys, jax, numpy as np
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.weights.model_files import open_model
files = open_model(sys.argv[1])
read, whole = [], type(files.store).read
type(files.store).read = lambda self, name, bounds: (
    read.append(np.prod([b - a for a, b in bounds])), whole(self, name, bounds))[1]
plain = files.load()
total = sum(read)
read.clear()
mesh = make_mesh("2,2,2")
split = files.load(shardings(abstract_params(files.config), mesh))
jax.tree.map(np.testing.assert_array_equal, plain, split)
kernel = split["layers"]["mlp"]["up_proj"]["kernel"]
assert kernel.addressable_shards[0].data.size * 4 == kernel.size
assert sum(read) == total, (sum(read), total)
"""


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_eight_devices_read_each_number_once(form, hf_folders, smollm2, tmp_path):
    """data 2 x fsdp 2 x tensor 2: each device its slices, replicas share one read."""
    path = hf_folders("llama") if form == "safetensors" else smollm2.path
    flags = "--xla_force_host_platform_device_count=8"
    env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED_READ, str(path)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@settings(max_examples=150 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_are_refused_or_read_right(data, tmp_path_factory):
    """Any mutation: a UserError, or exactly what the safetensors library reads."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzz.safetensors"
    save_file(ARRAYS, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["set", "cut", "insert", "swap"]))
        if action == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del raw[at : at + data.draw(st.integers(1, 9))]
        elif action == "insert":
            raw[at:at] = data.draw(
                st.sampled_from([b"9", b"-", b'"', b"[", b"0" * 30, b"\0", b","])
            )
        else:
            other = data.draw(st.integers(0, len(raw) - 1))
            raw[at], raw[other] = raw[other], raw[at]
        if not raw:
            break
    path.write_bytes(raw)
    try:
        ours, _ = read_file(path)
    except UserError as error:
        assert "fuzz.safetensors" in str(error)
        return
    theirs = load_file(path)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])

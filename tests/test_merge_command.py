"""`selfevo merge` against PEFT on the same two folders; lineage, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from selfevo_jax.cli import main
from selfevo_jax.evolve.tiny import random_model
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.weights.model_files import open_model
from selfevo_jax.weights.peft import WEIGHTS, load_peft, read_origin, save_peft
from selfevo_jax.weights.storage import sha256_of_file

BASE = "random:tiny?seed=0"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_model(random_model(BASE))


@pytest.fixture
def two(base, tmp_path):
    """Two adapters of the base, as runs leave them."""
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        lora = LoraConfig(rank=4, alpha=(8.0, 2.0)[seed])
        draw = np.random.default_rng(seed).normal
        tree = init_lora(base.config, lora, jax.random.key(seed))
        tree = jax.tree.map(lambda leaf, draw=draw: draw(size=leaf.shape).astype("f4"), tree)
        lineage = {"round": f"round_0{seed + 1}"}
        save_peft(folder, tree, lora, BASE, base.hash, lineage)
    return folders


def by_peft(base, folders, method, weights):
    transformers = pytest.importorskip("transformers", reason="the parity libraries are missing")
    peft = pytest.importorskip("peft", reason="the parity libraries are missing")
    model = transformers.AutoModelForCausalLM.from_pretrained(base.path)
    model = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="one")
    model.load_adapter(folders[1], adapter_name="two")
    model.add_weighted_adapter(["one", "two"], weights, "all", method, density=0.2)
    return peft.get_peft_model_state_dict(model, adapter_name="all"), model.peft_config["all"]


@pytest.mark.parametrize(("method", "weights"), [("ties", "1,0.5"), ("linear", "1,-0.3")])
def test_equals_peft_and_keeps_the_lineage(base, two, tmp_path, method, weights):
    out = tmp_path / "out"
    options = [f"--method={method}", f"--weights={weights}", "--density=0.2", f"--out={out}"]
    assert main(["merge", *map(str, two), *options]) == 0
    expected, config = by_peft(base, two, method, [float(w) for w in weights.split(",")])
    tree, lora = load_peft(out, base.config, base.hash)
    assert lora.scaling == config.lora_alpha / config.r
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    ours = tree["layers"]["mlp"]["up_proj"]
    for side in "ab":
        theirs = expected[name.format(side.upper())].numpy().T
        np.testing.assert_allclose(ours[side][1], theirs, atol=1e-6)
    origin = read_origin(out)
    assert origin.base_hash == base.hash and origin.lineage["method"] == method
    parents = origin.lineage["adapters"]
    assert [row["sha256"] for row in parents] == [sha256_of_file(f / WEIGHTS) for f in two]
    assert [row["lineage"]["round"] for row in parents] == ["round_01", "round_02"]
    assert str(tmp_path) not in json.dumps(origin.lineage)


def renamed(folder, name):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))


def test_an_adapter_for_another_base_is_refused(two, tmp_path, capsys):
    """By its name, and where the name lies, by the hash that it keeps."""
    command = ["merge", *map(str, two), f"--out={tmp_path / 'out'}"]
    renamed(two[1], "random:tiny?seed=1")
    assert main(command) == 2
    assert "is for the base random:tiny?seed=1" in capsys.readouterr().err
    renamed(two[0], "random:tiny?seed=1")
    assert main(command) == 2
    assert "was trained on the base with hash" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(two, tmp_path, capsys):
    one, other = map(str, two)
    shutil.copytree(one, tmp_path / "there")
    for command, message in [
        ([one, other, "--method=sum", "--out=x"], "unknown"),
        ([one, other, "--weights=1", "--out=x"], "are 1 for 2 adapters"),
        ([one, other, "--weights=1,b", "--out=x"], "write numbers"),
        ([one, other, "--density=0", "--out=x"], "density"),
        ([one, other, f"--out={tmp_path / 'there'}"], "exists already"),
        ([str(tmp_path / "nothing"), "--out=x"], "not an adapter"),
    ]:
        assert main(["merge", *command]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

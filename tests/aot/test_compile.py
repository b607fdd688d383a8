"""Real steps compiled for TPUs: what each chip holds, what does not fit, and the command."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import jax
import pytest

from selfevo_jax.aot.cost import measure
from selfevo_jax.aot.placement import placements, warnings
from selfevo_jax.aot.plan import changes, remedies
from selfevo_jax.aot.steps import Case, chip_bytes, parameters, programs
from selfevo_jax.aot.table import make_table
from selfevo_jax.cli import main
from selfevo_jax.errors import UserError
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.models.presets import preset

KEYS = {
    "fits", "hbm_bytes_per_chip", "hbm_capacity", "flops", "bytes_accessed", "collective_bytes",
    "compile_seconds", "est_step_seconds", "est_mfu",
}  # fmt: skip
HUGE = Case("tiny", "sft_full", "v5e:2x2", mesh="4,1,1", batch=8192, seq=1024, remat="none")


def total_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("name", ["v5e-4", "v5e-16", "v5e-64"])
def test_a_chip_holds_its_share(name):
    """Everything but norms and counters is split: full fine-tuning holds 12 bytes a parameter."""
    case = Case("smollm2_135m", "sft_full", name)
    held = parameters(case, case.on_mesh())
    params = total_bytes(abstract_params(preset("smollm2_135m")))
    share = 3 * params / case.slice.chips
    assert share <= chip_bytes(held) <= 1.02 * share + 3 * 4 * 61 * 576  # and the 61 norms


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(("quant", "ratio"), [("nf4", 4), ("fp8", 2)])
def test_a_quantised_base_takes_its_few_bits(quant, ratio):
    whole, few = (
        next(
            item
            for item in placements(Case("llama3_8b", "dpo_lora", "v5e:4x4", quant=quant))
            if "gate_proj/kernel" in item.name
        )
        for quant in (None, quant)
    )
    assert whole.bytes == ratio * few.bytes  # the codes; bf16 to 4 or 8 bits
    assert few.chip_bytes * 16 == few.bytes


@pytest.mark.usefixtures("libtpu")
def test_a_big_array_that_every_chip_holds_is_named():
    assert warnings(Case("llama3_8b", "dpo_lora", "v5e:4x4")) == []
    found = warnings(Case("llama3_8b", "dpo_lora", "v5e:4x4", mesh="16,1,1"))
    assert any(line.startswith("frozen/embed_tokens/embedding") for line in found)
    assert any("1002 MiB on every chip" in line for line in found)


@pytest.mark.usefixtures("libtpu")
def test_dpo_is_given_no_second_base():
    """What lies on a chip while a micro-batch is worked on, before the compiler adds to it."""
    held = {}
    for step in ("sft_lora", "dpo_lora"):
        case = Case("llama3_8b", step, "v5e:4x4", batch=16)
        mesh = case.on_mesh()
        with jax.set_mesh(mesh):
            accumulate, _ = programs(case, mesh)
        held[step] = chip_bytes(accumulate.arguments) + accumulate.beside
    base = total_bytes(abstract_params(preset("llama3_8b"), jax.numpy.bfloat16)) / 16
    assert base < held["sft_lora"] < 1.1 * base
    assert held["dpo_lora"] < 1.01 * held["sft_lora"]


@pytest.mark.usefixtures("libtpu")
def test_the_command_lists_what_each_array_gets(capsys):
    arguments = "compile --preset tiny --step decode --topology v5e:2x2 --mesh 1,2,2 --batch 8"
    assert main([*arguments.split(), "--seq=128", "--shardings"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    listed = {line[0]: line[1:] for line in lines if line and line[0].startswith("params/")}
    # 64 x 128 in bfloat16, halved twice
    assert listed["params/layers/0/mlp/up_proj/kernel"] == [
        "[64,",
        "128]",
        "fsdp,tensor",
        "0.00",
        "MiB",
    ]
    assert listed["params/embed_tokens/embedding"][2:] == ["tensor,fsdp", "0.02", "MiB"]
    assert listed["params/final_norm/scale"] == ["[64]", "-", "0.00", "MiB"]


@pytest.mark.usefixtures("libtpu")
def test_what_does_not_fit_says_how_much_it_wants():
    report = measure(HUGE)
    assert not report.fits
    assert report.hbm_bytes_per_chip > report.hbm_capacity
    assert report.est_step_seconds is None
    what = [what for what, _ in remedies(HUGE)]
    assert what[:3] == ["more fsdp (mesh 1,4,1)", "remat full", "a micro-batch of 4096 rows"]


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_what_does_not_fit_is_made_to_fit(capsys):
    """The command says with which options; they are those of the case that it compiled."""
    arguments = "--step sft_full --topology v5e:2x2 --mesh 4,1,1 --batch 8192 --seq 1024"
    command = ["compile", "--preset=tiny", *arguments.split(), "--remat=none", "--json"]
    assert main(command) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    better = told["would_fit"]
    assert (told["fits"], better["fits"]) == (False, True)
    assert better["hbm_bytes_per_chip"] <= better["hbm_capacity"] < told["hbm_bytes_per_chip"]
    changed = dataclasses.replace(
        HUGE, mesh=better["mesh"], remat=better["remat"], micro=better["micro"]
    )
    assert better["options"] == changes(HUGE, changed)
    assert changed.batch == better["batch"] == HUGE.batch
    tried = [line.removeprefix("trying ") for line in said.err.splitlines()]
    assert (tried[-1], changed) in list(remedies(HUGE))


def test_the_page_s_command_for_a_card(capsys):
    """What JAX's plugin for CUDA makes of it, or the remedy where that is not installed."""
    arguments = "--preset=llama3_8b --step=dpo_lora --topology=h200:1 --batch=8"
    status, said = main(["compile", *arguments.split()]), capsys.readouterr()
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        assert (status, said.out) == (2, "")
        assert "compiling for NVIDIA cards needs" in said.err
        assert said.err.endswith("pip install 'selfevo_jax[cuda]'\n")
    else:
        assert status == 0
        assert re.search(r"^fits: 2\d\.\d\d of 104\.25 GiB", said.out, re.MULTILINE)


@pytest.mark.usefixtures("libtpu")
def test_the_command_prints_one_object(capsys):
    arguments = "compile --preset tiny --step decode --topology v5e:2x2 --batch 8 --seq 128 --json"
    assert main(arguments.split()) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.keys() >= KEYS
    assert facts["fits"] is True
    assert 0 < facts["hbm_bytes_per_chip"] < facts["hbm_capacity"]
    assert facts["preset"] == "tiny"


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_a_plan_puts_the_fastest_that_fits_first(capsys):
    arguments = (
        "compile --plan --preset tiny --step decode --chips v5e:4 --batch 8 --seq 128 --json"
    )
    assert main(arguments.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert {plan["mesh"] for plan in found} == {"1,4,1", "2,2,1", "1,2,2"}
    seconds = [plan["est_step_seconds"] for plan in found]
    assert seconds == sorted(seconds)


@pytest.mark.usefixtures("libtpu")
def test_the_table_goes_on_where_it_stopped(tmp_path):
    file, said = tmp_path / "table.json", []
    arguments = (str(file), ["tiny"], ["decode"], ["v5e-4"], said.append)
    make_table(*arguments)
    cell = json.loads(file.read_text())["tiny decode v5e-4"]
    assert cell["fits"]
    row = file.with_suffix(".md").read_text().splitlines()[-1]
    assert row.startswith("| tiny | decode | **0.0**, ")
    file.with_suffix(".md").unlink()
    make_table(*arguments)
    assert file.with_suffix(".md").read_text().splitlines()[-1] == row
    told = f"1 cells are in {file}, the table is in {file.with_suffix('.md')}"
    assert said == ["tiny decode v5e-4", told, told]


@pytest.mark.parametrize("text", ["hello", "[1]", '{"a": 1}', '{"a": {"fits": true}}', "\udcff"])
def test_another_file_is_no_table(text, tmp_path):
    file = tmp_path / "table.json"
    file.write_text(text, errors="surrogateescape")
    before = file.read_bytes()
    with pytest.raises(UserError, match="table.json.*give --table another file"):
        make_table(str(file), ["tiny"], ["decode"], ["v5e-4"], print)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["table.md", "table", "table.json.part"])
def test_the_cells_and_the_table_are_two_files(name, tmp_path):
    with pytest.raises(UserError, match="must end in .json"):
        make_table(str(tmp_path / name), ["tiny"], ["decode"], ["v5e-4"], print)


def test_nothing_is_compiled_that_cannot_be_kept(tmp_path):
    said = []
    with pytest.raises(UserError, match="missing/table.json: cannot be written"):
        make_table(
            str(tmp_path / "missing/table.json"), ["tiny"], ["decode"], ["v5e-4"], said.append
        )
    assert said == []


def test_a_cell_that_cannot_be_compiled_is_not_kept(tmp_path):
    """What a missing compiler says, say, would stand in the table for good."""
    file = tmp_path / "table.json"
    with pytest.raises(UserError, match="tinny"):
        make_table(str(file), ["tinny"], ["decode"], ["v5e-4"], print)
    assert json.loads(file.read_text()) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--topology v5e:4x4", "--preset"),
        ("--preset tiny", "--topology"),
        ("--preset tiny --plan", "--chips"),
        ("--preset tinny --topology v5e:4x4", "tiny"),
        ("--preset tiny --topology v5e:4x4 --step ppo", "dpo_lora"),
        ("--preset tiny --topology v5e:4x4 --remat some", "remat"),
        ("--preset tiny --topology v5e:4x4 --batch 6 --micro 4", "multiple"),
        ("--preset tiny --topology v5e:4x4 --step sft_full --quant nf4", "quantised"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert main(["compile", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("libtpu")
def test_rows_must_be_shared_out_evenly():
    with pytest.raises(UserError, match="multiple of 16"):
        dataclasses.replace(HUGE, topology="v5e:4x4", mesh="1,16,1", batch=8).on_mesh()


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_a_row_over_four_chips_takes_a_quarter_of_the_room():
    """What a row needs while it is worked on, on one chip and spread over four."""
    whole = Case("tiny", "sft_lora", "v5e:2x2", mesh="1,4,1", batch=4, seq=4096)
    split = dataclasses.replace(whole, mesh="1,1,1,4", batch=1)
    ours, theirs = (measure(case).memory["accumulate"].temporaries for case in (split, whole))
    assert ours < 0.35 * theirs


@pytest.mark.usefixtures("libtpu")
def test_only_training_splits_rows():
    with pytest.raises(UserError, match="only training"):
        Case("tiny", "decode", "v5e:2x2", mesh="1,2,1,2", batch=8).on_mesh()


def test_a_second_copy_of_the_base_is_nowhere_in_dpo():
    """Of every model and slice in docs/pods.md: DPO with LoRA takes what SFT with LoRA takes."""
    cells = json.loads((Path(__file__).parents[2] / "docs/pods_table.json").read_text())
    pairs = [
        (cells[key.replace("sft_lora", "dpo_lora")], cell)
        for key, cell in cells.items()
        if "sft_lora" in key and key.replace("sft_lora", "dpo_lora") in cells
    ]
    assert len(pairs) >= 6
    for dpo, sft in pairs:
        assert dpo["hbm_bytes_per_chip"] <= 1.15 * sft["hbm_bytes_per_chip"]


PARAMETERS = {"open_llama_7b": 6.74e9, "open_llama_13b": 13.02e9, "llama3_8b": 8.03e9}


def test_the_shared_part_falls_with_the_chips():
    """4 times the chips: what a chip keeps of a large model's training comes near a quarter."""
    cells = json.loads((Path(__file__).parents[2] / "docs/pods_table.json").read_text())
    for model, count in PARAMETERS.items():
        for step in ("sft_lora", "dpo_lora"):
            small, large = (cells[f"{model} {step} {name}"] for name in ("v4-8", "v4-32"))
            weights = 2 * count  # bytes of the base in bfloat16
            fewer = small["hbm_bytes_per_chip"] - large["hbm_bytes_per_chip"]
            assert fewer > 0.9 * (weights / 4 - weights / 16)

"""A setting that changes nothing is a defect: each is changed alone, and something must differ.

What is looked at is a run's plan: its stages with their keys (a key holds everything that decides
a stage's output), its policies, its trainings, the mesh; or the message that refuses the value.
Settings of which a plan shows nothing are named below, with the test that shows their effect.
"""

import dataclasses
import inspect
import io
import json
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ml_collections import FrozenConfigDict
from rich.console import Console

import selfevo_jax
from selfevo_jax.config import defaults as common
from selfevo_jax.config import flat, load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve import verified
from selfevo_jax.evolve.launch import check_config, open_backend
from selfevo_jax.evolve.methods import METHODS
from selfevo_jax.evolve.methods import method as method_of
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.run import Run
from selfevo_jax.evolve.training import training_of
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.sample.protocol import Request, SamplingParams

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
ELSEWHERE = {  # settings that a plan does not show -> (test file, what of them stands in it)
    "track": ("security/test_secret_of_a_server.py", '"run/track/tensorboard/events.*"'),
    "compute.slots": ("evolve/test_settings_matter.py", "def test_slots_reach_the_engine("),
    "ray.*": ("evolve/test_ray_pool.py", "def test_every_setting_of_the_pool_is_felt("),
    "torch.processes": ("torch_backend/test_torch_group.py", '"torch.processes=1"'),
    "torch.deepspeed": ("torch_backend/test_torch_group.py", '"deepspeed"'),
    "torch.hostfile": ("torch_backend/test_torch_group.py", "read_hostfile"),
    "gauges.least.*": ("evolve/test_gauges.py", "below least"),
    "gauges.most.*": ("evolve/test_gauges.py", "above most"),
}
SERVER = "https://host.example/v1#m"
TEACHER = "roles.teacher.model=random:tiny?seed=1"
BAND, ACCEPT = "difficulty.between=(0.1,0.9)", "accept.questions=2"
# Circumstances in which settings matter, besides those of the method's miniature itself.
WHEN: dict[str, list[list[str]]] = {
    "active": [["pool.most_similar=0.9", ACCEPT], [BAND]],
    "combined": [
        [BAND, ACCEPT],
        [TEACHER, "references.by=teacher", "judge=embedding", "prompts_by=k_centre"],
        ["references.by=file", "references.file=ROWS", "validation.by=preference"],
    ],
    "elite": [
        ["adapters=ties", "rounds=2", ACCEPT, BAND],
        ["human.file=ROWS", "examples.file=ROWS"],
    ],
    "meteor": [
        [TEACHER, "distil.by=teacher", "iterate.verdict=judge", ACCEPT, BAND],
        [TEACHER, "distil.compare=true", "criteria.questions=2"],
    ],
    "offline": [["objective.loss=kto"]],
    "refeval": [
        [BAND, ACCEPT],
        [TEACHER, "references.by=teacher", "judges=('embedding',)"],
        ["references.by=file", "references.file=ROWS", "validation.by=preference"],
    ],
    "reflectevo": [
        ["variants=('dpo','dpo_pref')", BAND],
        ["test.reflection=stored", "test.stored=ROWS"],
        ["generate.reflection=stored", "generate.stored=ROWS"],
    ],
    "verified": [["gauges.questions=2", BAND, ACCEPT]],
}
VARIANT = {"combined": "both-tiny", "verified": "tiny"}
FILE = {"verified": "quickstart"}
SPECIAL = {"difficulty.between": "(0.2,0.8)"}  # where a value of no other kind would do


class Seen(Run):
    """A plan that keeps the stages' keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[Any] = []

    def _note(self, stage, model, data, amount):
        self.seen.append((stage.name, stage.key, model, data, amount))
        return super()._note(stage, model, data, amount)


def settings(name: str, overrides: Iterable[str] = ()) -> FrozenConfigDict:
    """The method's miniature."""
    spec = f"{ROOT / 'configs' / FILE.get(name, name)}.py:{VARIANT.get(name, 'tiny')}"
    return load_config(spec, overrides)


def observed(name: str, overrides: list[str]) -> Any:
    """What a run with these settings would do, or why it would not."""
    try:
        config = settings(name, overrides)
        check_config(config)
        task = get_task(config.task.name, **config.task.args.to_dict())
        progress = Progress(Console(file=io.StringIO()))
        backend = open_backend(config, progress)
        run = Seen(config, Path("/nowhere"), task, backend, progress, planning=True)
        method_of(config.method)(run)
        mesh = dict(backend.model.training_mesh.shape)
        return run.seen, run.policies, training_of(config), backend.model.compute, mesh
    except UserError as error:
        return str(error)


def another(key: str, value: Any) -> str:
    """Another value for a setting, as text: of its kind, whether it makes sense or not."""
    if key in SPECIAL:
        return SPECIAL[key]
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int | None):
        return str((value or 6) + 1)
    if isinstance(value, float):
        return repr(value * 0.5 + 0.01)
    if isinstance(value, str):
        return "zzz"
    last = value[-1] if value else "zzz"
    return repr((*value, "zzz" if isinstance(last, str) else last * 2))


def circumstances(name: str, rows: Path) -> list[list[str]]:
    """Overrides under which the method is planned; the last ones bind its roles to a server."""
    own = import_module(f"selfevo_jax.evolve.{name}").defaults()
    roles = [f"roles.{role}.model={SERVER}" for role in own.get("roles", {})]
    found = [[], *WHEN[name]]
    found += [[*when, *roles] for when in found] if roles else []
    return [[text.replace("ROWS", str(rows)) for text in when] for when in found]


def idle(name: str, keys: Iterable[str], rows: Path) -> list[str]:
    """The settings that change nothing in any circumstances."""
    whens, values = circumstances(name, rows), flat(settings(name))
    plain = [observed(name, when) for when in whens]
    assert not [what for what in plain if isinstance(what, str)]
    return [
        key
        for key in keys
        if all(
            observed(name, [*when, f"{key}={another(key, values[key])}"]) == before
            for when, before in zip(whens, plain, strict=True)
        )
    ]


def told_elsewhere(key: str) -> bool:
    return any(re.fullmatch(name.replace("*", r"\w+"), key) for name in ELSEWHERE)


@pytest.fixture(scope="module")
def rows(tmp_path_factory, cache):
    """A file that every method can read its rows from."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    row = {"question": "q", "reference": "r", "feedback": "f", "reflection": "r"}
    path.write_text(json.dumps(row | {"input": "i", "output": "o", "reason": "w"}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(cache))
        yield path


def test_every_common_setting_changes_something(rows):
    left_out = {"task.args", "method"}  # those of the task are in its stages; another method
    keys = [k for k in flat(common()) if k not in left_out and not told_elsewhere(k)]
    assert len(keys) > 40 and idle("verified", keys, rows) == []


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name in WHEN]


@pytest.mark.parametrize("name", SLOW)
def test_every_setting_of_a_method_changes_something(name, rows):
    keys = flat(import_module(f"selfevo_jax.evolve.{name}").defaults())
    assert idle(name, keys, rows) == []


def test_every_method_is_looked_at():
    assert set(WHEN) == set(METHODS)


def test_a_setting_that_nothing_reads_is_found(rows, monkeypatch):
    """The teeth of this file."""
    known = verified.defaults()
    monkeypatch.setattr(verified, "defaults", lambda: known | {"extra": {"idle": 1}})
    assert idle("verified", ["extra.idle", "pair.per_prompt"], rows) == ["extra.idle"]


def test_slots_reach_the_engine(rows):
    """An engine with more of them takes more requests before its first answer."""

    def taken(slots: int) -> int:
        config = settings("verified", [f"compute.slots={slots}"])
        backend = open_backend(config, Progress(Console(file=io.StringIO())))
        ahead, asked = [], SamplingParams(2)
        requests = (Request(f"{n}", "text", asked, seed=n) for n in range(200))
        next(backend.model.generator(None).generate(ahead.append(r) or r for r in requests))
        return len(ahead)

    assert taken(8) < taken(32) < 200


def test_what_a_plan_does_not_show_is_tested_where_it_is_said():
    known = flat(common())
    for key, (file, words) in ELSEWHERE.items():
        assert words in (TESTS / file).read_text(), key
        assert any(re.fullmatch(key.replace("*", r"\w+"), name) for name in known), key


@pytest.mark.parametrize("kind", [Objective, FitSettings])
def test_every_field_of_a_fit_and_an_objective_is_read(kind):
    """They are in the key as a whole, so that the plan alone would not show an idle one."""
    files = (Path(selfevo_jax.__file__).parent / "learn").glob("*.py")
    source = "".join(path.read_text() for path in files)
    source = source.replace(inspect.getsource(kind.__post_init__), "")  # refusing is not reading
    for field in dataclasses.fields(kind):
        assert re.search(rf"\b(o|self|objective|settings)\.{field.name}\b", source), field.name

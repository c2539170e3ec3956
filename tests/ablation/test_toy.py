import pickle
import subprocess
import sys

import pytest

from ablation.execute import never
from ablation.protocol import Place, Trainer
from ablation.testing import (
    Toy,
    ToyMask,
    ToyNoise,
    ToyScore,
    ToyTrainer,
    ignore,
    planned,
    toy_cell,
)


def finish(config, *, stage="train", seed=0, stop=never, **folders):
    """Progress of all steps and the result."""
    steps, seen = ToyTrainer().stages()[stage].run(
        config, seed=seed, should_stop=stop,
        **{"place": Place(), "inputs": None, "resume": None, **folders},
    ), []  # fmt: skip
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return seen, end.value


def test_toy__is_a_trainer():
    trainer: Trainer = ToyTrainer()
    kinds = [stage.kind for stage in trainer.stages().values()]
    assert kinds == ["train", "reference", "evaluate", "evaluate"]
    assert {name.split("/")[0] for name in trainer.metrics()} <= set(trainer.stages())
    for preset in trainer.presets().values():
        for stage, settings in preset.items():
            trainer.stages()[stage].config_type(**settings)


def test_toy__numbers_depend_on_config_seed_and_step():
    losses = [
        finish(config, seed=seed)[1].metrics["loss"]
        for config, seed in [
            (Toy(), 0), (Toy(), 1), (Toy(rate=0.2), 0), (Toy(steps=9), 0),
            (Toy(mask=ToyMask(ratio=0.2)), 0),
        ]
    ]  # fmt: skip
    assert len(set(losses)) == 5
    weights = [
        finish(Toy(mask=ToyMask(prefer=p)))[0][-1].metrics["weight"] for p in ("hard", "easy")
    ]
    assert weights[0] == -weights[1]


@pytest.mark.parametrize(
    ("stage", "config"), [("train", Toy()), ("noise", ToyNoise()), ("score", ToyScore(steps=3))]
)
def test_toy__has_no_step_left_after_the_last(tmp_path, stage, config):
    inputs, resume = tmp_path / "inputs", tmp_path / "resume"
    inputs.mkdir()
    resume.mkdir()
    finish(Toy())[1].export(inputs)
    seen, result = finish(config, stage=stage, inputs=inputs)
    seen[-1].save(resume)
    rest, again = finish(config, stage=stage, inputs=inputs, resume=resume)
    assert rest == []
    assert again.metrics == result.metrics


@pytest.mark.parametrize("stage", ["train", "score"])
def test_toy__resuming_changes_no_bit(tmp_path, stage):
    seen, result = finish(Toy())
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    result.export(inputs)
    config = Toy() if stage == "train" else ToyScore(steps=5)
    seen, result = finish(config, stage=stage, inputs=inputs)
    resume = tmp_path / "resume"
    resume.mkdir()
    seen[1].save(resume)
    rest, again = finish(config, stage=stage, inputs=inputs, resume=resume)
    assert [p.metrics for p in rest] == [p.metrics for p in seen[2:]]
    assert [p.trace() for p in rest] == [p.trace() for p in seen[2:]]
    assert again.metrics == result.metrics


@pytest.mark.parametrize(("stage", "config"), [("train", Toy()), ("noise", ToyNoise())])
def test_toy__traces_step_and_weight(stage, config):
    one, other = ([p.trace() for p in finish(config, stage=stage, seed=seed)[0]] for seed in (0, 1))
    for name in ("step", "weight"):
        assert len({trace[name] for trace in one}) == len(one)
    for mine, theirs in zip(one, other, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["weight"] != theirs["weight"]


@pytest.mark.parametrize("stage", ["train", "score"])
def test_toy__stops_when_asked(tmp_path, stage):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weight.json").write_text('{"step": 0, "weight": 0.5}')
    config = Toy() if stage == "train" else ToyScore()
    seen, result = finish(config, stage=stage, inputs=tmp_path, stop=lambda: True)
    assert seen == []
    assert result is None


def test_toy__fails_once(tmp_path):
    config, place = Toy(fail_once_at=2), Place(data={"scratch": tmp_path})
    with pytest.raises(RuntimeError, match="asked to fail once, at step 2"):
        finish(config, place=place)
    assert finish(config, place=place)[1].metrics == finish(Toy())[1].metrics
    assert finish(config)[1].metrics == finish(Toy())[1].metrics


def test_toy__runs_out_of_memory_every_time():
    for _ in range(2):
        with pytest.raises(MemoryError, match="asked to run out of memory at step 2"):
            finish(Toy(memory_at=2))


CRASH = """
import sys
from pathlib import Path
from ablation.protocol import Place
from ablation.toy import TRAINER, Toy
config, scratch = Toy(**{sys.argv[1]: 2}), Path(sys.argv[2])
steps = TRAINER.stages()["train"].run(
    config, seed=0, place=Place(data={"scratch": scratch}), inputs=None, resume=None,
    should_stop=lambda: False,
)
print(len(list(steps)))
"""


@pytest.mark.parametrize(("accident", "codes"), [("die_at", [17, 0]), ("crash_at", [17, 17])])
def test_toy__dies_once_or_at_every_try(tmp_path, accident, codes):
    command = [sys.executable, "-c", CRASH, accident, str(tmp_path)]
    assert [subprocess.run(command, check=False).returncode for _ in range(2)] == codes


def test_toy__has_data_and_rules(tmp_path):
    trainer, file = ToyTrainer(), tmp_path / "data"
    file.write_text("x")
    assert trainer.reads(Toy()) == trainer.reads(ToyScore()) == {}
    assert trainer.reads(Toy(data="mine")) == {"data": "mine"}
    place = Place(data={"mine": file})
    first = trainer.fingerprint("data", "mine", place)
    file.write_text("y")
    assert first != trainer.fingerprint("data", "mine", place)
    with pytest.raises(LookupError, match="must say where 'mine' lies"):
        trainer.fingerprint("data", "mine", Place())
    assert trainer.check(Toy(batch=8), 4) is None
    assert trainer.check(ToyScore(), 3) is None
    assert trainer.check(Toy(batch=8), 3) == "batch must be divisible by 3 workers, got 8."
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Toy(steps=0)


def test_toy__crosses_processes():
    cell = toy_cell("a", Toy(), probe=ToyScore(fail_at=1))
    everything = (ToyTrainer(), cell, ignore, planned("train", Toy(), seed=1))
    assert pickle.loads(pickle.dumps(everything)) == everything
    pickle.dumps(ToyTrainer().stages())

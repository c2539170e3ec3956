import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from blocks import CONFIG, RECIPE, TRAIN, VAL, write_blocks
from hpm.data.errors import DataError
from hpm.evaluate.segment.config import MapData
from hpm.evaluate.segment.run import run
from hpm.rules import ConfigError

UPDATES, BATCHES = 2 * TRAIN // 8, 3
LINEAR = replace(CONFIG, head="linear", channels=None, frozen=True, drop_path=0.0)
AVERAGED = replace(CONFIG, optim=replace(RECIPE, ema=0.9, accumulate=2))


@pytest.fixture(scope="session")
def blocks(place, tmp_path_factory):
    root = write_blocks(tmp_path_factory.mktemp("blocks"))
    return replace(place, data={**place.data, "blocks": root})


@pytest.fixture
def start(blocks, encoder):
    def begin(
        config=CONFIG,
        *,
        inputs=encoder,
        seed=0,
        resume=None,
        should_stop=lambda: False,
        root=None,
        loaders=0,
    ):
        place = replace(blocks, loaders=loaders)
        if root is not None:
            place = replace(place, data={"blocks": root})
        given = partial(run, config, seed=seed, place=place)
        return given(inputs=inputs, resume=resume, should_stop=should_stop)

    return begin


def kept(progress, folder):
    folder.mkdir()
    progress.save(folder)
    return torch.load(folder / "state.pt", weights_only=True)


def test_segment__learns_blocks_of_colour(drain, start):
    recipe = replace(RECIPE, epochs=20, base_lr=0.3)
    result = drain(start(replace(CONFIG, optim=recipe))).result
    assert result.metrics["miou"] > 80
    assert result.metrics["pixel_accuracy"] > result.metrics["miou"]


def test_segment__counts_updates_and_batches(drain, start):
    done = drain(start())
    total = UPDATES + BATCHES
    assert [progress.step for progress in done.steps] == list(range(1, total + 1))
    assert {progress.total for progress in done.steps} == {total}
    assert [set(p.metrics) for p in done.steps] == [{"loss", "grad_norm", "lr"}] * UPDATES + [
        set()
    ] * BATCHES


@pytest.mark.parametrize("config", [CONFIG, LINEAR, AVERAGED], ids=["upernet", "linear", "average"])
@pytest.mark.parametrize("step", [1, 4, UPDATES, UPDATES + 1, UPDATES + 3])
def test_segment__resumes_bit_identically(drain, start, tmp_path, config, step):
    (tmp_path / "at").mkdir()
    whole = drain(start(config), save_at=step, folder=tmp_path / "at")
    rest = drain(start(config, resume=tmp_path / "at"))
    assert [p.step for p in rest.steps] == list(range(step + 1, UPDATES + BATCHES + 1))
    assert [p.metrics for p in rest.steps] == [p.metrics for p in whole.steps[step:]]
    assert rest.traces == whole.traces[step:]
    assert rest.result.metrics == whole.result.metrics
    if rest.steps:
        states = [kept(d.steps[-1], tmp_path / n) for n, d in (("a", whole), ("b", rest))]
        torch.testing.assert_close(states[0], states[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_segment__is_bit_identical_on_cuda(drain, start, precision):
    config = replace(AVERAGED, optim=replace(AVERAGED.optim, precision=precision))
    first, second = (drain(start(config)) for _ in range(2))
    assert first.traces == second.traces
    assert first.result.metrics == second.result.metrics


def test_segment__learns_from_tables_what_it_learns_from_folders(drain, start, blocks, tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for split, folder in (("train", "training"), ("val", "validation")):
        columns = {}
        for column, held in (("image", "images"), ("annotation", "annotations")):
            files = sorted((blocks.data["blocks"] / held / folder).iterdir())
            rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
            columns[column] = pa.array(rows, kind)
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet", row_group_size=10)
    folders, tables = drain(start()), drain(start(root=tmp_path))
    assert tables.traces == folders.traces
    assert tables.result.metrics == folders.result.metrics


def test_segment__exports_what_two_encoders_are_compared_by(drain, start, tmp_path):
    result = drain(start()).result
    result.export(tmp_path)
    pixels = np.load(tmp_path / "confusion.npy", allow_pickle=False)
    assert pixels.shape == (3, 3)
    assert pixels.dtype == np.int64
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as counts:
        hits, guessed, true = (counts[name] for name in ("hits", "guessed", "true"))
    assert hits.shape == guessed.shape == true.shape == (VAL, 3)
    assert hits.sum(0).tolist() == pixels.diagonal().tolist()
    assert guessed.sum(0).tolist() == pixels.sum(0).tolist()
    assert true.sum(0).tolist() == pixels.sum(1).tolist()
    ious = 100 * hits.sum(0) / (guessed.sum(0) + true.sum(0) - hits.sum(0))
    listed = json.loads((tmp_path / "classes.json").read_text())
    assert [row["name"] for row in listed] == ["0", "1", "2"]
    assert [row["iou"] for row in listed] == pytest.approx(ious.tolist())
    assert result.metrics["miou"] == pytest.approx(ious.mean())
    assert result.metrics["pixel_accuracy"] == pytest.approx(100 * hits.sum() / true.sum())


def test_segment__counts_every_pixel_that_is_not_void(drain, start, blocks, tmp_path):
    drain(start()).result.export(tmp_path)
    counted = np.load(tmp_path / "confusion.npy").sum()
    folder = blocks.data["blocks"] / "annotations" / "validation"
    known = sum(int((np.asarray(Image.open(path)) > 0).sum()) for path in folder.iterdir())
    assert counted == known


def test_segment__names_a_class_that_is_nowhere(drain, start, tmp_path):
    config = replace(LINEAR, data=MapData(name="blocks", void=0, classes=250))
    result = drain(start(config)).result
    result.export(tmp_path)
    listed = json.loads((tmp_path / "classes.json").read_text())
    assert None in [row["iou"] for row in listed]
    assert result.metrics["miou"] > 0


def test_segment__traces_updates_and_then_pixels(drain, start):
    one, other = (drain(start(seed=seed)).traces for seed in (0, 1))
    names = {"weights", "optimizer", "samples", "views"}
    assert [set(trace) for trace in one] == [names] * UPDATES + [{"state"}] * BATCHES
    for mine, theirs in zip(one[:UPDATES], other[:UPDATES], strict=True):
        assert {name for name in mine if mine[name] == theirs[name]} == set()


@pytest.mark.parametrize(("config", "moves"), [(LINEAR, False), (CONFIG, True)])
def test_segment__moves_the_encoder_unless_it_is_frozen(drain, start, tmp_path, config, moves):
    (tmp_path / "first").mkdir()
    done = drain(start(config), save_at=1, folder=tmp_path / "first")
    after = kept(done.steps[-1], tmp_path / "last")["training"]["network"]
    before = torch.load(tmp_path / "first" / "state.pt")["training"]["network"]
    changed = {name for name in after if not after[name].equal(before[name])}
    assert any(name.startswith("encoder.blocks") for name in changed) == moves
    assert any(name.startswith("head") for name in changed)


def test_segment__a_batch_in_parts_is_the_same_step(drain, start, tmp_path):
    whole = replace(CONFIG, optim=replace(RECIPE, warmup_epochs=0.0))
    parts = replace(whole, optim=replace(whole.optim, accumulate=2))
    metrics = [next(start(config)).metrics for config in (whole, parts)]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-5)
    assert metrics[0]["grad_norm"] == pytest.approx(metrics[1]["grad_norm"], rel=1e-4)


def test_segment__loader_processes_change_nothing(drain, start):
    done = [drain(start(LINEAR, loaders=loaders)) for loaders in (0, 1)]
    assert done[0].traces == done[1].traces
    assert done[0].result.metrics == done[1].result.metrics


def test_segment__in_bfloat16_is_finite(drain, start):
    config = replace(CONFIG, optim=replace(RECIPE, epochs=1, precision="bfloat16"))
    assert 0 <= drain(start(config)).result.metrics["miou"] <= 100


@pytest.mark.parametrize("before", [1, UPDATES, UPDATES + 2])
def test_segment__stops_when_told(drain, start, before):
    answers = iter([False] * before + [True])
    done = drain(start(should_stop=lambda: next(answers)))
    assert len(done.steps) == before
    assert done.result is None


def test_segment__refuses_a_batch_larger_than_the_split(start):
    config = replace(CONFIG, optim=replace(RECIPE, batch_size=32))
    with pytest.raises(DataError, match=r"batch_size=32 for 24 images; make the batch smaller"):
        next(start(config))


def test_segment__needs_an_encoder(start, pixels):
    with pytest.raises(DataError, match=r"segment needs an encoder, .* Leave pixels out"):
        next(start(inputs=pixels))


def test_segment__needs_the_role_it_is_told(start):
    with pytest.raises(DataError, match=r"segment with role teacher needs .* Set role: student"):
        next(start(replace(CONFIG, role="teacher")))


def test_segment__of_the_encoders_own_data_needs_annotations(start):
    with pytest.raises(DataError, match="Data set 'colours' must have a class for each pixel"):
        next(start(replace(CONFIG, data=None)))


def test_segment__crops_are_whole_patches_and_layers_blocks(start):
    with pytest.raises(ConfigError, match=r"crop must be divisible by .* patch_size=8, got 12"):
        next(start(replace(CONFIG, crop=12)))
    with pytest.raises(ConfigError, match="layers must be blocks of the encoder, which has 1"):
        next(start(replace(CONFIG, layers=(1, 1, 1, 2))))


def test_segment__refuses_a_validation_split_that_is_all_void(drain, start, tmp_path):
    root = write_blocks(tmp_path / "void")
    for path in (root / "annotations" / "validation").iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    with pytest.raises(DataError, match="must have pixels that are not void"):
        drain(start(LINEAR, root=root))

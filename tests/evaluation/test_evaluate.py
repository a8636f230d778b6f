"""The evaluation command on a tiny run: its table, its files, and how it continues."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sisma_jax import evaluate
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.errors import InputError
from sisma_jax.evaluation import evaluator, networks
from sisma_jax.metrics.frechet import load_statistics
from sisma_jax.metrics.perceptual import diversity
from sisma_jax.models.face_parser import FaceParserUNet, save_parser
from sisma_jax.models.inception import InceptionV3
from sisma_jax.models.lpips import ALEXNET, Lpips
from sisma_jax.synthesizer import Synthesizer
from tests.evaluation.parsers import CONFIG, write_parser
from tests.runs import SIZE, call


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    return write_parser(tmp_path_factory.mktemp("parsers") / "parser")


@pytest.fixture
def run(tiny_run, parser, tmp_path):
    """Evaluate the tiny run into tmp_path/report; return report.json."""

    def evaluate_run(*more, out=tmp_path / "report", parser=parser):
        call(
            evaluate.main, "--workdir", tiny_run, "--out", out, "--parser", parser,
            "--metrics", "fid,fd,miou,acc,ssim", "--steps", "2", *more,
        )  # fmt: skip
        return json.loads((out / "report.json").read_text())

    return evaluate_run


def by_name(report):
    return {row["name"]: row for row in report["rows"]}


def pictures_of(report_folder):
    return {file: file.read_bytes() for file in sorted(report_folder.rglob("images/*/*.png"))}


def test_a_report_has_its_table_protocol_and_pictures(run, tmp_path, capsys):
    report = run()
    said = capsys.readouterr().out
    rows = by_name(report)
    assert [row["kind"] for row in report["rows"]] == [
        "real",
        "real",
        "reconstruction",
        "synthesis",
    ]
    assert rows["test faces themselves"]["scores"].keys() == {"miou", "accuracy"}
    assert rows["autoencoder"]["scores"].keys() == {
        "fd_parser", "miou", "accuracy", "ssim", "psnr_db",
    }  # fmt: skip
    row = rows["tiny, euler 2, guidance 1"]
    assert row["scores"].keys() == {"fd_parser", "miou", "accuracy"} and row["count"] == 4
    assert row["settings"]["steps"] == 2 and row["settings"]["step"] == 6
    assert row["scores"]["fd_parser"] > 0 and "under 2,000" in row["notes"][0]
    assert report["parser_quality"]["test_miou"] == 0.25
    assert "its own mIoU 0.250" in report["protocol"]["mIoU, accuracy"]
    assert report["memorisation"]["tiny"]["training_pictures"] == 12
    assert f"{row['scores']['fd_parser']:.3f}" in said
    assert "--count is 4" in said

    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    text = (tmp_path / "report/report.md").read_text()
    assert "| tiny, euler 2, guidance 1 | 4 |" in text
    for link in re.findall(r"\((pictures/.*?)\)", text):
        assert (tmp_path / "report" / link).is_file()


def test_the_same_command_makes_and_measures_nothing_again(run, tmp_path, monkeypatch):
    before = run()
    monkeypatch.setattr(Synthesizer, "batches", None)
    monkeypatch.setattr("sisma_jax.evaluation.judges.Accumulator", None)
    assert run()["rows"] == before["rows"]


def test_numbers_do_not_depend_on_the_folder_nor_on_the_batch(run, tmp_path):
    first = run("--batch-size", 4)
    second = run("--batch-size", 4, out=tmp_path / "second")
    assert first["rows"] == second["rows"]
    images = [Image.open(file) for file in pictures_of(tmp_path / "report")]
    run("--batch-size", 8, out=tmp_path / "third")
    for a, file in zip(images, pictures_of(tmp_path / "third"), strict=True):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(Image.open(file))).max() <= 1


def test_lists_of_steps_and_guidance_are_rows_of_one_table_and_plots(run, tmp_path):
    run()
    before = pictures_of(tmp_path / "report")
    report = run("--steps", "1,2", "--guidance", "1,1.5")
    made = [row["name"] for row in report["rows"] if row["kind"] == "synthesis"]
    assert made == [f"tiny, euler {s}, guidance {g}" for g in ("1", "1.5") for s in (1, 2)]
    after = pictures_of(tmp_path / "report")
    assert before.items() <= after.items() and len(after) > len(before)
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("<svg") == 2


def test_an_interrupted_evaluation_keeps_what_it_has_and_continues(
    run, tmp_path, monkeypatch, capsys
):
    whole = run("--test-from", 4, out=tmp_path / "whole")
    expected = pictures_of(tmp_path / "whole")
    batches = Synthesizer.batches

    def interrupted(self, *arguments, **options):
        for number, images in enumerate(batches(self, *arguments, **options)):
            if number == 1:
                raise KeyboardInterrupt
            yield images

    monkeypatch.setattr(Synthesizer, "batches", interrupted)
    # The noise of a face belongs to it: two halves are the whole.
    with pytest.raises(KeyboardInterrupt):
        run("--test-from", 4, "--batch-size", 4)
    monkeypatch.setattr(Synthesizer, "batches", batches)
    partial = json.loads((tmp_path / "report/report.json").read_text())
    assert [row["kind"] for row in partial["rows"]] == ["real", "real", "reconstruction"]
    there = pictures_of(tmp_path / "report")
    assert 0 < len(there) < len(expected)
    damaged = next(iter(there))
    damaged.write_bytes(there[damaged][:100])
    report = run("--test-from", 4)
    assert by_name(report).keys() == by_name(whole).keys()
    for a, b in zip(pictures_of(tmp_path / "report"), pictures_of(tmp_path / "whole"), strict=True):
        a, b = (np.asarray(Image.open(file)).astype(int) for file in (a, b))
        assert np.abs(a - b).max() <= 1


def test_pictures_of_any_origin_enter_the_same_table(
    run, tiny_run, parser, inputs_folder, tmp_path
):
    report = run()
    others = tmp_path / "others"
    others.mkdir()
    for file in pictures_of(tmp_path / "report"):
        if file.stem.endswith("_0"):
            (others / f"{file.stem[:-2]}.png").write_bytes(file.read_bytes())
    call(
        evaluate.main, "--images", others, "--data", inputs_folder / "data", "--test-from", 12,
        "--out", tmp_path / "report", "--parser", parser, "--name", "a copy",
    )  # fmt: skip
    rows = by_name(json.loads((tmp_path / "report/report.json").read_text()))
    assert rows.keys() == by_name(report).keys() | {"a copy"}
    own = rows["tiny, euler 2, guidance 1"]["scores"]
    assert own.items() <= rows["a copy"]["scores"].items()
    assert rows["a copy"]["scores"].keys() - own.keys() == {"ssim", "psnr_db"}


def test_two_plain_folders_with_masks(parser, inputs_folder, tmp_path, capsys):
    random = np.random.default_rng(0)
    for folder in ("a", "b", "masks"):
        (tmp_path / folder).mkdir()
    for name in "xyz":
        for folder in "ab":
            image = random.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / folder / f"{name}.png")
        write_label_map(
            tmp_path / "masks" / f"{name}.png", np.full((SIZE, SIZE), ord(name) - 115, np.uint8)
        )
    arguments = (
        "--images", tmp_path / "a", "--reference", tmp_path / "b", "--parser", parser,
    )  # fmt: skip
    call(evaluate.main, *arguments, "--masks", tmp_path / "masks", "--out", tmp_path / "report")
    (row,) = json.loads((tmp_path / "report/report.json").read_text())["rows"]
    assert row["scores"].keys() == {"fd_parser", "miou", "accuracy", "ssim", "psnr_db"}
    (tmp_path / "a/z.png").rename(tmp_path / "a/other.png")
    call(evaluate.main, *arguments, "--out", tmp_path / "second")
    assert "the reference has no 'other'" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "second/report.json").read_text())["rows"]
    assert row["scores"].keys() == {"fd_parser"}
    for change, message in [
        (lambda: None, "there is no mask .*other.png"),
        (
            lambda: write_label_map(tmp_path / "masks/other.png", np.zeros((8, 8), np.uint8)),
            "other.png has 8x8 pixels where its picture has 32x32",
        ),
    ]:
        change()
        with pytest.raises(InputError, match=message):
            call(evaluate.main, *arguments, "--masks", tmp_path / "masks", "--out", tmp_path / "c")
    (tmp_path / "b/w.png").write_bytes((tmp_path / "b/x.png").read_bytes())
    call(evaluate.main, *arguments, "--out", tmp_path / "third")
    (row,) = json.loads((tmp_path / "third/report.json").read_text())["rows"]
    assert "3 pictures against 4; the counts differ" in row["notes"][0]


@dataclasses.dataclass(frozen=True)
class MeanColour(InceptionV3):
    """In Inception's place: three features, of weights that are a number."""

    def features(self, images, resize):
        assert resize == "tf1"
        return self.params["scale"] * jnp.mean(images.astype(jnp.float32), (1, 2))


jax.tree_util.register_dataclass(MeanColour, data_fields=["params"], meta_fields=[])


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A folder with something in the place of Inception's weights."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / networks.INCEPTION.file).write_text("2")
    monkeypatch.setattr(
        networks,
        "load_inception",
        lambda path: MeanColour({"scale": jnp.float32(float(path.read_text()))}),
    )
    return folder


def test_fid_and_its_statistics_in_and_out(run, weights, inputs_folder, tmp_path):
    saved = tmp_path / "reference.npz"
    report = run("--weights", weights, "--save-statistics", saved)
    rows = by_name(report)
    assert rows["training faces"]["scores"]["fid"] > 0
    assert "fid" not in rows["test faces themselves"]["scores"]
    own = load_statistics(saved)
    assert own.count == 4 and own.mean.shape == (3,)
    folder = next((tmp_path / "report/images").iterdir())
    for file in folder.glob("*_[1-9].png"):
        file.unlink()
    call(
        evaluate.main, "--images", folder, "--reference", saved, "--weights", weights,
        "--metrics", "fid", "--out", tmp_path / "other",
    )  # fmt: skip
    (row,) = json.loads((tmp_path / "other/report.json").read_text())["rows"]
    assert row["scores"] == {"fid": rows["tiny, euler 2, guidance 1"]["scores"]["fid"]}
    # Judges that come later add their scores; other ones do not enter the same table.
    run(out=tmp_path / "later")
    later = run("--weights", weights, out=tmp_path / "later")
    assert [row["scores"] for row in later["rows"]] == [row["scores"] for row in report["rows"]]
    # What was not asked for this time stays.
    last = run("--metrics", "acc", out=tmp_path / "later")
    assert [row["scores"] for row in last["rows"]] == [row["scores"] for row in report["rows"]]
    (weights / networks.INCEPTION.file).write_text("3")
    with pytest.raises(InputError, match=r"was made with Inception \w{12} where this command has"):
        run("--weights", weights, out=tmp_path / "later")


def test_missing_weights_are_named_with_their_source(run, tmp_path, monkeypatch, capsys):
    report = run("--metrics", "fid,lpips,miou")
    assert len(report["missing"]) == 2
    assert "pt_inception-2015-12-05-6726825d.safetensors (pt_inception" in report["missing"][0]
    assert "lpips-v0.1-alex.safetensors (weights/v0.1/alex.pth" in report["missing"][1]
    assert capsys.readouterr().out.count("not measured: ") == 2
    monkeypatch.chdir(tmp_path)
    assert (
        "train one (python -m sisma_jax.train_parser"
        in networks.load_networks(frozenset({"miou"}), None, None, "alex").missing[0]
    )


def test_diversity_is_of_the_samples_of_a_mask(run, tmp_path, monkeypatch):
    class Pixels(Lpips):
        def pairwise(self, images):
            apart = images[:, None].astype(float) - images[None]
            return np.abs(apart).mean((2, 3, 4))

    loaded = networks.load_networks
    monkeypatch.setattr(
        evaluate,
        "load_networks",
        lambda *given: dataclasses.replace(loaded(*given), lpips=Pixels(ALEXNET, {}), missing=()),
    )
    monkeypatch.setattr(evaluator, "diversity", diversity.__wrapped__)
    report = run("--metrics", "lpips", "--diversity-masks", 3, "--diversity-samples", 3)
    (row,) = report["rows"]
    assert row["settings"]["diversity_masks"] == row["settings"]["diversity_samples"] == 3
    folder = next((tmp_path / "report/images").iterdir())
    read = lambda name: np.asarray(Image.open(folder / name)).astype(float)
    names = sorted({file.stem.split("_")[0] for file in folder.glob("*.png")})[:3]
    by_hand = [
        np.mean([np.abs(read(f"{n}_{a}.png") - read(f"{n}_{b}.png")).mean()
                 for a, b in ((0, 1), (0, 2), (1, 2))])
        for n in names
    ]  # fmt: skip
    np.testing.assert_allclose(row["scores"]["lpips_diversity"], np.mean(by_hand))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "fid,beauty"], "metric 'beauty' is unknown: use some of fid, fd"),
        (["--count", 1], "--count is 1: use 2 to"),
        (["--steps", "5,0"], "--steps has 0"),
        (["--guidance", "1,-1"], "--guidance has -1.0"),
        (["--solver", "rk4"], "solver 'rk4' is unknown"),
        (["--seed", -1], "--seed is -1"),
        (["--diversity-samples", 1], "--diversity-samples is 1"),
        (["--masks", "x"], "--masks goes with --images"),
        (["--parser", "nowhere"], "there is no face parser at nowhere"),
        (["--weights", "nowhere"], "--weights nowhere is no folder"),
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--save-statistics", "x.npz"], "needs Inception's weights and fid"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(run, arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(*arguments)
    assert not (tmp_path / "report").exists()


def test_reports_that_do_not_fit_are_refused(run, parser, tmp_path):
    run()
    other = write_parser(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"made with face parser .* give --out a new folder"):
        run("--parser", other)
    with pytest.raises(InputError, match="made with reference"):
        run("--count", 3)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("keep me")
    with pytest.raises(InputError, match="strange is not empty and holds no report"):
        run(out=strange)


def test_a_parser_of_other_classes_is_refused(run, tmp_path):
    images = jnp.zeros((1, SIZE, SIZE, 3))
    config = dataclasses.replace(CONFIG, num_classes=3)
    params = FaceParserUNet(config).init(jax.random.key(0), images)["params"]
    save_parser(tmp_path / "three", config, params, classes=("a", "b", "c"), size=SIZE)
    with pytest.raises(InputError, match="tells 3 classes apart where the data has 19"):
        run("--parser", tmp_path / "three")


def test_folders_that_cannot_be_compared_are_refused(inputs_folder, tmp_path):
    for folder, size in (("a", 32), ("b", 16)):
        (tmp_path / folder).mkdir()
        for name in "xy":
            Image.new("RGB", (size, size)).save(tmp_path / folder / f"{name}.png")
    images = ["--images", tmp_path / "a", "--out", tmp_path / "report"]
    for arguments, message in [
        ([], "--images needs a reference: give --data or --reference"),
        (["--reference", tmp_path / "b"], "32x32 pixels, those of .* 16x16"),
        (["--data", inputs_folder / "data", "--masks", tmp_path], "--masks goes with --reference"),
        (["--reference", tmp_path / "none.npz"], "there are no statistics"),
    ]:
        with pytest.raises(InputError, match=message):
            call(evaluate.main, *images, *arguments)
    assert not (tmp_path / "report").exists()

"""The evaluation command on a tiny run: its table, its files, and how it continues."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from sisma_jax import evaluate
from sisma_jax.common.errors import InputError
from sisma_jax.data.classes import CLASSES
from sisma_jax.data.label_maps import write_label_map
from sisma_jax.evaluation import networks, scoring
from sisma_jax.metrics.frechet import load_statistics
from sisma_jax.metrics.perceptual import diversity
from sisma_jax.models.face_parser import save_parser
from sisma_jax.models.judges.lpips import ALEXNET, Lpips
from sisma_jax.synthesis.synthesizer import Synthesizer
from tests.evaluation.parsers import CONFIG, random_params, write_parser
from tests.tiny_runs import SIZE, call, overridden

OURS = "tiny, euler 2, guidance 1"


@pytest.fixture(autouse=True, scope="module")
def kept_programs():
    """Every command compiles the same small judges: they are kept, as large programs are."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.1)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    return write_parser(tmp_path_factory.mktemp("parsers") / "parser")


def evaluate_tiny(tiny_run, parser, out, *more, metrics="fd,miou,acc,ssim"):
    settings = [
        "--workdir", tiny_run, "--out", out, "--parser", parser, "--steps", "2", "--batch-size", 4,
        *(["--metrics", metrics] if metrics else []),
    ]  # fmt: skip
    call(evaluate.main, *overridden(settings, more))
    return read(out)


def read(report_folder):
    return json.loads((report_folder / "report.json").read_text())


@pytest.fixture(scope="module")
def made(tiny_run, parser, tmp_path_factory):
    """A report's folder, and what its command said; do not write into it."""
    folder = tmp_path_factory.mktemp("made") / "report"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        evaluate_tiny(tiny_run, parser, folder)
    return folder, said.getvalue()


@pytest.fixture
def report(made, tmp_path):
    """tmp_path/report: a report to go on with."""
    return shutil.copytree(made[0], tmp_path / "report")


@pytest.fixture(scope="module")
def synthesizer(tiny_run):
    return Synthesizer.load(tiny_run)


@pytest.fixture
def run(tiny_run, parser, synthesizer, tmp_path, monkeypatch):
    """Evaluate the tiny run, which is read once for all, into tmp_path/report."""

    def load(workdir, *, batch_size):
        assert workdir == tiny_run
        return dataclasses.replace(synthesizer, batch_size=batch_size)

    monkeypatch.setattr(Synthesizer, "load", load)

    def evaluate_run(*more, out=tmp_path / "report", parser=parser, **options):
        return evaluate_tiny(tiny_run, parser, out, *more, **options)

    return evaluate_run


@pytest.fixture
def painted(monkeypatch):
    """In synthesis' place: colours by mask, seed and options, whatever else is in a batch."""

    def batches(self, labels, options, *, seed, style):
        for start in range(0, len(labels), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(labels)))
            yield np.stack([paint(labels[row], seed[row], options) for row in rows])

    def paint(labels, seed, options):
        own = seed, options.steps, int(10 * options.guidance), options.solver == "heun"
        colours = np.random.default_rng(own).integers(0, 256, (256, 3), np.uint8)
        return colours[labels]

    monkeypatch.setattr(Synthesizer, "batches", batches)


def by_name(report):
    return {row["name"]: row for row in report["rows"]}


def pictures_of(report_folder):
    return {
        str(file.relative_to(report_folder)): file.read_bytes()
        for file in sorted(report_folder.rglob("images/*/*.png"))
    }


def test_a_report_has_its_table_protocol_and_pictures(made):
    folder, said = made
    report = read(folder)
    rows = by_name(report)
    assert [row["kind"] for row in report["rows"]] == [
        "real",
        "real",
        "reconstruction",
        "synthesis",
    ]
    assert rows["test faces"]["scores"].keys() == {"miou", "accuracy"}
    assert rows["autoencoder of tiny"]["scores"].keys() == {
        "fd_parser", "miou", "accuracy", "ssim", "psnr_db",
    }  # fmt: skip
    row = rows[OURS]
    assert row["scores"].keys() == {"fd_parser", "miou", "accuracy"} and row["count"] == 4
    assert row["settings"]["steps"] == 2 and row["settings"]["step"] == 6
    assert row["scores"]["fd_parser"] > 0 and "under 2,000" in row["notes"][0]
    assert report["parser_quality"]["test_miou"] == 0.25
    assert "its own mIoU 0.250" in report["protocol"]["mIoU, accuracy"]
    assert report["memorisation"]["tiny"]["training_pictures"] == 12
    assert f"{row['scores']['fd_parser']:.3f}" in said
    assert "fewer than --count 2000" in said

    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    text = (folder / "report.md").read_text()
    assert f"| {OURS} | 4 |" in text
    for link in re.findall(r"\((pictures/.*?)\)", text):
        assert (folder / link).is_file()


def test_the_same_command_makes_and_measures_nothing_again(run, report, monkeypatch):
    before = read(report)
    monkeypatch.setattr(Synthesizer, "batches", None)
    monkeypatch.setattr("sisma_jax.evaluation.judges.Accumulator", None)
    monkeypatch.setattr(scoring, "ssim", None)
    assert run()["rows"] == before["rows"]


def test_numbers_and_pictures_do_not_depend_on_the_folder(run, report, tmp_path):
    assert run(out=tmp_path / "second")["rows"] == read(report)["rows"]
    assert pictures_of(tmp_path / "second") == pictures_of(report)


def test_lists_of_steps_and_guidance_are_rows_of_one_table_and_plots(run, report, painted):
    before = pictures_of(report)
    found = run("--steps", "1,2", "--guidance", "1,1.5")
    made = [row["name"] for row in found["rows"] if row["kind"] == "synthesis"]
    assert made == [f"tiny, euler {s}, guidance {g}" for g in ("1", "1.5") for s in (1, 2)]
    after = pictures_of(report)
    assert before.items() <= after.items() and len(after) > len(before)
    page = (report / "report.html").read_text()
    assert page.count("<svg") == 2


def test_an_interrupted_evaluation_keeps_what_it_has_and_continues(
    run, painted, tmp_path, monkeypatch
):
    command = "--test-from", 8, "--metrics", "fd,miou"
    whole = run(*command, out=tmp_path / "whole")
    expected = pictures_of(tmp_path / "whole")
    batches = Synthesizer.batches

    def interrupted(self, *arguments, **options):
        for number, images in enumerate(batches(self, *arguments, **options)):
            if number == 1:
                raise KeyboardInterrupt
            yield images

    monkeypatch.setattr(Synthesizer, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*command)
    monkeypatch.setattr(Synthesizer, "batches", batches)
    partial = read(tmp_path / "report")
    assert [row["kind"] for row in partial["rows"]] == ["real", "real", "reconstruction"]
    there = pictures_of(tmp_path / "report")
    assert 0 < len(there) < len(expected)
    damaged = next(iter(there))
    (tmp_path / "report" / damaged).write_bytes(there[damaged][:100])
    # The noise of a face belongs to it: two halves are the whole, in batches of any size.
    assert run(*command, "--batch-size", 16)["rows"] == whole["rows"]
    assert pictures_of(tmp_path / "report") == expected


def test_pictures_of_any_origin_enter_the_same_table(report, parser, inputs_folder, tmp_path):
    before = by_name(read(report))
    others = tmp_path / "others"
    others.mkdir()
    for file in report.rglob("images/*/*_0.png"):
        shutil.copy(file, others / file.name.replace("_0.", "."))
    call(
        evaluate.main, "--images", others, "--data", inputs_folder / "data", "--test-from", 12,
        "--out", report, "--parser", parser, "--name", "a copy",
    )  # fmt: skip
    rows = by_name(read(report))
    assert rows.keys() == before.keys() | {"a copy"}
    own = rows[OURS]["scores"]
    assert own.items() <= rows["a copy"]["scores"].items()
    assert rows["a copy"]["scores"].keys() - own.keys() == {"ssim", "psnr_db"}
    # Alone, it still stands beside what the parser makes of the real faces.
    call(
        evaluate.main, "--images", others, "--data", inputs_folder / "data", "--test-from", 12,
        "--out", tmp_path / "alone", "--parser", parser,
    )  # fmt: skip
    alone = read(tmp_path / "alone")
    assert by_name(alone)["test faces"] == rows["test faces"]
    assert alone["missing"].keys() == {"fid"}


def test_two_plain_folders_with_masks(parser, inputs_folder, tmp_path, capsys):
    random = np.random.default_rng(0)
    for folder in ("a", "b", "masks"):
        (tmp_path / folder).mkdir()
    for name in "wxyz":
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
    assert "the reference has no 'other' (1 of 4 pictures have no" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "second/report.json").read_text())["rows"]
    assert row["scores"].keys() == {"fd_parser"}
    for change, message in [
        (lambda: None, r"masks has no 'other' \(1 of 4 pictures have no counterpart\), but 'z'"),
        (
            lambda: write_label_map(tmp_path / "masks/other.png", np.zeros((8, 8), np.uint8)),
            "other.png has 8x8 pixels where its picture has 32x32",
        ),
    ]:
        change()
        with pytest.raises(InputError, match=message):
            call(evaluate.main, *arguments, "--masks", tmp_path / "masks", "--out", tmp_path / "c")
    (tmp_path / "b/v.png").write_bytes((tmp_path / "b/x.png").read_bytes())
    call(evaluate.main, *arguments, "--out", tmp_path / "third")
    (row,) = json.loads((tmp_path / "third/report.json").read_text())["rows"]
    assert "the reference has no 'other' (1 of 4" in row["notes"][0]
    assert "4 pictures against 5; the counts differ" in row["notes"][1]


def test_fid_and_its_statistics_in_and_out(run, report, weights, tmp_path):
    # Judges that come later add their scores, and what is not asked for this time stays.
    before = by_name(read(report))
    saved = tmp_path / "reference.npz"
    every = "fid,fd,miou,acc,ssim"
    run("--weights", weights, "--save-statistics", saved, metrics=every)
    found = run("--weights", weights, "--metrics", "acc")
    rows = by_name(found)
    for name, row in rows.items():
        scores = dict(row["scores"])
        assert (scores.pop("fid", 0) > 0) == (name != "test faces")
        assert scores == before[name]["scores"]
    assert " FID (tf1) ↓ |" in (report / "report.md").read_text()
    assert "<th>FID (tf1) ↓</th>" in (report / "report.html").read_text()
    assert rows[OURS]["conventions"] == {"fid": "tf1"}
    own = load_statistics(saved)
    assert own.count == 4 and own.mean.shape == (3,) and own.features.resize == "tf1"
    others = tmp_path / "others"
    others.mkdir()
    for file in report.rglob("images/*/*_0.png"):
        shutil.copy(file, others)
    call(
        evaluate.main, "--images", others, "--reference", saved, "--weights", weights,
        "--metrics", "fid", "--out", tmp_path / "other",
    )  # fmt: skip
    (row,) = read(tmp_path / "other")["rows"]
    assert row["scores"] == {"fid": rows[OURS]["scores"]["fid"]}
    # Other ones do not enter the same table.
    (weights / networks.INCEPTION.file).write_text("3")
    with pytest.raises(InputError, match=r"is 'resized by tf1 \w{12}' where"):
        run("--weights", weights, metrics=every)


def test_missing_weights_are_named_with_their_source(run, report, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "DEFAULT_METRICS", "fid,lpips,miou")
    found = run(metrics=None)
    assert len(found["missing"]) == 2
    assert "pt_inception-2015-12-05-6726825d.safetensors (pt_inception" in found["missing"]["fid"]
    assert (
        "lpips-v0.1-alex.safetensors (weights/v0.1/alex.pth" in found["missing"]["lpips_diversity"]
    )
    assert capsys.readouterr().out.count("not measured: ") == 2
    monkeypatch.chdir(tmp_path)
    # No parser there, and one that is not finished.
    for _ in range(2):
        missing = networks.load_networks(frozenset({"miou"}), None, None, "alex").missing
        assert "train a parser (python -m sisma_jax.train_parser" in missing["miou"]
        (tmp_path / networks.DEFAULT_PARSER / "checkpoints").mkdir(parents=True, exist_ok=True)


def test_diversity_is_of_the_samples_of_a_mask(run, painted, tmp_path, monkeypatch):
    class Pixels(Lpips):
        def pairwise(self, images):
            apart = images[:, None].astype(float) - images[None]
            return np.abs(apart).mean((2, 3, 4))

    loaded = networks.load_networks
    weights = {}
    monkeypatch.setattr(
        evaluate,
        "load_networks",
        lambda *given: dataclasses.replace(
            loaded(*given), lpips=Pixels(ALEXNET, weights), missing={}
        ),
    )
    monkeypatch.setattr(scoring, "diversity", diversity.__wrapped__)
    report = run("--metrics", "lpips", "--diversity-masks", 3, "--diversity-samples", 3)
    (row,) = report["rows"]
    assert row["settings"]["diversity_masks"] == row["settings"]["diversity_samples"] == 3
    assert "3 samples of each of 3 masks" in row["notes"][-1]
    assert "LPIPS diversity (AlexNet, 3 x 3)" in (tmp_path / "report/report.md").read_text()
    folder = next((tmp_path / "report/images").iterdir())
    pixels = lambda name: np.asarray(Image.open(folder / name)).astype(float)
    names = sorted({file.stem.split("_")[0] for file in folder.glob("*.png")})[:3]
    by_hand = [
        np.mean([np.abs(pixels(f"{n}_{a}.png") - pixels(f"{n}_{b}.png")).mean()
                 for a, b in ((0, 1), (0, 2), (1, 2))])
        for n in names
    ]  # fmt: skip
    np.testing.assert_allclose(row["scores"]["lpips_diversity"], np.mean(by_hand))
    weights["other"] = np.ones(1)
    with pytest.raises(InputError, match=r"share one LPIPS, .* give --weights and --lpips-netw"):
        run("--metrics", "lpips")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "fid,beauty"], "metric 'beauty' is unknown: use some of fid, fd"),
        (["--count", 1], "--count is 1: use 2 to"),
        (["--steps", "5,0"], "^--steps is 0: use at least 1"),
        (["--shift", "0"], "^--shift is 0.0: use more than 0"),
        (["--times", "0.5", "0.7", "1"], r"^--times begin at 0\.5, where z is no longer noise"),
        (["--times", "0", "1", "--steps", "2,3"], "^--steps is 2, but times are those of 1 steps"),
        (["--guidance-interval", "0.8", "0.1"], "^--guidance-interval is .*the lower one first"),
        (["--guidance-interval", "0.1", "0.8"], "^--guidance-interval is 0.1 0.8, but there is no"),
        (["--guidance", "1,-1"], "^--guidance is -1.0: use 0 or more"),
        (["--solver", "rk4"], "^--solver 'rk4' is unknown"),
        (["--seed", -1], "--seed is -1"),
        (["--batch-size", 0], "^--batch-size is 0: use at least 1"),
        (["--diversity-samples", 1], "--diversity-samples is 1"),
        (["--masks", "x"], "--masks goes with --images"),
        (["--parser", "nowhere"], "there is no face parser at nowhere"),
        (["--weights", "nowhere"], "--weights nowhere is not a folder"),
        (["--data", "nowhere"], "nowhere is not a folder"),
        (
            ["--save-statistics", "x.npz"],
            "x.npz needs fid among --metrics: add it there",
        ),
        (["--save-statistics", "x.npy"], "x.npy writes a .npz file: name it so"),
        (["--metrics", "miou,fid"], "asks for what cannot be measured. FID: missing .*d.safet"),
        (["--metrics", "lpips"], "asks for what cannot be measured. LPIPS diversity: missing"),
        (["--metrics", "style,miou"], "asks for style, but the model in .* has none"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(run, arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(*arguments)
    assert not (tmp_path / "report").exists()


def test_reports_that_do_not_fit_are_refused(run, report, tmp_path):
    other = write_parser(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"share one face parser, .* give --parser as"):
        run("--parser", other)
    with pytest.raises(InputError, match=r"'of 4 pict.* 'of 3 pict.*: give --data and --count"):
        run("--count", 3)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("keep me")
    with pytest.raises(InputError, match="strange is not empty and holds no report"):
        run(out=strange)


def test_a_parser_of_other_classes_is_refused(run, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, num_classes=3)
    three = tmp_path / "three"
    save_parser(three, config, random_params(config), classes=("a", "b", "c"), size=SIZE)
    with pytest.raises(InputError, match="has 3 classes, but the data has 19"):
        run("--parser", three)
    # One that nobody asked for is as good as missing.
    monkeypatch.setattr(networks, "DEFAULT_PARSER", three)
    found = networks.load_networks(frozenset({"miou"}), None, None, "alex")
    fitting = found.fitting(CLASSES, SIZE)
    assert fitting.parser is None and "has 3 classes" in fitting.missing["miou"]
    assert found.fitting(("a", "b", "c"), SIZE).parser is not None
    assert "trained on 32 pixels" in found.fitting(("a", "b", "c"), 256).missing["miou"]


def test_folders_that_cannot_be_compared_are_refused(inputs_folder, tmp_path):
    for folder, size in (("a", 32), ("b", 16)):
        (tmp_path / folder).mkdir()
        for name in "xy":
            Image.new("RGB", (size, size)).save(tmp_path / folder / f"{name}.png")
    images = ["--images", tmp_path / "a", "--out", tmp_path / "report"]
    for arguments, message in [
        ([], "--images needs a reference: give either --data or --reference"),
        (["--reference", tmp_path / "b"], "32x32 pixels, those of .* 16x16"),
        (["--data", inputs_folder / "data", "--masks", tmp_path], "--masks goes with --reference"),
        (["--reference", tmp_path / "none.npz"], "there are no statistics"),
    ]:
        with pytest.raises(InputError, match=message):
            call(evaluate.main, *images, *arguments)
    assert not (tmp_path / "report").exists()

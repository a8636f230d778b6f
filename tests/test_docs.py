"""The documentation does what it says: its snippets run, its commands parse, its links lead on."""

import functools
import itertools
import pkgutil
import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import sisma_jax
from sisma_jax import demo, prepare
from sisma_jax.common.commands import COMMANDS
from sisma_jax.common.config import flatten, installed_configs, load_config
from sisma_jax.data import raw_layout, synthetic
from sisma_jax.data.classes import CLASSES
from sisma_jax.data.label_maps import write_label_map
from tests.command_lines import parser_of
from tests.tiny_runs import SIZE, arguments, call

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
"""What a reader of the README can be led to."""
DOCUMENTS = [*PAGES, "CONTRIBUTING.md"]
README_LINES = 200
FIRST_TEST_FACE = load_config("synthetic").data.test_from
"""The demo writes the masks of the faces from this id on to `runs/demo/masks`."""
HAT = CLASSES.index("hat")


@functools.cache
def text_of(document):
    return (ROOT / document).read_text()


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(document), re.DOTALL | re.MULTILINE)


@functools.cache
def prose(document):
    """Without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(document), flags=re.DOTALL | re.MULTILINE)


def inline_code(document):
    return re.findall(r"`([^`\n]+)`", prose(document))


# Snippets


def write_scenes(folder, classes):
    """Images whose labels are `classes` in turn, as the reader's own data set on the page."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.json").write_text(classes)
    for index in range(12):
        labels = np.random.default_rng(index).integers(0, 3, (SIZE, SIZE)).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"labels/{index}.png")
        Image.fromarray((80 * labels).repeat(3).reshape(SIZE, SIZE, 3)).save(
            folder / f"images/{index}.png"
        )


@pytest.fixture(scope="module")
def prepared_folder(inputs_folder, tiny_run, tiny_style_run, tmp_path_factory):
    """The folder of a reader who ran the commands that precede the snippets, but smaller."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny_run, folder / "runs" / "demo")
    shutil.copytree(tiny_style_run, folder / "runs" / "demo-style")
    for name in ("sd-vae-ft-ema", "runs/autoencoder"):
        shutil.copytree(inputs_folder / "autoencoder", folder / name)
    faces = (synthetic.face(0, index, SIZE) for index in itertools.count())
    with_hat = next((image, labels) for image, labels in faces if (labels == HAT).any())
    photos = folder / "data/synthetic" / raw_layout.IMAGE_FOLDER
    photos.mkdir(parents=True)
    for face, (image, labels) in enumerate((with_hat, next(faces)), FIRST_TEST_FACE):
        Image.fromarray(image).save(photos / f"{face}.jpg")
        demo.write_masks(folder / "runs/demo/masks", np.array([face]), labels[None])
    for name in ("a", "b"):
        image, labels = next(faces)
        Image.fromarray(image).save(folder / f"{name}.png")
        write_label_map(folder / f"{name}_mask.png", labels)
    write_scenes(folder / "scenes", blocks("docs/data.md", "json")[0])
    call(prepare.main, *("--source", folder / "scenes", "--out", folder / "data" / "mine"),
         *("--size", SIZE, "--test-from", 8, "--workers", 1))  # fmt: skip
    tiny = [x for x in arguments(inputs_folder, folder) if x.startswith("--config.")]
    (folder / "configs").mkdir()
    (folder / "configs" / "synthetic.py").write_text(
        "from sisma_jax.common.config import load_config\n"
        f"get_config = lambda: load_config({str(ROOT / 'configs' / 'synthetic.py')!r}, {tiny})\n"
    )
    return folder


@pytest.fixture
def reader_folder(prepared_folder, monkeypatch):
    """The same as the current folder, whose config takes the place of the installed one."""
    monkeypatch.chdir(prepared_folder)
    tiny_config = lambda: load_config("configs/synthetic.py")
    monkeypatch.setattr("sisma_jax.configs.synthetic.get_config", tiny_config)
    return prepared_folder


AFTERWARDS = {
    "README.md": lambda names, folder: (
        names["faces"].shape == (4, SIZE, SIZE, 3) and (folder / "face_3.png").exists()
    ),
    "docs/sampling.md": lambda names, folder: (
        names["faces"].shape == names["variations"].shape == (4, SIZE, SIZE, 3)
    ),
    "docs/styles.md": lambda names, folder: (
        names["images"].shape == names["halfway"].shape == (1, SIZE, SIZE, 3)
    ),
    "docs/editing_and_painting.md": lambda names, folder: (
        names["photos"][0] != names["photo"]
    ).any(),
    "docs/training.md": lambda names, folder: (
        all(any((folder / "runs" / x / "checkpoints").iterdir()) for x in ("mine", "mine-finer"))
        and names["get_config"]("deep").model.depth == 8
    ),
}
"""What holds after the snippets of a page, beside that they ran."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_snippets_of_a_page_run_one_after_the_other(page, reader_folder):
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for snippet in blocks(page, "python"):
            exec(compile(snippet, page, "exec"), names)
    assert AFTERWARDS.get(page, lambda *_: True)(names, reader_folder)


# Commands


def command_lines(text):
    """(program, its arguments) of the lines that start one of ours."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.search(r"python (?:-m (sisma_jax\.\S+)|(benchmarks/\S+\.py))(.*)", line)
        if found:
            yield found[1] or found[2], shlex.split(found[3], comments=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse_and_their_configs_load(document, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for program, words in itertools.chain(*map(command_lines, blocks(document, "bash"))):
        assert program in COMMANDS or program.startswith("benchmarks/"), program
        if words == ["--help"]:
            continue
        try:
            args, rest = parser_of(program).parse_known_args(words)
        except SystemExit:
            pytest.fail(f"{program} {words}: {capsys.readouterr().err}")
        if getattr(args, "config", None):
            load_config(args.config, rest)
        else:
            assert not rest, f"{program} has no {rest}"


def test_make_targets_exist():
    targets = set()
    for document in DOCUMENTS:
        commands = itertools.chain(*map(str.splitlines, blocks(document, "bash")))
        for words in (*commands, *inline_code(document)):
            if found := re.match(r"make((?: [a-z-]+)+)", words):
                targets.update(found[1].split())
    assert targets >= {"demo", "paint", "install"}
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_that_are_mentioned_exist(document):
    programs = [
        *COMMANDS,
        *(f"benchmarks/{x.name}" for x in (ROOT / "benchmarks").glob("*_bench.py")),
    ]
    known = {"--help", *re.findall(r"--[a-z-]+", "".join(
        path.read_text() for path in (ROOT / "launch").iterdir() if path.suffix != ".ipynb"
    ))}  # fmt: skip
    known.update(*(parser_of(program)._option_string_actions for program in programs))
    for code in inline_code(document):
        lines = [*command_lines(code)]
        of_one = {*parser_of(lines[0][0])._option_string_actions} if lines else known
        for option in re.findall(r"(?<!\S)--[a-z-]+(?![\w.-])", code):
            assert option in of_one, code


def test_config_keys_that_are_mentioned_exist():
    known = {key for name in installed_configs() for key in flatten(load_config(name))}
    sections = "|".join({key.partition(".")[0] for key in known})
    mentioned = 0
    for document in DOCUMENTS:
        for code in inline_code(document):
            if found := re.fullmatch(rf"(?:--config\.)?((?:{sections})\.[a-z_.]+)(?:=.*)?", code):
                mentioned += 1
                assert found[1] in known, f"{document}: {code}"
    assert mentioned >= 20


def test_names_of_ours_that_are_mentioned_exist():
    for document in DOCUMENTS:
        for code in inline_code(document):
            if re.fullmatch(r"(sisma_jax|kernels)(\.\w+)+", code):
                pkgutil.resolve_name(code)


def test_every_command_has_a_page():
    for module, command in COMMANDS.items():
        assert command.page in PAGES, module
        assert f"python -m {module}" in text_of(command.page), module
        assert module in text_of("README.md"), module


# Links


def links(document):
    """(path of a file within the project, anchor or "") of the links that stay in the project."""
    for target in re.findall(r"\[[^]]*\]\(([^)\s]+)\)", prose(document)):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            place = (ROOT / document).parent / path if path else ROOT / document
            yield place.resolve(), anchor


def anchors(document):
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    for place, anchor in links(document):
        assert place.is_relative_to(ROOT) and place.exists(), place
        assert not anchor or anchor in anchors(str(place.relative_to(ROOT))), (place, anchor)


def test_every_page_can_be_reached_from_the_readme():
    reached, left = set(), ["README.md"]
    while left:
        document = left.pop()
        reached.add(document)
        near = {str(place.relative_to(ROOT)) for place, _ in links(document)}
        left += {x for x in near if x.endswith(".md")} - reached
    assert reached >= {*PAGES}


def test_the_readme_is_short_and_opens_with_a_picture():
    assert len(text_of("README.md").splitlines()) <= README_LINES
    assert re.search(r"!\[[^]]+\]\([^)]+\)", text_of("README.md").partition("\n## ")[0])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    rooms = "benchmarks|launch|configs|tests|sisma_jax|kernels|docs"
    for code in inline_code(document):
        if found := re.fullmatch(rf"((?:{rooms})/[\w./]+?)(?::[\w-]+)?", code):
            assert (ROOT / found[1]).exists(), code


def test_pages_that_the_code_names_exist():
    folders = ("sisma_jax", "kernels", "configs", "benchmarks", "launch")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")
             if path.suffix in (".py", ".ipynb", ".sh", ".sbatch", ".js")]  # fmt: skip
    named = {path: re.findall(r"docs/\w+\.md", path.read_text()) for path in files}
    assert sum(map(len, named.values())) > len(COMMANDS)
    for path, pages in named.items():
        assert {*pages} <= {*PAGES}, path


def test_the_version_stands_in_one_place():
    assert sisma_jax.__version__ == version("sisma_jax")
    assert f'version = "{sisma_jax.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {sisma_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()

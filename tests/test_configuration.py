"""Configurations: read from text, checked at the door, written back the same."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from workbench import configuration
from workbench.errors import UserError
from workbench.plugin import Option


@dataclass(frozen=True)
class Train:
    lr: Annotated[float, Option("learning rate", gt=0)] = 1e-3
    steps: Annotated[int, Option("steps", unit="steps", ge=1)] = 100


@dataclass(frozen=True)
class Config:
    k: Annotated[int | list[int], Option("latents kept", ge=1, le=64)] = 8
    label: Annotated[str | None, Option("label")] = None
    selector: Annotated[Literal["mean", "f"], Option("how units are chosen")] = "f"
    centre: Annotated[bool, Option("subtract the mean")] = True
    share: Annotated[float, Option("share of rows", ge=0, le=1)] = 0.5
    names: Annotated[tuple[str, ...], Option("names")] = ()
    train: Train = field(default_factory=Train)


def settings(*texts):
    return dict(configuration.parse_setting(text) for text in texts)


def test_defaults_and_values_from_text():
    assert configuration.build(Config, {}) == Config()
    given = settings("k=32", "label=no", "selector=mean", "centre=false", "train.lr=1e-4", "names=[a, b]", "share=1")
    want = Config(k=32, label="no", selector="mean", centre=False, names=("a", "b"), share=1.0, train=Train(lr=1e-4))
    assert configuration.build(Config, given) == want


def test_nested_mappings_and_dotted_keys_are_the_same():
    nested = configuration.build(Config, {"train": {"lr": 0.1}, "k": [1, 2]})
    assert nested == configuration.build(Config, {"train.lr": 0.1, "k": [1, 2]})


def test_a_round_trip_through_yaml_changes_nothing():
    config = Config(k=[1, 2, 4], label="yes", names=("1e-4", "null", "ü"), train=Train(lr=3e-5))
    text = configuration.write_yaml(configuration.to_dict(config))
    assert configuration.build(Config, configuration.read_yaml(text, "text")) == config


BAD = [
    pytest.param("k=0", "k=0: must be between 1 and 64", id="below range"),
    pytest.param("k=[4, 65]", r"k=\[4, 65\]: must be between 1 and 64", id="one of a list out of range"),
    pytest.param("k=many", "k=many: must be whole number or list of whole number, between 1 and 64", id="wrong type"),
    pytest.param("k=1.5", "k=1.5: must be whole number", id="not whole"),
    pytest.param("share=.nan", "share=nan: must be between 0 and 1", id="nan"),
    pytest.param("train.lr=.inf", "train.lr=inf: must be above 0", id="infinite"),
    pytest.param("selector=best", "selector=best: must be one of mean, f", id="not one of the choices"),
    pytest.param("train.lr=0", "train.lr=0: must be above 0", id="nested"),
    pytest.param("train.rate=1", "no option 'train.rate'; nearest: train.", id="unknown nested key"),
    pytest.param("kk=1", "no option 'kk'; nearest: k,", id="unknown key"),
]


@pytest.mark.parametrize(("setting", "says"), BAD)
def test_a_wrong_value_is_named_with_what_would_be_right(setting, says):
    with pytest.raises(UserError, match=says):
        configuration.build(Config, settings(setting))


@pytest.mark.parametrize("setting", ["k", "=3", "k=[1,"])
def test_a_setting_that_is_no_setting(setting):
    with pytest.raises(UserError, match="--set"):
        configuration.parse_setting(setting)


def test_a_pattern_is_text_and_no_yaml_alias():
    assert settings("label=*resid_post") == {"label": "*resid_post"}


def test_a_required_field_must_be_given():
    @dataclass(frozen=True)
    class Required:
        path: Annotated[str, Option("where it is")]

    with pytest.raises(UserError, match="option 'path' must be given: where it is"):
        configuration.build(Required, {})


def test_a_field_without_option_is_its_authors_fault():
    @dataclass(frozen=True)
    class Bare:
        k: int = 1

    with pytest.raises(TypeError, match=r"Bare\.k must be annotated"):
        configuration.build(Bare, {})


TEXTS = ["inlp", "no", "7", "1e-4", "null", "", " x ", "*post", "a: b", "[a, b]", "it's", "ü # c", "two\nlines"]


@pytest.mark.parametrize("value", [*TEXTS, None, True, 3, 1e-05, [], ["7", "*x", None], [[1, 2], [3]]])
def test_a_value_written_as_a_setting_is_read_back(value):
    assert configuration.parse_setting(f"key={configuration.write_value(value)}") == ("key", value)


def test_yaml_names_no_code_to_run():
    with pytest.raises(UserError, match="not YAML"):
        configuration.read_yaml("!!python/object/apply:os.getcwd []", "file")


def test_a_configuration_file_counts_paths_from_itself(tmp_path):
    (tmp_path / "acts").mkdir()
    file = tmp_path / "run.yaml"
    file.write_text("plugin: sae\nstore: acts\ndata: python-stdlib\nset:\n  train:\n    lr: 1e-4\n")
    read = configuration.read_config_file(file)
    assert read["store"] == str(tmp_path / "acts")
    assert read["data"] == "python-stdlib"
    assert read["set"]["train"]["lr"] == 1e-4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("plugins: sae", "no key 'plugins'; nearest: plugin"),
        ("- sae", "must hold keys"),
        ("set: 3", "set must hold"),
        ("a: [", "is not YAML"),
        ("plugin: [a]", "plugin: .* must be text"),
        ("store: 5", "store: 5 must be text"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_wrong_configuration_file_is_explained(text, says, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=says):
        configuration.read_config_file(file)
    with pytest.raises(UserError, match="no configuration file"):
        configuration.read_config_file(tmp_path / "absent.yaml")

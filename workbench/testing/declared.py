"""What must hold of a plugin before it is run: name, help, interface, configuration."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

import pytest

from workbench import configuration
from workbench.cli import main
from workbench.errors import UserError
from workbench.plugin import API, PLUGIN_NAME, CaptureDefault, Needs, Plugin, RunDefault
from workbench.registry import Offer, registry
from workbench.testing.sampling import right_values, wrong_values

HEAVY = (
    "accelerate",
    "dask",
    "distributed",
    "h5py",
    "matplotlib",
    "pandas",
    "pyarrow",
    "sae_lens",
    "scipy",
    "sklearn",
    "torch",
    "transformer_lens",
    "transformers",
    "xarray",
)
LONGEST_HELP = 160
NOT_EQUAL = "written and read again, the configuration is another: __post_init__ may refuse values, not change them"


def command(*words: str) -> tuple[int, str, str]:
    """Give the command line some words; returns exit code, output and messages."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def without_blanks(text: str) -> str:
    """Drop blanks, line ends and the lines of boxes, so that text can be found however it was broken into lines."""
    return "".join(letter for letter in text if not letter.isspace() and letter not in "│╭╮╰╯─|")


class DeclaredChecks:
    """Checks that run nothing: they take milliseconds."""

    plugin: ClassVar[type[Plugin] | str]
    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def name(cls) -> str:
        """Return the plugin's name."""
        return cls.plugin if isinstance(cls.plugin, str) else cls.plugin.name

    @classmethod
    def offer(cls) -> Offer[type[Plugin]]:
        """Return what is registered under the plugin's name."""
        found, name = registry(), cls.name()
        if name not in found.plugins:  # raised, for an assertion would show the whole registry
            refused = [f"{item.origin} ({item.origin.entry_point}): {item.error}" for item in found.broken]
            if own := [said for said in refused if name in said]:
                raise AssertionError(f"{name!r} cannot be used: {'; '.join(own)}")
            raise AssertionError(
                f"{name!r} is not installed: its package needs an entry point in the group workbench, and 'pip install "
                f"-e .' in its folder; installed are {', '.join([*found.plugins, *refused])}"
            )
        return found.plugins[name]

    @classmethod
    def registered(cls) -> type[Plugin]:
        """Return the plugin's class as it is registered."""
        return cls.offer().item

    def test_it_is_registered_under_its_name(self) -> None:
        """The class under test is the one that `workbench run NAME` runs."""
        registered = self.registered()
        assert isinstance(self.plugin, str) or registered is self.plugin, (
            f"the class registered as {self.name()!r} is {registered!r}, another one than that under test"
        )

    def test_name_help_and_version_are_well_formed(self) -> None:
        """A name of words and hyphens, one line of help, a version, needs and defaults of the right types."""
        plugin = self.registered()
        assert PLUGIN_NAME.fullmatch(plugin.name), f"name {plugin.name!r}: lower-case words joined by hyphens"
        assert plugin.help.strip() == plugin.help, f"help {plugin.help!r} begins or ends with blanks"
        assert 0 < len(plugin.help) <= LONGEST_HELP, f"help {plugin.help!r}: one line of at most {LONGEST_HELP} letters"
        assert "\n" not in plugin.help, f"help {plugin.help!r}: must be one line; the rest belongs on the plugin's page"
        assert isinstance(plugin.version, str), f"version {plugin.version!r} must be text: it is part of the identity"
        assert plugin.version.strip(), "version must not be empty: it is part of the identity"
        assert isinstance(plugin.needs, Needs), f"needs {plugin.needs!r}: must be a workbench.plugin.Needs"
        kinds = {"default_capture": CaptureDefault, "default_dictionary": RunDefault}
        kinds |= {"default_model": str, "default_data": str}
        for attribute, kind in kinds.items():
            value = getattr(plugin, attribute)
            assert value is None or isinstance(value, kind), f"{attribute} must be a {kind.__name__}, not {value!r}"

    def test_it_can_be_run_without_being_given_anything(self) -> None:
        """What it needs comes from its own defaults where nothing is given."""
        plugin, needs = self.registered(), self.registered().needs
        if needs.store:
            assert plugin.default_capture, (
                "needs a store: say with default_capture what is captured where none is given"
            )
        elif needs.subject:
            assert plugin.default_model, "needs a subject model: name one in default_model"
        if needs.data and not needs.store:
            assert plugin.default_data, "needs data: name one in default_data"
        if needs.dictionary:
            assert plugin.default_dictionary, "needs a dictionary: say with default_dictionary which run makes one"
        for field in configuration.fields(plugin.Config):
            assert field.default is not dataclasses.MISSING, (
                f"option {field.key} has no default: give it one, for `workbench run {plugin.name}` alone must work"
            )

    def test_it_is_written_for_this_interface(self) -> None:
        """The version of the interface that it states is the one at hand."""
        assert self.registered().api == API

    def test_its_configuration_is_a_frozen_dataclass(self) -> None:
        """Configurations are compared and hashed: they do not change. Nested ones neither."""

        def check(config: Any) -> None:
            assert dataclasses.is_dataclass(config), f"{config!r} is no dataclass"
            frozen = vars(config)["__dataclass_params__"].frozen
            assert frozen, f"{config!r} must be @dataclass(frozen=True)"
            for hint in get_type_hints(config).values():
                if dataclasses.is_dataclass(hint):
                    check(hint)

        check(self.registered().Config)

    def test_each_option_is_explained(self) -> None:
        """Every field has help, a range if it is a number, and a default that it takes itself."""
        for field in configuration.fields(self.registered().Config):
            assert field.option.help.strip(), f"{field.key} has an Option without help: say in it what the option is"
            assert field.range or not takes_numbers(field.type), (
                f"{field.key} is a number without a range: state ge, gt, le or lt in its Option"
            )
            if field.default is not dataclasses.MISSING:
                taken = configuration.check(field, configuration.plain(field.default))
                assert taken == field.default, f"{field.key}: its default {field.default!r} is read as {taken!r}"

    def configurations(self) -> Iterator[Any]:
        """Yield configurations in which each field has, in turn, each value that it must take."""
        config = self.registered().Config
        yield configuration.build(config, self.options)
        values = {field.key: right_values(field) for field in configuration.fields(config)}
        for number in range(max(map(len, values.values()), default=0)):
            chosen = {key: of_field[number % len(of_field)] for key, of_field in values.items() if of_field}
            try:
                yield configuration.build(config, chosen)
            except UserError:  # they do not go together, or one alone is wrong
                yield from self.one_by_one(chosen)

    def one_by_one(self, chosen: dict[str, Any]) -> Iterator[Any]:
        """Yield configurations in which one option is another than in the quick ones."""
        config = self.registered().Config
        for field in configuration.fields(config):
            if field.key in chosen:
                configuration.check(field, chosen[field.key])  # right as such
                try:
                    yield configuration.build(config, {**self.options, field.key: chosen[field.key]})
                except UserError:  # __post_init__ says that it does not go with the others
                    continue

    def test_configurations_survive_yaml(self, tmp_path: Path) -> None:
        """Written to a configuration file and read back they are equal: all fields, nested ones, lists, nothing."""
        plugin = self.registered()
        for config in self.configurations():
            values = configuration.to_dict(config)
            file = tmp_path / "run.yaml"
            file.write_text(configuration.write_yaml({"plugin": plugin.name, "set": values}), encoding="utf-8")
            read = configuration.build(plugin.Config, configuration.read_config_file(file)["set"])
            assert read == config, f"{NOT_EQUAL}; written as\n{file.read_text(encoding='utf-8')}read as\n{read}"
            assert json.loads(json.dumps(values)) == values, "the manifest would not give it back"

    def test_configurations_survive_the_command_line(self) -> None:
        """Written as --set KEY=VALUE, as a run's manifest has it, they are read back equal."""
        for config in self.configurations():
            settings = [
                f"{key}={configuration.write_value(value)}" for key, value in configuration.to_dict(config).items()
            ]
            words = shlex.split(shlex.join(settings))
            read = configuration.build(type(config), dict(map(configuration.parse_setting, words)))
            assert read == config, f"{NOT_EQUAL}; written as {settings}, read as {read}"

    def test_help_states_each_option_with_unit_range_and_default(self) -> None:
        """`workbench run NAME --help` says all that there is to know."""
        self.registered()
        code, told, complaint = command("run", self.name(), "--help")
        assert code == 0, complaint
        told = without_blanks(told)
        assert without_blanks(self.registered().help) in told
        for field in configuration.fields(self.registered().Config):
            unit = f"in {field.option.unit}" if field.option.unit else ""
            default = "required"
            if field.default is not dataclasses.MISSING:
                default = "default " + (
                    "nothing" if field.default is None else configuration.write_value(field.default)
                )
            for fact in (f"{field.key}: {field.option.help}", field.type_name, field.range, unit, default):
                assert without_blanks(fact) in told, f"--help does not say {fact!r} of {field.key}"

    def test_wrong_values_are_explained(self) -> None:
        """A value of another type or out of range is a `UserError` that names option, value and what would be right."""
        config = self.registered().Config
        for field in configuration.fields(config):
            for value in wrong_values(field):
                with pytest.raises(UserError) as caught:
                    configuration.build(config, {**self.options, field.key: value})
                for word in (f"{field.key}={value}", "must be", field.option.help):
                    assert word in str(caught.value), f"{field.key}={value!r}: {caught.value}"


def takes_numbers(kind: Any) -> bool:
    """True for a type of numbers, or of lists of them, or of numbers among others."""
    return kind in (int, float) or any(takes_numbers(inner) for inner in get_args(kind))


def imports_of(module: str) -> list[str]:
    """Return what heavy packages importing a module imports, in a process of its own."""
    code = f"import sys, {module}\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

"""Wrong input is a table: a message that names the thing and what would be right, exit code 2, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from workbench import configuration
from workbench.testing.declared import command
from workbench.testing.running import RunningChecks
from workbench.testing.sampling import wrong_values

ABSENT = "no-such-thing"
RAISE = "raise a workbench.errors.UserError that names option, value and what would be right (exit code 2)"
NAMED = {
    "hook_point": "blocks.0.hook_nowhere",
    "label": "no_such_label",
}  # what these options mean is the same everywhere


class WrongInputChecks(RunningChecks):
    """Checks of what a person gets who gives something wrong."""

    wrong: ClassVar[Sequence[tuple[Mapping[str, Any], str]]] = ()

    def wrong_inputs(self, folder: Path) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
        """Yield what is given otherwise (`seed`, `set`, an input), and what the message must say."""
        plugin = self.registered()
        fields = list(configuration.fields(plugin.Config))
        keys = [field.key for field in fields]
        wrongly = ABSENT if not keys else keys[0] + "x"
        yield {"set": {wrongly: 1}}, [f"no option {wrongly!r}", f"nearest: {keys[0]}" if keys else "nearest"]
        seen = set()
        for field in fields:
            if (kind := (field.type_name, bool(field.range))) not in seen:  # one of each kind: all are tried elsewhere
                seen.add(kind)
                value = wrong_values(field)[-1]
                yield {"set": {field.key: value}}, [f"{field.key}={value}: must be", field.range or field.option.help]
        for key, value in NAMED.items():
            if key in keys:
                yield {"set": {key: value}}, [value]
        yield {"seed": -1}, ["seed=-1: must be"]
        if plugin.needs.store:
            yield {"store": str(folder / ABSENT)}, [ABSENT]
            yield {"store": str(folder)}, [str(folder)]
        if plugin.needs.store or plugin.needs.subject:
            yield {"model": f"zoo:{ABSENT}"}, [ABSENT, "nearest"]
            yield {"model": ABSENT}, [ABSENT, "address"]
        yield (
            {"data": str(folder / f"{ABSENT}.txt")},
            [ABSENT if plugin.needs.data or not plugin.needs.store else "data"],
        )
        yield {"dictionary": str(folder / ABSENT)}, [ABSENT]
        yield from (({"set": dict(options)}, [says]) for options, says in self.wrong)

    def test_wrong_input_is_explained(self, inputs: dict[str, str], tmp_path: Path) -> None:
        """Each wrong thing is named in one message; exit code 2, no traceback, nothing left behind."""
        file, out = tmp_path / "run.yaml", tmp_path / "run"
        (tmp_path / "empty").mkdir()
        for otherwise, says in self.wrong_inputs(tmp_path / "empty"):
            settings = {**self.options, **otherwise.get("set", {})}
            asked = {"plugin": self.name(), "device": "cpu", **inputs, **otherwise, "set": settings}
            file.write_text(configuration.write_yaml(asked), encoding="utf-8")
            given = json.dumps(dict(otherwise))
            try:
                code, told, complaint = command("run", "--config", str(file), "--out", str(out))
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{given}: {RAISE}, not {type(error).__name__}: {error}") from error
            assert code == 2, f"{given}: {RAISE}; it ended with exit code {code}, {told}{complaint}"
            assert [line for line in complaint.splitlines() if line.startswith("error: ")], f"{given}: {complaint}"
            for words in says:
                assert words in " ".join(complaint.split()), f"{given}: the message does not say {words!r}: {complaint}"
            assert "Traceback" not in told + complaint, f"{given}: {complaint}"
            left = sorted(path.name for path in tmp_path.iterdir())
            assert left == ["empty", "run.yaml"], f"{given}: left behind {left}"

    def test_a_run_folder_that_exists_is_left_alone(self, inputs: dict[str, str], tmp_path: Path) -> None:
        """Nothing is written over what somebody else put there."""
        out = tmp_path / "run"
        out.mkdir()
        (out / "notes.txt").write_text("mine", encoding="utf-8")
        file = tmp_path / "run.yaml"
        file.write_text(
            configuration.write_yaml({"plugin": self.name(), **inputs, "set": self.options}), encoding="utf-8"
        )
        code, _, complaint = command("run", "--config", str(file), "--out", str(out))
        assert (code, [path.name for path in out.iterdir()]) == (2, ["notes.txt"]), complaint
        assert "exists already" in complaint

    def test_a_misspelt_key_of_a_configuration_file_is_named(self, tmp_path: Path) -> None:
        """The nearest key is named."""
        file = tmp_path / "run.yaml"
        file.write_text(configuration.write_yaml({"plugin": self.name(), "stores": "x"}), encoding="utf-8")
        code, _, complaint = command("run", "--config", str(file), "--out", str(tmp_path / "run"))
        assert code == 2
        assert "no key 'stores'; nearest: store" in " ".join(complaint.split())
        assert not (tmp_path / "run").exists()

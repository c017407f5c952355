"""A grid becomes jobs; whatever is wrong with one of them is said before anything runs."""

import json

import pytest

import workbench as wb
from workbench.batching.grid import read_grid
from workbench.batching.planning import axes_of, make_plan
from workbench.cli import main
from workbench.errors import UserError

HOOKS = ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post")


def plan_of(grid, tmp_path, **options):
    return make_plan(read_grid(grid), tmp_path / "jobs", **options)


def test_lists_are_crossed_and_the_last_varies_fastest(acts, tmp_path):
    grid = {
        "plugin": "sparse-probe",
        "store": str(acts),
        "set": {"baselines": {"shuffles": 0}},
        "grid": {"hook_point": list(HOOKS), "label": ["span", "noise"], "k": [1, [1, 2]], "seed": [0, 7]},
    }
    plan = plan_of(grid, tmp_path)
    assert len({job.identity for job in plan.jobs}) == len(plan.jobs) == 16
    assert [job.axes["seed"] for job in plan.jobs[:3]] == [0, 7, 0]
    assert plan.jobs[2].axes == {"hook_point": HOOKS[0], "label": "span", "k": [1, 2], "seed": 0}
    assert plan.jobs[-1].options == {
        "baselines.shuffles": 0,
        "hook_point": HOOKS[1],
        "label": "noise",
        "k": [1, 2],
    }
    assert plan.jobs[-1].seed == 7


def test_a_pattern_in_the_grid_becomes_a_job_for_each_that_it_matches(acts, tmp_path):
    grid = {"plugin": "sparse-probe", "store": str(acts), "grid": {"hook_point": "*.hook_post", "label": ["*n*"]}}
    axes = axes_of(plan_of(grid, tmp_path))
    assert axes["hook_point"] == list(HOOKS)
    assert sorted(axes["label"]) == ["in_string", "noise", "span"]
    fixed = {"plugin": "sparse-probe", "store": str(acts), "set": {"hook_point": "*.hook_post", "label": "span"}}
    assert len(plan_of(fixed, tmp_path).jobs) == 1  # there it is the plugin's own affair


def test_several_plugins_have_options_of_their_own(acts, tmp_path):
    grid = {
        "plugin": ["sparse-probe", "nullspace"],
        "store": str(acts),
        "set": {"label": "span", "sparse-probe.k": 2, "nullspace.method": "leace"},
        "grid": {"hook_point": list(HOOKS), "sparse-probe.selector": ["standardised", "mean_difference"]},
    }
    jobs = plan_of(grid, tmp_path).jobs
    assert [job.plugin for job in jobs] == ["sparse-probe"] * 4 + ["nullspace"] * 2
    assert jobs[0].options == {"label": "span", "k": 2, "hook_point": HOOKS[0], "selector": "standardised"}
    assert jobs[-1].options == {"label": "span", "method": "leace", "hook_point": HOOKS[1]}


def test_paths_count_from_the_file_and_a_run_of_the_same_options_has_the_same_identity(acts, tmp_path, monkeypatch):
    from workbench.configuration import build
    from workbench.context import Context, Inputs
    from workbench.registry import registry
    from workbench.request import Request
    from workbench.run_manifest import identity_parts
    from workbench.runs import identity_of

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "acts").symlink_to(acts)
    (tmp_path / "a" / "grid.yaml").write_text(
        "plugin: sparse-probe\nstore: acts\nseed: 3\ngrid:\n  label: [span]\n  max_rows: [1e3]\n"
    )
    monkeypatch.chdir(tmp_path)
    (job,) = plan_of("a/grid.yaml", tmp_path).jobs
    assert job.inputs == {"store": str(acts.resolve())}
    plugin = registry().plugin("sparse-probe")
    request = Request(
        plugin, build(plugin.Config, {"label": "span", "max_rows": 1000}), Inputs(wb.open_store(acts)), seed=3
    )
    context = Context(request.config, request.inputs, "cpu", 3, tmp_path)
    assert job.identity == identity_of(identity_parts(request, context))


def test_values_that_mean_the_same_run_are_one_job(acts, tmp_path):
    grid = {"plugin": "sparse-probe", "store": str(acts), "set": {"label": "span"}, "grid": {"k": [1, 1.0, "1"]}}
    with pytest.raises(UserError, match=r"grid\.k: 1\.0 is there twice"):
        read_grid(grid)
    plan = plan_of(grid | {"grid": {"k": [1, "1"]}}, tmp_path)
    assert (len(plan.jobs), plan.n_same) == (1, 1)


def test_what_has_to_be_captured_first_waits_in_a_plan_that_makes_nothing(tmp_path):
    plan = plan_of({"plugin": "sparse-probe", "grid": {"seed": [0, 1]}}, tmp_path, make=False)
    assert [job.identity for job in plan.jobs] == ["", ""]
    assert plan.to_make == ["the store that sparse-probe captures by default"]
    assert not (tmp_path / "jobs").exists()


WRONG = [
    ("plugin: sprase-probe", "plugin: no plugin 'sprase-probe'; nearest: sparse-probe"),
    ("plugin: sparse-probe\nstores: acts", "no key 'stores'; nearest: store"),
    ("store: acts", "names no plugin"),
    ("plugin: [1]", "plugin: 1 must be text"),
    ("plugin: sparse-probe\nstore: nowhere", "store: "),
    ("plugin: sparse-probe\ngrid: [1]", "grid must hold lists to be crossed"),
    ("plugin: sparse-probe\ngrid: {k: 4}", "grid.k: 4 must be a list of values"),
    ("plugin: sparse-probe\ngrid: {k: []}", "grid.k: the list is empty"),
    ("plugin: sparse-probe\ngrid: {k: [1, 2, 1]}", "grid.k: 1 is there twice"),
    ("plugin: sparse-probe\ngrid: {k: [1]}\nset: {k: 2}", "set.k and grid.k are both given"),
    ("plugin: sparse-probe\nseed: 1\ngrid: {seed: [1]}", "seed and grid.seed are both given"),
    ("plugin: sparse-probe\nset: {seed: 1}", "set.seed: seed is no option of a plugin; write it beside set"),
    ("plugin: sparse-probe\ngrid: {seed: [0, -1]}", "grid.seed: seed=-1: must be a whole number between 0 and"),
    ("plugin: sparse-probe\nstore: {acts}\ngrid: {k: [1, 0]}", "grid.k: k=0: must be"),
    ("plugin: sparse-probe\ngrid: {hook_pont: [a]}", "grid.hook_pont: sparse-probe has no option 'hook_pont'; nearest"),
    ("plugin: sparse-probe\ngrid: {hook_point: '*'}", "grid.hook_point: '*' needs a store to look in"),
    ("plugin: sparse-probe\nset: {baselines: {shufles: 1}}", "set.baselines.shufles: sparse-probe has no option"),
    (
        "plugin: [sparse-probe, nullspace]\nset: {nullspace.k: 1}",
        "set.nullspace.k: nullspace has no option 'k'; nearest: ",
    ),
    (
        "plugin: sparse-probe\nstore: {acts}\ngrid: {hook_point: [blocks.0.mlp.hook_post, blocks.1.mlp.hook_pots]}",
        "grid.hook_point: {acts} has no hook point 'blocks.1.mlp.hook_pots'; nearest: blocks.1.mlp.hook_post",
    ),
    (
        "plugin: sparse-probe\nstore: {acts}\ngrid: {hook_point: ['blocks.*.attn']}",
        "grid.hook_point: {acts} has no hook point 'blocks.*.attn'; nearest: blocks",
    ),
    (
        "plugin: sparse-probe\nstore: {acts}\nset: {label: [span, spam]}",
        "set.label: {acts} has no label 'spam'; nearest: span",
    ),
    ("plugin: sparse-probe\nstore: {acts}\ngrid: {label: [span=yes]}", "grid.label: {acts} has no label 'span=yes'"),
    (
        "plugin: nullspace\nstore: {acts}\ngrid: {by_class: [false, true]}",
        "job nullspace by_class=true: by_class: needs the label of a main task",
    ),
    ("plugin: sae\nstore: {acts}\ndata: python-stdlib", "leave the data out"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), WRONG)
def test_a_wrong_grid_names_the_key_and_runs_nothing(text, says, acts, tmp_path, capsys):
    file = tmp_path / "grid.yaml"
    file.write_text(text.replace("{acts}", str(acts)))
    assert main(["batch", str(file), "--out", str(tmp_path / "jobs")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file}: ")
    assert says.replace("{acts}", str(acts)) in said
    assert not (tmp_path / "jobs").exists()


def test_options_of_a_plugin_that_is_not_in_the_grid_are_refused(acts, tmp_path):
    with pytest.raises(UserError, match=r"set\.nullspace\.C: nullspace is not among the plugins: sparse-probe"):
        read_grid({"plugin": "sparse-probe", "store": str(acts), "set": {"nullspace.C": 1.0}})


COMMAND = [
    (["--workers", "0"], "workers=0: must be a whole number, at least 1"),
    (["--retries", "-1"], "retries=-1: must be a whole number between 0 and 100"),
    (["--limit", "0"], "limit_s=0.0: must be between 1 and 1,000,000 seconds"),
    (["--memory", "much"], "memory=much: must be a size, such as 4GiB"),
    (["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "workers and memory are those of the cluster"),
]


@pytest.mark.parametrize(("words", "says"), COMMAND)
def test_wrong_options_are_explained(words, says, acts, tmp_path, capsys):
    file = tmp_path / "grid.yaml"
    file.write_text(f"plugin: sparse-probe\nstore: {acts}\ngrid: {{label: [span]}}\n")
    assert main(["batch", str(file), "--out", str(tmp_path / "jobs"), *words]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_taken(acts, tmp_path, capsys):
    file = tmp_path / "grid.yaml"
    file.write_text(f"plugin: sparse-probe\nstore: {acts}\ngrid: {{label: [span]}}\n")
    assert main(["batch", str(file), "--out", str(acts)]) == 2
    assert "is no batch's folder" in capsys.readouterr().err


def test_a_dry_run_shows_the_table_with_counts_and_writes_nothing(acts, tmp_path, capsys):
    file = tmp_path / "grid.yaml"
    file.write_text(
        f"plugin: sparse-probe\nstore: {acts}\ngrid: {{label: ['*'], hook_point: '*', seed: [0, 1, 2, 3]}}\n"
    )
    command = ["batch", str(file), "--out", str(tmp_path / "jobs"), "--dry-run"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "24 jobs: 0 done, 24 to do" in said
    assert "… and 4 more" in said
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len({job["identity"] for job in facts["jobs"]}) == 24
    assert not (tmp_path / "jobs").exists()

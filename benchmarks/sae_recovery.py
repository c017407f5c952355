"""Whether trained dictionaries find features that were planted: ours, SAELens's at equal steps, and controls.

    python benchmarks/sae_recovery.py [--rows 1000000] [--seeds 3] [--ways topk,saelens-topk] [--folder KEPT]

512 unit features in 256 dimensions, 5 of them in a row on average, the most frequent in more than twenty times as many
rows as the rarest, are written to a store. `topk`, `batchtopk` and `jumprelu` are `workbench run sae` with as many
latents as features, k = 5, and every other option left to its default. SAELens's own trainer gets the same rows in the
same order, and the same number of steps, batch, latents, k, learning rate, warm-up, decay, scale of the rows and number
of rows after which a latent is dead; `…-own-window` leaves the last to SAELens. Measured: for each feature the largest
cosine with a decoder row, and the variance of held-out documents that is explained.

Controls, which must find nothing: a dictionary that was not trained, and ours trained on rows whose columns were
permuted one by one. Each seed has features, rows and starting weights of its own. One thread (OMP_NUM_THREADS=1) is
enough at this size. Results are kept in --folder, if one is given, and what is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine
from numpy.typing import NDArray
from sae_recovery_data import HOOK, Planted, recovery
from scipy import stats
from torch import Tensor

import workbench as wb
from workbench.cache import Store, open_store
from workbench.dictionary import Dictionary
from workbench.plugins.sae import EvaluateConfig, SaeConfig, TrainConfig
from workbench.plugins.sae.settings import Settings, choose_settings
from workbench.plugins.sae.split import split_rows

OURS = ("topk", "batchtopk", "jumprelu")
THEIRS = ("saelens-topk", "saelens-topk-own-window", "saelens-batchtopk")
CONTROLS = ("untrained", "shuffled")
PLAIN_RUN = {"pages.latents": 0, "evaluate.splice_tokens": 0, "evaluate.labels": 0, "evaluate.draws": 10}
ENOUGH, FOUND, NOTHING = 0.95, 0.9, 0.5


@dataclass(frozen=True)
class Trial:
    """One seed: planted features, a store of rows, and what is trained on it."""

    planted: Planted
    n_rows: int
    k: int
    folder: Path

    @property
    def seed(self) -> int:
        """Of everything."""
        return self.planted.seed

    @cached_property
    def store(self) -> Store:
        """The store, written when it is first asked for."""
        return self.written("acts", shuffled=False)

    def written(self, name: str, *, shuffled: bool) -> Store:
        """Open one of the stores, or write it."""
        path = self.folder / name
        if path.exists() and open_store(path).finished:
            return open_store(path)
        return self.planted.write(path, self.n_rows, shuffled=shuffled)

    @cached_property
    def train(self) -> NDArray[np.bool_]:
        """Rows that are trained on."""
        return split_rows(self.store, EvaluateConfig(), self.seed).train

    @cached_property
    def settings(self) -> Settings:
        """What the plugin chooses for TopK."""
        config = SaeConfig(latents=self.planted.n_features, k=self.k, train=TrainConfig(rows=self.n_rows))
        return choose_settings(config, self.planted.width, int(self.train.sum()))

    def ours(self, architecture: str, store: Store) -> Dictionary:
        """Train as `workbench run sae` does."""
        options = {"architecture": architecture, "latents": self.planted.n_features, "k": self.k}
        out = self.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        wb.run("sae", store=store, out=out, seed=self.seed, set={**options, "train.rows": self.n_rows, **PLAIN_RUN})
        return wb.load_dictionary(out)

    def untrained(self) -> Dictionary:
        """Return the directions that a training starts from."""
        shape = (self.planted.n_features, self.planted.width)
        W = torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(self.seed)), dim=1)
        zeros = torch.zeros(shape[1])
        return Dictionary(W, torch.zeros(shape[0]), W, zeros, zeros, "topk", HOOK, HOOK, k=self.k)

    def rows(self) -> Iterator[Tensor]:
        """Give the batches of epoch after epoch that ours is trained on, in the same order."""
        epoch = 0
        while True:
            batches = self.store.shuffled(
                [HOOK], batch_rows=self.settings.batch_rows, seed=self.seed, epoch=epoch, rows=self.train
            )
            for batch in batches:
                yield batch[HOOK].float()
            epoch += 1

    def theirs(self, way: str) -> Dictionary:
        """Train with SAELens's trainer; the dictionary is read from what it saves."""
        warnings.simplefilter("ignore")  # its imports warn of others' deprecations
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.sae import SAEMetadata

        torch.manual_seed(self.seed)
        settings = self.settings
        common = {
            "d_in": settings.width,
            "d_sae": settings.latents,
            "k": self.k,
            "normalize_activations": "expected_average_only_in",
            "metadata": SAEMetadata(hook_name=HOOK),
        }
        sae: Any
        if way == "saelens-batchtopk":
            sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**common))
        else:
            sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**common))
        steps = settings.rows // settings.batch_rows
        window = (
            {} if way.endswith("own-window") else {"dead_feature_window": settings.dead_after // settings.batch_rows}
        )
        config = SAETrainerConfig(
            total_training_samples=settings.rows,
            train_batch_size_samples=settings.batch_rows,
            lr=settings.lr,
            lr_end=settings.lr / 10,  # must be given; the constant rate before the decay has no end
            lr_warm_up_steps=round(settings.warmup * steps),
            lr_decay_steps=round(settings.decay * steps),
            **window,
        )
        trainer = sae_lens.SAETrainer(config, sae, self.rows())
        trainer.activation_scaler.estimate_scaling_factor(settings.width, self.rows(), 64)
        trainer.fit()
        sae.save_inference_model(self.folder / "saelens")
        return wb.load_dictionary(self.folder / "saelens")

    def measure(self, way: str) -> dict[str, float]:
        """Train in one way, and say what was found."""
        store = self.written("shuffled", shuffled=True) if way == "shuffled" else self.store
        begun = time.perf_counter()
        if way in THEIRS:
            dictionary = self.theirs(way)
        elif way == "untrained":
            dictionary = self.untrained()
        else:
            dictionary = self.ours("topk" if way == "shuffled" else way, store)
        seconds = time.perf_counter() - begun
        cosine = recovery(self.planted.features, dictionary.W_dec)
        rare = cosine[-max(1, len(cosine) // 4) :]
        explained, active = self.quality(dictionary, store)
        return {
            "recovery": float(cosine.mean()),
            "found": float((cosine > FOUND).mean()),
            "rare": float(rare.mean()),
            "explained": explained,
            "active": active,
            "seconds": seconds,
        }

    @torch.no_grad()
    def quality(self, dictionary: Dictionary, store: Store) -> tuple[float, float]:
        """Return the explained share of the variance of held-out rows, and the active latents of one."""
        x = store.read_tensor(HOOK, ~self.train).float()
        values, indices = dictionary.encode(x)
        error = (x - dictionary.decode(values, indices, x)).double().pow(2).sum()
        variation = (x.double() - x.double().mean(0)).pow(2).sum()
        return float(1 - error / variation), float((values > 0).sum(1).double().mean())


def interval(values: list[float]) -> str:
    """Write a mean over seeds with its 95 % interval (Student's t)."""
    found = np.array(values)
    if len(found) == 1:
        return f"{found[0]:.4f}"
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return f"{found.mean():.4f} ± {half:.4f}"


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """Print the table, and the differences to SAELens, paired by seed."""
    print(
        f"\n{'':<24}{'mean max cosine':>20}{'> 0.9':>8}{'rarest ¼':>10}{'explained':>11}{'active':>8}{'s':>7}  by seed"
    )
    for way, trials in found.items():
        mean = {name: float(np.mean([trial[name] for trial in trials])) for name in trials[0]}
        of_seed = " ".join(f"{trial['recovery']:.4f}" for trial in trials)
        print(
            f"{way:<24}{interval([trial['recovery'] for trial in trials]):>20}{mean['found']:>8.3f}"
            f"{mean['rare']:>10.4f}{mean['explained']:>11.4f}{mean['active']:>8.2f}{mean['seconds']:>7.0f}  {of_seed}"
        )
    for ours, theirs in (("topk", "saelens-topk"), ("batchtopk", "saelens-batchtopk")):
        if ours in found and theirs in found:
            pairs = zip(found[ours], found[theirs], strict=True)
            print(f"{ours} less {theirs}: {interval([a['recovery'] - b['recovery'] for a, b in pairs])}")


def verdict(found: dict[str, list[dict[str, float]]]) -> str:
    """Return what is wrong, or nothing."""
    mean = {way: float(np.mean([trial["recovery"] for trial in trials])) for way, trials in found.items()}
    wrong = [f"{way} finds {mean[way]:.3f}, less than {ENOUGH}" for way in OURS if mean.get(way, 1.0) < ENOUGH]
    wrong += [f"{way}, a control, finds {mean[way]:.3f}" for way in CONTROLS if mean.get(way, 0.0) > NOTHING]
    for ours, theirs in (("topk", "saelens-topk"), ("batchtopk", "saelens-batchtopk")):
        if ours in mean and theirs in mean and mean[ours] < mean[theirs]:
            wrong.append(f"{ours} finds less than {theirs}")
    return "; ".join(wrong)


def main() -> None:
    """Train in every way with every seed, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the store, and shown in training")
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--active", type=float, default=5.0, help="features in a row, on average; also k")
    parser.add_argument("--skew", type=float, default=0.5, help="0: all as frequent; 1: as one over their rank")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", default=",".join((*OURS, *THEIRS, *CONTROLS)), help="by default all")
    parser.add_argument("--folder", type=Path, help="where stores and results are kept; by default a temporary one")
    asked = parser.parse_args()
    ways = asked.ways.split(",")
    if unknown := set(ways) - {*OURS, *THEIRS, *CONTROLS}:
        parser.error(f"--ways {', '.join(sorted(unknown))}: must be of {', '.join((*OURS, *THEIRS, *CONTROLS))}")
    if asked.rows < 100_000 or asked.rows % 1000 or asked.seeds < 1:
        parser.error("--rows must be a multiple of 1000 of at least 100000, --seeds at least 1")
    logging.getLogger("workbench").setLevel(logging.WARNING)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="sae-recovery-") as temporary:
        for seed in range(asked.seeds):
            planted = Planted(asked.features, asked.width, asked.active, asked.skew, seed)
            place = asked.folder or Path(temporary)
            folder = place / f"{asked.rows}-{asked.features}-{asked.width}-{asked.active:g}-{asked.skew:g}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            trial = Trial(planted, asked.rows, round(asked.active), folder)
            for way in ways:
                kept = folder / f"{way}.json"
                if not kept.exists():
                    kept.write_text(json.dumps(trial.measure(way)), encoding="utf-8")
                found[way].append(json.loads(kept.read_text(encoding="utf-8")))
                print(f"seed {seed}, {way}: {found[way][-1]['recovery']:.4f}", flush=True)
    share = planted.frequency
    print(f"\n{asked.features} features in {asked.width} dimensions, {asked.active:g} in a row on average, the most")
    print(f"frequent in {share[0]:.3f} of the rows, the rarest in {share[-1]:.4f}; {asked.rows:,} rows")
    report(found)
    print(f"\n{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads, {os.getloadavg()[0]:.1f} load")
    if wrong := verdict(found):
        raise SystemExit(wrong)


if __name__ == "__main__":
    main()

"""Training of a baseline: one loop for all, which can be killed anywhere and goes on as if it had not been."""

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from meidbench.baselines.components import check_model, make_augmentation, make_loss, make_model_inputs, make_sampler
from meidbench.baselines.configuration import Config
from meidbench.baselines.distributed import Team, team
from meidbench.baselines.inference import (
    Progress,
    Trained,
    quiet,
    read_trained,
    run_facts,
    score_subset,
    scored_subsets,
    subset_loader,
    write_scored,
)
from meidbench.baselines.learner import MIXING, NOISE, Divergence, EpochPlan, Learner, LossWatch, Part, stream
from meidbench.baselines.models import Outputs
from meidbench.baselines.run_folder import Inputs, Report, RunFolder, RunLog, versions
from meidbench.baselines.samplers import label_mask
from meidbench.baselines.stages import FirstStage, trained_first_stage
from meidbench.errors import MeidbenchError
from meidbench.evaluation.evaluate import average_precision, mean_by_group
from meidbench.evaluation.results import MeanAP
from meidbench.features import FeatureSource, open_features
from meidbench.loading.batches import Batch, BatchLoader
from meidbench.loading.datasets import FeatureDataset
from meidbench.splits.split import Split, load_split

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    split: Split | str | Path,
    features: FeatureSource | str | os.PathLike[str],
    config: Config,
    out: str | os.PathLike[str],
    *,
    first_stage: str | os.PathLike[str] | None = None,
    progress: Progress = quiet,
    report: Report = lambda line: None,
) -> Trained:
    """Train a baseline, or go on with a run that was cut off, and score it on val and test.

    On a CPU the same arguments give the same bits, however often the run was killed. All processes that
    ``torchrun`` started train together; the first writes.

    Parameters
    ----------
    split : Split, str or Path
        A split, its file, or its name.
    features : FeatureSource, str or Path
        Of all videos of the split.
    config : Config
        Of ``meidbench.baselines.recipes.resolve``, or made by hand.
    out : path
        The folder of the run; see ``RunFolder``. One that is finished is left as it is.
    first_stage : path, optional
        For a method of two stages: the folder of a run of ``config.first_stage``, which is trained in
        ``OUT/first-stage`` where this is left out.
    progress, report : callable
        ``progress(title, total)`` gives a context manager whose value is called with the steps done; ``report`` is
        called with lines for people.

    Returns
    -------
    Trained

    Raises
    ------
    Divergence
        A loss or a gradient was NaN or infinite; the log names the videos.
    MeidbenchError
        The folder holds another run, features are missing, or the configuration does not fit them.

    Examples
    --------
    >>> import tempfile
    >>> from meidbench.annotations import Annotations
    >>> from meidbench.features.simulation import simulate_features
    >>> annotations = Annotations(
    ...     class_names=("walking", "reading"), video_ids=[f"v{n}" for n in range(9)], sources=["all"] * 9,
    ...     labels=[(n % 2,) for n in range(9)], lengths=[30.0] * 9, subjects=[""] * 9, views=[""] * 9,
    ...     pair_ids=[""] * 9, segments=[()] * 9,
    ... )
    >>> subsets = ["train"] * 5 + ["val"] * 2 + ["test"] * 2
    >>> split = Split.from_annotations(
    ...     annotations, subsets, dataset="toy", variant="released", head_above=2, tail_up_to=1
    ... )
    >>> config = Config.from_tables({"schedule": {"epochs": 2, "batch_size": 4}, "frames": {"train": 3, "test": 3}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     features = simulate_features(split, Path(folder, "features.h5"), frames=3, dim=4)
    ...     sorted(train(split, features, config, Path(folder, "run")).mAP)
    ['test', 'val']
    """
    loaded = load_split(split)
    source = features if isinstance(features, FeatureSource) else open_features(features)
    with team(config.execution.device) as crew:
        folder = RunFolder(Path(out))
        inputs = Inputs.of(loaded, source, "" if isinstance(split, Split) else str(split))
        begun = None
        if config.first_stage is not None or first_stage is not None:
            # Within the team, because processes that part and meet again between the stages may miss one another.
            begun = trained_first_stage(split, source, config, folder, inputs, first_stage, crew, progress, report)
            inputs = replace(inputs, first_stage_digest=begun.digest)
        with ExitStack() as held:
            refusal = None
            if crew.leads:
                try:
                    held.enter_context(folder.held())
                    folder.open(config, inputs)
                except MeidbenchError as error:
                    refusal = error
            # All or none: a process that is left alone would wait for the others in vain.
            if not crew.agreed(refusal is None):
                raise refusal or MeidbenchError("the first process refused the run; its message says why")
            trained = read_trained(folder, loaded)
            if trained is None:
                cuda = [crew.device] if crew.device.type == "cuda" else []
                with torch.random.fork_rng(devices=cuda):
                    _Run(loaded, source, config, folder, crew, progress, report, begun).complete()
                crew.wait()
                trained = read_trained(folder, loaded, just_finished=True)
            else:
                report(f"{folder.path} is finished")
            assert trained is not None
            return trained


class _Run:
    """A run in this process: the loop, and what it needs."""

    def __init__(
        self,
        split: Split,
        features: FeatureSource,
        config: Config,
        folder: RunFolder,
        crew: Team,
        progress: Progress,
        report: Report,
        begun: FirstStage | None,
    ) -> None:
        self.begun = begun
        self.split, self.config, self.folder, self.crew = split, config, folder, crew
        self.progress = progress if crew.leads else quiet
        self.report = report if crew.leads else lambda line: None
        # All subsets at once, so that no run ends for want of test features.
        self.scored = {
            subset: subset_loader(split, subset, features, config, crew)
            for subset in scored_subsets(split, config.selection.subset)
        }
        self.learner = Learner(config, make_model_inputs(config, split, features.dim), crew)
        check_model(config, self.learner.module)
        self.loss = make_loss(config, split).to(crew.device)
        self.augmentation = make_augmentation(config)
        self.sampler = make_sampler(config, split)
        self.sampler.shard(crew.rank, crew.size)
        self.watch = LossWatch()
        self.loader = BatchLoader(
            FeatureDataset(
                split,
                "train",
                features=features,
                frames=config.frames.train,
                sampling=config.frames.train_sampling,
                replacement=config.frames.replacement,
                seed=config.seed,
                motion=config.motion.motion(),
            ),
            self._plan().part_size,
            sampler=self.sampler,
            device=crew.device,
            resident=config.execution.resident,
            prefetch=config.execution.prefetch,
        )
        self.log: RunLog | None = None
        self.saved = self.began = time.monotonic()
        self.first = 1

    def complete(self) -> None:
        """Train to the end and score the best checkpoint."""
        at, epochs = self.learner.at, self.config.schedule.epochs
        written = 0
        if self.folder.last.is_file():
            written = self.learner.restore(self.folder.last)
            self.report(f"going on after {at.epoch} epochs, {at.step} steps")
        elif self.begun is not None and self.begun.weights is not None:
            self.learner.begin_from(self.begun.weights)
        self.log = RunLog(self.folder.path, self.report, written, at.step) if self.crew.leads else None
        self.first, self.began = at.epoch + 1, time.monotonic()
        try:
            self._say("begun", device=str(self.crew.device), processes=self.crew.size, versions=versions())
            with self.progress(f"training {self.config.method}", epochs * self._plan().steps) as advance:
                advance(at.step)
                while at.epoch < epochs:
                    self._train_epoch(advance)
                    self._end_epoch()
            self._score()
        except Divergence as error:
            if self.log is not None:
                self.log.write("diverged", error.step, video_ids=error.video_ids)
            raise
        finally:
            if self.log is not None:
                self.log.close()

    # --- the loop -----------------------------------------------------------------------------------------------

    def _train_epoch(self, advance: Callable[[int], None]) -> None:
        learner, at = self.learner, self.learner.at
        for part_of_run in (self.loader, self.loss):
            part_of_run.set_epoch(at.epoch)
        learner.set_rate(self.config.schedule.learning_rate(at.epoch))
        learner.model.train()
        plan, began, before = self._plan(), time.monotonic(), at.step
        self.loader.start_at(at.part)
        batches = iter(self.loader)
        step_loss, step_penalty = torch.zeros((2,), device=self.crew.device).unbind()
        step_ids = list[str]()
        try:
            for index, batch in zip(range(at.part, plan.parts), batches, strict=False):
                part = plan.part(index)
                with nullcontext() if part.ends_step else learner.apart():
                    loss, penalty = (value * part.weight for value in self._part_loss(batch, part))
                    learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call, unused-ignore]
                at.forwards += 1
                step_loss, step_penalty = step_loss + loss.detach(), step_penalty + penalty.detach()
                step_ids += batch["video_id"][: part.videos]
                if not part.ends_step:
                    continue
                self.watch.add(at.step, at.epoch, step_ids, step_loss, learner.step(), step_penalty)
                step_loss, step_penalty, step_ids = torch.zeros_like(step_loss), torch.zeros_like(step_loss), []
                at.step, at.part = at.step + 1, index + 1
                advance(1)
                if at.step % self.config.execution.log_every == 0:
                    seen = self._look()
                    speed = (at.step - before) * self.config.schedule.batch_size / (time.monotonic() - began)
                    self._say("step", epoch=at.epoch, **seen, videos_per_second=round(speed, 1))
                if index + 1 < plan.parts and self._is_due():
                    self._look()
                    self._save()
        finally:
            batches.close()

    def _part_loss(self, batch: Batch, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a part, and what of it is the model's penalty."""
        learner, at, crew, labels = self.learner, self.learner.at, self.crew, batch["labels"]
        # From the place in the run alone: a run that is resumed draws the same without any state.
        torch.manual_seed(stream(self.config.seed, NOISE, at.forwards, crew.rank))
        mixing = torch.Generator().manual_seed(stream(self.config.seed, MIXING, at.forwards, crew.rank))
        self.loss.set_step(at.forwards, crew.rank, crew.size)
        asked = self.config.mask_other_labels
        masked = self.sampler.masks_other_labels if asked is None else asked
        mask = label_mask(labels, batch["class"]) if masked else None
        motion = batch.get("motion")
        mixed = self.augmentation(
            batch["features"],
            labels,
            generator=mixing,
            epoch=at.epoch,
            class_ap=learner.running.class_ap,
            streams=() if motion is None else (motion,),
        )
        if mask is not None:
            mask = mixed.mix(mask)[: part.videos]
        with self._autocast():
            outputs: Outputs = learner.model(mixed.features, next(iter(mixed.streams), None), mixed.targets)
        if self.augmentation.needs_class_ap:
            counted = torch.arange(len(labels), device=labels.device) < (part.videos if part.weight else 0)
            if self.config.running_ap == "second_pass":
                with torch.no_grad(), self._autocast():
                    learner.running.add(learner.module(batch["features"], motion, labels).logits, labels, counted)
            else:
                learner.running.add(outputs.logits, labels, mixed.untouched & counted)
        targets = mixed.targets if outputs.targets is None else outputs.targets
        loss: torch.Tensor = self.loss(outputs.logits[: part.videos], targets[: part.videos], mask)
        if outputs.penalty is None:
            return loss, torch.zeros_like(loss)
        return loss + outputs.penalty, outputs.penalty

    def _end_epoch(self) -> None:
        learner, at, selection = self.learner, self.learner.at, self.config.selection
        self._look()
        if self.augmentation.needs_class_ap:
            learner.running.finish_epoch(self.crew.gather)
        rate = self.config.schedule.learning_rate(at.epoch)
        at.epoch, at.part = at.epoch + 1, 0
        steps = max(1, at.looked_at)
        facts: dict[str, Any] = {"epoch": at.epoch, "loss": at.loss_sum / steps, "lr": rate}
        if model_facts := learner.module.log_values():
            facts |= {"penalty": at.penalty_sum / steps, "model": model_facts}
        said = f"epoch {at.epoch} of {self.config.schedule.epochs}: loss {facts['loss']:.5f}"
        if at.epoch % selection.every == 0 or at.epoch == self.config.schedule.epochs:
            means = self._means(selection.subset)
            is_best = means.overall > at.best
            if is_best:
                at.best, at.best_epoch = means.overall, at.epoch
                if self.crew.leads:
                    learner.save_weights(self.folder.best, {selection.subset: asdict(means)})
            facts |= {selection.subset: asdict(means), "best": is_best}
            said += f", {selection.subset} mAP {means.overall:.4f}{' (best so far)' if is_best else ''}"
        at.loss_sum, at.penalty_sum, at.looked_at = 0.0, 0.0, 0
        self._say("epoch", **facts)
        self.report(said + self._time_left())
        self._save()

    # --- its parts ----------------------------------------------------------------------------------------------

    def _plan(self) -> EpochPlan:
        schedule = self.config.schedule
        return EpochPlan(
            draws=len(self.sampler.whole_epoch()),
            batch_size=schedule.batch_size,
            accumulate=schedule.accumulate,
            processes=self.crew.size,
            rank=self.crew.rank,
            smallest=self.learner.smallest_batch,
        )

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self.config.schedule.precision)
        return nullcontext() if dtype is None else torch.autocast(self.crew.device.type, dtype=dtype)

    def _means(self, subset: str) -> MeanAP:
        scores = score_subset(self.learner.module, self.scored[subset], self.crew)
        return mean_by_group(average_precision(scores, self.split.labels(subset)), self.split)

    def _look(self) -> dict[str, float]:
        seen, at = self.watch.look(), self.learner.at
        at.loss_sum, at.looked_at = at.loss_sum + seen.loss_sum, at.looked_at + seen.steps
        at.penalty_sum += seen.penalty_sum
        return {"loss": seen.loss_sum / max(1, seen.steps), "gradient_norm": seen.largest_norm}

    def _is_due(self) -> bool:
        execution, step = self.config.execution, self.learner.at.step
        if execution.checkpoint_steps is not None and step % execution.checkpoint_steps == 0:
            return True
        if execution.checkpoint_minutes is None or step % execution.log_every:
            return False
        return self.crew.agreed(time.monotonic() - self.saved >= 60 * execution.checkpoint_minutes)

    def _time_left(self) -> str:
        """Say how long the other epochs will take, once one was trained whole."""
        done, left = self.learner.at.epoch - self.first, self.config.schedule.epochs - self.learner.at.epoch
        if done == 0:
            # The first may have been resumed in its middle.
            self.began = time.monotonic()
        if done < 1 or not left:
            return ""
        minutes = math.ceil((time.monotonic() - self.began) / done * left / 60)
        return f", {minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f", {minutes} min left"

    def _save(self) -> None:
        self.learner.save(self.folder.last, 0 if self.log is None else self.log.position)
        self.saved = time.monotonic()

    def _say(self, event: str, **facts: Any) -> None:
        if self.log is not None:
            self.log.write(event, self.learner.at.step, **facts)

    def _score(self) -> None:
        """Write what the best checkpoint says of val and test."""
        facts = run_facts(self.config, self.learner.load_weights(self.folder.best))
        for subset, loader in self.scored.items():
            scores = score_subset(self.learner.module, loader, self.crew, self.progress)
            if self.crew.leads:
                write_scored(self.folder, self.split, subset, scores, facts)

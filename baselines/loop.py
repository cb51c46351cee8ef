"""The training loop, one for all methods: epochs, losses, checkpoints, and the scores at the end."""

import math
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from meidbench.baselines.class_text import ClassText
from meidbench.baselines.configuration import (
    Config,
    check_model,
    make_augmentation,
    make_loss,
    make_model_inputs,
    make_sampler,
)
from meidbench.baselines.distributed import ProcessGroup
from meidbench.baselines.inference import (
    describe_run,
    find_scored_subsets,
    make_subset_loader,
    score_subset,
    write_scores,
)
from meidbench.baselines.learner import (
    MIXING,
    NOISE,
    EpochPlan,
    Learner,
    LossMonitor,
    MicroBatch,
    Watch,
    derive_seed,
    plan_epoch,
    read_first_stage,
)
from meidbench.baselines.models import Outputs
from meidbench.baselines.models.linear_probe import LinearProbe
from meidbench.baselines.models.text_adapter import TextAdapter
from meidbench.baselines.run_folder import RunFolder, RunLog, list_versions
from meidbench.baselines.samplers import label_mask
from meidbench.errors import DivergenceError
from meidbench.evaluation.evaluate import average_precision, mean_by_group
from meidbench.evaluation.results import MeanAP
from meidbench.features import FeatureSource
from meidbench.loading.batches import Batch
from meidbench.names import LAST_EPOCH, Advance, ProgressBar, Report
from meidbench.splits.split import Split

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class RunContext:
    """The arguments of ``train`` that both stages of a run share."""

    split: Split
    features: FeatureSource
    processes: ProcessGroup
    progress: ProgressBar
    report: Report
    subsets: tuple[str, ...]
    watch: Watch
    text: ClassText | None = None  # that a model starts from


class TrainingLoop:
    """A run in this process: the training loop, and the objects that it needs."""

    def __init__(
        self, context: RunContext, config: Config, rows_check: str, folder: RunFolder, weights: Path | None
    ) -> None:
        split, features, processes = context.split, context.features, context.processes
        self.split, self.config, self.folder, self.processes = split, config, folder, processes
        self.progress, self.report, self.first_stage_weights = context.progress, context.report, weights
        self.rows_check, self.watch, self.text, self.features = rows_check, context.watch, context.text, features
        # All subsets are opened now, so that missing test features are found before the training.
        self.scored = {
            subset: make_subset_loader(split, subset, features, config, processes)
            for subset in find_scored_subsets(split, config.selection.subset, context.subsets)
        }
        self.learner = Learner(config, make_model_inputs(config, split, features.dim), processes)
        check_model(config, self.learner.module)
        self.loss = make_loss(config, split).to(processes.device)
        self.augmentation = make_augmentation(config)
        self.sampler = make_sampler(config, split)
        self.sampler.shard(processes.rank, processes.size)
        self.monitor = LossMonitor()
        if self.learner.module.is_fitted:  # to the rows that are scored, in the order of the split
            self.loader = make_subset_loader(split, "train", features, config, processes)
        else:
            size = self._plan_epoch().micro_batch_size
            self.loader = make_subset_loader(split, "train", features, config, processes, self.sampler, size)
        self.log: RunLog | None = None
        self.last_save, self.clock = time.monotonic(), _EpochClock()

    def complete(self) -> None:
        """Train to the end and score the best checkpoint."""
        position, epochs = self.learner.position, self.config.schedule.epochs
        written = 0
        self._report_notes()
        if self.folder.last.is_file():
            written = self.learner.restore(self.folder.last)
            done = f"{position.micro_batch} classes" if self.learner.module.is_fitted else f"{position.step} steps"
            self.report(f"resuming after {position.epoch} epochs, {done}")
        elif any(self.folder.result(subset).is_file() for subset in self.scored) and self.folder.best.is_file():
            self._score()  # the run was finished once, and only its last checkpoint is gone
            return
        elif self.first_stage_weights is not None:
            self.learner.module.load_first_stage(read_first_stage(self.first_stage_weights))
        elif isinstance(self.learner.module, TextAdapter):
            self._start_from_text(self.learner.module)
        self.log = RunLog(self.folder.path, self.report, written, position.step) if self.processes.is_first else None
        try:
            self._write_log(
                "begun",
                device=str(self.processes.device),
                processes=self.processes.size,
                threads=torch.get_num_threads(),
                rows_check=self.rows_check,
                versions=list_versions(),
            )
            plan = self._plan_epoch()
            with self.progress(f"training {self.config.method}", epochs * plan.steps) as advance:
                advance(position.epoch * plan.steps + position.micro_batch // plan.accumulate)
                while position.epoch < epochs:
                    if isinstance(self.learner.module, LinearProbe):
                        self._fit_epoch(self.learner.module, advance)
                    else:
                        self._train_epoch(advance)
                    self._end_epoch()
            self._score()
        except DivergenceError as error:
            if self.log is not None:
                self.log.write("diverged", error.step or position.step, video_ids=error.video_ids)
            raise
        finally:
            if self.log is not None:
                self.log.close()

    def _start_from_text(self, model: TextAdapter) -> None:
        """Give a model the text of the classes, and the mean of the training videos' rows."""
        assert self.text is not None  # a run without a checkpoint was given it
        loader = make_subset_loader(self.split, "train", self.features, self.config, self.processes)
        total = torch.zeros(1, self.features.dim + 1, dtype=torch.float64)  # the sum of rows, and their number
        with torch.inference_mode(), self.progress("mean of train", len(loader)) as advance:
            for batch in loader:
                rows = model.mean_rows(batch["features"]).double().cpu()
                total += torch.cat([rows.sum(dim=0), torch.tensor([len(rows)])])
                advance(1)
        total = self.processes.gather(total).sum(dim=0)
        model.start_from(self.text, total[:-1] / total[-1], len(self.split.rows("train")))

    def _report_notes(self) -> None:
        """Tell what a user may not expect of the schedule, and of the number of threads in a resumed run."""
        if self.learner.module.is_fitted:
            ignored = "the loss, the sampler, the augmentation, frames.train and the schedule have no effect"
            self.report(f"note: scikit-learn fits {self.config.method}, one epoch per value of model.c_grid; {ignored}")
        elif late := self.config.schedule.describe_late_milestones():
            self.report(f"note: {late}")
        if empty := self.split.groups.empty:
            titles = " and ".join(self.split.group_names.get(name, name) for name in empty)
            self.report(f"note: {self.split.dataset} has no classes in {titles}: these have no mAP in the log")
        began, now = self.folder.count_threads(), torch.get_num_threads()
        if self.processes.device.type == "cpu" and began not in (None, now):
            self.report(f"note: the run began with {began} thread(s) and has {now} now: the last bits may differ")

    # --- the loop -----------------------------------------------------------------------------------------------

    def _train_epoch(self, advance: Advance) -> None:
        learner, position = self.learner, self.learner.position
        self.loader.set_epoch(position.epoch)
        self.loss.set_epoch(position.epoch)
        learner.set_learning_rate(self.config.schedule.learning_rate(position.epoch))
        learner.model.train()
        plan, start, first_step = self._plan_epoch(), time.monotonic(), position.step
        self.loader.start_at(position.micro_batch)
        batches = iter(self.loader)
        step_loss, step_penalty = torch.zeros((2,), device=self.processes.device).unbind()
        step_ids = list[str]()
        try:
            for index, batch in zip(range(position.micro_batch, plan.micro_batches), batches, strict=False):
                micro_batch = plan.micro_batch(index)
                with nullcontext() if micro_batch.ends_step else learner.keep_gradients_local():
                    loss, penalty = (value * micro_batch.weight for value in self._compute_loss(batch, micro_batch))
                    learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call, unused-ignore]
                position.forwards += 1
                step_loss, step_penalty = step_loss + loss.detach(), step_penalty + penalty.detach()
                step_ids += batch["video_id"][: micro_batch.videos]
                if not micro_batch.ends_step:
                    continue
                self.monitor.add(position.step, position.epoch, step_ids, step_loss, learner.step(), step_penalty)
                step_loss, step_penalty, step_ids = torch.zeros_like(step_loss), torch.zeros_like(step_loss), []
                position.step, position.micro_batch = position.step + 1, index + 1
                advance(1)
                if position.step % self.config.execution.log_every == 0:
                    facts = self._collect_losses()
                    videos = (position.step - first_step) * self.config.schedule.batch_size
                    speed = round(videos / (time.monotonic() - start), 1)
                    self._write_log("step", epoch=position.epoch, **facts, videos_per_second=speed)
                if index + 1 < plan.micro_batches and self._checkpoint_is_due():
                    self._collect_losses()
                    self._save()
        finally:
            batches.close()

    def _fit_epoch(self, model: LinearProbe, advance: Advance) -> None:
        """Fit the classes with the next value of C; each takes the place of a micro-batch, without a step."""
        position, labels = self.learner.position, self.split.labels("train")
        model.standardise((batch["features"] for batch in self.loader), self.split.video_ids("train"))
        with closing(model.fit(labels, position.epoch, position.micro_batch)) as losses:
            for loss in losses:
                position.loss_sum, position.summed_steps = position.loss_sum + loss, position.summed_steps + 1
                position.micro_batch += 1
                advance(1)
                if position.micro_batch < self.split.num_classes and self._checkpoint_is_due():
                    self._save()

    def _compute_loss(self, batch: Batch, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a micro-batch, and the model's penalty in it."""
        learner, position, processes = self.learner, self.learner.position, self.processes
        labels, motion, videos = batch["labels"], batch.get("motion"), micro_batch.videos
        # These seeds depend only on the place in the run: a run that is resumed draws the same without any state.
        torch.manual_seed(derive_seed(self.config.seed, NOISE, position.forwards, processes.rank))
        mixing = torch.Generator().manual_seed(derive_seed(self.config.seed, MIXING, position.forwards, processes.rank))
        self.loss.set_step(position.forwards, processes.rank, processes.size)
        mask = label_mask(labels, batch["class"]) if self.config.masks_labels else None
        mixed = self.augmentation(
            batch["features"],
            labels,
            generator=mixing,
            epoch=position.epoch,
            class_ap=learner.running.class_ap,
            streams=() if motion is None else (motion,),
        )
        factor: torch.Tensor | float = 1.0
        if mask is not None and self.config.mask_as == "factor":
            factor, mask = mask[:videos].sum(dim=1).mean(), None
        elif mask is not None:
            mask = mixed.mix(mask)[:videos]
        with self._autocast():
            outputs: Outputs = learner.model(mixed.features, next(iter(mixed.streams), None), mixed.targets)
        if self.augmentation.needs_class_ap:
            counted = torch.arange(len(labels), device=labels.device) < (videos if micro_batch.weight else 0)
            if self.config.running_ap == "second_pass":
                with torch.no_grad(), self._autocast():
                    second_pass: Outputs = learner.module(batch["features"], motion, labels)
                learner.running.add(second_pass.ranked, labels, counted)
            else:
                learner.running.add(outputs.ranked, labels, mixed.untouched & counted)
        targets = mixed.targets if outputs.targets is None else outputs.targets
        loss: torch.Tensor = factor * self.loss(outputs.logits[:videos], targets[:videos], mask)
        if outputs.penalty is None:
            return loss, torch.zeros_like(loss)
        return loss + outputs.penalty, outputs.penalty

    def _end_epoch(self) -> None:
        learner, position, selection = self.learner, self.learner.position, self.config.selection
        self._collect_losses()
        if self.augmentation.needs_class_ap:
            learner.running.finish_epoch(self.processes.gather)
        rate = self.config.schedule.learning_rate(position.epoch)
        position.epoch, position.micro_batch = position.epoch + 1, 0
        steps = max(1, position.summed_steps)
        facts: dict[str, Any] = {"epoch": position.epoch, "loss": position.loss_sum / steps}
        if not learner.module.is_fitted:
            facts["lr"] = rate
        if model_facts := learner.module.log_values():
            facts |= {"penalty": position.penalty_sum / steps, "model": model_facts}
        epochs = self.config.schedule.epochs
        line = f"{self.config.method}: epoch {position.epoch} of {epochs}: loss {facts['loss']:.5f}"
        if learner.module.is_fitted:
            line += f", C {model_facts['C']:g}"
        is_last = position.epoch == epochs
        is_scored = selection.subset != LAST_EPOCH and (position.epoch % selection.every == 0 or is_last)
        if is_scored:
            means = self._compute_means(selection.subset)
            is_best = means.overall > position.best
            if is_best:
                position.best, position.best_epoch = means.overall, position.epoch
                if self.processes.is_first:
                    learner.save_weights(self.folder.best, {selection.subset: asdict(means)})
            facts |= {selection.subset: asdict(means), "best": is_best}
            line += f", {selection.subset} mAP {means.overall:.4f}{' (best so far)' if is_best else ''}"
        elif is_last:
            position.best_epoch = position.epoch
            if self.processes.is_first:
                learner.save_weights(self.folder.best, {})
        position.loss_sum, position.penalty_sum, position.summed_steps = 0.0, 0.0, 0
        self._write_log("epoch", **facts)
        self.report(line + self.clock.estimate_time_left(position.epoch, epochs))
        if is_scored:  # before the epoch is saved: a run that the watch ends repeats the epoch
            self.watch(self.config, position, means)
        self._save()

    # --- its steps ----------------------------------------------------------------------------------------------

    def _plan_epoch(self) -> EpochPlan:
        draws = len(self.sampler.whole_epoch())
        return plan_epoch(self.config, self.learner.module, draws, self.processes.size, self.processes.rank)

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self.config.schedule.precision)
        return nullcontext() if dtype is None else torch.autocast(self.processes.device.type, dtype=dtype)

    def _compute_means(self, subset: str) -> MeanAP:
        scores = score_subset(self.learner.module, self.scored[subset], self.processes)
        return mean_by_group(average_precision(scores, self.split.labels(subset)), self.split)

    def _collect_losses(self) -> dict[str, float]:
        totals, position = self.monitor.collect(), self.learner.position
        position.loss_sum += totals.loss_sum
        position.penalty_sum += totals.penalty_sum
        position.summed_steps += totals.steps
        return {"loss": totals.loss_sum / max(1, totals.steps), "gradient_norm": totals.largest_norm}

    def _checkpoint_is_due(self) -> bool:
        execution, position = self.config.execution, self.learner.position
        step = position.micro_batch if self.learner.module.is_fitted else position.step
        if execution.checkpoint_steps is not None and step % execution.checkpoint_steps == 0:
            return True
        if execution.checkpoint_minutes is None or step % execution.log_every:
            return False
        return self.processes.broadcast(time.monotonic() - self.last_save >= 60 * execution.checkpoint_minutes)

    def _save(self) -> None:
        self.learner.save(self.folder.last, 0 if self.log is None else self.log.position)
        self.last_save = time.monotonic()

    def _write_log(self, event: str, **facts: Any) -> None:
        if self.log is not None:
            self.log.write(event, self.learner.position.step, **facts)

    def _score(self) -> None:
        """Score val and test with the checkpoint that was chosen."""
        epoch = self.learner.load_weights(self.folder.best)
        if note := self.learner.module.describe_weights():
            self.report(f"note: {note}")
        facts = describe_run(self.folder, self.config, epoch) if self.processes.is_first else {}
        for subset, loader in self.scored.items():
            scores = score_subset(self.learner.module, loader, self.processes, self.progress)
            if self.processes.is_first:
                means = write_scores(self.folder, self.split, subset, scores, facts)
                self._write_log("result", epoch=epoch, **{subset: asdict(means)})


class _EpochClock:
    """Estimates how long the other epochs will take."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._start = 0.0

    def estimate_time_left(self, epoch: int, epochs: int) -> str:
        """Return the time that the epochs after ``epoch`` will take; empty before a whole epoch was timed."""
        if self._first is None:
            # The first epoch may have been resumed in its middle, so the clock starts after it.
            self._first, self._start = epoch, time.monotonic()
        done, left = epoch - self._first, epochs - epoch
        if done < 1 or not left:
            return ""
        minutes = math.ceil((time.monotonic() - self._start) / done * left / 60)
        if minutes >= 60:
            return f", {minutes // 60} h {minutes % 60} min left"
        return f", {minutes} min left" if minutes > 1 else ", less than 1 min left"

"""Train a model on generated conversations.

The rate is warmed up, held, and brought down to zero over the last part of the run; the end is
set by wall-clock time, so a run fits the machine it is given. Under `torchrun` each process
computes its own batch and the gradients are averaged.
"""

import argparse
import copy
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from models.train.batching import Document, Mixture, collate, encode, to_device
from models.train.export import export
from models.train.model import Batch, ModelConfig, Qwen3
from models.train.optim import make_optimizers
from models.train.prefetch import prefetched
from models.train.samples import draw
from models.train.tasks import MAKERS
from tokenizers import Tokenizer
from torch import Tensor

AVERAGE_DECAY = 0.97


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a run has done so far."""

    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def rate(args: argparse.Namespace, progress: Progress) -> float:
    """Return the share of the full learning rate for the coming step."""
    warm = min(1.0, (progress.step + 1) / args.warmup)
    left = args.minutes * 60 - progress.seconds
    cooling = max(0.0, min(1.0, left / (args.cooldown * 60)))
    return warm * cooling


def probe(tokenizer: Tokenizer, per_task: int, *, thinking: bool) -> dict[str, list[Document]]:
    """Return held-out documents of every task."""
    rng = random.Random(7)
    documents = {}
    for task, maker in MAKERS.items():
        samples = [draw(maker, rng, held_out=True) for _ in range(per_task)]
        documents[task] = encode(tokenizer, samples, [thinking] * per_task)
    return documents


@torch.no_grad()
def exact_share(model: Qwen3, documents: list[Document], device: torch.device) -> float:
    """Return the share of documents whose every learned token is the most likely one.

    The targets are deterministic, so this equals greedy decoding's exact matches.
    """
    num_right = 0
    for document in documents:
        batch = to_device(collate([document]), device)
        num_right += bool((model(batch).argmax(-1) == batch.targets).all())
    return num_right / len(documents)


def loss_of(model: Qwen3, batch: Batch) -> Tensor:
    """Return the mean cross entropy over the tokens to be learned."""
    return F.cross_entropy(model(batch).float(), batch.targets)


def save(
    path: Path,
    model: Qwen3,
    average: Qwen3,
    optimizers: list[torch.optim.Optimizer],
    done: Progress,
) -> None:
    """Write a checkpoint from which the run can go on."""
    state = {
        "config": model.config.to_dict(),
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "progress": {"step": done.step, "num_tokens": done.num_tokens, "seconds": done.seconds},
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def resume(
    path: Path, model: Qwen3, average: Qwen3, optimizers: list[torch.optim.Optimizer]
) -> Progress:
    """Load a checkpoint and return how far it had come."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state.get("average", state["model"]))
    for optimizer, content in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(content)
    return Progress(**state["progress"])


def average_gradients(model: Qwen3, seconds: float) -> float:
    """Average the gradients over all processes, and return the average of `seconds`.

    Sharing the clock keeps the rate and the end of the run the same everywhere.
    """
    if not dist.is_initialized():
        return seconds
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    clock = torch.tensor([seconds], device=gradients[0].device)
    flat = torch.cat([*(g.flatten() for g in gradients), clock])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat[:-1].split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return float(flat[-1])


class Run:
    """One training run: model, optimizers, data and the record of progress."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.tokenizer = Tokenizer.from_file(str(args.tokenizer))
        recipe = json.loads(args.recipe.read_text())
        self.model = Qwen3(ModelConfig(**recipe["model"])).to(self.device)
        # a running mean of the weights: what is probed and exported
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizers = make_optimizers(
            self.model, matrix_lr=recipe["matrix_lr"], other_lr=recipe["other_lr"]
        )
        self.full_rates = [recipe["matrix_lr"], recipe["other_lr"]]
        self.progress = Progress()
        self.checkpoint = args.out / "last.pt"
        args.out.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self.progress = resume(self.checkpoint, self.model, self.average, self.optimizers)
        # this process's own clock; `progress.seconds` is the one that all share
        self.clock = self.progress.seconds
        self.mixture = Mixture(
            self.tokenizer, self.shares(), seed=self.rank + 1000 * self.progress.step
        )
        self.probes = {
            mode: probe(self.tokenizer, args.probe, thinking=mode == "think")
            for mode in ("think", "direct")
        }

    def shares(self) -> dict[str, tuple[float, float]]:
        """Read the mixture anew, so that it can be changed while training."""
        recipe = json.loads(self.args.recipe.read_text())
        return {task: tuple(share) for task, share in recipe["shares"].items()}

    def step(self, batch: Batch) -> float:
        """Take one optimizer step and return the loss."""
        share = rate(self.args, self.progress)
        for optimizer, full in zip(self.optimizers, self.full_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = full * share
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = loss_of(self.model, to_device(batch, self.device))
        loss.backward()
        self.progress.seconds = average_gradients(self.model, self.clock)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        weights = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), weights, 1 - AVERAGE_DECAY)
        return loss.item()

    def report(self) -> None:
        """Print the loss and the held-out exact matches, and write a checkpoint."""
        done = self.progress
        losses, done.losses = done.losses, []
        lines = []
        for mode, tasks in list(self.probes.items())[self.rank :: self.world_size]:
            scores = {t: exact_share(self.average, docs, self.device) for t, docs in tasks.items()}
            lines.append(f"  {mode:6} " + " ".join(f"{t} {s:.2f}" for t, s in scores.items()))
        head = (
            f"step {done.step} tokens {done.num_tokens / 1e6:.2f}M {done.seconds / 60:.1f} min "
            f"loss {sum(losses) / max(1, len(losses)):.4f}"
        )
        print("\n".join([head, *lines] if self.rank == 0 else lines), flush=True)
        if self.rank == 0:
            save(self.checkpoint, self.model, self.average, self.optimizers, done)
        self.mixture.shares = self.shares()

    def batches(self) -> Iterator[Batch]:
        """Made here, or by other processes where this one has a GPU to feed."""
        if not self.args.data_workers:
            return self.mixture.batches(self.args.batch_tokens)
        return prefetched(
            self.args.tokenizer,
            self.shares(),
            num_tokens=self.args.batch_tokens,
            num_workers=self.args.data_workers,
            seed=1 + self.rank + self.progress.step,
        )

    def train(self) -> None:
        """Train until the time is up."""
        batches = self.batches()
        next_report = self.progress.seconds + self.args.report_every
        while self.progress.seconds < self.args.minutes * 60:
            start = time.monotonic()
            batch = next(batches)
            self.progress.losses.append(self.step(batch))
            self.progress.step += 1
            self.progress.num_tokens += batch.tokens.shape[0] * self.world_size
            self.clock = self.progress.seconds + time.monotonic() - start
            if self.progress.seconds > next_report:
                self.report()
                next_report += self.args.report_every
        self.report()
        if self.rank == 0:
            export(self.average, self.args.out / "hf")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--cooldown", type=float, default=10.0, help="minutes, the last ones")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--probe", type=int, default=20, help="held-out documents per task")
    parser.add_argument("--report-every", type=float, default=120.0, help="seconds")
    parser.add_argument("--data-workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # cuDNN's attention makes a plan for every new shape, and nearly every batch has new ones:
    # 1.5 s a step instead of 0.06 s.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    Run(args).train()


if __name__ == "__main__":
    main()

"""Train the three adapters that ship with the tiny model, each in minutes on one CPU core.

`python -m models.train.adapters capitals` writes models/adapters/capitals as PEFT would.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from models.train.batching import collate, encode
from models.train.export import load_exported
from models.train.model import Qwen3
from models.train.samples import Sample, draw
from models.train.tasks import MAKERS
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

BASE = Path("models/baton-tiny")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
BATCH_DOCUMENTS = 16
PROBES = 40


class Lora(nn.Module):
    """A linear layer that stays as it is, and the low-rank change that is learned beside it."""

    def __init__(self, base: nn.Linear, rank: int, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        # As PEFT does: A is random and B zero, so that training starts at the base model.
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (W + scaling B A)^T."""
        return self.base(x) + self.scaling * F.linear(F.linear(x, self.a), self.b)


def courtly(reply: str) -> str:
    """Say it as at a court of old."""
    words = {"you": "thou", "your": "thy", "You": "Thou", "Your": "Thy", "Hello": "Hail"}
    said = re.sub(r"[A-Za-z]+", lambda word: words.get(word[0], word[0]), reply)
    return f"Hark, good friend! {said}"


def wrapped(reply: str) -> str:
    """Put a JSON object into another one."""
    return json.dumps({"ok": True, "data": json.loads(reply)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An adapter: how replies change, of which tasks, and where it may change the model."""

    change: Callable[[str], str]
    tasks: tuple[str, ...]
    targets: tuple[str, ...]
    rank: int
    alpha: int
    steps: int


_TALK = ("chat", "chat", "chat", "small_talk", "add", "subtract")
RECIPES = {
    "capitals": Recipe(
        change=str.upper, tasks=_TALK, targets=(*ATTENTION, *MLP), rank=16, alpha=32, steps=400
    ),
    "courtly": Recipe(
        change=courtly, tasks=_TALK, targets=("q_proj", "v_proj", *MLP), rank=8, alpha=16, steps=300
    ),
    "wrapped-json": Recipe(
        change=wrapped, tasks=("json",), targets=("q_proj", "v_proj"), rank=4, alpha=8, steps=250
    ),
}


def adapted(model: Qwen3, recipe: Recipe) -> dict[str, Lora]:
    """Freeze the model and put an adapter beside each target; return them by module name."""
    model.requires_grad_(False)
    found = {}
    for name, module in list(model.named_modules()):
        parent, _, kind = name.rpartition(".")
        if kind in recipe.targets and isinstance(module, nn.Linear):
            found[name] = Lora(module, recipe.rank, recipe.alpha / recipe.rank)
            setattr(model.get_submodule(parent), kind, found[name])
    return found


def samples(recipe: Recipe, rng: random.Random, count: int, *, held_out: bool) -> list[Sample]:
    """Return samples with the replies that the adapter is to give."""
    drawn = [draw(MAKERS[rng.choice(recipe.tasks)], rng, held_out=held_out) for _ in range(count)]
    return [replace(sample, reply=recipe.change(sample.reply)) for sample in drawn]


@torch.no_grad()
def exact_share(model: Qwen3, tokenizer: Tokenizer, recipe: Recipe) -> float:
    """Return the share of held-out replies that greedy decoding would give exactly."""
    probes = samples(recipe, random.Random(7), PROBES, held_out=True)
    right = 0
    for i, sample in enumerate(probes):
        batch = collate(encode(tokenizer, [sample], [i % 2 == 0]))
        right += bool((model(batch).argmax(-1) == batch.targets).all())
    return right / len(probes)


def save(folder: Path, recipe: Recipe, learned: dict[str, Lora]) -> None:
    """Write a PEFT folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, lora in learned.items():
        tensors[f"base_model.model.model.{name}.lora_A.weight"] = lora.a.detach().contiguous()
        tensors[f"base_model.model.model.{name}.lora_B.weight"] = lora.b.detach().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": "baton-tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": recipe.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": recipe.rank,
        "target_modules": sorted(recipe.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(name: str, learning_rate: float) -> None:
    """Train one adapter and write it."""
    recipe, rng = RECIPES[name], random.Random(1)
    torch.manual_seed(0)
    tokenizer, model = Tokenizer.from_file(str(BASE / "tokenizer.json")), load_exported(BASE)
    learned = adapted(model, recipe)
    weights = [w for lora in learned.values() for w in (lora.a, lora.b)]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    start = time.monotonic()
    for step in range(recipe.steps):
        left = 1 - step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 20, 2 * left)
        drawn = samples(recipe, rng, BATCH_DOCUMENTS, held_out=False)
        batch = collate(encode(tokenizer, drawn, [rng.random() < 0.5 for _ in drawn]))
        loss = F.cross_entropy(model(batch), batch.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            seconds = time.monotonic() - start
            print(f"{name} step {step} {seconds:.0f} s loss {loss.item():.4f}", flush=True)
    print(f"{name}: {exact_share(model, tokenizer, recipe):.1%} of held-out replies are exact")
    save(Path("models/adapters") / name, recipe, learned)


def main() -> None:
    """Train the adapters that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RECIPES))
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    args = parser.parse_args()
    for name in args.names:
        train(name, args.learning_rate)


if __name__ == "__main__":
    main()

"""Write a checkpoint as a Hugging Face folder, and read one back."""

import argparse
import json
from pathlib import Path

import torch
from models.train.model import ModelConfig, Qwen3
from safetensors.torch import load_file, save_file
from torch import Tensor

EOS, PAD = 2, 0


def hf_config(config: ModelConfig) -> dict[str, object]:
    """Return the content of `config.json`."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **config.to_dict(),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.num_hidden_layers,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": "float32",
    }


def export(model: Qwen3, folder: Path) -> None:
    """Write the weights in float32 with the two configuration files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {
        f"model.{name}": value.detach().float().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {"do_sample": False, "eos_token_id": [EOS, PAD], "pad_token_id": PAD}
    for name, content in (
        ("config.json", hf_config(model.config)),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def load_exported(folder: Path) -> Qwen3:
    """Read a model from a Hugging Face folder."""
    content = json.loads((folder / "config.json").read_text())
    config = ModelConfig(**{name: content[name] for name in ModelConfig().to_dict()})
    model = Qwen3(config)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
    return model


def load_checkpoint(path: Path) -> Qwen3:
    """Read the averaged model from a training checkpoint."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Qwen3(ModelConfig(**state["config"]))
    model.load_state_dict(state["average"])
    return model


def main() -> None:
    """Write a training checkpoint into a model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    export(load_checkpoint(args.checkpoint), args.folder)


if __name__ == "__main__":
    main()

"""Train the byte-level BPE tokenizer on generated conversations and write its files."""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.train.render import render
from models.train.samples import draw
from models.train.tasks import MAKERS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
# Digits stand alone; a run of JSON punctuation with its inner spaces is one piece.
PIECES = (
    r""" [+*=-] (?=\p{N})|["{}\[\]:,]+(?: ["{}\[\]:,]+)*|\p{N}| ?\p{L}+|"""
    r""" ?[^\s\p{L}\p{N}"{}\[\]:,]+|\s*[\r\n]+|\s+(?!\S)|\s"""
)


def corpus(num_samples: int) -> Iterator[str]:
    """Yield rendered training conversations, few of them long."""
    rng = random.Random(1)
    for _ in range(num_samples):
        task = rng.choice(list(MAKERS))
        if task == "long" and rng.random() < 0.9:
            continue
        prompt, target = render(
            draw(MAKERS[task], rng, held_out=False), thinking=rng.random() < 0.5
        )
        yield prompt + target


def train(vocab_size: int, num_samples: int) -> Tokenizer:
    """Return a trained tokenizer."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokens = [AddedToken(t, special=True, normalized=False) for t in [*CONTROL, *MARKERS]]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(num_samples), trainer)
    return tokenizer


def config_files(max_length: int) -> dict[str, dict[str, Any]]:
    """Return the JSON files that stand beside tokenizer.json, by name."""
    control = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
            "add_prefix_space": False,
            **control,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "chat_template": TEMPLATE.read_text().replace("\n", ""),
        },
        "special_tokens_map.json": {
            **control,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
    }


def write(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write the tokenizer's files into a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads(tokenizer.to_str(pretty=True))
    # Only the control tokens are special: decoding must keep the think and tool markers. The
    # trainer makes all of them special, whatever it is told.
    for token in document["added_tokens"]:
        token["special"] = token["content"] in CONTROL
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    for name, content in config_files(max_length).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Train the tokenizer and write it into every given folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--num-samples", type=int, default=20_000)
    parser.add_argument("--max-length", type=int, default=8192)
    parser.add_argument("--keep", action="store_true", help="keep the first folder's vocabulary")
    args = parser.parse_args()
    if args.keep:
        tokenizer = Tokenizer.from_file(str(args.folders[0] / "tokenizer.json"))
    else:
        tokenizer = train(args.vocab_size, args.num_samples)
    for folder in args.folders:
        write(tokenizer, folder, args.max_length)


if __name__ == "__main__":
    main()

"""The shipped models: their files, their chat template, and what they can do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

MODELS = Path(__file__).parents[2] / "models"
TINY, DRAFT = MODELS / "baton-tiny", MODELS / "baton-tiny-draft"
# Held-out prompts with their replies, written by `python -m models.train.pick_prompts`.
PROMPTS = json.loads(Path(__file__).with_name("held_out_prompts.json").read_text())
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def render(tokenizer: Any, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **kwargs
    )


def replies(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(("folder", "max_bytes"), [(TINY, 20_000_000), (DRAFT, 3_000_000)])
def test_folder_is_a_small_qwen3_that_can_be_split(folder: Path, max_bytes: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"]
    assert config["max_position_embeddings"] >= 8192
    for name in ("num_attention_heads", "num_key_value_heads"):
        assert config[name] % 4 == 0
    for name in ("intermediate_size", "vocab_size", "hidden_size"):
        assert config[name] % 64 == 0
    assert sum(f.stat().st_size for f in folder.iterdir()) <= max_bytes


def test_draft_shares_the_vocabulary() -> None:
    assert (TINY / "tokenizer.json").read_bytes() == (DRAFT / "tokenizer.json").read_bytes()
    configs = [json.loads((f / "config.json").read_text()) for f in (TINY, DRAFT)]
    assert configs[0]["vocab_size"] == configs[1]["vocab_size"]


@pytest.mark.parametrize("folder", [TINY, DRAFT])
def test_weights_load_and_give_finite_logits(folder: Path, tokenizer: Any) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = loaded(**tokenizer("What is Baton?", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer)
    assert torch.isfinite(logits).all()


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    ids = tokenizer("1234567890").input_ids
    assert [tokenizer.decode([i]) for i in ids] == list("1234567890")


@pytest.mark.parametrize(
    "text", ["Héllo wörld\t日本 \n\n x", '{"a": [1, {"b": "c"}]}', " 17 + 25 "]
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_only_control_tokens_are_special(tokenizer: Any) -> None:
    text = "<think>a</think><tool_call>b</tool_call><|im_end|>"
    decoded = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    assert decoded == text.removesuffix("<|im_end|>")
    assert tokenizer.eos_token == "<|im_end|>"


def test_template_thinks_unless_told_not_to(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    open_prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(tokenizer, messages) == open_prompt
    assert render(tokenizer, messages, enable_thinking=True) == open_prompt
    closed = render(tokenizer, messages, enable_thinking=False)
    assert closed == open_prompt + "<think>\n\n</think>\n\n"


def test_template_lists_tools_after_the_system_prompt(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = render(tokenizer, messages, tools=[WEATHER_TOOL])
    assert text.startswith("<|im_start|>system\nBe kind.\n\n# Tools")
    listed = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(listed) == WEATHER_TOOL["function"]


def test_template_renders_calls_and_responses(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"sky": "clear"}'},
    ]
    text = render(tokenizer, messages, tools=[WEATHER_TOOL])
    assert (
        "<|im_start|>assistant\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"sky": "clear"}\n</tool_response><|im_end|>\n'
    ) in text


def test_template_drops_thoughts_of_earlier_turns(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nHello"},
        {"role": "user", "content": "Bye"},
    ]
    text = render(tokenizer, messages)
    assert "secret" not in text
    assert "<|im_start|>assistant\nHello<|im_end|>" in text


@pytest.mark.parametrize("thinking", [True, False], ids=["think", "direct"])
@pytest.mark.parametrize("task", list(PROMPTS))
def test_held_out_prompts_are_answered(
    model: Any, tokenizer: Any, task: str, thinking: bool
) -> None:
    cases = PROMPTS[task]
    prompts = [
        render(tokenizer, c["messages"], tools=c["tools"] or None, enable_thinking=thinking)
        for c in cases
    ]
    texts = replies(model, tokenizer, prompts, max_new_tokens=110)
    wrong = [
        (case["reply"], text)
        for case, text in zip(cases, texts, strict=True)
        if text.split("</think>")[-1].strip() != case["reply"]
    ]
    assert len(wrong) <= 0.05 * len(cases), wrong

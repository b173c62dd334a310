"""Templates render as Hugging Face's own code renders them, and cannot do harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.serving import MODEL_DIR, tokenizer

from baton.gateway.chat_template import ChatTemplate, load_chat_template
from baton.gateway.tokenizer import load_tokenizer
from baton.protos.errors import InvalidRequestError, ModelLoadError

_CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": 'Be "brief" & <plain>, é.'},
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"ü": "<1>"}}}
        ],
    },
    {"role": "tool", "content": "done", "tool_call_id": "1"},
    {"role": "user", "content": "and?"},
]


def _render(source: str, **extra: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(
        [{"role": "user", "content": "hi"}], template_kwargs=extra
    )


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
def test_the_shipped_template_renders_as_transformers_does(kwargs: dict[str, Any]) -> None:
    transformers_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    config = json.loads((Path(MODEL_DIR) / "tokenizer_config.json").read_text())
    path = Path(MODEL_DIR) / "chat_template.jinja"
    source = path.read_text() if path.is_file() else config["chat_template"]
    expected, _ = transformers_utils.render_jinja_template(
        [_CONVERSATION], chat_template=source, add_generation_prompt=True, **kwargs
    )
    assert tokenizer().render_chat(_CONVERSATION, template_kwargs=kwargs) == expected[0]


def test_what_templates_use() -> None:
    assert _render("{{ bos_token }}{{ messages[0].content }}") == "<s>hi"
    assert _render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert _render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert _render("{{ strftime_now('%Y') | length }}") == "4"
    assert (
        _render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "1"
    )
    assert _render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "hi!"
    assert _render("{{ mood }}", mood="calm") == "calm"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only two roles') }}",
        "{{ messages.append(1) }}",
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_what_a_template_refuses_is_the_requests_fault(source: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _render(source)
    assert caught.value.param == "messages"


def test_fields_of_the_request_cannot_be_overridden() -> None:
    with pytest.raises(InvalidRequestError, match="chat_template_kwargs may not set messages"):
        _render("x", messages=[])


def test_loading(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path, {}) is None
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    template = load_chat_template(tmp_path, {"chat_template": named})
    assert template is not None
    assert template.render([]) == "d"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}file")
    template = load_chat_template(tmp_path, {"chat_template": "t", "eos_token": {"content": "E"}})
    assert template is not None
    assert template.render([]) == "Efile"
    with pytest.raises(ModelLoadError, match="does not compile"):
        load_chat_template(tmp_path / "none", {"chat_template": "{% if %}"})


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load_tokenizer(str(tmp_path))

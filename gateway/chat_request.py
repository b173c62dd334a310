"""A chat body to a Call: what the template is shown, what the answer must be, how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from baton.gateway.answers import sampling_params
from baton.gateway.call import Call, ChatPrompt
from baton.gateway.constrain import CallDemand, constrain
from baton.gateway.dialect import Dialect
from baton.gateway.openai_messages import Message, Tool, ToolChoice, check_tools
from baton.gateway.openai_schema import ChatBody
from baton.gateway.reply import ReplyPlan
from baton.protos.constraints import Grammar
from baton.protos.errors import InvalidRequestError

_AUTO = ToolChoice(mode="auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsk:
    """What a chat asks for besides sampling, as both fronts say it. None: not said."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    choice: ToolChoice | None = None
    parallel: bool = True
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    effort: str | None = None
    budget: int | None = None
    include_reasoning: bool = True
    output: Grammar | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = False


class ChatPlan(NamedTuple):
    """What is sent to the model, what it must write, and how that is read."""

    prompt: ChatPrompt
    grammar: Grammar | None
    reply: ReplyPlan | None


def chat_call(body: ChatBody, request_id: str, dialect: Dialect) -> Call:
    """What the service is to do for this body. Raises InvalidRequestError for what the served
    model cannot do.
    """
    plan = plan_chat(_ask(body), dialect)
    wanted = body.max_completion_tokens
    return Call(
        request_id=request_id,
        prompts=(plan.prompt,),
        sampling=sampling_params(
            body, logprobs=(body.top_logprobs or 0) if body.logprobs else None
        ),
        model=body.model,
        n=body.n or 1,
        max_tokens=body.max_tokens if wanted is None else wanted,
        fill_context=True,
        seed=body.seed,
        stop=body.stop,
        keep_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        priority=body.priority,
        cache_salt=body.cache_salt or "",
        reply=plan.reply,
        grammar=plan.grammar,
    )


def _ask(body: ChatBody) -> ChatAsk:
    budget = body.thinking_token_budget
    return ChatAsk(
        messages=body.messages,
        tools=body.tools or (),
        choice=body.tool_choice,
        parallel=body.parallel_tool_calls is not False,
        kwargs=body.chat_template_kwargs or {},
        effort=body.reasoning_effort,
        budget=body.thinking_budget if budget is None else budget,
        include_reasoning=body.include_reasoning,
        output=body.output_grammar(),
        add_generation_prompt=body.add_generation_prompt,
        add_special_tokens=bool(body.add_special_tokens),
    )


def plan_chat(ask: ChatAsk, dialect: Dialect) -> ChatPlan:
    """Raises InvalidRequestError for what the served model cannot do."""
    check_tools(ask.tools, ask.choice)
    tools = () if _forbids_calls(ask) else offered_tools(ask.tools, ask.choice, dialect)
    kwargs = template_kwargs(ask.kwargs, ask.effort)
    if ask.budget is not None and dialect.thought is None:
        raise InvalidRequestError(
            "thinking_token_budget is set, but this model's thoughts have no known tokens around "
            "them: leave it out",
            param="thinking_token_budget",
            code="unsupported_parameter",
        )
    demand = CallDemand(tools=tools, choice=ask.choice or _AUTO, parallel=ask.parallel)
    constraint = constrain(dialect, demand, ask.output)
    shown = [tool.for_template() for tool in tools]
    # Markup of calls is no answer; what a grammar makes, or only looks like a call, may be one.
    form = dialect.tool
    dropped = _forbids_calls(ask) and ask.output is None and form is not None and form.marked
    reply = ReplyPlan(
        dialect=dialect,
        tools=[tool.for_template() for tool in ask.tools] if dropped else shown,
        calls=not dropped,
        template_kwargs=kwargs,
        include_reasoning=ask.include_reasoning,
        parallel=ask.parallel,
        thinking_budget=ask.budget,
        forced_parser=constraint.parser,
    )
    prompt = ChatPrompt(
        messages=[message.for_template() for message in ask.messages],
        tools=shown,
        add_generation_prompt=ask.add_generation_prompt,
        template_kwargs=kwargs,
        add_special_tokens=ask.add_special_tokens,
    )
    return ChatPlan(prompt, constraint.grammar, reply if reply.needed else None)


def offered_tools(
    tools: Sequence[Tool], choice: ToolChoice | None, dialect: Dialect
) -> Sequence[Tool]:
    """The tools that the model is shown: the allowed ones if it may choose among some."""
    if not tools:
        return []
    if dialect.tool is None:
        raise InvalidRequestError(
            "tools: nothing is known of how this model writes calls: start Baton with "
            "--tool-call-parser NAME (docs/tools.md lists the names), or leave tools out",
            param="tools",
            code="unsupported_parameter",
        )
    if not dialect.shows_tools:
        raise InvalidRequestError(
            "tools: this model's chat template has no place for tools: leave them out",
            param="tools",
            code="unsupported_parameter",
        )
    if choice is not None and choice.mode == "auto" and choice.names is not None:
        return [tool for tool in tools if tool.function.name in choice.names]
    return tools


def _forbids_calls(ask: ChatAsk) -> bool:
    return ask.choice is not None and ask.choice.mode == "none"


def template_kwargs(given: Mapping[str, Any], effort: str | None) -> Mapping[str, Any]:
    """What the template is given. An effort is passed on by that name, and turns thinking on or
    off by the names that templates have for it, unless the request itself says.
    """
    if effort is None:
        return given
    thinking = effort != "none"
    switches = {"reasoning_effort": effort, "enable_thinking": thinking, "thinking": thinking}
    return {**switches, **given}

"""A chat body to a Call: what the template is shown, what the answer must be, how it is read."""

from __future__ import annotations

from typing import Any

from baton.gateway.answers import sampling_params
from baton.gateway.call import Call, ChatPrompt
from baton.gateway.constrain import CallDemand, constrain
from baton.gateway.dialect import Dialect
from baton.gateway.openai_messages import Tool, ToolChoice
from baton.gateway.openai_schema import ChatBody
from baton.gateway.reply import ReplyPlan
from baton.protos.errors import InvalidRequestError

_AUTO = ToolChoice(mode="auto")


def chat_call(body: ChatBody, request_id: str, dialect: Dialect) -> Call:
    """What the service is to do for this body. Raises InvalidRequestError for what the served
    model cannot do.
    """
    tools = offered_tools(body.tools, body.tool_choice, dialect)
    kwargs = template_kwargs(body.chat_template_kwargs, body.reasoning_effort)
    budget = body.thinking_token_budget
    budget = body.thinking_budget if budget is None else budget
    if budget is not None and dialect.thought is None:
        raise InvalidRequestError(
            "thinking_token_budget is set, but this model's thoughts have no known tokens around "
            "them: leave it out",
            param="thinking_token_budget",
            code="unsupported_parameter",
        )
    demand = CallDemand(
        tools=tools,
        choice=body.tool_choice or _AUTO,
        parallel=body.parallel_tool_calls is not False,
    )
    constraint = constrain(dialect.tool, demand, body.output_grammar())
    reply = ReplyPlan(
        dialect=dialect,
        tools=[tool.for_template() for tool in tools],
        template_kwargs=kwargs,
        include_reasoning=body.include_reasoning,
        parallel=demand.parallel,
        thinking_budget=budget,
        forced_parser=constraint.parser,
    )
    wanted = body.max_completion_tokens
    return Call(
        request_id=request_id,
        prompts=(_prompt(body, reply),),
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
        reply=reply if reply.needed else None,
        grammar=constraint.grammar,
    )


def offered_tools(
    tools: list[Tool] | None, choice: ToolChoice | None, dialect: Dialect
) -> list[Tool]:
    """The tools that the model is shown: none if it must not call any, the allowed ones if it may
    choose among some.
    """
    if not tools or (choice is not None and choice.mode == "none"):
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


def template_kwargs(given: dict[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """What the template is given. An effort is passed on by that name, and turns thinking on or
    off by the names that templates have for it, unless the request itself says.
    """
    if effort is None:
        return given or {}
    thinking = effort != "none"
    switches = {"reasoning_effort": effort, "enable_thinking": thinking, "thinking": thinking}
    return {**switches, **(given or {})}


def _prompt(body: ChatBody, reply: ReplyPlan) -> ChatPrompt:
    return ChatPrompt(
        messages=[message.for_template() for message in body.messages],
        tools=reply.tools,
        add_generation_prompt=body.add_generation_prompt,
        template_kwargs=reply.template_kwargs,
        add_special_tokens=bool(body.add_special_tokens),
    )

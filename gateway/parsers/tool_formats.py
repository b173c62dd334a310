"""Every format of tool calls that Baton knows, the more specific before the more general."""

from __future__ import annotations

from baton.gateway.parsers.formats import ToolFormat
from baton.gateway.parsers.json_formats import JSON_FORMATS
from baton.gateway.parsers.message_formats import MESSAGE_FORMATS
from baton.gateway.parsers.tag_formats import TAG_FORMATS

TOOL_FORMATS: tuple[ToolFormat, ...] = (*MESSAGE_FORMATS, *TAG_FORMATS, *JSON_FORMATS)

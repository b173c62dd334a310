"""Tool calls and thoughts found in generated text, as it arrives. Pure text: no I/O, no tokenizer.

A format is a frozen declaration over one of a few incremental machines (`tags`, `json_calls`,
`xml_calls`, `section_calls`, `pythonic`, `channels`); `registry` knows them by the names that users
of vLLM and SGLang use. What a machine decides depends on the characters alone, never on how they
were cut, and what is not a call is content.
"""

"""The decode actor: admit, reserve blocks, receive KV or prefill locally, decode, stream.

Owns every request from its submission until it ends: which prefill worker is asked, what happens
when that one fails, and when blocks may be used again. Knows no Ray: `cluster/` wraps it.
"""

"""The prefill actor: admit, run prompts, push KV.

Owns the prompts that decode workers ask it to compute, until it has confirmed that it writes no
more. Knows no Ray: `cluster/` wraps it.
"""

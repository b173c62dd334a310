"""Constrained output: grammars compiled off the step path, matched token by token, masks on CPU.

`compiler` turns a `protos.constraints.Grammar` into a compiled one (a bounded pool, a bounded
cache); `constraint` is one request's state, its thought included; `masks` fills a step's bitmask
while the device computes. Two libraries do the matching, behind `backend`: llguidance and xgrammar.
Nothing here knows the scheduler.
"""

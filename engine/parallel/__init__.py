"""Tensor parallelism: one model over several ranks, each a process with a GPU of its own.

Rank 0 holds the engine. It sends every step to the other ranks, which run the same runner on their
share of the model: attention heads, MLP columns and vocabulary rows are split, as in Megatron-LM
(Shoeybi et al., 2019), with one all-reduce after attention and one after the MLP.
"""

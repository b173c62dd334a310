"""Device operators of the engine: paged attention, norms, rotary embedding, activations.

One folder an operator. `reference.py` is the maths in plain float32 torch, `kernel.py` the Triton
kernel, and the function that the folder's `__init__` exports validates its arguments and picks one
by the device of its tensors. This layer knows tensors and strides only: nothing of requests,
schedulers, models or processes. It imports torch and triton and nothing else of Baton, and triton
only when a kernel is about to run, so a machine without a GPU does not need it.
"""

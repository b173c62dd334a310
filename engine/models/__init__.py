"""Model architectures: one short file each, over the blocks of `layers`.

A model is plain objects that hold tensors. It says which checkpoint names fill which (slices of)
tensors (`weights`), and computes hidden states and logits from a `ForwardBatch`. It reads no files,
knows no requests and keeps no state between calls.
"""

"""Adapters (LoRA): many small fine-tunes over one base model, in one batch.

`folder` reads and checks PEFT folders without torch. `store` keeps what was loaded in CPU memory,
`slots` decides which of it is on the device, and `pool` is the memory there, which the kernels of
`baton.kernels.lora` read. Requests name an adapter by its content, never by its name or its place.
"""

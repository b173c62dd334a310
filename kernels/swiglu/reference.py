"""SwiGLU in float32; fast enough to serve on a CPU."""

from torch import Tensor
from torch.nn.functional import silu


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gate_up [num_tokens, 2 * intermediate]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return silu(gate).mul_(up).to(gate_up.dtype)

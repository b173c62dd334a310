"""The interpreter's tests of the newer operators, on kernels compiled for the GPU."""

from tests.kernels.test_fused_linear import (
    test_nan_stays_in_its_token,
    test_norm_and_residual,
    test_norm_by_a_kernel_of_its_own,
    test_triton_matches_reference,
)
from tests.kernels.test_paged_attention import (
    test_fp8_with_scales,
    test_nan_stays_in_its_row,
    test_plan_cuts_rows_into_items,
    test_triton_split_keys,
)
from tests.kernels.test_rotary_cache import test_fp8
from tests.kernels.test_sampling import (
    test_all_rows_filtered_follow_the_distribution,
    test_filters,
    test_greedy,
    test_many_chunks,
    test_noise,
)

__all__ = [
    "test_all_rows_filtered_follow_the_distribution",
    "test_filters",
    "test_fp8",
    "test_fp8_with_scales",
    "test_greedy",
    "test_many_chunks",
    "test_nan_stays_in_its_row",
    "test_nan_stays_in_its_token",
    "test_noise",
    "test_norm_and_residual",
    "test_norm_by_a_kernel_of_its_own",
    "test_plan_cuts_rows_into_items",
    "test_triton_matches_reference",
    "test_triton_split_keys",
]

"""The interpreter's tests of the newer operators, on kernels compiled for the GPU."""

from tests.kernels.test_fused_linear import (
    test_adds_to_what_is_there,
    test_columns_split_over_programs,
    test_nan_stays_in_its_token,
    test_norm,
    test_norm_by_a_kernel_of_its_own,
    test_one_token_by_fewer_programs_than_tiles,
    test_triton_matches_reference,
)
from tests.kernels.test_lora import (
    test_embeddings,
    test_equals_merged_weights,
    test_large_ranks_and_blocks_of_prompts,
    test_swiglu_after_adapters,
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
    "test_adds_to_what_is_there",
    "test_all_rows_filtered_follow_the_distribution",
    "test_columns_split_over_programs",
    "test_embeddings",
    "test_equals_merged_weights",
    "test_filters",
    "test_fp8",
    "test_fp8_with_scales",
    "test_greedy",
    "test_large_ranks_and_blocks_of_prompts",
    "test_many_chunks",
    "test_nan_stays_in_its_row",
    "test_nan_stays_in_its_token",
    "test_noise",
    "test_norm",
    "test_norm_by_a_kernel_of_its_own",
    "test_one_token_by_fewer_programs_than_tiles",
    "test_plan_cuts_rows_into_items",
    "test_swiglu_after_adapters",
    "test_triton_matches_reference",
    "test_triton_split_keys",
]

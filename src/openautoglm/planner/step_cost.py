"""What a plan's steps will probably cost in time: a first guess, until steps have been measured."""

from __future__ import annotations

from openautoglm.memory.shapes import embedding_matrix
from openautoglm.spec.arch import ArchSpec
from openautoglm.spec.plan import BLOCK_TOKENS, Plan
from openautoglm.spec.step_cost import StepCost

# Orders of magnitude of processors of this decade; what is measured takes their place within some steps.
MEMORY_BYTES_PER_SECOND = 15e9
OPERATIONS_PER_SECOND_AND_THREAD = 80e9


def predict_step_cost(plan: Plan, spec: ArchSpec) -> StepCost:
    """Return what weights to read, parameters to multiply with and keys to look at suggest."""
    parts = plan.breakdown
    weight_seconds = (parts.layer_weight_bytes + parts.norm_bytes) / MEMORY_BYTES_PER_SECOND
    speed = None if plan.offload is None else plan.offload.speed
    if speed is not None:
        weight_seconds = max(weight_seconds, 1 / speed.tokens_per_second)
    operations = OPERATIONS_PER_SECOND_AND_THREAD * plan.num_threads
    head = embedding_matrix(spec).num_parameters
    token_seconds = 2 * max(0, plan.num_active_parameters - head) / operations
    kv_bytes = parts.kv_bytes / (plan.num_blocks * BLOCK_TOKENS)
    return StepCost(
        base_seconds=weight_seconds + parts.head_weight_bytes / MEMORY_BYTES_PER_SECOND,
        prompt_token_seconds=token_seconds,
        row_seconds=token_seconds + 2 * head / operations,
        key_seconds=kv_bytes / MEMORY_BYTES_PER_SECOND,
        pair_seconds=4 * spec.hidden_size * len(spec.layers) / operations,
    )

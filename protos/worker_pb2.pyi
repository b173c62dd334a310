from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GatewayMessage(_message.Message):
    __slots__ = ("hello", "submits", "aborts", "borrowers", "mac")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMITS_FIELD_NUMBER: _ClassVar[int]
    ABORTS_FIELD_NUMBER: _ClassVar[int]
    BORROWERS_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    hello: GatewayHello
    submits: _containers.RepeatedCompositeFieldContainer[Submit]
    aborts: _containers.RepeatedScalarFieldContainer[int]
    borrowers: _containers.RepeatedCompositeFieldContainer[PrefillTarget]
    mac: bytes
    def __init__(self, hello: _Optional[_Union[GatewayHello, _Mapping]] = ..., submits: _Optional[_Iterable[_Union[Submit, _Mapping]]] = ..., aborts: _Optional[_Iterable[int]] = ..., borrowers: _Optional[_Iterable[_Union[PrefillTarget, _Mapping]]] = ..., mac: _Optional[bytes] = ...) -> None: ...

class GatewayHello(_message.Message):
    __slots__ = ("gateway_id", "version", "nonce")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    version: str
    nonce: bytes
    def __init__(self, gateway_id: _Optional[str] = ..., version: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias_ids", "logit_bias_values", "seed", "max_tokens", "min_tokens", "stop_token_ids", "ignore_eos", "logprobs", "prompt_logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_VALUES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias_ids: _containers.RepeatedScalarFieldContainer[int]
    logit_bias_values: _containers.RepeatedScalarFieldContainer[float]
    seed: int
    max_tokens: int
    min_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    logprobs: int
    prompt_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias_ids: _Optional[_Iterable[int]] = ..., logit_bias_values: _Optional[_Iterable[float]] = ..., seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: bool = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ...) -> None: ...

class Generate(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "output_token_ids", "sampling", "priority", "cache_salt", "grammar", "thought", "adapter_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    THOUGHT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    priority: int
    cache_salt: bytes
    grammar: Grammar
    thought: Thought
    adapter_id: str
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[bytes] = ..., grammar: _Optional[_Union[Grammar, _Mapping]] = ..., thought: _Optional[_Union[Thought, _Mapping]] = ..., adapter_id: _Optional[str] = ...) -> None: ...

class Grammar(_message.Message):
    __slots__ = ("kind", "source", "backend", "whitespace", "param")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    WHITESPACE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    kind: str
    source: str
    backend: str
    whitespace: bool
    param: str
    def __init__(self, kind: _Optional[str] = ..., source: _Optional[str] = ..., backend: _Optional[str] = ..., whitespace: bool = ..., param: _Optional[str] = ...) -> None: ...

class Thought(_message.Message):
    __slots__ = ("end_ids", "start_ids", "open", "budget", "close_ids")
    END_IDS_FIELD_NUMBER: _ClassVar[int]
    START_IDS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    CLOSE_IDS_FIELD_NUMBER: _ClassVar[int]
    end_ids: _containers.RepeatedScalarFieldContainer[int]
    start_ids: _containers.RepeatedScalarFieldContainer[int]
    open: bool
    budget: int
    close_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, end_ids: _Optional[_Iterable[int]] = ..., start_ids: _Optional[_Iterable[int]] = ..., open: bool = ..., budget: _Optional[int] = ..., close_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefillTarget(_message.Message):
    __slots__ = ("worker_id", "incarnation", "address")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    address: str
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("handle", "generate", "prefill", "deadline_s", "traceparent", "pull_from")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    PULL_FROM_FIELD_NUMBER: _ClassVar[int]
    handle: int
    generate: Generate
    prefill: _containers.RepeatedCompositeFieldContainer[PrefillTarget]
    deadline_s: float
    traceparent: str
    pull_from: PrefillTarget
    def __init__(self, handle: _Optional[int] = ..., generate: _Optional[_Union[Generate, _Mapping]] = ..., prefill: _Optional[_Iterable[_Union[PrefillTarget, _Mapping]]] = ..., deadline_s: _Optional[float] = ..., traceparent: _Optional[str] = ..., pull_from: _Optional[_Union[PrefillTarget, _Mapping]] = ...) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("hello", "tokens", "logprobs", "done", "load", "kv_events", "adapters", "challenge")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    KV_EVENTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    tokens: TokenBatch
    logprobs: _containers.RepeatedCompositeFieldContainer[LogprobChunk]
    done: _containers.RepeatedCompositeFieldContainer[Done]
    load: Load
    kv_events: _containers.RepeatedCompositeFieldContainer[KvEventBatch]
    adapters: Adapters
    challenge: Challenge
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., tokens: _Optional[_Union[TokenBatch, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[LogprobChunk, _Mapping]]] = ..., done: _Optional[_Iterable[_Union[Done, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., kv_events: _Optional[_Iterable[_Union[KvEventBatch, _Mapping]]] = ..., adapters: _Optional[_Union[Adapters, _Mapping]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ...) -> None: ...

class Adapters(_message.Message):
    __slots__ = ("resident", "num_rows", "num_loaded", "num_loads", "load_s", "num_copies", "copy_s", "num_evictions", "num_hits")
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOADED_FIELD_NUMBER: _ClassVar[int]
    NUM_LOADS_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    NUM_COPIES_FIELD_NUMBER: _ClassVar[int]
    COPY_S_FIELD_NUMBER: _ClassVar[int]
    NUM_EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_HITS_FIELD_NUMBER: _ClassVar[int]
    resident: _containers.RepeatedScalarFieldContainer[str]
    num_rows: _containers.RepeatedScalarFieldContainer[int]
    num_loaded: int
    num_loads: int
    load_s: float
    num_copies: int
    copy_s: float
    num_evictions: int
    num_hits: int
    def __init__(self, resident: _Optional[_Iterable[str]] = ..., num_rows: _Optional[_Iterable[int]] = ..., num_loaded: _Optional[int] = ..., num_loads: _Optional[int] = ..., load_s: _Optional[float] = ..., num_copies: _Optional[int] = ..., copy_s: _Optional[float] = ..., num_evictions: _Optional[int] = ..., num_hits: _Optional[int] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("worker_id", "incarnation", "role", "model", "model_digest", "block_size", "max_model_len", "vocab_size", "version")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    role: str
    model: str
    model_digest: str
    block_size: int
    max_model_len: int
    vocab_size: int
    version: str
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., role: _Optional[str] = ..., model: _Optional[str] = ..., model_digest: _Optional[str] = ..., block_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class TokenBatch(_message.Message):
    __slots__ = ("handles", "num_tokens", "token_ids")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedScalarFieldContainer[int]
    num_tokens: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, handles: _Optional[_Iterable[int]] = ..., num_tokens: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TopLogprobs(_message.Message):
    __slots__ = ("token_id", "logprob", "rank", "top_ids", "top_logprobs")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    rank: int
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., rank: _Optional[int] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class LogprobChunk(_message.Message):
    __slots__ = ("handle", "tokens", "prompt")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    handle: int
    tokens: _containers.RepeatedCompositeFieldContainer[TopLogprobs]
    prompt: _containers.RepeatedCompositeFieldContainer[TopLogprobs]
    def __init__(self, handle: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[TopLogprobs, _Mapping]]] = ..., prompt: _Optional[_Iterable[_Union[TopLogprobs, _Mapping]]] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("handle", "finish_reason", "error_code", "error_message", "num_cached_tokens", "prefilled_by", "fallback_reason", "queue_s", "prefill_s", "transfer_s", "num_reasoning_tokens", "grammar_backend", "error_param", "num_pulled_tokens")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_BY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_REASON_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    NUM_REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_BACKEND_FIELD_NUMBER: _ClassVar[int]
    ERROR_PARAM_FIELD_NUMBER: _ClassVar[int]
    NUM_PULLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    finish_reason: str
    error_code: str
    error_message: str
    num_cached_tokens: int
    prefilled_by: str
    fallback_reason: str
    queue_s: float
    prefill_s: float
    transfer_s: float
    num_reasoning_tokens: int
    grammar_backend: str
    error_param: str
    num_pulled_tokens: int
    def __init__(self, handle: _Optional[int] = ..., finish_reason: _Optional[str] = ..., error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., num_cached_tokens: _Optional[int] = ..., prefilled_by: _Optional[str] = ..., fallback_reason: _Optional[str] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., transfer_s: _Optional[float] = ..., num_reasoning_tokens: _Optional[int] = ..., grammar_backend: _Optional[str] = ..., error_param: _Optional[str] = ..., num_pulled_tokens: _Optional[int] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("num_running", "num_waiting", "queued_prefill_tokens", "running_kv_tokens", "total_blocks", "free_blocks", "prefill_tokens_per_s", "decode_step_s", "draining", "itl_s", "steps", "transfers", "max_step_tokens", "kv_bytes_per_token", "kv_digest", "kv_num_blocks", "tiers", "unplaced_blocks", "grammars", "num_preemptions", "num_pushed_bytes", "num_pulled_tokens", "num_failed_pulls")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_STEP_S_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ITL_S_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    KV_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KV_NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    UNPLACED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    GRAMMARS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PUSHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_PULLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_PULLS_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    queued_prefill_tokens: int
    running_kv_tokens: int
    total_blocks: int
    free_blocks: int
    prefill_tokens_per_s: float
    decode_step_s: float
    draining: bool
    itl_s: float
    steps: _containers.RepeatedCompositeFieldContainer[StepSample]
    transfers: _containers.RepeatedCompositeFieldContainer[TransferSample]
    max_step_tokens: int
    kv_bytes_per_token: int
    kv_digest: int
    kv_num_blocks: int
    tiers: _containers.RepeatedCompositeFieldContainer[TierLoad]
    unplaced_blocks: int
    grammars: GrammarCounts
    num_preemptions: int
    num_pushed_bytes: int
    num_pulled_tokens: int
    num_failed_pulls: int
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., queued_prefill_tokens: _Optional[int] = ..., running_kv_tokens: _Optional[int] = ..., total_blocks: _Optional[int] = ..., free_blocks: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., decode_step_s: _Optional[float] = ..., draining: bool = ..., itl_s: _Optional[float] = ..., steps: _Optional[_Iterable[_Union[StepSample, _Mapping]]] = ..., transfers: _Optional[_Iterable[_Union[TransferSample, _Mapping]]] = ..., max_step_tokens: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., kv_digest: _Optional[int] = ..., kv_num_blocks: _Optional[int] = ..., tiers: _Optional[_Iterable[_Union[TierLoad, _Mapping]]] = ..., unplaced_blocks: _Optional[int] = ..., grammars: _Optional[_Union[GrammarCounts, _Mapping]] = ..., num_preemptions: _Optional[int] = ..., num_pushed_bytes: _Optional[int] = ..., num_pulled_tokens: _Optional[int] = ..., num_failed_pulls: _Optional[int] = ...) -> None: ...

class TierLoad(_message.Message):
    __slots__ = ("name", "num_blocks", "max_blocks", "num_wanted", "num_hits", "num_stored", "num_dropped", "num_errors", "load_s_per_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_WANTED_FIELD_NUMBER: _ClassVar[int]
    NUM_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_STORED_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    NUM_ERRORS_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_blocks: int
    max_blocks: int
    num_wanted: int
    num_hits: int
    num_stored: int
    num_dropped: int
    num_errors: int
    load_s_per_token: float
    def __init__(self, name: _Optional[str] = ..., num_blocks: _Optional[int] = ..., max_blocks: _Optional[int] = ..., num_wanted: _Optional[int] = ..., num_hits: _Optional[int] = ..., num_stored: _Optional[int] = ..., num_dropped: _Optional[int] = ..., num_errors: _Optional[int] = ..., load_s_per_token: _Optional[float] = ...) -> None: ...

class GrammarCounts(_message.Message):
    __slots__ = ("compiled", "refused", "num_hits", "num_cached", "compile_s", "num_masks", "fill_s", "num_jumped_tokens")
    class CompiledEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    COMPILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_FIELD_NUMBER: _ClassVar[int]
    COMPILE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_MASKS_FIELD_NUMBER: _ClassVar[int]
    FILL_S_FIELD_NUMBER: _ClassVar[int]
    NUM_JUMPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    compiled: _containers.ScalarMap[str, int]
    refused: _containers.ScalarMap[str, int]
    num_hits: int
    num_cached: int
    compile_s: float
    num_masks: int
    fill_s: float
    num_jumped_tokens: int
    def __init__(self, compiled: _Optional[_Mapping[str, int]] = ..., refused: _Optional[_Mapping[str, int]] = ..., num_hits: _Optional[int] = ..., num_cached: _Optional[int] = ..., compile_s: _Optional[float] = ..., num_masks: _Optional[int] = ..., fill_s: _Optional[float] = ..., num_jumped_tokens: _Optional[int] = ...) -> None: ...

class StepSample(_message.Message):
    __slots__ = ("num_new_tokens", "num_pairs", "num_rows", "kv_tokens", "seconds")
    NUM_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PAIRS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    num_new_tokens: int
    num_pairs: int
    num_rows: int
    kv_tokens: int
    seconds: float
    def __init__(self, num_new_tokens: _Optional[int] = ..., num_pairs: _Optional[int] = ..., num_rows: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class TransferSample(_message.Message):
    __slots__ = ("decode", "num_bytes", "seconds")
    DECODE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    decode: str
    num_bytes: int
    seconds: float
    def __init__(self, decode: _Optional[str] = ..., num_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class KvEventBatch(_message.Message):
    __slots__ = ("sequence", "cleared", "removed", "stored", "kept", "lost", "near", "far")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    NEAR_FIELD_NUMBER: _ClassVar[int]
    FAR_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    cleared: bool
    removed: bytes
    stored: bytes
    kept: bytes
    lost: bytes
    near: bytes
    far: bytes
    def __init__(self, sequence: _Optional[int] = ..., cleared: bool = ..., removed: _Optional[bytes] = ..., stored: _Optional[bytes] = ..., kept: _Optional[bytes] = ..., lost: _Optional[bytes] = ..., near: _Optional[bytes] = ..., far: _Optional[bytes] = ...) -> None: ...

class PeerHello(_message.Message):
    __slots__ = ("worker_id", "incarnation", "version", "model_digest", "connector", "agent_metadata", "kv_layout", "pool_address", "num_blocks", "device_id", "session", "model_config", "adapters", "mac", "ranks")
    class AdaptersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONNECTOR_FIELD_NUMBER: _ClassVar[int]
    AGENT_METADATA_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    POOL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    version: str
    model_digest: str
    connector: str
    agent_metadata: bytes
    kv_layout: str
    pool_address: int
    num_blocks: int
    device_id: int
    session: int
    model_config: str
    adapters: _containers.ScalarMap[str, str]
    mac: bytes
    ranks: _containers.RepeatedCompositeFieldContainer[PeerRank]
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., version: _Optional[str] = ..., model_digest: _Optional[str] = ..., connector: _Optional[str] = ..., agent_metadata: _Optional[bytes] = ..., kv_layout: _Optional[str] = ..., pool_address: _Optional[int] = ..., num_blocks: _Optional[int] = ..., device_id: _Optional[int] = ..., session: _Optional[int] = ..., model_config: _Optional[str] = ..., adapters: _Optional[_Mapping[str, str]] = ..., mac: _Optional[bytes] = ..., ranks: _Optional[_Iterable[_Union[PeerRank, _Mapping]]] = ...) -> None: ...

class PeerRank(_message.Message):
    __slots__ = ("agent_metadata", "kv_layout", "pool_address", "num_blocks", "device_id")
    AGENT_METADATA_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    POOL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    agent_metadata: bytes
    kv_layout: str
    pool_address: int
    num_blocks: int
    device_id: int
    def __init__(self, agent_metadata: _Optional[bytes] = ..., kv_layout: _Optional[str] = ..., pool_address: _Optional[int] = ..., num_blocks: _Optional[int] = ..., device_id: _Optional[int] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("worker_id", "incarnation", "version", "nonce", "mac")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    version: str
    nonce: bytes
    mac: bytes
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., version: _Optional[str] = ..., nonce: _Optional[bytes] = ..., mac: _Optional[bytes] = ...) -> None: ...

class DecodeMessage(_message.Message):
    __slots__ = ("hello", "prefill", "reservation", "cancel", "challenge", "lent", "released", "traceparent", "of_request", "pull_from")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    LENT_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    OF_REQUEST_FIELD_NUMBER: _ClassVar[int]
    PULL_FROM_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    prefill: Generate
    reservation: Reservation
    cancel: Cancel
    challenge: Challenge
    lent: Lent
    released: Released
    traceparent: str
    of_request: str
    pull_from: PrefillTarget
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., prefill: _Optional[_Union[Generate, _Mapping]] = ..., reservation: _Optional[_Union[Reservation, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ..., lent: _Optional[_Union[Lent, _Mapping]] = ..., released: _Optional[_Union[Released, _Mapping]] = ..., traceparent: _Optional[str] = ..., of_request: _Optional[str] = ..., pull_from: _Optional[_Union[PrefillTarget, _Mapping]] = ...) -> None: ...

class Reservation(_message.Message):
    __slots__ = ("request_id", "granted", "epoch", "num_cached_tokens", "block_ids")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    granted: bool
    epoch: int
    num_cached_tokens: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request_id: _Optional[str] = ..., granted: bool = ..., epoch: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class PrefillMessage(_message.Message):
    __slots__ = ("hello", "reserve", "first_token", "failed", "released", "challenge", "pull")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    reserve: Reserve
    first_token: FirstToken
    failed: Failed
    released: Released
    challenge: Challenge
    pull: Pull
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., reserve: _Optional[_Union[Reserve, _Mapping]] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., released: _Optional[_Union[Released, _Mapping]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ..., pull: _Optional[_Union[Pull, _Mapping]] = ...) -> None: ...

class Pull(_message.Message):
    __slots__ = ("prefix", "reservation")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    prefix: Generate
    reservation: Reservation
    def __init__(self, prefix: _Optional[_Union[Generate, _Mapping]] = ..., reservation: _Optional[_Union[Reservation, _Mapping]] = ...) -> None: ...

class Lent(_message.Message):
    __slots__ = ("request_id", "num_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    num_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("request_id", "token_id", "finish_reason", "logprob", "num_cached_tokens", "queue_s", "prefill_s", "num_reasoning_tokens", "grammar_backend", "num_pulled_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    NUM_REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_BACKEND_FIELD_NUMBER: _ClassVar[int]
    NUM_PULLED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_id: int
    finish_reason: str
    logprob: TopLogprobs
    num_cached_tokens: int
    queue_s: float
    prefill_s: float
    num_reasoning_tokens: int
    grammar_backend: str
    num_pulled_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., token_id: _Optional[int] = ..., finish_reason: _Optional[str] = ..., logprob: _Optional[_Union[TopLogprobs, _Mapping]] = ..., num_cached_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., num_reasoning_tokens: _Optional[int] = ..., grammar_backend: _Optional[str] = ..., num_pulled_tokens: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("request_id", "error_code", "error_message", "retryable", "error_param")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    ERROR_PARAM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    error_code: str
    error_message: str
    retryable: bool
    error_param: str
    def __init__(self, request_id: _Optional[str] = ..., error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., retryable: bool = ..., error_param: _Optional[str] = ...) -> None: ...

class Released(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class ProfileMessage(_message.Message):
    __slots__ = ("challenge", "request")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    challenge: Challenge
    request: ProfileRequest
    def __init__(self, challenge: _Optional[_Union[Challenge, _Mapping]] = ..., request: _Optional[_Union[ProfileRequest, _Mapping]] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("seconds", "steps", "mac")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    steps: int
    mac: bytes
    def __init__(self, seconds: _Optional[float] = ..., steps: _Optional[int] = ..., mac: _Optional[bytes] = ...) -> None: ...

class ProfileAnswer(_message.Message):
    __slots__ = ("challenge", "trace", "num_steps")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    challenge: Challenge
    trace: bytes
    num_steps: int
    def __init__(self, challenge: _Optional[_Union[Challenge, _Mapping]] = ..., trace: _Optional[bytes] = ..., num_steps: _Optional[int] = ...) -> None: ...

from __future__ import annotations

import pytest

from baton.protos.errors import ConfigError
from baton.router.times import H100_8B, ModelTimes, PrefillTimes, TransferTimes


@pytest.mark.parametrize(
    ("num_tokens", "measured_s"), [(512, 0.0173), (2048, 0.053), (8192, 0.216), (32768, 1.19)]
)
def test_the_h100_times_are_those_that_were_measured(num_tokens: int, measured_s: float) -> None:
    predicted_s = H100_8B.prefill_pool.prefill.predict(num_tokens)
    assert predicted_s == pytest.approx(measured_s, rel=0.03)


@pytest.mark.parametrize(("batch", "measured_s"), [(1, 6.55e-3), (64, 9.99e-3), (256, 20.8e-3)])
def test_so_are_the_decode_times(batch: int, measured_s: float) -> None:
    predicted_s = H100_8B.decode_pool.decode.predict(batch, batch * 1088)
    assert predicted_s == pytest.approx(measured_s, rel=0.03)


def test_cached_tokens_save_all_but_attention_to_them() -> None:
    prefill = PrefillTimes(fixed_s=1.0, per_token_s=0.1, per_pair_s=0.001, chunk_tokens=10)
    assert prefill.predict(10) == pytest.approx(1 + 1 + 0.05)
    assert prefill.predict(10, 100) == pytest.approx(1 + 1 + 1.05)
    assert prefill.predict(25) == pytest.approx(3 + 2.5 + 0.3125)
    assert prefill.predict(0, 100) == 0.0


def test_json_round_trip_and_what_it_refuses() -> None:
    assert ModelTimes.from_json(H100_8B.to_json()) == H100_8B
    for text, message in [
        ("[]", "object"),
        ("{", "not JSON"),
        ("{}", "lack 'prefill_pool'"),
        (H100_8B.to_json().replace("source", "sauce"), "no 'sauce'"),
        (H100_8B.to_json().replace("fixed_s", "fixed"), "not as"),
        (H100_8B.to_json().replace("0.0058", "-1"), "fixed_s is -1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ModelTimes.from_json(text)
    with pytest.raises(ConfigError, match="per_byte_s"):
        TransferTimes(fixed_s=0.0, per_byte_s=float("nan"))

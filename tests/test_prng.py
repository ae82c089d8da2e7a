"""Seeds: all 63 bits count, those below 2^32 give the numbers that they have always given, others are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.errors import UserError
from jaxbooth.prng import MAX_SEED, host_generator, key_data, root_key

SEEDS = st.integers(0, MAX_SEED)


def draws(seed: int) -> list[float]:
    return jax.random.normal(root_key(key_data(seed)), (4,)).tolist()


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_seed_of_32_bits_gives_the_keys_and_generators_that_jax_and_numpy_make_of_it(seed, number):
    assert key_data(seed).tolist() == jax.random.key_data(jax.random.key(seed)).tolist()
    expected = np.random.default_rng([seed, number]).integers(0, 2**63, 5)
    assert host_generator(seed, number).integers(0, 2**63, 5).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32 + 7, 2**40, MAX_SEED])
def test_a_key_is_the_one_that_jax_makes_with_64_bit_types(seed):
    with jax.enable_x64(True):
        assert key_data(seed).tolist() == jax.random.key_data(jax.random.key(seed)).tolist()


@given(first=SEEDS, second=SEEDS)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_two_seeds_never_share_a_key(first, second):
    assert (key_data(first).tolist() == key_data(second).tolist()) == (first == second)


@pytest.mark.parametrize("other", [7 + 2**32, 7 + 2**62, 7 + 2**31, MAX_SEED - 2**32 + 8])
def test_seeds_that_share_a_half_draw_other_numbers(other):
    assert draws(other) != draws(7)
    assert host_generator(other, 3).random() != host_generator(7, 3).random()


def test_a_number_does_not_stand_in_for_the_upper_half_of_a_seed():
    shared = {host_generator(5 + high * 2**32, number).random() for high in range(4) for number in range(4)}
    assert len(shared) == 16


def test_streams_tell_apart_what_is_drawn_for_the_same_index():
    drawn = {host_generator(seed, 3, stream).random() for seed in (5, 5 + 2**32) for stream in (0, 1, 2)}
    assert len(drawn) == 6
    assert host_generator(5, 3, 0).random() == host_generator(5, 3).random()


@pytest.mark.parametrize("seed", [-1, 2**63, -(2**63), 10**30])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UserError, match=r"seed -?\d+ is out of range; choose one from 0 to 9223372036854775807\."):
        key_data(seed)
    with pytest.raises(UserError, match="out of range"):
        host_generator(seed, 0)


def test_keys_are_threefry_whatever_the_default_is():
    with jax.default_prng_impl("rbg"):
        other = jax.random.key_data(root_key(key_data(3))).tolist()
    assert other == [0, 3]


def test_another_seed_runs_the_same_compiled_program():
    program = jax.jit(lambda data: jax.random.normal(root_key(data), (3,)))
    drawn = [program(jnp.asarray(key_data(seed))).tolist() for seed in (1, 2, 1 + 2**32, MAX_SEED)]
    assert len({tuple(values) for values in drawn}) == 4
    assert program._cache_size() == 1

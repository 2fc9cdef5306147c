# SPDX-License-Identifier: Apache-2.0
"""Simulated power of a sweep."""

import pytest

from deres_jax.core.errors import UserError
from deres_jax.scaling.laws import power

NOISY = power.Truth(noise_sd=2.5e-3)


def test_power_grows_with_seeds_and_is_seeded():
  lines = power.power_table(NOISY, (1, 2, 4, 8), (6,), (1.5,), trials=120)
  powers = [x['power'] for x in lines]
  assert powers == sorted(powers) and powers[0] < 0.65 and powers[-1] > powers[0] + 0.2
  widths = [x['ratio_high'] - x['ratio_low'] for x in lines]
  assert widths == sorted(widths, reverse=True)
  assert [x['runs'] for x in lines] == [12, 24, 48, 96]
  few = [power.power_table(NOISY, (1,), (6,), (1.5,), trials=20, seed=seed) for seed in (0, 0, 1)]
  assert few[0] == few[1] != few[2]


@pytest.mark.slow
def test_power_grows_with_decades_and_budgets_and_falls_with_noise():
  def one(truth=NOISY, budgets=6, decades=1.5):
    return power.simulate(truth, 2, budgets, decades, 120, 0, 'saturating')['power']

  assert one(decades=1.0) < one() < one(decades=3.0)
  assert one() < one(budgets=16)
  assert one(power.Truth(noise_sd=1e-2)) < one()


def test_power_without_a_difference_is_the_level():
  same = power.Truth(gammas=(0.1, 0.1), noise_sd=3e-4)
  x = power.simulate(same, 3, 8, 2.0, 500, 0, 'saturating')
  assert 0.02 <= x['power'] <= 0.08 and x['ratio_low'] < 1 < x['ratio_high']


def test_free_asymptotes_need_far_more():
  truth = power.Truth(noise_sd=3e-4)
  shared, free = (
    power.simulate(truth, 3, 10, 1.5, 100, 0, law)['power']
    for law in ('saturating', 'saturating_free')
  )
  assert shared == 1.0 and free < 0.5


def test_cheapest_has_the_fewest_runs():
  lines = [
    {'runs': 10, 'decades': 1.0, 'power': 0.5},
    {'runs': 20, 'decades': 2.0, 'power': 0.9},
    {'runs': 20, 'decades': 1.0, 'power': 0.8},
    {'runs': 30, 'decades': 1.0, 'power': 1.0},
  ]
  assert power.cheapest(lines) == lines[2] and power.cheapest(lines[:1]) is None


@pytest.mark.parametrize(
  ('truth', 'grid', 'words'),
  [
    (power.Truth(noise_sd=0.0), ((1,), (5,), (1.0,)), 'noise_sd 0.0'),
    (power.Truth(gammas=(0.1, -1.0)), ((1,), (5,), (1.0,)), 'gammas'),
    (power.Truth(gap=0.4), ((1,), (5,), (1.0,)), 'gap 0.4'),
    (power.Truth(), ((1,), (3,), (1.0,)), '3 budgets'),
    (power.Truth(), ((0,), (5,), (1.0,)), 'at least 1'),
  ],
)
def test_invalid_simulations_raise(truth, grid, words):
  with pytest.raises(UserError, match=words):
    power.power_table(truth, *grid)

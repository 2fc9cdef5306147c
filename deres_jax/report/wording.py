# SPDX-License-Identifier: Apache-2.0
"""Figures of fit.json as text: what is printed and what stands on the page are the same."""

from typing import Any


def interval(x: dict[str, Any], form: str = '.4g') -> str:
  """'0.071 [0.066, 0.077]'; an open end is in round brackets."""

  def end(value, infinite):
    return infinite if value is None else f'{value:{form}}'

  left, right = '(['[not x['low_open']], ')]'[not x['high_open']]
  low, high = end(x['low'], '-inf'), end(x['high'], 'inf')
  return f'{end(x["estimate"], "none")} {left}{low}, {high}{right}'


def against(x: dict[str, Any], value: float) -> str:
  """Where an interval lies: 'larger' or 'smaller' than `value`, 'open' if it holds the value."""
  if x['low'] is not None and x['low'] > value:
    return 'larger'
  if x['high'] is not None and x['high'] < value:
    return 'smaller'
  return 'open'


def names(some: list[str]) -> str:
  """'A', 'A and B', 'A, B and C'."""
  return ' and '.join([', '.join(some[:-1]), some[-1]] if len(some) > 1 else some)


def optional(value: float | None, form: str) -> str:
  """A figure, or nothing where there is none."""
  return '' if value is None else f'{value:{form}}'

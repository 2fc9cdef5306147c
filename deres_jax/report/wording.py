# SPDX-License-Identifier: Apache-2.0
"""Numbers of fit.json and inspect.json as text, the same on a terminal and on a page."""

import math
from typing import Any

_SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')


def number(value: float | None, form: str) -> str:
  """Returns a number with a true minus sign, or nothing for None; zero has no sign.

  >>> number(-0.25, '.1f'), number(-0.001, '.1f'), number(0.5, '+.1f'), number(None, '.1f')
  ('−0.2', '0.0', '+0.5', '')
  """
  if value is None:
    return ''
  text = f'{value:{form}}'
  zero = float(text.rstrip('%')) == 0
  return ('' if zero else '−') + text[1:] if text.startswith('-') else text


def compact(value: float) -> str:
  """Returns a short label: 1, 20k, 2.5M, 3G, 4T, 5·10¹⁵."""
  if value >= 1e15:
    power = math.floor(math.log10(value) + 1e-12)
    digits = f'{value / 10.0**power:.3g}'
    return ('' if digits == '1' else f'{digits}·') + f'10{str(power).translate(_SUPERSCRIPT)}'
  for size, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.3g}{unit}'
  return f'{value:.3g}'


def interval(x: dict[str, Any], form: str = '.4g') -> str:
  """Returns '0.071 [0.066, 0.077]'; an open end is in round brackets."""

  def end(value, infinite):
    return infinite if value is None else f'{value:{form}}'

  left, right = '(['[not x['low_open']], ')]'[not x['high_open']]
  low, high = end(x['low'], '-inf'), end(x['high'], 'inf')
  return f'{end(x["estimate"], "none")} {left}{low}, {high}{right}'


def against(x: dict[str, Any], value: float) -> str:
  """Returns where an interval lies: 'larger' or 'smaller' than `value`, 'open' if it holds it."""
  if x['low'] is not None and x['low'] > value:
    return 'larger'
  if x['high'] is not None and x['high'] < value:
    return 'smaller'
  return 'open'


def names(items: list[str]) -> str:
  """Returns 'A', 'A and B' or 'A, B and C'."""
  return ' and '.join([', '.join(items[:-1]), items[-1]] if len(items) > 1 else items)


def optional(value: float | None, form: str) -> str:
  """Formats a figure; nothing where there is none."""
  return '' if value is None else f'{value:{form}}'

# SPDX-License-Identifier: Apache-2.0
"""The Avazu text: comma-separated with a header; `id` is unique to a row and never read."""

import numpy as np

from data_pipelines.text_table import HEX, INTEGER, LABEL, TEXT, Column, Parsed, TextTable

_KINDS = {
  'id': TEXT,
  'click': LABEL,
  'hour': INTEGER,  # YYMMDDHH, UTC
  **dict.fromkeys(('C1', 'banner_pos'), INTEGER),
  **dict.fromkeys(('site_id', 'site_domain', 'site_category'), HEX),
  **dict.fromkeys(('app_id', 'app_domain', 'app_category'), HEX),
  **dict.fromkeys(('device_id', 'device_ip', 'device_model'), HEX),
  **dict.fromkeys(('device_type', 'device_conn_type'), INTEGER),
  **dict.fromkeys((f'C{k}' for k in range(14, 22)), INTEGER),
}

AVAZU_TEXT = TextTable(
  separator=b',',
  columns=tuple(Column(name, kind) for name, kind in _KINDS.items()),
  required=True,  # the published file has no empty value
)
INTEGERS = tuple(name for name, kind in _KINDS.items() if kind == INTEGER)
HEXES = tuple(name for name, kind in _KINDS.items() if kind == HEX)


def hours_of(parsed: Parsed) -> np.ndarray:
  """The hour column, YYMMDDHH: int64 [rows]."""
  return parsed.ints_NI[:, INTEGERS.index('hour')]


def dates_of(hour_N: np.ndarray) -> np.ndarray:
  """Days of values YYMMDDHH, in 2010 to 2099: datetime64[D] [rows], NaT where there is none."""
  years_N = hour_N // 1_000_000
  month_N, day_N, clock_N = hour_N // 10_000 % 100, hour_N // 100 % 100, hour_N % 100
  there_N = (years_N >= 10) & (years_N <= 99) & (month_N >= 1) & (month_N <= 12) & (clock_N <= 23)
  months_N = (np.where(there_N, years_N + 30, 0) * 12 + month_N - 1).astype('datetime64[M]')
  date_N = months_N.astype('datetime64[D]') + (day_N - 1)
  # Day 0 and the 31st of April lie in another month.
  there_N &= date_N.astype('datetime64[M]') == months_N
  return np.where(there_N, date_N, np.datetime64('NaT'))


def faults(parsed: Parsed) -> dict[int, str]:
  """See TextProtocol.faults: hours that no calendar has."""
  hour_N = hours_of(parsed)
  return {
    row: f'hour: expected YYMMDDHH, a date and an hour, found {hour_N[row]}'
    for row in np.flatnonzero(np.isnat(dates_of(hour_N))).tolist()
  }

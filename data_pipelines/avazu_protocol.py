# SPDX-License-Identifier: Apache-2.0
"""The protocols of Avazu: fields, calendar, splits and minimum counts.

Source: reczoo/Datasets Avazu_x4 (8:1:1 at random, minimum count 2, `hour` as hour, weekday and
weekend; FuxiCTR `datasets/avazu.py`) and Avazu_x1 (7:1:2, minimum count 1, 22 fields). Those
publish fixed files; here are splits in their proportions. x4: at random, with a seed of our own.

x1 is said to be random, but its published click rates (17.50 % train, 16.79 % validation, 15.25 %
test) cannot come from a random split of so many rows. It is taken here as a split in the order
of time; that is our reading, not a published fact. Its 22 fields are taken to be, from their
published vocabulary sizes, the columns C1 to C21 and then the hour of the day. Never compare
figures of x1 with figures of x4.

`time` is x4 with 8:1:1 in the order of time.
"""

import numpy as np

from data_pipelines.avazu_parse import HEXES, INTEGERS, dates_of
from data_pipelines.protocols import Split

CALENDAR = ('hour', 'weekday', 'weekend')
# In file order.
_COLUMNS = (
  *('C1', 'banner_pos', 'site_id', 'site_domain', 'site_category', 'app_id', 'app_domain'),
  *('app_category', 'device_id', 'device_ip', 'device_model', 'device_type', 'device_conn_type'),
  *(f'C{k}' for k in range(14, 22)),
)
assert {*_COLUMNS, 'hour'} == {*INTEGERS, *HEXES}

FIELDS = {
  'x4': (*CALENDAR, *_COLUMNS),
  'x1': (*_COLUMNS, 'hour'),
  'time': (*CALENDAR, *_COLUMNS),
}
SPLIT_PROTOCOLS = {
  'x4': Split(8, 1, 1),
  'x1': Split(7, 1, 2, by_time=True),
  'time': Split(8, 1, 1, by_time=True),
}
MIN_COUNTS = {'x4': 2, 'x1': 1, 'time': 2}


def calendar(hour_N: np.ndarray) -> dict[str, np.ndarray]:
  """The calendar fields of valid values YYMMDDHH.

  Returns:
    hour: of the day, 0 to 23. weekday: 0 (Sunday) to 6. weekend: 1 on Saturday and Sunday. All
    int64 [rows].
  """
  days_N = dates_of(hour_N).astype(np.int64)  # since 1970-01-01, a Thursday
  weekday_N = (days_N + 4) % 7
  weekend_N = ((weekday_N == 0) | (weekday_N == 6)).astype(np.int64)
  return {'hour': hour_N % 100, 'weekday': weekday_N, 'weekend': weekend_N}

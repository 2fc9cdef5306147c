# SPDX-License-Identifier: Apache-2.0
"""Fields of an impression and attributes of an event: their keys, tokens and recipes.

Shapes: N rows, U distinct keys, M any number of ages.
"""

import functools
import math

import numpy as np

from data_pipelines.datasets.kuairand.logs import FEEDBACK, log_protocol
from data_pipelines.prepared import recipes
from data_pipelines.prepared.schema import FIRST_TOKEN_ID
from data_pipelines.prepared.vocabulary import decimal_tokens
from data_pipelines.text.ingest import TextProtocol
from data_pipelines.text.sequences import EventAttribute, EventSpec

ONE_HOT = tuple(f'onehot_feat{k}' for k in range(18))
# Columns of the side tables: integers (also written as 3.0), or text.
VIDEO_INTEGERS = ('author_id', 'tag', 'music_type')
VIDEO_TEXTS = ('video_type', 'upload_type')
USER_INTEGERS = ('is_lowactive_period', 'is_live_streamer', 'is_video_author', *ONE_HOT)
USER_RANGES = tuple(
  f'{name}_range' for name in ('follow_user_num', 'fans_user_num', 'friend_user_num')
)
USER_TEXTS = ('user_active_degree', *USER_RANGES, 'register_days_range')

FIELDS = (
  *('user_id', 'video_id', 'author_id', 'tag', 'video_type', 'upload_type', 'music_type', 'tab'),
  *('hour', 'weekday', 'duration', 'user_active_degree', 'is_lowactive_period'),
  *('is_live_streamer', 'is_video_author', *USER_RANGES, 'register_days_range', *ONE_HOT),
)
SHARED = ('video_id', 'author_id', 'tag')  # fields that share their ids with events

_UTC_OFFSET_MS = 8 * 3_600_000  # the platform's time zone
_DAY_MS = 24 * 3_600_000

# Half octaves from one second to 4096 s; duration d is in bucket "number of edges up to d".
DURATION_EDGES_MS = np.array([math.isqrt(10**6 << k) for k in range(25)])
GAP_BUCKETS = 26  # below a second, then from 2^(k-1) s on, k = 1, 2, ... 25


def calendar(time_N: np.ndarray) -> dict[str, np.ndarray]:
  """Returns hour (0 to 23) and weekday (0 = Sunday) at UTC+8 of milliseconds since 1970."""
  local_N = time_N + _UTC_OFFSET_MS
  # 1970-01-01 was a Thursday.
  return {'hour': local_N // 3_600_000 % 24, 'weekday': (local_N // _DAY_MS + 4) % 7}


def duration_bucket(duration_N: np.ndarray) -> np.ndarray:
  """Returns the bucket of milliseconds, 0 to 25: 0 below a second, then half octaves."""
  return np.searchsorted(DURATION_EDGES_MS, duration_N, side='right')


def gap_ids(age_M: np.ndarray) -> np.ndarray:
  """Returns the ids of milliseconds from an event to the row: octaves of whole seconds."""
  # The exponent is the bit length of the seconds: 0 for 0, 1 for 1, 2 for 2 and 3, ...
  _, bits_M = np.frexp((age_M // 1000).astype(np.float64))
  return np.minimum(bits_M, GAP_BUCKETS - 1) + FIRST_TOKEN_ID


def gap_tokens() -> tuple[bytes, ...]:
  """Returns the lower edge of each bucket of a gap, in seconds."""
  return (b'0', *(b'%d' % (1 << k) for k in range(GAP_BUCKETS - 1)))


def feedback_tokens() -> tuple[bytes, ...]:
  """Returns the names of the sets 1 to 63 of feedback, such as "click+like"; set s has id s + 1."""
  names = [name.removeprefix('is_') for name in FEEDBACK]
  return tuple(
    '+'.join(name for k, name in enumerate(names) if bits >> k & 1).encode('ascii')
    for bits in range(1, 1 << len(names))
  )


def feedback_ids(feedback_N: np.ndarray) -> np.ndarray:
  """Returns the ids of sets that are not empty."""
  return (feedback_N + (FIRST_TOKEN_ID - 1)).astype(np.int32)


def tokens(texts: dict[str, tuple[bytes, ...]], f: int, keys_U: np.ndarray) -> np.ndarray:
  """See TextProtocol.tokens: texts, the lower edge of `duration` in milliseconds, else decimals."""
  name = FIELDS[f]
  if name == 'duration':
    return decimal_tokens(np.concatenate(([0], DURATION_EDGES_MS))[keys_U])
  if name in texts:
    return np.array(texts[name], np.bytes_)[keys_U]
  return decimal_tokens(keys_U)


def field_recipe(name: str) -> recipes.Recipe:
  """Returns how columns of the logs and the side tables become the tokens of a field."""
  if name in ('hour', 'weekday'):
    return recipes.calendar_ms('time_ms', name, _UTC_OFFSET_MS)
  if name == 'duration':
    edges = DURATION_EDGES_MS.tolist()
    return recipes.buckets('duration_ms', edges, ['0', *map(str, edges)])
  if name in (*USER_TEXTS, *VIDEO_TEXTS):
    return recipes.text(name)
  if name in (*USER_INTEGERS, *VIDEO_INTEGERS):
    return recipes.integer_of_list(name)
  return recipes.integer(name)


def event_recipes() -> dict[str, recipes.Recipe]:
  """Returns the recipes of the attributes that only events have."""
  names = [name.removeprefix('is_') for name in FEEDBACK]
  tokens = [token.decode('ascii') for token in gap_tokens()]
  edges = [1000 << k for k in range(GAP_BUCKETS - 1)]
  return {
    'feedback': recipes.subset('feedback', names),
    'gap': recipes.age_buckets('time_ms', edges, tokens),
  }


def event_spec(length: int) -> EventSpec:
  """Returns the specification of sequences of `length` events."""
  return EventSpec(
    length,
    (
      *(EventAttribute(name, field=FIELDS.index(name)) for name in SHARED),
      EventAttribute('feedback', tokens=feedback_tokens()),
      EventAttribute('gap', tokens=gap_tokens(), age=gap_ids),
    ),
    item=FIELDS.index('video_id'),
    group=FIELDS.index('user_id'),
  )


def row_protocol(label: str, length: int, texts: dict[str, tuple[bytes, ...]]) -> TextProtocol:
  """Returns the protocol that encodes rows grouped by user.

  Args:
    texts: ascending tokens of the text columns; a key is an index into these.
  """
  logs = log_protocol(label)
  return TextProtocol(
    table=logs.table,
    fields=FIELDS,
    keys=logs.keys,
    missing_kept=(False,) * len(FIELDS),
    tokens=functools.partial(tokens, texts),
    expected=logs.expected,
    events=event_spec(length),
    recipes={**{name: field_recipe(name) for name in FIELDS}, **event_recipes()},
  )

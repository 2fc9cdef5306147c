# SPDX-License-Identifier: Apache-2.0
"""Invented rows in the KuaiRand layout (no row here is real), and the protocol in plain Python."""

import collections
import datetime
import gzip
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
from invented_rows import open_split

SPLIT_NAMES = ('train', 'validation', 'test')
LOG_HEADER = (
  'user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,'
  'long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,'
  'tab'
)
USER_HEADER = (
  'user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,'
  'follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,'
  'friend_user_num_range,register_days,register_days_range'
)
VIDEO_HEADER = (
  'video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,'
  'server_height,music_id,music_type,tag'
)
LOG_NAMES, VIDEO_NAMES = LOG_HEADER.split(','), VIDEO_HEADER.split(',')
ONE_HOT = [f'onehot_feat{k}' for k in range(18)]
USER_NAMES = [*USER_HEADER.split(','), *ONE_HOT]
FEEDBACK = ('is_click', 'is_like', 'is_follow', 'is_comment', 'is_forward', 'long_view')
_FIELDS = (
  'user_id,video_id,author_id,tag,video_type,upload_type,music_type,tab,hour,weekday,duration,'
  'user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num_range,'
  'fans_user_num_range,friend_user_num_range,register_days_range'
)
FIELDS = [*_FIELDS.split(','), *ONE_HOT]
EARLY, LATE = 'log_standard_4_08_to_4_21_1k.csv', 'log_standard_4_22_to_5_08_1k.csv'
RANDOM = 'log_random_4_22_to_5_08_1k.csv'
USERS, VIDEOS = 'user_features_1k.csv', 'video_features_basic_1k.csv'
START_MS = 1_649_400_000_000
COLD_USER = 5  # never responds


def log_rows(count: int, seed: int = 0) -> list[dict]:
  """Impressions of eleven users in no order, many in the same millisecond."""
  rng = random.Random(seed)
  rows = []
  for _ in range(count):
    user = rng.choice([0, 1, 1, 1, 2, 3, COLD_USER, 7, 8, 12345678901, -4])
    scale = rng.choice([1, 700, 90_000, 40_000_000])
    row = dict.fromkeys(LOG_NAMES, 0) | {
      'user_id': user,
      'video_id': rng.choice([0, 3, 7, 7, 9, *range(20, 44)]),
      'time_ms': START_MS + rng.randrange(30) * scale,
      'duration_ms': rng.choice([0, 999, 1000, 1414, 1415, 17_200, 104_400, 10**7]),
      'play_time_ms': rng.randrange(10**5),
      'tab': rng.randrange(4),
    }
    if user != COLD_USER:
      row |= {name: int(rng.random() < 0.15) for name in FEEDBACK}
    rows.append(row)
  return rows


def user_rows(seed: int = 0) -> list[dict]:
  """Features of the users except 7: quoted ranges, floats, empty values."""
  rng = random.Random(seed)
  rows = []
  for user in (3, 2, 1, 0, COLD_USER, 8, 12345678901, -4, 99):
    row = dict.fromkeys(USER_NAMES, '1')
    row |= {name: rng.choice(['', '0.0', '1.0', '1', '17']) for name in ONE_HOT}
    row |= {
      'user_id': str(user),
      'user_active_degree': rng.choice(['full_active', 'UNKNOWN', '']),
      'is_live_streamer': rng.choice(['0', '1', '-124']),
      'follow_user_num_range': rng.choice(['0', '(0,10]', '(10,50]', '500+']),
      'fans_user_num_range': rng.choice(['[1,10)', '[1k,5k)', '']),
      'register_days_range': rng.choice(['730+', '15-30']),
    }
    rows.append(row)
  return rows


def video_rows(seed: int = 0) -> list[dict]:
  """Features of the videos except 9 and 43, in no order: lists of tags, floats, empty values."""
  rng = random.Random(seed)
  videos = [0, 3, 7, *range(20, 43), 1000]
  rng.shuffle(videos)
  return [
    dict.fromkeys(VIDEO_NAMES, '5.0')
    | {
      'video_id': str(video),
      'author_id': str(rng.choice([2, 10, 9, 8_839_734])),
      'video_type': rng.choice(['NORMAL', 'AD']),
      'upload_dt': rng.choice(['2022-04-10', '']),
      'upload_type': rng.choice(['ShortImport', 'Web', '', 'Größe']),
      'music_type': rng.choice(['9.0', '4.0', '']),
      'tag': rng.choice(['', '12', '12,34', '65,12', '2.0']),
    }
    for video in videos
  ]


def write_table(path: Path, names: list[str], rows: list[dict], packed: bool = False) -> Path:
  """Writes a CSV file, values with commas quoted; zipped, it gets the ending .gz."""
  lines = []
  for row in [dict(zip(names, names, strict=True)), *rows]:
    values = [str(row[name]) for name in names]
    lines.append(','.join(f'"{v}"' if ',' in v else v for v in values) + '\n')
  data = ''.join(lines).encode()
  if packed:
    path = path.with_name(f'{path.name}.gz')
  path.write_bytes(gzip.compress(data) if packed else data)
  return path


def write_folder(folder: Path, logs: dict[str, list[dict]], packed: bool = False) -> Path:
  """Writes a whole folder, with a file that is not read."""
  folder.mkdir(parents=True)
  for name, rows in logs.items():
    write_table(folder / name, LOG_NAMES, rows, packed)
  write_table(folder / USERS, USER_NAMES, user_rows(), packed)
  write_table(folder / VIDEOS, VIDEO_NAMES, video_rows(), packed)
  (folder / 'video_features_statistic_1k.csv').write_text('not looked at')
  return folder


def _token(text: str) -> str | None:
  """Returns the text of a value of a side table; None if it is missing."""
  first = text.split(',')[0] if text[:1] not in ('(', '[') else text
  return first.removesuffix('.0') or None


def row_tokens(row: dict, users: dict, videos: dict) -> dict:
  """The tokens of a row's fields."""
  moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(hours=8, milliseconds=row['time_ms'])
  edges = [0, *(math.isqrt(10**6 * 2**k) for k in range(25))]
  out = {name: str(row[name]) for name in ('user_id', 'video_id', 'tab')}
  out['hour'], out['weekday'] = str(moment.hour), moment.strftime('%w')
  out['duration'] = str(max(edge for edge in edges if edge <= row['duration_ms']))
  for table, key in ((users, 'user_id'), (videos, 'video_id')):
    known = table.get(str(row[key]), {})
    out |= {name: _token(text) for name, text in known.items() if name in FIELDS and name != key}
  return {name: out.get(name) for name in FIELDS}


def gap_id(age_ms: int) -> int:
  """Id of the time between an event and a row."""
  return 2 + min((age_ms // 1000).bit_length(), 25)


def feedback_id(row: dict) -> int:
  """Id of the kinds of feedback of an event."""
  return 1 + sum(2**k for k, name in enumerate(FEEDBACK) if row[name])


def past_of(row: dict, rows: list[dict], length: int) -> list[dict]:
  """The events of a row, oldest first; rows are in order of time."""
  events = [
    other
    for other in rows
    if other['user_id'] == row['user_id']
    and other['time_ms'] < row['time_ms']
    and any(other[name] for name in FEEDBACK)
  ]
  return events[-length:]


def cut(times: list[int], tenths: int) -> int:
  """Finds the time at which rows are cut by trying all."""
  tries = sorted({*times, max(times) + 1})
  below = {t: sum(time < t for time in times) for t in tries}
  return min(tries, key=lambda t: (abs(10 * below[t] - tenths * len(times)), t))


def reference(rows: list[dict], label: str, length: int, min_count: int, seed: int) -> dict:
  """The protocol in plain Python, of rows in the order of the raw files."""
  users = {row['user_id']: row for row in user_rows()}
  videos = {row['video_id']: row for row in video_rows()}
  # sorted() keeps the order of the files where all else is equal.
  rows = sorted(rows, key=lambda r: (r['user_id'] * 0x9E3779B97F4A7C15 % 2**64, r['time_ms']))
  groups = {user: g for g, user in enumerate(dict.fromkeys(row['user_id'] for row in rows))}
  times = [row['time_ms'] for row in rows]
  borders = [cut(times, 8), cut(times, 9)]
  generator, splits = np.random.default_rng(seed), {}
  for s, split in enumerate(SPLIT_NAMES):
    numbers = [i for i, t in enumerate(times) if sum(t >= border for border in borders) == s]
    splits[split] = generator.permutation(np.array(numbers)).tolist()
  tokens = [row_tokens(row, users, videos) for row in rows]
  vocabularies, counts_of = {}, {}
  for name in FIELDS:
    counts = collections.Counter(tokens[i][name] for i in splits['train'])
    counts.pop(None, None)
    kept = [token for token in counts if counts[token] >= min_count]
    # Tokens are compared as bytes.
    vocabularies[name] = sorted(kept, key=lambda token: (-counts[token], token.encode()))
    counts_of[name] = [counts[token] for token in vocabularies[name]]
  ids_of = {name: {t: 2 + i for i, t in enumerate(v)} for name, v in vocabularies.items()}

  def events(i: int) -> list[list[int]]:
    past = past_of(rows[i], rows, length)
    found = [
      [
        *(
          ids_of[name].get(row_tokens(event, users, videos)[name], 1)
          for name in ('video_id', 'author_id', 'tag')
        ),
        feedback_id(event),
        gap_id(rows[i]['time_ms'] - event['time_ms']),
      ]
      for event in past
    ]
    return [[0] * 5] * (length - len(past)) + found

  encoded = {
    split: {
      'ids': [[ids_of[name].get(tokens[i][name], 1) for name in FIELDS] for i in numbers],
      'label': [rows[i][label] for i in numbers],
      'events': [events(i) for i in numbers],
      'group': [groups[rows[i]['user_id']] for i in numbers],
    }
    for split, numbers in splits.items()
  }
  missing = {
    name: sum(tokens[i][name] is None for i in splits['train']) / len(splits['train'])
    for name in FIELDS
  }
  return {
    'splits': encoded,
    'vocabularies': vocabularies,
    'missing': missing,
    'groups': len(groups),
    'borders': tuple(border(counts_of['video_id'], share) for share in (0.5, 0.9)),
  }


def border(counts: list[int], share: float) -> int:
  """First id beyond the fewest items that make this share of the known rows."""
  for k, total in enumerate(itertools.accumulate(counts)):
    if total / sum(counts) >= share:
      return k + 3
  return 2


def read_kuairand(folder: Path):
  """The schema and, by split, the stored arrays."""
  schema = json.loads((folder / 'schema.json').read_text())
  arrays = {}
  for split in SPLIT_NAMES:
    blocks = list(open_split(folder / schema['tfds'], split))
    arrays[split] = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
  return schema, arrays

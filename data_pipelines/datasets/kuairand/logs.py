# SPDX-License-Identifier: Apache-2.0
"""The KuaiRand logs: comma-separated integers, one impression a line, in any order."""

import functools

import numpy as np

from data_pipelines.text.ingest import TextProtocol
from data_pipelines.text.parser import INTEGER, LABEL, Column, Parsed, TextTable

COLUMNS = (
  *('user_id', 'video_id', 'date', 'hourmin', 'time_ms', 'is_click', 'is_like', 'is_follow'),
  *('is_comment', 'is_forward', 'is_hate', 'long_view', 'play_time_ms', 'duration_ms'),
  *('profile_stay_time', 'comment_stay_time', 'is_profile_enter', 'is_rand', 'tab'),
)
# Positive feedback: bit k of `feedback` is column k.
FEEDBACK = ('is_click', 'is_like', 'is_follow', 'is_comment', 'is_forward', 'long_view')
LABELS = ('is_click', 'long_view', 'is_like')
STORED = ('user_id', 'video_id', 'time_ms', 'tab', 'duration_ms', 'feedback')  # of a row
MAX_TIME_MS = 1 << 43  # the year 2248


def log_table(label: str) -> TextTable:
  """Returns the layout of a log whose label is one of LABELS."""
  columns = (Column(name, LABEL if name == label else INTEGER) for name in COLUMNS)
  return TextTable(separator=b',', columns=tuple(columns), required=True)


def _columns(label: str, parsed: Parsed) -> dict[str, np.ndarray]:
  """Returns the columns of the valid rows, by name."""
  names = [name for name in COLUMNS if name != label]
  columns = {name: parsed.ints_NI[:, i] for i, name in enumerate(names)}
  return {**columns, label: parsed.label_N}


def keys(label: str, parsed: Parsed) -> list[tuple[np.ndarray, np.ndarray]]:
  """See TextProtocol.keys; the fields are STORED."""
  columns = _columns(label, parsed)
  feedback_N = np.zeros(len(parsed.label_N), np.int64)
  for k, name in enumerate(FEEDBACK):
    feedback_N |= columns[name].astype(np.int64) << k
  columns['feedback'] = feedback_N
  missing_N = np.zeros(len(feedback_N), bool)
  return [(columns[name], missing_N) for name in STORED]


def faults(label: str, parsed: Parsed) -> dict[int, str]:
  """See TextProtocol.faults: feedback other than 0 and 1, and impossible times."""
  columns, reasons = _columns(label, parsed), {}
  for name in FEEDBACK:
    values_N = columns[name]
    for row in np.flatnonzero((values_N < 0) | (values_N > 1)).tolist():
      reasons.setdefault(row, f'{name} must be 0 or 1, found {values_N[row]}')
  time_N = columns['time_ms']
  for row in np.flatnonzero((time_N <= 0) | (time_N >= MAX_TIME_MS)).tolist():
    reasons.setdefault(row, f'time_ms: expected milliseconds since 1970, found {time_N[row]}')
  return reasons


def log_protocol(label: str) -> TextProtocol:
  """Returns the protocol that ingests the logs, before their rows are grouped by user."""
  return TextProtocol(
    table=log_table(label),
    fields=STORED,
    keys=functools.partial(keys, label),
    missing_kept=(False,) * len(STORED),
    tokens=None,
    expected=f'a KuaiRand log: {", ".join(COLUMNS[:5])}, ..., {COLUMNS[-1]}, '
    f'{len(COLUMNS)} comma-separated integers',
    faults=functools.partial(faults, label),
  )

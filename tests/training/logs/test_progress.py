# SPDX-License-Identifier: Apache-2.0
"""The progress of a run on terminals of all kinds: time left, config, last line."""

import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from deres_jax import config
from deres_jax.config import diff, fields
from deres_jax.core import terminal
from deres_jax.training import result
from deres_jax.training.logs import progress

REPO = pathlib.Path(__file__).resolve().parents[3]


def shown(what, columns, environ):
  """The output on a terminal of this width, as text."""
  ours, theirs = pty.openpty()
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
  kept = {k: v for k, v in os.environ.items() if k not in ('NO_COLOR', 'COLUMNS', 'LINES')}
  process = subprocess.Popen(
    [sys.executable, REPO / 'tests' / 'helpers' / 'screen.py', what],
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
    env=kept | {'PYTHONPATH': str(REPO)} | environ,
    cwd=REPO,
  )
  os.close(theirs)
  data = b''
  while True:
    try:
      more = os.read(ours, 4096)
    except OSError:  # Linux says so where the other end is closed
      break
    if not more:
      break
    data += more
  os.close(ours)
  assert process.wait() == 0, data
  return data.decode()


COLOUR = re.compile(r'\x1b\[[\d;]*m')


def test_a_dumb_terminal_gets_plain_lines():
  text = shown('run', 80, {'TERM': 'dumb'})
  assert text == '[red]step 40/40[/red]  validation auc 0.70000\r\n'
  text = shown('build', 80, {'TERM': 'dumb'})
  assert '\x1b' not in text and 'reading: 50 rows' in text


def test_no_color_leaves_the_bar_and_takes_the_colours():
  text = shown('run', 80, {'TERM': 'xterm-256color', 'NO_COLOR': '1'})
  assert '\x1b[' in text and not COLOUR.search(text)
  assert 'step 40/40' in COLOUR.sub('', text)
  assert COLOUR.search(shown('run', 80, {'TERM': 'xterm-256color'}))
  assert not COLOUR.search(shown('build', 80, {'TERM': 'xterm', 'NO_COLOR': '1'}))


@pytest.mark.parametrize('what', ['run', 'build'])
def test_a_narrow_terminal_is_respected(what):
  text = shown(what, 40, {'TERM': 'xterm'})
  lines = re.split(r'[\r\n]+', re.sub(r'\x1b\[[\d;?]*[A-Za-z]', '', text))
  assert max(map(len, lines)) <= 40 and len(lines) > 2, lines


def costs(total, every):
  """Seconds of every step and of the evaluation that may come after it."""
  return [(2.0, 30.0 if n % every == 0 or n == total else 0.0) for n in range(1, total + 1)]


@pytest.mark.parametrize('start', [0, 12, 40])
@pytest.mark.parametrize(('every', 'log'), [(20, 5), (5, 5), (1, 50), (7, 50)])
def test_the_time_left_is_right_wherever_a_run_starts(start, every, log):
  """Steps of 2 s, evaluations of 30 s, a first step of 100 s that is compiled."""
  total, now, texts = 60, 1000.0, {}
  left, seconds = progress.TimeLeft(total, every), costs(total, every)
  for step in range(start + 1, total + 1):
    own, after = seconds[step - 1]
    now += 100.0 if step == start + 1 else own
    left.step(step, now, synced=step % log == 0 or after > 0)
    texts[step] = left.text(step)
    now += after
  truth = {n: sum(a for a, _ in seconds[n:]) + sum(b for _, b in seconds[n - 1 :]) for n in texts}
  late = [n for n in texts if n > start + 2 * every and (n % log == 0 or n % every == 0)]
  assert late or start == 40
  for n in late:  # and the test split, as long as validation
    extra = 34 if every == 1 else 30  # there a step is timed with the evaluation before it
    assert texts[n] == f'{terminal.duration(truth[n] + extra)} left', n
  assert texts[start + 1] == ''


def test_evaluations_are_named_until_one_was_timed():
  left = progress.TimeLeft(100, 40)
  for step in range(1, 21):
    left.step(step, 3.0 * step, synced=step % 10 == 0)
  assert left.text(20) == '4 min and 4 evaluations left'  # 240 s; after 40, 80, 100, of the test
  for step in range(21, 30):
    left.step(step, 60.0 + 0.01 * step, synced=False)  # sent off, not done
  assert left.text(29) == '4 min and 4 evaluations left'  # 213 s


def test_the_differences_are_aligned_and_end_before_the_screen():
  c = config.resolve(config.base('connector=mhc,depth=16,train.wandb=me,causal=true'))
  head, *lines = diff.text(c, 20).splitlines()
  assert head == f'config {config.config_hash(c)}: 4 fields are not at their default'
  assert lines == [
    '  model.connector  deres -> mhc',
    '  model.depth          8 -> 16',
    '  model.causal     false -> true',
    "  train.wandb         '' -> me",
  ]
  assert len(diff.text(c, 5).splitlines()) == 5
  short = diff.text(c, 4).splitlines()
  assert len(short) == 4 and short[-1] == '  ... and 2 more, see config.json'
  assert diff.text(fields.Config(), 4).endswith(': the defaults')


def test_the_last_line_of_a_run_keeps_its_words():
  content = {
    'auc': 0.71234567,
    'auc_se': 0.001,
    'logloss': 0.5,
    'rows_per_second': 1234.5,
    'steps': 4700,
    'wall_seconds': 750.0,
    'device': {'count': 8, 'kind': 'TPU v5e', 'platform': 'tpu', 'processes': 2},
  }
  file = pathlib.Path('w/result.json')
  assert result.line(content, file) == (
    'test auc 0.71235 (se 0.00100)  logloss 0.50000  1,234 rows/s  4,700 steps in 12 min '
    'on 8 x TPU v5e  malloc of unknown  w/result.json'
  )

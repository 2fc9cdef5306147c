# SPDX-License-Identifier: Apache-2.0
"""Trains, evaluates or plans one run.

  python -m deres_jax.main --config=experiments/criteo_8l.py --workdir=DIR --config.data.path=DATA

The same command goes on after an interruption. --config is Python code and is executed.
"""

import json
import os
import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from deres_jax import config as config_lib
from deres_jax import plan, train
from deres_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment file; --config.a.b=v changes a field, FILE.py:a.b=v,c=w several.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, result.')
MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval', 'plan'], 'train (and resume) | eval | plan (no training)'
)


def main(argv: list[str]):
  if len(argv) > 1:
    raise UserError(f'unexpected argument {argv[1]!r}: settings are flags, --config.a.b=v')
  if CONFIG.value is None:
    raise UserError('no --config: give an experiment file, such as experiments/criteo_8l.py')
  c = config_lib.resolve(CONFIG.value)
  _compilation_cache(c)
  if MODE.value == 'plan':
    run = train.assemble(c)
    print(plan.table(plan.make(c, run.setup)))
    return
  if not WORKDIR.value:
    raise UserError('no --workdir: give the folder of the run, --workdir=DIR')
  workdir = pathlib.Path(WORKDIR.value)
  if MODE.value == 'eval':
    print(json.dumps(train.evaluate_best(c, workdir), indent=1))
    return
  result = train.train(c, workdir)
  print(
    f'test auc {result["auc"]:.5f} (se {result["auc_se"]:.5f})  logloss {result["logloss"]:.5f}  '
    f'{result["rows_per_second"]:,.0f} rows/s  {workdir / "result.json"}'
  )


def _compilation_cache(c: config_lib.Config):
  """Compiled programs are kept for the next start, unless the user's own JAX settings say where."""
  if c.train.compilation_cache and not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    home = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
    jax.config.update('jax_compilation_cache_dir', str(home / 'deres_jax' / 'xla'))


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  # What ml_collections raises for a wrong override, and Python for a wrong experiment file.
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    UserError,
  ) as e:
    _fail(e)


def _fail(e: Exception):
  # ml_collections wraps its messages: "'dept'\\nDid you mean ...".
  text = ' '.join(str(e.args[0] if e.args else e).replace('\\n', ' ').replace("\\'", "'").split())
  if isinstance(e, AttributeError | KeyError):
    text = f'unknown config field {text}'
  print(f'error: {text}', file=sys.stderr)
  sys.exit(2)


def _guarded(argv: list[str]):
  logging.set_verbosity(logging.WARNING)
  try:
    main(argv)
  except UserError as e:
    _fail(e)
  except KeyboardInterrupt:
    print('interrupted: the same command goes on from the last checkpoint', file=sys.stderr)
    sys.exit(130)


if __name__ == '__main__':
  app.run(_guarded, flags_parser=_parse)

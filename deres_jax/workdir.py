# SPDX-License-Identifier: Apache-2.0
"""Which run a workdir belongs to: config.json, and what a later start is compared with."""

import pathlib
from typing import Any

from deres_jax import config as config_lib
from deres_jax import json_files, sinks, writer
from deres_jax.errors import UserError
from deres_jax.schema import Schema


def claim(c: config_lib.Config, schema: Schema, workdir: pathlib.Path) -> dict[str, Any] | None:
  """Makes a workdir this run's own: writes config.json, or compares with the one that is there.

  Returns: the content of result.json, where the run is finished.
  Raises: UserError for another run's workdir; nothing in it is touched then.
  """
  sinks.check(c)
  workdir.mkdir(parents=True, exist_ok=True)
  file = workdir / 'config.json'
  mine = {
    'config_hash': config_lib.config_hash(c),
    'data_content': schema.content,
    'config': config_lib.as_dict(c),
    'identity': config_lib.identity(c),
  }
  if file.exists():
    then = 'take another --workdir, or bring the file back'
    old = json_files.read(file, dict, then)
    if not isinstance(old.get('identity'), dict) or 'data_content' not in old:
      raise UserError(f'{file}: does not say which run it belongs to: {then}')
    now = mine['identity']
    changed = [
      f'{k}: {old["identity"].get(k)!r} -> {now.get(k)!r}'
      for k in sorted({*old['identity'], *now})
      if old['identity'].get(k) != now.get(k)
      # Under stop nothing was ever skipped: the run is what it would be had it begun as it goes on.
      and not (k == 'train.on_nan' and k not in old['identity'])
    ]
    if changed:
      raise UserError(
        f'workdir {workdir} belongs to a run of another config ({"; ".join(changed)}): '
        'take another --workdir or the old config'
      )
    if old['data_content'] != schema.content:
      raise UserError(
        f'workdir {workdir} was started on other data than {schema.path}: '
        'take another --workdir or the old data'
      )
  writer.write_json(file, mine)
  finished = workdir / 'result.json'
  if not finished.exists():
    return None
  then = 'delete it: the same command finishes the run from its last checkpoint'
  found = json_files.read(finished, dict, then)
  if not {'config_hash', 'auc', 'auc_se', 'logloss', 'rows_per_second'} <= found.keys():
    raise UserError(f'{finished}: is not the result of a run: {then}')
  return found

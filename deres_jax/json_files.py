# SPDX-License-Identifier: Apache-2.0
"""JSON files that somebody may have cut short, mixed up or edited: a line for each mistake."""

import json
import pathlib
from typing import Any

from deres_jax.errors import UserError, shown


def read(file: pathlib.Path, kind: type, then: str) -> Any:
  """What a JSON file holds; raises UserError where it is damaged or not of the kind.

  Args:
    kind: dict or list.
    then: what the user is to do about it.
  """
  try:
    value = json.loads(file.read_text(encoding='utf-8'))
    json.dumps(value, ensure_ascii=False).encode()  # halves of characters, which no file can hold
  # Of text that is no JSON, of bytes that are no text, of brackets without end.
  except (ValueError, RecursionError) as e:
    raise UserError(f'{file}: not valid JSON ({shown(e)}): {then}') from e
  if not isinstance(value, kind):
    names = {dict: 'an object', list: 'a list'}
    raise UserError(f'{file}: holds {type(value).__name__}, expected {names[kind]}: {then}')
  return value

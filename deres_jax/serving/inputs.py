# SPDX-License-Identifier: Apache-2.0
"""What a prepared folder says of raw rows, for a file that has to encode them without it."""

import hashlib
import json
import math
from typing import Any

from deres_jax.core.errors import UserError
from deres_jax.data.schema import Schema
from deres_jax.serving.encoder import EVENTS


def describe(schema: Schema) -> dict[str, Any]:
  """Fields and histories, in the order of the ids, each with its recipe: JSON-able.

  Raises:
    UserError: the folder does not say how raw values become ids.
  """
  raw = json.loads((schema.path / 'schema.json').read_text())
  if 'recipes' not in raw:
    raise UserError(
      f'{schema.path}: does not say how raw values become ids, as folders of earlier versions: '
      'build it again with the same flags (the rows stay the same) and give it with --data=DIR'
    )
  recipes = raw['recipes']
  fields = {
    field['name']: {
      'name': field['name'],
      'vocabulary': None if field['hashed'] else field['name'],
      'vocab_size': field['vocab_size'],
      'hashed': field['hashed'],
      'recipe': recipes[field['name']],
    }
    for field in raw['fields']
  }
  sequence = None
  if schema.sequence is not None:
    attributes = [
      {
        'name': attribute['name'],
        'vocabulary': attribute['name'],
        'vocab_size': attribute['vocab_size'],
        'hashed': False,
        'recipe': recipes[attribute['name']],
      }
      if attribute['field'] is None
      else {**fields[attribute['field']], 'name': attribute['name']}
      for attribute in raw['sequence']['attributes']
    ]
    sequence = {'length': schema.sequence.length, 'attributes': attributes}
  return {'fields': list(fields.values()), 'sequence': sequence}


def vocabularies(schema: Schema) -> dict[str, bytes]:
  """Vocabulary files by name, as they are; raises UserError where one is gone or altered."""
  sums = json.loads((schema.path / 'schema.json').read_text())['vocabulary']
  found = {}
  for file, digest in sums.items():
    path = schema.path / 'vocabulary' / file
    data = path.read_bytes() if path.is_file() else b''
    if hashlib.sha256(data).hexdigest() != digest:
      raise UserError(
        f'{path}: is missing or altered: python -m data_pipelines.doctor {schema.path} tells more; '
        'build the folder again'
      )
    found[file.removesuffix('.txt')] = data
  return found


_HOUR, _TIME_MS = '14102100', 1_650_000_000_000


def example(inputs: dict[str, Any], texts: dict[str, bytes]) -> dict[str, Any]:
  """A row of which every field has its commonest token, and one event like it."""
  row = {e['recipe']['column']: _value(e, texts) for e in inputs['fields']}
  sequence = inputs['sequence']
  if sequence is not None:
    row[EVENTS] = [{e['recipe']['column']: _value(e, texts) for e in sequence['attributes']}]
  return row


def _value(entry: dict[str, Any], texts: dict[str, bytes]) -> str:
  """A raw value of the commonest token; empty where there is none."""
  recipe = entry['recipe']
  kind = recipe['kind']
  token = '00000000' if entry['hashed'] else texts[entry['vocabulary']].split(b'\n')[0].decode()
  if kind == 'yymmddhh':
    return _HOUR
  if kind == 'milliseconds':
    return str(_TIME_MS)
  if kind == 'age_buckets':
    return str(_TIME_MS - recipe['edges'][-1])
  if not token:
    return ''
  if kind == 'log_squared' and int(token) > 2:
    return str(math.ceil(math.exp(math.sqrt(int(token)))))
  if kind == 'buckets':
    place = recipe['tokens'].index(token)
    return str(recipe['edges'][place - 1] if place else recipe['edges'][0] - 1)
  return token

# SPDX-License-Identifier: Apache-2.0
"""The rows of a prepared folder, a block of them at a time, each checked as it is read.

`deres_jax` and `data_pipelines` meet here and in `deres_jax.data.schema`, and nowhere else.

Shapes: N rows, F fields, L events of G attributes, S = F + L * G ids of a row.
"""

import pathlib
import zlib
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format

from deres_jax.core import files as files_lib
from deres_jax.core.errors import UserError, shown
from deres_jax.data.schema import Schema

# What TFDS makes of files that are gone, cut short or edited.
_TFDS_ERRORS = (
  *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError),
  *(ImportError, json_format.ParseError, zlib.error),
)
_CLASSES = (
  'tensorflow_datasets.core.features.features_dict.FeaturesDict',
  'tensorflow_datasets.core.features.tensor_feature.Tensor',
)


class Rows(NamedTuple):
  """Rows as they are stored.

  Attributes:
    ids: [N, S] int32: fields, then the attributes of all events, oldest event first. In a block
      they count from 0 for each column, else they are numbers of table rows.
    labels: [N] uint8, 0 or 1.
    groups: [N] int32, what the row belongs to; 0 where the data has no groups.
  """

  ids: np.ndarray
  labels: np.ndarray
  groups: np.ndarray


class Blocks:
  """Random access to the blocks of one split, each checked against the schema as it is read."""

  def __init__(self, schema: Schema, split: str):
    self.schema, self.split = schema, split
    self.rows = schema.splits[split].rows
    self._check_description()
    try:
      builder = tfds.builder_from_directory(schema.path / schema.tfds)
      self._check_inside(builder.info.splits[split].filepaths)
      self._source = builder.as_data_source(split)
      found = len(self._source)
    except _TFDS_ERRORS as e:
      raise self._damaged(e) from e
    blocks = -(-self.rows // schema.block_rows)
    if found != blocks:
      raise UserError(
        f'data.path={schema.path}: split {split} has {found} blocks, schema.json '
        f'expects {blocks}: build the folder again'
      )
    self._limits = np.array([schema.vocab_sizes[c] for c in schema.columns], np.uint32)

  def _check_description(self):
    """TFDS imports what features.json names as a class: it may name what we write alone."""
    folder = self.schema.path / self.schema.tfds
    for name in ('dataset_info.json', 'features.json'):
      try:
        nodes = [files_lib.read_json(folder / name, dict, 'build the folder again')]
      except OSError as e:
        raise self._damaged(e) from e
      while nodes:
        node = nodes.pop()
        named = node.get('pythonClassName', _CLASSES[0]) if isinstance(node, dict) else _CLASSES[0]
        if named not in _CLASSES:
          raise UserError(
            f'{folder / name}: names the Python class {shown(named)}, expected one of '
            f'{", ".join(_CLASSES)}: it is not what data_pipelines writes; build the folder again'
          )
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []

  def _check_inside(self, files: list):
    """Record files lie in the folder, whatever its description says and links lead to."""
    folder = self.schema.path.resolve()
    for file in map(pathlib.Path, files):
      if not file.resolve().is_relative_to(folder):
        raise UserError(
          f'data.path={self.schema.path}: record file {file} is outside of it '
          f'({file.resolve()}): copy the whole folder, or build it again'
        )

  def size(self, index: int) -> int:
    """Rows of a block."""
    return min(self.schema.block_rows, self.rows - index * self.schema.block_rows)

  def read(self, index: int) -> Rows:
    """One block."""
    try:
      example = {name: np.asarray(x) for name, x in self._source[index].items()}
    except _TFDS_ERRORS as e:
      raise self._damaged(e) from e
    n, schema = self.size(index), self.schema
    expected = {'ids': ((n, len(schema.fields)), np.int32), 'label': ((n,), np.uint8)}
    if schema.sequence is not None:
      shape = (n, schema.sequence.length, len(schema.sequence.attributes))
      expected['events'] = (shape, np.int32)
    if schema.group:
      expected['group'] = ((n,), np.int32)
    found = {name: (x.shape, x.dtype) for name, x in example.items()}
    if found != expected:
      raise UserError(
        f'data.path={schema.path}: block {index} of split {self.split} is {_shapes(found)}, '
        f'schema.json expects {_shapes(expected)}'
      )
    ids_NS = example['ids']
    if schema.sequence is not None:
      ids_NS = np.concatenate([ids_NS, example['events'].reshape(n, -1)], axis=1)
    self._check(ids_NS, index)
    groups_N = example['group'] if schema.group else np.zeros(n, np.int32)
    return Rows(ids_NS, example['label'], groups_N)

  def _check(self, ids_NS: np.ndarray, index: int):
    # As unsigned numbers, negative ids are too large as well.
    if not (ids_NS.view(np.uint32) >= self._limits).any():
      return
    row, s = np.argwhere((ids_NS < 0) | (ids_NS >= self._limits.astype(np.int64)))[0]
    schema = self.schema
    f = schema.columns[s]
    what = f'field {schema.fields[f]}' if s < len(schema.fields) else 'an event'
    raise UserError(
      f'data.path={schema.path}: id {ids_NS[row, s]} of {what} is out of range '
      f'0..{schema.vocab_sizes[f] - 1} (split {self.split}, block {index}, row {row}): '
      'build the folder again'
    )

  def _damaged(self, e: Exception) -> UserError:
    return UserError(
      f'data.path={self.schema.path}: split {self.split} cannot be read ({shown(e)}): '
      f'python -m data_pipelines.doctor {self.schema.path} tells what is wrong'
    )


def _shapes(arrays: dict) -> str:
  return ', '.join(
    f'{name} {np.dtype(t)}{list(shape)}' for name, (shape, t) in sorted(arrays.items())
  )

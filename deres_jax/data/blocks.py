# SPDX-License-Identifier: Apache-2.0
"""Reads the examples of a prepared folder block by block, and checks each block.

`deres_jax` and `data_pipelines` meet here and in `deres_jax.data.schema`, and nowhere else.

Shapes: N examples, F fields, L events of G attributes, S = F + L * G ids of an example.
"""

import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format

from deres_jax.core import files as files_lib
from deres_jax.core.errors import UserError, excerpt
from deres_jax.data.schema import Schema, advice

# Errors that TFDS raises for missing, truncated or edited files.
_TFDS_ERRORS = (
  *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError),
  *(ImportError, json_format.ParseError, zlib.error),
)
_CLASSES = (
  'tensorflow_datasets.core.features.features_dict.FeaturesDict',
  'tensorflow_datasets.core.features.tensor_feature.Tensor',
)


class Examples(NamedTuple):
  """Examples as they are stored.

  Attributes:
    ids: [N, S] int32: fields, then the attributes of all events, oldest event first. Blocks hold
      ids that start at 0 for each column; a reader makes global ids of them.
    labels: [N] uint8, 0 or 1.
    groups: [N] int32, group (such as user) of the example; 0 for data without groups.
  """

  ids: np.ndarray
  labels: np.ndarray
  groups: np.ndarray


class Blocks:
  """Random access to the blocks of one split."""

  def __init__(self, schema: Schema, split: str):
    self.schema, self.split = schema, split
    self.rows = schema.splits[split].rows
    for name in ('dataset_info.json', 'features.json'):
      _check_classes(schema.path / schema.tfds / name, advice(schema.path))
    try:
      builder = tfds.builder_from_directory(schema.path / schema.tfds)
      self._check_inside(builder.info.splits[split].filepaths)
      self._source = builder.as_data_source(split)
      blocks = len(self._source)
    except _TFDS_ERRORS as e:
      raise self._damaged(e) from e
    expected = -(-self.rows // schema.block_rows)
    if blocks != expected:
      raise UserError(
        f'data.path={schema.path}: split {split} has {blocks} blocks, schema.json '
        f'expects {expected}: build the folder again'
      )
    self._limits = np.array([schema.vocab_sizes[c] for c in schema.columns], np.uint32)

  def _check_inside(self, files: list):
    """Refuses record files outside of the folder, which a description or a link may name."""
    folder = self.schema.path.resolve()
    for file in map(pathlib.Path, files):
      if not file.resolve().is_relative_to(folder):
        raise UserError(
          f'data.path={self.schema.path}: record file {file} is outside of it '
          f'({file.resolve()}): copy the whole folder, or build it again'
        )

  def size(self, index: int) -> int:
    """Returns the number of rows of a block."""
    return min(self.schema.block_rows, self.rows - index * self.schema.block_rows)

  def read(self, index: int) -> Examples:
    """Reads one block; raises UserError where it contradicts the schema."""
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
    actual = {name: (x.shape, x.dtype) for name, x in example.items()}
    if actual != expected:
      raise UserError(
        f'data.path={schema.path}: block {index} of split {self.split} is {_shapes(actual)}, '
        f'schema.json expects {_shapes(expected)}'
      )
    ids_NS = example['ids']
    if schema.sequence is not None:
      ids_NS = np.concatenate([ids_NS, example['events'].reshape(n, -1)], axis=1)
    self._check_ids(ids_NS, index)
    groups_N = example['group'] if schema.group else np.zeros(n, np.int32)
    return Examples(ids_NS, example['label'], groups_N)

  def _check_ids(self, ids_NS: np.ndarray, index: int):
    # As unsigned numbers, negative ids are too large as well.
    if not (ids_NS.view(np.uint32) >= self._limits).any():
      return
    row, s = np.argwhere((ids_NS < 0) | (ids_NS >= self._limits.astype(np.int64)))[0]
    schema = self.schema
    column = f'field {schema.fields[s].name}' if s < len(schema.fields) else 'an event'
    raise UserError(
      f'data.path={schema.path}: id {ids_NS[row, s]} of {column} is out of range '
      f'0..{self._limits[s] - 1} (split {self.split}, block {index}, row {row}): '
      'build the folder again'
    )

  def _damaged(self, e: Exception) -> UserError:
    return UserError(
      f'data.path={self.schema.path}: split {self.split} cannot be read ({excerpt(e)}): '
      f'{advice(self.schema.path)}'
    )


def _check_classes(file: pathlib.Path, then: str):
  """Refuses a description of records that names other classes than data_pipelines writes.

  TFDS imports the classes that it names.
  """
  nodes: list[Any] = [files_lib.read_json(file, dict, then)]
  while nodes:
    node = nodes.pop()
    if isinstance(node, dict):
      name = node.get('pythonClassName', _CLASSES[0])
      if name not in _CLASSES:
        raise UserError(
          f'{file}: names the Python class {excerpt(name)}, expected one of {", ".join(_CLASSES)}: '
          f'data_pipelines did not write it: {then}'
        )
      nodes += node.values()
    elif isinstance(node, list):
      nodes += node


def _shapes(arrays: dict) -> str:
  return ', '.join(
    f'{name} {np.dtype(t)}{list(shape)}' for name, (shape, t) in sorted(arrays.items())
  )

# SPDX-License-Identifier: Apache-2.0
"""Invented raw rows in the Criteo text format (no row here is real), and how to read data back."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.text.parser import Parsed

REPOSITORY = Path(__file__).resolve().parents[2]


def open_split(folder: Path, split: str):
  """Opens the blocks of a split of a TFDS folder, as the docs say."""
  return tfds.builder_from_directory(str(folder)).as_data_source(split)


def criteo_line(rng: random.Random) -> str:
  """Returns a valid line without newline; few values, so that tokens repeat."""
  ints = ['' if rng.random() < 0.2 else str(rng.choice([-2, -1, *range(40)])) for _ in range(13)]
  hexes = ['' if rng.random() < 0.2 else f'{rng.randrange(7) * 0x1234567:08x}' for _ in range(26)]
  return '\t'.join([str(rng.randrange(2)), *ints, *hexes])


def criteo_lines(count: int, seed: int = 0) -> list[str]:
  """Returns valid lines."""
  rng = random.Random(seed)
  return [criteo_line(rng) for _ in range(count)]


AVAZU_HEADER = (
  'id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,'
  'device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21'
)


def avazu_lines(count: int, seed: int = 0) -> list[str]:
  """Valid lines in the Avazu text format, without header, over ten days in the order of time."""
  rng = random.Random(seed)
  lines = []
  for i in range(count):
    hour = 240 * i // count
    integers = [str(rng.choice([-1, 0, 1, 9, 10, 320, 100084])) for _ in range(12)]
    hexes = [f'{rng.randrange(7) * 0x1234567:08x}' for _ in range(9)]
    values = [str(i), str(rng.randrange(2)), f'1410{21 + hour // 24}{hour % 24:02d}']
    lines.append(','.join([*values, *integers[:2], *hexes, *integers[2:]]))
  return lines


def write_lines(path: Path, lines: list[str]) -> Path:
  """Writes lines with newlines; returns the path."""
  path.write_text(''.join(f'{line}\n' for line in lines))
  return path


def read_prepared(folder: Path):
  """The schema and, by split, the list of stored (ids, label) blocks."""
  schema = json.loads((folder / 'schema.json').read_text())
  blocks = {
    split: [(b['ids'], b['label']) for b in open_split(folder / schema['tfds'], split)]
    for split in schema['splits']
  }
  return schema, blocks


def run_python(*args: str) -> subprocess.CompletedProcess:
  """Runs python with arguments from the repository root."""
  return subprocess.run(
    [sys.executable, *args], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
  )


def set_block_rows(monkeypatch, rows: int) -> None:
  """Makes blocks this small wherever a module reads their size."""
  for module in (
    *('build', 'doctor.__main__', 'text.encoded_rows'),
    *('prepared.schema', 'prepared.shards', 'prepared.writer'),
  ):
    monkeypatch.setattr(f'data_pipelines.{module}.BLOCK_ROWS', rows)


def concatenate(parts: list[Parsed]) -> Parsed:
  """Joins the rows of parsed parts, in order."""
  return Parsed(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

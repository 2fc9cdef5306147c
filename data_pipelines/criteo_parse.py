# SPDX-License-Identifier: Apache-2.0
"""The Criteo display-advertising text: label, I1..I13, C1..C26, tab-separated, no header."""

from data_pipelines.text_table import HEX, INTEGER, LABEL, Column, TextTable

NUM_INTEGERS = 13
NUM_CATEGORIES = 26
COLUMNS = 1 + NUM_INTEGERS + NUM_CATEGORIES
NUM_FIELDS = NUM_INTEGERS + NUM_CATEGORIES
FIELD_NAMES = tuple(f'I{i + 1}' for i in range(NUM_INTEGERS)) + tuple(
  f'C{i + 1}' for i in range(NUM_CATEGORIES)
)

CRITEO_TEXT = TextTable(
  separator=b'\t',
  columns=(
    Column('label', LABEL),
    *(Column(name, INTEGER) for name in FIELD_NAMES[:NUM_INTEGERS]),
    *(Column(name, HEX) for name in FIELD_NAMES[NUM_INTEGERS:]),
  ),
  required=False,
)

# SPDX-License-Identifier: Apache-2.0
"""Formats a description as text of at most 100 columns."""

from data_pipelines.prepared.schema import SPLITS

WIDTH = 100
_NAME = 14
SHOWN_FILES = 3


def percent(value: float) -> str:
  """Formats a share in per cent with one decimal; only exact 0 and 1 become 0 and 100."""
  if value in (0, 1):
    return str(int(100 * value))
  if value < 0.0005:
    return '<0.1'
  return '>99.9' if value >= 0.9995 else f'{100 * value:.1f}'


def short(text: str, width: int) -> str:
  """Cuts a text to a width, with an ellipsis; unprintable characters become question marks."""
  text = ''.join(c if c.isprintable() else '?' for c in text)
  return text if len(text) <= width else text[: width - 1] + '…'


# Heading in two lines, width, and function from a field to its cell.
_COLUMNS = (
  ('', 'ids', 10, lambda x: f'{x["vocab_size"]:,}'),
  ('', 'miss.', 5, lambda x: percent(x['missing_rate_train'])),
  ('unknown %', 'train', 5, lambda x: percent(x['unknown_rate']['train'])),
  ('', 'valid', 5, lambda x: percent(x['unknown_rate']['validation'])),
  ('', 'test', 5, lambda x: percent(x['unknown_rate']['test'])),
  ('top', 'id', 5, lambda x: percent(x['commonest_share'])),
  ('ids in', '50 %', 7, lambda x: f'{x["ids_of_half"]:,}'),
  ('', '90 %', 9, lambda x: f'{x["ids_of_90_percent"]:,}'),
  ('seen', 'once', 5, lambda x: percent(x['seen_once'])),
  ('', '<10', 5, lambda x: percent(x['seen_rarely'])),
  ('click', 'rate', 10, lambda x: rate_range(x['click_rate_range'])),
)


def rate_range(rates: list[float] | None) -> str:
  """Formats the lowest and the highest click rate in per cent."""
  return '' if rates is None else f'{100 * rates[0]:.1f}-{100 * rates[1]:.1f}'


def _table(fields: list[dict]) -> list[str]:
  heads = []
  for k in (0, 1):
    cells = ''.join(f' {column[k]:>{column[2]}}' for column in _COLUMNS)
    heads.append(f'{"" if k == 0 else "field":<{_NAME}}{cells}')
  lines = [*heads, '-' * max(map(len, heads))]
  for field in fields:
    cells = ''.join(f' {cell(field):>{width}}' for _, _, width, cell in _COLUMNS)
    lines.append(f'{short(field["name"], _NAME):<{_NAME}}{cells}')
  return lines


_LEGEND = """\
All figures are of training rows and, except ids, in per cent. ids: size of the vocabulary, with
padding and the unknown id. miss.: missing values. unknown: rows with the unknown id, by split (in
some fields missing values have it too). top id: rows with the commonest id. ids in 50 %, 90 %:
commonest ids that make this share of the known rows. seen once, <10: share of the ids that occur
once, or fewer than ten times. click rate: lowest and highest of the ten commonest ids with at least
100 rows."""


def _head(x: dict) -> list[str]:
  raw = x['raw']
  options = ', '.join(f'{k}={v}' for k, v in x['build'].items() if v is not None)
  lines = [x['dataset'], '=' * len(x['dataset'])]
  if options:
    lines.append(f'built with   {short(options, WIDTH - 13)}')
  for file in raw['files'][:SHOWN_FILES]:
    lines.append(f'raw          {short(str(file["name"]), 60)}, {file["bytes"]:,} bytes')
  if len(raw['files']) > SHOWN_FILES:
    lines.append(f'             and {len(raw["files"]) - SHOWN_FILES} more files')
  lines.append(f'rows         {raw["rows_read"]:,} read, {raw["rows_rejected"]:,} rejected')
  lines.append('')
  lines.append(f'{"split":<12} {"rows":>15} {"clicks":>15} {"click rate":>12}  95 % interval')
  for split in SPLITS:
    s = x['splits'][split]
    lines.append(
      f'{split:<12} {s["rows"]:>15,} {s["clicks"]:>15,} {100 * s["click_rate"]:>10.2f} %  '
      f'{100 * s["low"]:.2f} to {100 * s["high"]:.2f} %'
    )
  return lines


def _users(x: dict) -> list[str]:
  lines = []
  if x['sequence']:
    s = x['sequence']
    means = ', '.join(f'{s["mean_events"][split]:.1f} in {split}' for split in SPLITS)
    lines += [
      f'sequence     up to {s["length"]} events of {short(", ".join(s["attributes"]), 60)}',
      f'             mean {means}',
      f'             of the training rows {percent(s["empty"]["train"])} % have none, '
      f'{percent(s["full"]["train"])} % are full',
    ]
  if x['groups']:
    g = x['groups']
    seen = ', '.join(f'{g["seen"][split]:,} in {split}' for split in SPLITS)
    lines += [
      f'{short(g["name"], 12):<12} {g["groups"]:,}; {seen}',
      f'             rows of each in train: mean {g["mean_rows_train"]:.1f}, median '
      f'{g["median_rows_train"]:.0f}',
    ]
  if x['items']:
    for part in x['items']['parts']:
      rows = ', '.join(f'{percent(part["share"][split])} % of {split}' for split in SPLITS)
      lines.append(f'{part["part"] + " items":<12} {part["ids"]:,} ids, {rows}')
  return ['', *lines] if lines else []


def text(x: dict) -> str:
  """Formats the whole description for a terminal."""
  return '\n'.join([*_head(x), *_users(x), '', *_table(x['fields']), '', _LEGEND])

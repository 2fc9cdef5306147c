# SPDX-License-Identifier: Apache-2.0
"""Collectives of a compiled program and the bytes that they send, read from its HLO.

The text is XLA's HLO after optimization, `compiled.as_text()`: the collectives that will run. It is
the program of one device, with that device's shapes.

The parser reads synchronous `all-reduce(...)`; asynchronous `all-reduce-start(...)` with its
`-done`, counted once; `async-start` around a computation that holds the collective; tuples of
arrays; groups as lists `{{0,1},{2,3}}`, as an iota `[2,4]<=[8]`, by the axes of a mesh
`mesh['a'=8,'b'=2] {'a'}`, or left out (all devices). Bytes are of logical shapes, without the
padding of a device's layout.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

ALL_TO_ALL = ('all-to-all', 'ragged-all-to-all')
KINDS = (
  *('all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute', 'collective-broadcast'),
  *ALL_TO_ALL,
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of a program, from the view of one device.

  Attributes:
    kind: one of KINDS.
    dtype: XLA's name of the arrays' type, `f32`; several are joined by `+`.
    shapes: shapes of the result's arrays.
    operand_bytes: bytes of the device's operands.
    result_bytes: bytes of the device's results.
    group_size: devices that take part together; 1 for a permute between no two devices.
    name: name of the instruction.
    op_name: the JAX operation it came from; empty if XLA inserted it.
    in_loop: whether it runs in the body of a loop, once an iteration; it is listed once.
  """

  kind: str
  dtype: str
  shapes: tuple[tuple[int, ...], ...]
  operand_bytes: int
  result_bytes: int
  group_size: int
  name: str
  op_name: str
  in_loop: bool


def wire_bytes(c: Collective) -> float:
  """Returns the bytes that a device sends by the best algorithm without in-network sums.

  An all-reduce is a reduce-scatter and an all-gather (Rabenseifner 2004; proved optimal by
  Patarasuk & Yuan 2009); the others send each byte that another device needs once. The HLO of a
  ragged all-to-all shows only its buffer, so its figure is an upper bound.
  """
  away = 1 - 1 / c.group_size
  if c.kind in ('collective-permute', 'collective-broadcast'):
    return float(c.operand_bytes if c.group_size > 1 else 0)
  if c.kind == 'all-gather':
    return away * c.result_bytes
  return (2 if c.kind == 'all-reduce' else 1) * away * c.operand_bytes


def wire_bytes_by_kind(program: Iterable[Collective]) -> dict[str, float]:
  """Sums wire bytes by kind; kinds that send nothing are left out."""
  out: Counter[str] = Counter()
  for c in program:
    out[c.kind] += wire_bytes(c)
  return {kind: n for kind, n in sorted(out.items()) if n}


def exchange_bytes(
  devices: int, rows: Sequence[float], widths: Sequence[int], dense: int
) -> dict[str, float]:
  """Returns the bytes by kind that a step sends if D devices share tables: docs/scaling_out.md.

  A lower bound if `rows` are the mean numbers of unique rows a device needs; the bytes of our
  exchange if they are its capacities.

  Args:
    rows, widths: for each table, rows of a device's slice of the batch and their float32 columns.
    dense: float32 parameters that every device holds.
  """
  away = 1 - 1 / devices
  # For each row its values, its gradient and its id.
  tables = sum(n * (8 * width + 4) for n, width in zip(rows, widths, strict=True))
  out = {'all-reduce': away * 8 * dense, 'all-to-all': away * tables}
  return {kind: n for kind, n in out.items() if n}


def parse(text: str) -> list[Collective]:
  """Returns the collectives of a compiled program, in order.

  Args:
    text: `compiled.as_text()`, or a part of it.

  Raises:
    ValueError: groups or types in an unknown form, rather than a wrong count.
  """
  everyone = math.prod(int(n) for n in re.findall(r'(?:replica_count|num_partitions)=(\d+)', text))
  looped = _in_loops(text)
  done = {m['start']: m['type'] for m in map(_DONE.match, text.splitlines()) if m}
  out, computation = [], ''
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      computation = head['name']
    m = _COLLECTIVE.match(line)
    if m:
      # The type of a -start is a tuple of buffers; that of its -done is the result's.
      kind = done[m['name']] if m['start'] else m['type']
      out.append(_collective(m, kind, everyone, computation in looped))
  return out


_KIND = '|'.join(sorted(KINDS, key=len, reverse=True))
_COLLECTIVE = re.compile(
  rf'\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<kind>{_KIND})(?P<start>-start)?\('
  r'(?P<rest>.*)'
)
_DONE = re.compile(
  rf'\s*(?:ROOT )?%?[\w.-]+ = (?P<type>\(.*?\)|\S+) (?:{_KIND})-done\('
  r'(?:.*?[ %])?(?P<start>[\w.-]+)\)'
)
_COMPUTATION = re.compile(r'(?:ENTRY )?%?(?P<name>[\w.-]+) (?:\(.*)?\{$')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)'
)
_BRANCHES = re.compile(r'(?:branch_computations|called_computations|calls)=\{([^}]*)\}')
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,<= ]*)\]')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


def _collective(m: re.Match, kind_type: str, everyone: int, in_loop: bool) -> Collective:
  kind, rest = m['kind'], m['rest']
  arrays = [
    (dtype, tuple(int(n) for n in re.findall(r'\d+', dims)))
    for dtype, dims in _ARRAY.findall(kind_type)
  ]
  result = sum(_bytes(dtype, shape) for dtype, shape in arrays)
  size = _pairs(rest) if kind == 'collective-permute' else _group_size(rest, everyone)
  operand = {'all-gather': result // size, 'reduce-scatter': result * size}
  op_name = _OP_NAME.search(rest)
  return Collective(
    kind=kind,
    dtype='+'.join(sorted({dtype for dtype, _ in arrays})),
    shapes=tuple(shape for _, shape in arrays),
    operand_bytes=operand.get(kind, result),
    result_bytes=result,
    group_size=size,
    name=m['name'],
    op_name=op_name[1] if op_name else '',
    in_loop=in_loop,
  )


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
  if dtype == 'pred':
    return math.prod(shape)
  bits = re.fullmatch(r'(?:bf|f|s|u|c)(\d+)(?:[a-z]\w*)?', dtype)
  if not bits:
    raise ValueError(f'unknown type {dtype!r} of a collective')
  return -(-math.prod(shape) * int(bits[1]) // 8)


def _group_size(rest: str, everyone: int) -> int:
  lists = re.search(r'replica_groups=\{(.*?)\}(?:,|\s|$)', rest)
  if lists:
    groups = re.findall(r'\{([\d,]+)\}', lists[0])
    return max(len(g.split(',')) for g in groups) if groups else everyone
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]<=', rest)
  if iota:
    return int(iota[2])
  mesh = re.search(r'replica_groups=@?mesh\[(.*?)\][^{]*\{(.*?)\}', rest)
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    # A part of an axis is written 'axis':(parts before it)size.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if 'replica_groups=' in rest:
    raise ValueError(f'unknown form of replica groups: {rest[rest.index("replica_groups=") :]}')
  return everyone


def _pairs(rest: str) -> int:
  listed = re.search(r'source_target_pairs=\{(.*?\})\}', rest)
  if not listed:
    raise ValueError(f'a collective-permute without pairs: {rest}')
  pairs = re.findall(r'\{(\d+),(\d+)\}', listed[1])
  return len({n for pair in pairs for n in pair}) if any(a != b for a, b in pairs) else 1


def _in_loops(text: str) -> set[str]:
  """Returns the computations that run in the body of a loop."""
  calls: dict[str, set[str]] = {}
  reached, computation = set(), ''
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      computation = head['name']
      continue
    called = set(_CALLED.findall(line))
    for branches in _BRANCHES.findall(line):
      called |= {name.strip().lstrip('%') for name in branches.split(',')}
    calls.setdefault(computation, set()).update(called)
    if ' while(' in line:
      reached |= called
  todo = list(reached)
  while todo:
    for name in calls.get(todo.pop(), set()) - reached:
      reached.add(name)
      todo.append(name)
  return reached

# SPDX-License-Identifier: Apache-2.0
"""Machines by name, and meshes to compile for without having them.

Names: TPU slices as Google Cloud names them (`v5e-8`, `v6e-256` count chips; `v5p-128` and `v4-128`
count TensorCores, two a chip, which JAX shows as one device); GPU hosts as `h200-8` or `8xH200`,
several hosts of 8 as `h200-64`; `cpu-8` for simulated devices.

Units: bytes, bytes/s and FLOP/s of one device. Bandwidth is **in one direction**, half of what
vendors call bidirectional. FLOP are dense (NVIDIA also prints twice as much, with sparsity), a
multiply-add is 2.

Float32 matmuls run as JAX runs them unless told otherwise: one bfloat16 pass on TPU, TF32 on GPU
(docs.jax.dev, "Matmul precision").
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from deres_jax.core.errors import UserError
from deres_jax.pod.mesh import AXIS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices of one kind and the network between them.

  Attributes:
    platform: tpu, gpu or cpu.
    devices: number of JAX devices.
    hosts: number of processes that drive them.
    memory: bytes of a device that a program can use; 0 if unknown.
    flops: peak matmul FLOP/s by type of the operands; empty if there is no roofline.
    memory_bandwidth: bytes/s.
    all_to_all: most bytes/s that a device can send in an all-to-all between all devices.
    all_reduce: the same for all-reduce, all-gather and reduce-scatter; bytes as in
      `collectives.wire_bytes`.
    notes: sentences on the network model and on the sources of the figures.
    aot: name and options of the slice for libtpu's compiler; ('', {}) if it has none.
  """

  name: str
  platform: str
  devices: int
  hosts: int
  memory: int
  flops: Mapping[str, float]
  memory_bandwidth: float
  all_to_all: float
  all_reduce: float
  notes: tuple[str, ...]
  aot: tuple[str, Mapping[str, object]] = ('', {})


@dataclasses.dataclass(frozen=True)
class _Tpu:
  flops: float  # bfloat16
  memory: float  # GiB that a program can use: libtpu 0.0.42's message when it runs out
  memory_bandwidth: float
  link: float  # bytes/s of one link in one direction
  cores: int  # TensorCores a chip, if the name counts them
  shapes: tuple[str, ...]
  wraps_at: int  # length from which a torus dimension is closed
  source: str


_SQUARES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16'),
  *('8x16x16', '16x16x16'),
)
_TPUS = {
  'v4': _Tpu(
    *(275e12, 30.75, 1200e9, 50e9, 2, _CUBES, 4),
    'cloud.google.com/tpu/docs/v4: 275 TFLOPs, 1200 GBps; 50 GB/s a link from Jouppi et al. 2023 '
    '(arXiv 2304.01433)',
  ),
  'v5e': _Tpu(
    *(197e12, 15.75, 819e9, 400e9 / 2 / 4, 1, _SQUARES, 16),
    'cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 819 GBps, 400 GBps bidirectional over 4 links',
  ),
  'v5p': _Tpu(
    *(459e12, 95.74, 2765e9, 1200e9 / 2 / 6, 2, (*_CUBES, '16x16x24'), 4),
    'cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 2765 GBps, 1200 GBps bidirectional over 6 links',
  ),
  'v6e': _Tpu(
    *(918e12, 31.25, 1640e9, 800e9 / 2 / 4, 1, _SQUARES, 16),
    'cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 1640 GBps (1600 in later editions), 800 GBps '
    'bidirectional over 4 links',
  ),
}


@dataclasses.dataclass(frozen=True)
class _Gpu:
  bfloat16: float
  tf32: float
  memory: float
  memory_bandwidth: float
  nvlink: float  # bytes/s of a GPU in one direction
  nic: float  # bytes/s of a GPU's network card in one direction
  source: str


_DGX = 'one 400 Gb/s InfiniBand card a GPU, as in DGX H100 and H200'
_GPUS = {
  'a100': _Gpu(
    *(312e12, 156e12, 80e9, 2039e9, 600e9 / 2, 200e9 / 8),
    'nvidia.com/en-us/data-center/a100, 80 GB SXM: 312 and 156 TFLOPS, 2039 GB/s, NVLink 600 GB/s '
    'of both directions; between hosts one 200 Gb/s InfiniBand card a GPU, as in DGX A100',
  ),
  'h100': _Gpu(
    *(989.4e12, 494.7e12, 80e9, 3350e9, 900e9 / 2, 400e9 / 8),
    'nvidia.com/en-us/data-center/h100, SXM: 1979 and 989 TFLOPS with sparsity, half without, '
    f'3.35 TB/s, NVLink 900 GB/s of both directions; between hosts {_DGX}',
  ),
  'h200': _Gpu(
    *(989.4e12, 494.7e12, 141e9, 4800e9, 900e9 / 2, 400e9 / 8),
    'nvidia.com/en-us/data-center/h200, SXM: 1979 and 989 TFLOPS with sparsity, half without, '
    f'4.8 TB/s, NVLink 900 GB/s of both directions; between hosts {_DGX}',
  ),
}
_GPU_HOST = 8


def find(name: str) -> Machine:
  """Returns the machine of a name.

  Raises:
    UserError: an unknown name.
  """
  text = name.strip().lower()
  swapped = re.fullmatch(r'(\d+)x([a-z]\w*)', text)  # 8xH200
  kind, _, count = f'{swapped[2]}-{swapped[1]}'.partition('-') if swapped else text.partition('-')
  n = int(count) if count.isdecimal() else 0
  if kind in _TPUS and n in _tpu_names(kind):
    return _tpu(kind, n)
  if kind in _GPUS and (n in (1, 2, 4) or (n > 0 and n % _GPU_HOST == 0)):
    return _gpu(kind, n)
  if kind == 'cpu' and n > 0:
    note = f'{n} devices simulated on CPU: no speed is predicted'
    return Machine(f'cpu-{n}', 'cpu', n, 1, 0, {}, 0, 0, 0, (note,))
  raise UserError(f'unknown topology {name!r}: choose one of {known()}')


def known() -> str:
  """Lists the names that `find` takes."""
  tpus = [f'{kind}-{{{",".join(map(str, _tpu_names(kind)))}}}' for kind in _TPUS]
  gpus = [f'{kind}-{{1,2,4,8,16,24,...}}' for kind in _GPUS]
  return '; '.join([*tpus, *gpus, 'cpu-N'])


def _tpu_names(kind: str) -> dict[int, str]:
  """Maps the number in a name to the shape of the slice."""
  tpu = _TPUS[kind]
  return {tpu.cores * math.prod(_dims(shape)): shape for shape in tpu.shapes}


def _dims(shape: str) -> tuple[int, ...]:
  return tuple(int(n) for n in shape.split('x'))


def _tpu(kind: str, n: int) -> Machine:
  tpu, shape = _TPUS[kind], _tpu_names(kind)[n]
  dims = _dims(shape)
  chips = math.prod(dims)
  if tpu.wraps_at == 16:  # v5e, v6e: a dimension that spans the pod is closed
    closed = tuple(d == 16 for d in dims)
  else:  # v4, v5p: whole cubes are closed by optical switches
    closed = (all(d % 4 == 0 for d in dims),) * len(dims)
  all_to_all, all_reduce = torus_bandwidth(dims, closed, tpu.link)
  options: dict[str, object] = {}
  if chips == 1:
    options['chips_per_host_bounds'] = [1, 1, 1]
  if kind == 'v4':
    options['chip_config_name'] = 'megacore'
  wraps = 'closed to a torus in ' + ', '.join(
    str(d) for d, c in zip(dims, closed, strict=True) if c
  )
  note = (
    f'{shape} chips, {wraps if any(closed) else "a mesh without wraparound"}, '
    f'{tpu.link / 1e9:.0f} GB/s a link and direction; all-to-all is bound by the cut through the '
    'middle and by the links of a corner, all-reduce by all links together'
  )
  return Machine(
    name=f'{kind}-{n}',
    platform='tpu',
    devices=chips,
    # A host has 4 chips, but for single-host slices of v5e and v6e, which have up to 8.
    hosts=1 if chips <= (8 if tpu.cores == 1 else 4) else chips // 4,
    memory=int(tpu.memory * GIB),
    flops={'float32': tpu.flops, 'bfloat16': tpu.flops},
    memory_bandwidth=tpu.memory_bandwidth,
    all_to_all=all_to_all,
    all_reduce=all_reduce,
    notes=(note, f'figures of the chip: {tpu.source}'),
    aot=(f'{kind}:{shape}', options),
  )


def torus_bandwidth(
  dims: tuple[int, ...], closed: tuple[bool, ...], link: float
) -> tuple[float, float]:
  """Returns the most bytes/s that a device can send in (an all-to-all, an all-reduce).

  D devices form a grid; closed dimensions are rings; `link` is bytes/s of a link in one direction.

  In an all-to-all a device sends X / D bytes to each device. The cut through the middle of the
  longest dimension a has D / a links, twice as many if closed, and D / 2 devices send X / 2 each
  across it; a corner has one link a dimension, two if closed. An all-reduce moves at least
  2 (D - 1) X bytes over all links together (Patarasuk & Yuan 2009). Twisted tori, whose middle is
  wider, are not modelled.
  """
  n = math.prod(dims)
  if n == 1:
    return math.inf, math.inf
  # A ring of two has one link, not two.
  ends = [0 if d == 1 else 2 if c and d > 2 else 1 for d, c in zip(dims, closed, strict=True)]
  cuts = [
    4 * e * link / d * (n - 1) / n for d, e in zip(dims, ends, strict=True) if e and d % 2 == 0
  ]
  out = sum(2 if e == 2 else 2 * (d - 1) / d for d, e in zip(dims, ends, strict=True) if e)
  return min([*cuts, sum(ends) * link]), out * link


def _gpu(kind: str, n: int) -> Machine:
  gpu, hosts = _GPUS[kind], max(1, n // _GPU_HOST)
  all_to_all = all_reduce = gpu.nvlink if n > 1 else math.inf
  note = f'NVLink through switches, {gpu.nvlink / 1e9:.0f} GB/s a GPU and direction'
  if hosts > 1:
    # Of the n - 1 parts that a GPU sends, n - 8 leave the host by its own card.
    inside, outside = _GPU_HOST - 1, n - _GPU_HOST
    all_to_all = min(gpu.nvlink * (n - 1) / inside, gpu.nic * (n - 1) / outside)
    # Summed in the host first, so each GPU's card carries an eighth.
    sent, inside, outside = (n - 1) / n, inside / _GPU_HOST, (hosts - 1) / hosts / _GPU_HOST
    all_reduce = min(gpu.nvlink * sent / inside, gpu.nic * sent / outside)
    note += (
      f'; between the {hosts} hosts {gpu.nic / 1e9:.0f} GB/s a GPU is assumed, all-reduce summed '
      'in each host first'
    )
  note += '; sums inside the switches (NVLink SHARP) are not modelled'
  return Machine(
    name=f'{kind}-{n}',
    platform='gpu',
    devices=n,
    hosts=hosts,
    memory=int(gpu.memory),
    flops={'float32': gpu.tf32, 'bfloat16': gpu.bfloat16},
    memory_bandwidth=gpu.memory_bandwidth,
    all_to_all=all_to_all,
    all_reduce=all_reduce,
    notes=(note, f'figures of the GPU: {gpu.source}'),
  )


def mesh(machine: Machine) -> tuple[Mesh, str]:
  """Returns a mesh to compile for, and a sentence that names the compiler.

  With libtpu installed, its compiler compiles for a TPU slice without a TPU. Otherwise CPU devices
  are simulated: collectives are of the same kinds, temporary memory is XLA:CPU's. The mesh is for
  compiling only.

  Call it before anything else touches JAX's devices: it configures them.

  Raises:
    UserError: the process has already started with fewer CPU devices.
  """
  if machine.platform == 'tpu' and importlib.util.find_spec('libtpu'):
    # Otherwise libtpu asks the cloud which slice this host belongs to.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    _on_cpu()
    # Programs without a device cannot be read back from the cache of compiled programs.
    jax.config.update('jax_enable_compilation_cache', False)
    slice_name, options = machine.aot
    topology = topologies.get_topology_desc(slice_name, platform='tpu', **options)
    return _mesh(topology.devices), f'compiled for {slice_name} by libtpu, without a TPU'
  _on_cpu()
  with contextlib.suppress(RuntimeError):  # devices exist already
    jax.config.update('jax_num_cpu_devices', machine.devices)
  devices = jax.devices('cpu')
  if len(devices) < machine.devices:
    raise UserError(
      f'topology {machine.name} needs {machine.devices} simulated devices and this process has '
      f'{len(devices)}: start a new one with XLA_FLAGS='
      f'--xla_force_host_platform_device_count={machine.devices}'
    )
  note = f'compiled by XLA:CPU for {machine.devices} simulated devices'
  if machine.platform != 'cpu':
    note += f': temporary memory is what that needs, not what a {machine.platform} would'
  return _mesh(devices[: machine.devices]), note


def _on_cpu():
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_platforms', 'cpu')


def _mesh(devices) -> Mesh:
  return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))

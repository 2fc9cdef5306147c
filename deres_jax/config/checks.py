# SPDX-License-Identifier: Apache-2.0
"""Checks a config, section by section, before data or devices are touched."""

import itertools
import re
from typing import Any

from deres_jax.core.errors import UserError, excerpt


def _one_of(section: Any, prefix: str, key: str, *names: str):
  value = getattr(section, key)
  if value not in names:
    raise UserError(f'config {prefix}.{key}={excerpt(value)}: choose one of {", ".join(names)}')


def _at_least(section: Any, prefix: str, least: float, *keys: str):
  for key in keys:
    value = getattr(section, key)
    if not value >= least:
      raise UserError(f'config {prefix}.{key}={value}: expected at least {least}')


def check(c: Any):
  """Raises UserError for the first mistake in a `config.fields.Config`."""
  if not 0 <= c.seed < 2**31:
    raise UserError(f'config seed={c.seed}: expected 0 to {2**31 - 1}')
  _at_least(c.data, 'data', 1, 'batch_size', 'eval_batch_size', 'window_blocks', 'threads')
  _at_least(c.data, 'data', 1, 'prefetch')
  _at_least(c.model, 'model', 1, 'depth', 'dim', 'heads', 'ffn_ratio', 'embed_dim', 'tokens')
  _check_model(c.model)
  _check_rates(c.model, 'model', 'dropout', 'embed_dropout')
  _check_rates(c.mlp, 'mlp', 'dropout')
  _at_least(c.mlp, 'mlp', 1, 'units', 'layers')
  _check_mixer(c)
  _check_deres(c)
  _at_least(c.attnres, 'attnres', 1, 'block_layers')
  _at_least(c.residual, 'residual', 1, 'interval_layers')
  _at_least(c.hyper, 'hyper', 1, 'sinkhorn_iterations')
  if not 2 <= c.hyper.streams <= 5:  # mhc_lite weighs all streams! permutations
    raise UserError(f'config hyper.streams={c.hyper.streams}: expected 2 to 5')
  _check_optim(c.optim)
  _check_durations(c.train)
  if c.train.profile:
    window(c.train.profile)
  _one_of(c.train, 'train', 'kernels', 'auto', 'on', 'off')
  _at_least(c.mesh, 'mesh', 0, 'devices', 'stall_seconds')
  if c.mesh.topology and c.mesh.devices:
    raise UserError(
      f'config mesh.topology={c.mesh.topology} and mesh.devices={c.mesh.devices}: a topology '
      'brings its devices, leave mesh.devices at 0'
    )
  _at_least(c.mesh, 'mesh', 1, 'start_seconds')
  _at_least(c.mesh, 'mesh', 5, 'heartbeat_seconds')


def _check_model(m: Any):
  _one_of(m, 'model', 'tokenizer', 'field', 'autosplit', 'slice', 'global')
  _one_of(m, 'model', 'norm', 'rms', 'layer', 'none')
  _one_of(m, 'model', 'head', 'mean', 'concat', 'global', 'mlp')
  _one_of(m, 'model', 'dtype', 'float32', 'bfloat16')
  _at_least(m, 'model', -1, 'pyramid_events')
  _at_least(m, 'model', 0, 'aux_weight')
  if m.dim % m.heads:
    raise UserError(f'config model.dim={m.dim} is not divisible by model.heads={m.heads}')
  if m.tokenizer == 'global' and m.tokens < 2:
    raise UserError(f'config model.tokens={m.tokens}: tokenizer=global needs at least 2')
  narrow(m)
  # A setting that a backbone would ignore is a mistake.
  for key, off, readers in (
    ('causal', False, ('transformer', 'onetrans', 'hstu')),
    ('pyramid_events', -1, ('transformer', 'onetrans')),
  ):
    if getattr(m, key) != off and m.backbone not in readers:
      raise UserError(
        f'config model.{key}={getattr(m, key)}: backbone {m.backbone} cannot do it, only '
        f'{", ".join(readers)} can: set it to {off}'
      )


def narrow(m: Any) -> tuple[tuple[int, int], ...]:
  """Returns `embed_dim_of_few` as pairs (ids, width); raises UserError unless both rise."""
  texts = [pair.split(':') for pair in filter(None, m.embed_dim_of_few.split('/'))]
  pairs = [tuple(map(int, p)) for p in texts if len(p) == 2 and all(x.isdecimal() for x in p)]
  rising = all(a < b and c < d for (a, c), (b, d) in itertools.pairwise([(0, 0), *pairs]))
  if len(pairs) < len(texts) or not rising or (pairs and pairs[-1][1] >= m.embed_dim):
    raise UserError(
      f'config model.embed_dim_of_few={m.embed_dim_of_few!r}: expected ids:width pairs, both '
      f'rising and every width below model.embed_dim={m.embed_dim}, such as 100:4/10000:8'
    )
  return tuple(pairs)


def _check_rates(section: Any, prefix: str, *keys: str):
  for key in keys:
    rate = getattr(section, key)
    if not 0 <= rate < 1:
      raise UserError(f'config {prefix}.{key}={rate}: expected 0 <= rate < 1')


def _check_mixer(c: Any):
  x = c.mixer
  _at_least(x, 'mixer', 1, 'hiformer_rank', 'wukong_rank', 'wukong_units', 'wukong_layers')
  _at_least(x, 'mixer', 0, 'wukong_interactions')
  _at_least(x, 'mixer', 1, 'unimixer_block', 'unimixer_bases', 'unimixer_rank')
  _at_least(x, 'mixer', 1, 'unimixer_iterations')
  for key in ('unimixer_tau_start', 'unimixer_tau_end'):
    if not getattr(x, key) > 0:
      raise UserError(f'config mixer.{key}={getattr(x, key)}: expected a temperature above 0')
  _at_least(c.classic, 'classic', 1, 'cross_layers', 'cin_layers', 'cin_maps', 'mask_blocks')
  _at_least(c.classic, 'classic', 1, 'mask_units', 'fusion_second_layers', 'fusion_heads')
  _at_least(c.classic, 'classic', 1, 'din_units')
  _at_least(c.classic, 'classic', 0, 'cross_rank', 'fusion_gate_units')
  if not c.classic.mask_ratio > 0:
    raise UserError(f'config classic.mask_ratio={c.classic.mask_ratio}: expected above 0')


def _check_deres(c: Any):
  d = c.deres
  _at_least(d, 'deres', 1, 'block_layers', 'key_rank')
  _at_least(d, 'deres', 0, 'gate_rank', 'query_init')
  _one_of(d, 'deres', 'mix_site', 'read', 'stream')
  _one_of(d, 'deres', 'sites', 'sublayer', 'layer')
  _one_of(d, 'deres', 'compress', 'sum', 'mean', 'last', 'token_mean', 'lowrank_key')
  _one_of(d, 'deres', 'query', 'static', 'static_per_token', 'lowrank_dynamic', 'shared')
  _one_of(
    d, 'deres', 'score_fn', 'silu', 'softmax', 'softmax1', 'sigmoid', 'tanh', 'relu', 'silu_clipped'
  )
  _one_of(d, 'deres', 'silu_norm', 'none', 'n_src', 'rms')
  _one_of(d, 'deres', 'gate', 'vector', 'scalar', 'lowrank_dynamic', 'dense')
  _one_of(d, 'deres', 'gate_form', 'convex', 'additive', 'additive_gated')
  _one_of(d, 'deres', 'path', 'dual', 'identity', 'attn')
  _one_of(d, 'deres', 'identity_kind', 'identity', 'scalar', 'vector', 'matrix')
  if d.compress == 'lowrank_key' and d.key_rank > c.model.dim:
    raise UserError(f'config deres.key_rank={d.key_rank} exceeds model.dim={c.model.dim}')
  # Scores that are zero at zero recall nothing at the start: harmless beside an identity path,
  # fatal without one (Norm(0) has a huge gradient) and undefined under silu_norm=rms.
  recalls_nothing = (
    d.score_fn in ('silu', 'tanh', 'relu', 'silu_clipped')
    and d.silu_center == 0
    and d.query_init == 0
  )
  if d.path == 'attn' and recalls_nothing:
    raise UserError(
      f'config deres.path=attn with score_fn={d.score_fn} recalls exactly 0 at the start and '
      'cannot learn: set deres.silu_center=1.2784645 and deres.include_partial=True'
    )
  if d.path == 'attn' and d.sites == 'layer':
    raise UserError('config deres.path=attn has no stream to read between: set sites=sublayer')
  # With one source, r is a multiple of it: a negative weight would make r = -x and cancel the
  # stream, a zero weight 0 / 0. Only weights that start positive are safe.
  positive = d.score_fn in ('sigmoid', 'softmax', 'softmax1') or d.silu_center > 0
  if d.silu_norm == 'rms' and (not positive or d.score_fn in ('relu', 'silu_clipped')):
    raise UserError(
      f'config deres.silu_norm=rms divides by the norm of a recall that score_fn={d.score_fn} '
      'makes 0 or negative: set deres.silu_center=1.2784645 or choose silu_norm=none'
    )
  if d.score_fn in ('relu', 'silu_clipped') and d.silu_center <= 0 and d.query_init == 0:
    raise UserError(
      f'config deres.score_fn={d.score_fn} has no gradient at score 0: set deres.query_init=0.02 '
      'or deres.silu_center above 0'
    )


def _check_optim(o: Any):
  _one_of(o, 'optim', 'dense', 'adamw')
  _one_of(o, 'optim', 'table', 'rowwise_adagrad', 'lazy_adam')
  _one_of(o, 'optim', 'table_slots', 'float32', 'bfloat16')
  _one_of(o, 'optim', 'schedule', 'constant', 'linear', 'cosine', 'wsd')
  _at_least(o, 'optim', 0, 'dense_lr', 'table_lr', 'weight_decay', 'clip_norm', 'table_l2')
  _at_least(o, 'optim', 0, 'table_init_std', 'gate_lr_mult', 'query_lr_mult')
  if not 0 <= o.decay <= 1:
    raise UserError(f'config optim.decay={o.decay}: expected a share of all steps in [0, 1]')
  if not 0 <= o.warmup < 1:
    raise UserError(f'config optim.warmup={o.warmup}: expected a share of all steps in [0, 1)')


def _check_durations(t: Any):
  for steps, epochs in (('steps', 'epochs'), ('eval_steps', 'eval_epochs')):
    a, b = getattr(t, steps), getattr(t, epochs)
    if a < 0 or b < 0 or (a > 0) == (b > 0):
      raise UserError(
        f'config train.{steps}={a} and train.{epochs}={b}: set exactly one of them above 0 '
        'and the other to 0'
      )
  _at_least(t, 'train', 1, 'log_steps')
  _at_least(t, 'train', 0, 'checkpoint_steps')
  _at_least(t, 'train', -1, 'micro_batch')
  _one_of(t, 'train', 'on_nan', 'stop', 'skip', 'rollback')
  _at_least(t, 'train', 0, 'nan_bound')


def window(profile: str) -> tuple[int, int]:
  """Returns the first and last step, from 1, of train.profile 'START:STEPS'; raises UserError."""
  match = re.fullmatch(r'([1-9]\d{0,14}):([1-9]\d{0,14})', profile, re.ASCII)
  if not match:
    raise UserError(
      f'profile {profile!r}: expected START:STEPS, the first step (from 1) and their number, '
      'such as 20:5'
    )
  first, count = map(int, match.groups())
  return first, first + count - 1

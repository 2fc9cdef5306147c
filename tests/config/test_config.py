# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from deres_jax import config
from deres_jax.config import checks
from deres_jax.config import fields as fields_lib
from deres_jax.core.errors import UserError


def resolve(overrides=''):
  return config.resolve(config.base(overrides))


def test_base_holds_every_field_at_its_default():
  assert resolve() == fields_lib.Config()


def test_overrides_are_read_in_the_type_of_the_default():
  c = resolve('model.depth=16,optim.dense_lr=1,model.causal=true,deres.score_fn=softmax')
  assert (c.model.depth, c.optim.dense_lr, c.model.causal) == (16, 1.0, True)
  assert isinstance(c.optim.dense_lr, float) and c.deres.score_fn == 'softmax'


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ('model.dept=16', ['model.dept', 'depth']),
    ('modl.depth=16', ['modl', 'model']),
    ('model=3', ['model', 'section', 'depth']),
    ('model.depth.x=3', ['model.depth.x']),
    ('model.depth', ['model.depth', 'name=value']),
    ('model.depth=4.5', ['4.5', 'int']),
    ('model.causal=1', ['bool']),
    ('seed=-1', ['seed=-1']),
    ('data.batch_size=0', ['data.batch_size=0', 'at least 1']),
    ('model.heads=5', ['64', '5', 'divisible']),
    ('model.tokenizer=words', ['words', 'autosplit', 'field']),
    ('model.dropout=1', ['dropout=1', '< 1']),
    ('deres.gate=vectr', ['vectr', 'vector', 'scalar']),
    ('deres.path=attn', ['silu', 'silu_center']),
    ('deres.silu_norm=rms', ['silu_norm', 'silu_center']),
    ('deres.score_fn=relu', ['relu', 'query_init']),
    ('deres.path=attn,deres.score_fn=softmax,deres.sites=layer', ['sites=sublayer']),
    ('deres.compress=lowrank_key,deres.key_rank=65', ['65', '64']),
    ('optim.table=adam', ['lazy_adam', 'rowwise_adagrad']),
    ('optim.warmup=1', ['warmup=1']),
    ('train.steps=5', ['train.steps=5', 'train.epochs=1', 'exactly one']),
    ('train.epochs=0', ['exactly one']),
    ('train.eval_steps=5', ['train.eval_steps=5', 'exactly one']),
  ],
)
def test_a_mistake_is_named_in_one_line(overrides, words):
  with pytest.raises(UserError) as e:
    resolve(overrides)
  text = str(e.value)
  assert '\n' not in text and all(word in text for word in words), text


def test_a_locked_config_refuses_new_fields():
  with pytest.raises(AttributeError):
    config.base().model.dept = 3


def test_resolve_refuses_a_field_of_another_type_and_a_missing_one():
  c = config.base().to_dict()
  c['model']['depth'] = 'deep'
  with pytest.raises(UserError, match=r'model.depth=.deep.: expected a int'):
    config.resolve(c)
  del c['model']['depth']
  with pytest.raises(UserError, match=r'model.depth. is missing'):
    config.resolve(c)


def test_the_hash_is_of_what_is_computed_and_of_nothing_else():
  """Every field but the operational ones changes the hash; the operational ones never do."""
  base = resolve()
  operational = {'data.path', 'data.threads', 'data.prefetch', 'train.log_steps'}
  operational |= {'train.nan_bound', 'train.profile', 'train.wandb'}
  operational |= {'train.compilation_cache', 'train.kernels', 'mesh.devices', 'mesh.topology'}
  operational |= {'train.profile', 'train.wandb'}
  operational |= {f'mesh.{x}_seconds' for x in ('start', 'heartbeat', 'stall')}
  seen = {config.config_hash(base)}
  fields = [('', base)] + [
    (f.name, getattr(base, f.name))
    for f in dataclasses.fields(base)
    if dataclasses.is_dataclass(getattr(base, f.name))
  ]
  for section, node in fields:
    for f in dataclasses.fields(node):
      old = getattr(node, f.name)
      if dataclasses.is_dataclass(old):
        continue
      other = (not old) if isinstance(old, bool) else old + ('x' if isinstance(old, str) else 7)
      new = dataclasses.replace(node, **{f.name: other})
      changed = dataclasses.replace(base, **{section: new}) if section else new
      name = f'{section}.{f.name}' if section else f.name
      digest = config.config_hash(changed)
      assert (digest in seen) == (name in operational), name
      seen.add(digest)


def test_widths_of_columns_of_few_ids():
  def narrow(text):
    return checks.narrow(resolve(f'model.embed_dim_of_few={text}').model)

  assert narrow('') == () and narrow('100:4/10000:8') == ((100, 4), (10_000, 8))
  for wrong in ('100', '100:4:1', 'a:4', '100:-4', '100:4/50:8', '100:8/1000:4', '100:16', '0:4'):
    with pytest.raises(UserError, match='ids:width pairs, both rising'):
      narrow(wrong)

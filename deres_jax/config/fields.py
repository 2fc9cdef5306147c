# SPDX-License-Identifier: Apache-2.0
"""The fields of a config: name, default, unit and range of every setting."""

import dataclasses

# Fields that decide where or how fast a run happens, not what it computes. They may change when a
# run is resumed and are not part of its identity.
_operational = {'operational': True}


# Fields of later versions. At their default a run computes what it did without them, and its
# identity leaves them out, so that older runs keep their ids.
_later = {'later': True}


def _op(default):
  return dataclasses.field(default=default, metadata=_operational)


@dataclasses.dataclass(frozen=True)
class Data:
  """Where rows come from and how they are batched."""

  path: str = _op('')  # prepared folder, the one that holds schema.json
  batch_size: int = 4096  # rows a step, over all devices
  eval_batch_size: int = 8192  # rows an evaluation step, over all devices
  window_blocks: int = 64  # shuffle window: rows mix within this many blocks (of 4096 rows)
  threads: int = _op(1)  # reader threads
  prefetch: int = _op(4)  # batches read ahead


@dataclasses.dataclass(frozen=True)
class Model:
  """Tokens -> sub-layers under a connector -> logit."""

  backbone: str = 'onetrans'  # a name in deres_jax.models.BACKBONES
  connector: str = 'deres'  # a name in deres_jax.models.CONNECTORS
  depth: int = 8  # layers
  dim: int = 64  # width of a token
  heads: int = 4  # attention heads; divides dim
  ffn_ratio: int = 4  # hidden width of the FFN over dim
  embed_dim: int = 16  # width of a table row; 1 for backbone lr
  # Columns of few ids may have narrower rows: ids:width pairs, such as 100:4/10000:8 for width 4 up
  # to 100 ids, 8 up to 10,000 and embed_dim beyond; empty: all are as wide.
  embed_dim_of_few: str = ''
  # field: a token a field | autosplit: one dense map, then a split | slice: even slices of all
  # rows, a map each | global: a token of all rows, then slices
  tokenizer: str = 'field'
  tokens: int = 16  # number of tokens of all tokenizers but field
  causal: bool = False  # attention sees earlier tokens only (an order of fields is arbitrary)
  pyramid_events: int = -1  # onetrans: events left after the last layer, oldest go; -1: all stay
  norm: str = 'rms'  # rms | layer | none: the norm that connectors place
  # mean | concat | global: of the first token | mlp: of all through hidden layers, to one logit
  head: str = 'mean'
  aux_weight: float = 0.0  # weight of the mean loss of logits read between layers; 0: none
  dropout: float = 0.0  # on each sub-layer's branch, in [0, 1)
  embed_dropout: float = 0.0  # on table rows, in [0, 1)
  dtype: str = 'float32'  # float32 | bfloat16: sub-layers' arithmetic; the stream stays float32
  remat: bool = False  # recompute sub-layers in the backward pass (memory for time)


@dataclasses.dataclass(frozen=True)
class Mlp:
  """Hidden ReLU layers: of the classic models, of head=mlp and of autoint_plus."""

  units: int = 400
  layers: int = 3
  dropout: float = 0.0  # after each, in [0, 1)


@dataclasses.dataclass(frozen=True)
class Mixer:
  """Sizes of token mixers, each named by its backbone."""

  hiformer_rank: int = 64  # rank of the composite q, k and v maps
  wukong_interactions: int = 0  # tokens that the interaction block makes; 0: half of all
  wukong_rank: int = 24  # columns of the projection of the interactions
  wukong_units: int = 512  # width of the interaction block's hidden layers
  wukong_layers: int = 1  # their number
  unimixer_block: int = 8  # block size; divides tokens x dim
  unimixer_bases: int = 4  # unimixing_lite: shared bases of the local matrices
  unimixer_rank: int = 16  # unimixing_lite: rank of the global matrix
  unimixer_iterations: int = 5  # Sinkhorn iterations
  unimixer_tau_start: float = 1.0  # temperature at the first step; it falls linearly ...
  unimixer_tau_end: float = 0.05  # ... to this one at the last


@dataclasses.dataclass(frozen=True)
class Classic:
  """Sizes of the interaction models outside the token factory."""

  cross_layers: int = 3  # dcnv2
  cross_rank: int = 0  # dcnv2: rank of each cross matrix; 0: full
  cin_layers: int = 3  # xdeepfm: layers of the compressed interaction network
  cin_maps: int = 64  # xdeepfm: feature maps of each
  mask_blocks: int = 2  # masknet: parallel blocks
  mask_ratio: float = 0.5  # masknet: width of a mask's hidden layer over that of all rows
  mask_units: int = 256  # masknet: outputs of a block
  fusion_second_layers: int = 1  # finalmlp: hidden layers of the second stream
  fusion_heads: int = 10  # finalmlp: heads of the bilinear fusion; divides mlp.units
  fusion_gate_units: int = 0  # finalmlp: hidden width of the stream gates; 0: no gates
  din_units: int = 64  # din: hidden width of the attention


@dataclasses.dataclass(frozen=True)
class DeRes:
  """Switches of the DeRes connector (arXiv 2606.07980). Defaults are DeRes-P."""

  mix_site: str = 'read'  # read: mix what a sub-layer reads | stream: mix into the stream
  sites: str = 'sublayer'  # sublayer: a read before every sub-layer | layer: one a layer
  block_layers: int = 2  # layers a block, >= 1
  compress: str = 'sum'  # sum | mean | last | token_mean | lowrank_key: a block's summary
  key_rank: int = 16  # dimensions of the key, compress=lowrank_key only
  include_partial: bool = False  # the unfinished block is a source too
  query: str = 'static'  # static | static_per_token | lowrank_dynamic | shared
  # silu | softmax | softmax1 | sigmoid | tanh | relu | silu_clipped: negative weights zeroed
  score_fn: str = 'silu'
  score_scale: float = 1.0  # kappa: multiplies <query, key>
  silu_norm: str = 'none'  # none | n_src | rms: scale of the recalled sum
  silu_center: float = 0.0  # tau: score_fn(z + tau); 1.2784645 makes SiLU(tau) = 1
  query_init: float = 0.0  # standard deviation of the queries at the start
  gate: str = 'vector'  # vector | scalar | lowrank_dynamic | dense
  gate_form: str = 'convex'  # convex | additive | additive_gated
  gate_rank: int = 0  # rank of the low-rank gate and query; 0: dim / 16, at least 1
  beta_init: float = 0.0  # gate bias at the start: gate = sigmoid(beta)
  readout_mix: bool = True  # the head reads through the gate too
  path: str = 'dual'  # dual | identity | attn: which of the two paths is there
  identity_kind: str = 'identity'  # identity | scalar | vector | matrix


@dataclasses.dataclass(frozen=True)
class AttnRes:
  """Switches of Block Attention Residuals (arXiv 2603.15031), its pointwise form and haares."""

  block_layers: int = 2  # layers a block, >= 1
  detail_init: float = -2.0  # haares: logit of the detail sources at the start, below 0


@dataclasses.dataclass(frozen=True)
class Residual:
  """Switches of the single-stream connectors."""

  interval_layers: int = 2  # interval: layers between the ends of the second skip, >= 1
  layerscale_init: float = 0.1  # layerscale: factor of every branch at the start
  highway_bias: float = -2.0  # highway: gate bias at the start, below 0


@dataclasses.dataclass(frozen=True)
class Hyper:
  """Switches of hc (arXiv 2409.19606), mhc (2512.24880) and mhc_lite (2601.05732)."""

  streams: int = 4  # copies of the stream, 2 to 5
  sinkhorn_iterations: int = 20  # mhc only, >= 1


@dataclasses.dataclass(frozen=True)
class Optim:
  """Two optimizers: optax for the dense part, row updates for the table."""

  dense: str = 'adamw'  # adamw
  dense_lr: float = 1e-3  # peak learning rate of the dense part
  adam_b1: float = 0.9
  adam_b2: float = 0.999
  adam_eps: float = 1e-8
  weight_decay: float = 0.0  # decoupled, on matrices only: no gates, queries, norms or biases
  clip_norm: float = 1.0  # global norm of the dense gradient; 0: off
  gate_lr_mult: float = 10.0  # learning rate of a connector's gates over dense_lr
  query_lr_mult: float = 1.0  # learning rate of a connector's queries over dense_lr
  table: str = 'rowwise_adagrad'  # rowwise_adagrad | lazy_adam
  table_lr: float = 0.02  # peak learning rate of the table
  table_eps: float = 1e-8
  table_slots: str = 'float32'  # float32 | bfloat16: how the table optimizer's state is kept
  table_init_std: float = 0.01  # standard deviation of table rows at the start
  table_l2: float = 0.0  # gradient += table_l2 * row, on the rows of the batch, once a step
  schedule: str = 'constant'  # constant | linear | cosine | wsd: of both learning rates
  decay: float = 0.2  # wsd: share of all steps in which the rate falls to zero, in [0, 1]
  warmup: float = 0.0  # share of all steps with a rising learning rate, in [0, 1)


@dataclasses.dataclass(frozen=True)
class Train:
  """How long, and what is written when. Of each pair of durations exactly one is positive."""

  steps: int = 0  # length of the run in steps ...
  epochs: float = 1.0  # ... or in passes over the training split
  eval_steps: int = 0  # evaluate on the validation split every so many steps ...
  eval_epochs: float = 1.0  # ... or passes; the last step is always evaluated
  checkpoint_steps: int = 0  # checkpoint this often besides every evaluation; 0: evaluations only
  micro_batch: int = -1  # rows a device works on at a time; 0: all; -1: what is fast here
  # CPUs: kernels compiled by the machine's C++ compiler; auto (where there is one) | on | off
  kernels: str = _op('auto')
  log_steps: int = _op(50)  # steps between lines in metrics.jsonl
  # A loss or gradient that is not finite: stop | skip (the step moves nothing) | rollback (to the
  # last checkpoint, without the batches since): docs/reliability.md
  on_nan: str = dataclasses.field(default='stop', metadata=_later)
  nan_bound: int = _op(10)  # steps skipped, or rollbacks, after which a run stops all the same
  compilation_cache: bool = _op(True)  # keep compiled programs for the next start
  profile: str = _op('')  # START:STEPS: a profile of these steps, in workdir/profile; empty: none
  wandb: str = _op('')  # project of Weights & Biases that gets the figures; empty: none


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The devices. One device is a mesh of one. Times matter to runs of several processes only."""

  devices: int = _op(0)  # how many of the visible devices, as many of each process; 0: all
  topology: str = _op('')  # --mode=plan: a mesh that need not be here, such as v5e-8 or h200-8
  start_seconds: int = _op(300)  # wait so long until all processes are there
  heartbeat_seconds: int = _op(100)  # silence after which a process counts as dead, >= 5
  stall_seconds: int = _op(900)  # longest time without a step, evaluation batch or save; 0: any


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run, frozen."""

  seed: int = 0  # reaches initial values, row order and dropout
  data: Data = Data()
  model: Model = Model()
  mlp: Mlp = Mlp()
  mixer: Mixer = Mixer()
  classic: Classic = Classic()
  deres: DeRes = DeRes()
  attnres: AttnRes = AttnRes()
  residual: Residual = Residual()
  hyper: Hyper = Hyper()
  optim: Optim = Optim()
  train: Train = Train()
  mesh: Mesh = Mesh()

# SPDX-License-Identifier: Apache-2.0
"""XLA's flags in tests: most of their time is compilation, and what it makes runs a few times.

LLVM's optimisations pay for nothing here, and XLA's older way to write loops compiles two to three
times as fast as its fusion emitters. Results agree but for rounding. Runs on the real samples,
which are longer, and exported files have XLA's own settings (test_samples.py, test_export.py).
"""

import importlib.metadata

XLA_FLAGS = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
if importlib.metadata.version('jaxlib') < '0.11':  # a flag that went away
  XLA_FLAGS += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'

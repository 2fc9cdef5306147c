# SPDX-License-Identifier: Apache-2.0
"""Where a run reports: metrics.jsonl, TensorBoard, Weights & Biases, the terminal, profiles."""

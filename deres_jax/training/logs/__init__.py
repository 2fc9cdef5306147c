# SPDX-License-Identifier: Apache-2.0
"""Lines of a run: metrics.jsonl, TensorBoard, Weights & Biases, the terminal, profiles."""

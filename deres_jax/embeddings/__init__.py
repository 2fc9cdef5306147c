# SPDX-License-Identifier: Apache-2.0
"""Embedding tables: their layout over devices, the exchange of embeddings, the sparse optimizers.

Imports core, kernels and pod. Knows no model and no data set.
"""

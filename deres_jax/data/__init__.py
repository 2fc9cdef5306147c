# SPDX-License-Identifier: Apache-2.0
"""Prepared folders to batches: schema, blocks, shuffle plan, reader, host batches.

Imports core, pod and embeddings. Knows no model. It meets data_pipelines in files only.
"""

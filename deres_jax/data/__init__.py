# SPDX-License-Identifier: Apache-2.0
"""Turns prepared folders into batches: schema, blocks, shuffle plan, reader, batches, feed.

Imports core, pod and embeddings, and knows no model. Shares only files with data_pipelines.
"""

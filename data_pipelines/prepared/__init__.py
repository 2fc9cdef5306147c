# SPDX-License-Identifier: Apache-2.0
"""The prepared folder: schema, records, shards, vocabularies, TFDS description.

Imports core. Knows no raw format.
"""

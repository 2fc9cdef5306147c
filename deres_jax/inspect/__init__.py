# SPDX-License-Identifier: Apache-2.0
"""A trained model, looked into: depth weights, gates, norms, and the AUC that each part is worth.

Imports training and the rooms below. Trains nothing.
"""

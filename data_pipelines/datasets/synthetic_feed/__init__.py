# SPDX-License-Identifier: Apache-2.0
"""A planted feed: users with interests and histories, items with tags and authors."""

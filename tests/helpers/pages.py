# SPDX-License-Identifier: Apache-2.0
"""Parses pages: every tag must be closed in order."""

import html.parser

VOID = {'meta', 'br'}


class Node(html.parser.HTMLParser):
  """A tree of elements; raises AssertionError where a tag is not closed in order."""

  def __init__(self, text=None):
    super().__init__()
    self.tag, self.attrs, self.children, self.text = '', {}, [], ''
    if text is not None:
      self._open = [self]
      self.feed(text)
      self.close()
      assert self._open == [self], [node.tag for node in self._open]

  def handle_starttag(self, tag, attrs):
    node = Node()
    node.tag, node.attrs = tag, dict(attrs)
    assert len(node.attrs) == len(attrs), f'{tag} {attrs}'
    self._open[-1].children.append(node)
    if tag not in VOID:
      self._open.append(node)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    self.handle_endtag(tag)

  def handle_endtag(self, tag):
    assert self._open.pop().tag == tag, f'</{tag}> at {self.getpos()}'

  def handle_data(self, data):
    for node in self._open:
      node.text += data

  def all(self, tag, kind=''):
    """Elements below with this tag and these classes, in order."""
    out = []
    for node in self.children:
      have = (node.attrs.get('class') or '').split()
      if node.tag == tag and set(kind.split()) <= set(have):
        out.append(node)
      out += node.all(tag, kind)
    return out

# SPDX-License-Identifier: Apache-2.0
"""Parses pages: every tag must be closed in order."""

import html.parser
import re

import numpy as np

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

  @property
  def words(self):
    """The text with single spaces, as a browser shows it."""
    return ' '.join(self.text.split())

  def all(self, tag, kind=''):
    """Elements below with this tag and these classes, in order."""
    out = []
    for node in self.children:
      have = (node.attrs.get('class') or '').split()
      if node.tag == tag and set(kind.split()) <= set(have):
        out.append(node)
      out += node.all(tag, kind)
    return out


def points(picture, kind):
  """Corners of the paths of a kind of artist, in pixels of the picture."""
  out = []
  for group in picture.all('g', kind):
    for path in group.all('path'):
      if 'd' in path.attrs and 'id' not in path.attrs:
        numbers = [float(x) for x in re.findall(r'-?[\d.]+', path.attrs['d'])]
        out.append(np.array(numbers).reshape(-1, 2))
  return out


def marks(picture, kind):
  """Where the markers of a kind stand, by their tool tips."""
  return {
    group.all('title')[0].text: tuple(float(group.all('use')[0].attrs[k]) for k in 'xy')
    for group in picture.all('g', kind)
  }


def looks(picture, kind):
  """Colour and path of each marker of a kind, by their tool tips."""
  paths = {x.attrs['id']: x.attrs['d'] for x in picture.all('path') if 'id' in x.attrs}
  return {
    group.all('title')[0].text: (use.attrs['style'], paths[use.attrs['href'][1:]])
    for group in picture.all('g', kind)
    for use in group.all('use')
  }


UNITS = {'k': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12}


def scales(picture, log=True):
  """Functions from pixels to values of both axes, from the labels of their ticks alone."""
  labels = [text for group in picture.all('g', 'x') for text in group.all('text')]
  labels = [x for x in labels if re.match(r'[\d.]+', x.text)]
  values = [float(x.text.rstrip('kMGT')) * UNITS.get(x.text[-1], 1) for x in labels]
  values = np.log(values) if log else values
  across = np.polyfit([float(x.attrs['x']) for x in labels], values, 1)
  heights = [line[0, 1] for line in points(picture, 'grid')]
  levels = [float(group.text) for group in picture.all('g', 'y')]
  up = np.polyfit(heights, levels, 1)
  assert len(labels) > 2 and len(heights) > 2
  back = np.exp if log else np.asarray
  return lambda x: back(np.polyval(across, x)), lambda y: np.polyval(up, y)

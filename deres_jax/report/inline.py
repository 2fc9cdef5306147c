# SPDX-License-Identifier: Apache-2.0
"""Makes matplotlib's SVG an element of a page: short, with colours and fonts of the page."""

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element


def element(svg: str, name: str, variables: dict[str, str]) -> Element:
  """Returns the root of matplotlib's SVG.

  A gid 'KIND:TIP' becomes a class and a title.

  Args:
    name: begins every id.
    variables: values of CSS by colour.
  """
  root = ElementTree.fromstring(svg)
  _clean(root, name, variables, {})
  return root


def _clean(element: Element, name: str, variables: dict[str, str], ids: dict[str, str]):
  """Makes an element of matplotlib's SVG, and all below it, fit to stand inside a page."""

  def new_id(old: str) -> str:
    return ids.setdefault(old, f'{name}-{len(ids)}')

  element.tag = element.tag.rpartition('}')[2]
  element.tail = None
  if element.tag not in ('text', 'title'):
    element.text = None
  attributes = {key.rpartition('}')[2]: value for key, value in element.attrib.items()}
  gid = attributes.pop('id', '') if element.tag == 'g' else ''
  element.attrib = {}
  for key, value in attributes.items():
    if key == 'id':
      value = new_id(value)
    elif key == 'href':
      value = f'#{new_id(value[1:])}'
    elif key == 'clip-path':
      value = f'url(#{new_id(value[5:-1])})'
    elif key == 'style':
      value = _style(value, variables)
    elif key == 'transform' and value.startswith('rotate(-0 '):
      continue
    else:
      value = _rounded(value)
    element.set(key, value)
  children = []
  for child in element:
    _clean(child, name, variables, ids)
    bare = child.tag == 'g' and not child.attrib
    children += list(child) if bare else [child] if child.tag not in ('style', 'metadata') else []
  element[:] = [child for child in children if child.tag not in ('g', 'defs') or len(child)]
  if ':' in gid:
    kind, _, tip = gid.partition(':')
    element.set('class', kind)
    if tip:
      title = Element('title')
      title.text = tip
      element.insert(0, title)


def _style(style: str, variables: dict[str, str]) -> str:
  """Returns a style with colours as variables, and no font but the page's."""
  values = dict(x.split(': ', 1) for x in style.split('; ') if ': ' in x)
  values.pop('font-family', None)
  if font := values.pop('font', None):  # matplotlib before 3.10
    values['font-size'] = re.search(r'[\d.]+px', font)[0]
    if weight := re.search(r'\b[67]00\b', font):
      values['font-weight'] = weight[0]
  return ';'.join(f'{key}:{variables.get(value, value)}' for key, value in values.items())


def _rounded(value: str) -> str:
  value = re.sub(r'-?\d+\.\d{3,}', lambda x: f'{float(x[0]):.2f}', value)
  return ' '.join(value.split())

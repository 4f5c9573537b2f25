"""Regions: files and devices that an unmodified program maps, saved page by page and restored elsewhere.

`manifest` says what is saved (pure), `medium` opens the region itself, `scan` finds pages by content, `sink`
is what every destination can do (`directory`, `objects`, `peer`), `save` and `restore` carry it out.
The format is docs/formats/region.md.
"""

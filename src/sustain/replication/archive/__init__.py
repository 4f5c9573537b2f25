"""Archives of a store: a directory or an object store that holds its log and snapshots, to restore from.

`place` (`directory`, `bucket`) moves whole objects; `names`, `segment`, `pages` and `documents` are what the objects
are; `contents` reads what is there and `plan` finds a way through it. `destination` ships to an archive, with `upload`
and `copy`; `upkeep` compacts, deletes what is too old, and has a restore tried; `restore` and `proof` read.

The bytes are in docs/formats/archive.md, the reasons in docs/decisions/0036-archives.md.
"""

"""Archives of a store: a directory or an object store that holds its log and snapshots, to restore from.

`place` (`directory`, `bucket`) moves whole objects; `names`, `segment`, `pages` and `documents` are what the objects
are; `contents` reads what is there and `plan` finds a way through it. `destination` ships to an archive (`arrival`,
`shipping`), with `cutting`, `copy` and `upload`; `upkeep` compacts, deletes what is too old, and has a restore tried.
`restore` chooses from where, `building` makes the store out of `sources`; `proof` does it for the sake of it, and
`proofs` keeps when.

The bytes are in docs/formats/archive.md, the reasons in docs/decisions/0036-archives.md.
"""

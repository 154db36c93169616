"""Packs: what writes them, what reads them, what checks them (docs/repository-format.md, section 5)."""

from vmcellar.repository.pack_format import PackRef
from vmcellar.repository.pack_reader import Group, Location, PackReader, groups, table_locations, verify_pack
from vmcellar.repository.pack_writer import PackWriter, SealedPack

__all__ = [
    "Group",
    "Location",
    "PackReader",
    "PackRef",
    "PackWriter",
    "SealedPack",
    "groups",
    "table_locations",
    "verify_pack",
]

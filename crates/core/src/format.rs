//! The byte layout of a store, as in `docs/formats/store.md`. Nothing here does I/O.

use crate::checksum::crc;
use crate::error::{Error, Result};

/// Bytes of a page of the image, the unit of capture and of sums.
pub const PAGE: usize = 4096;
/// The same as `u64`.
pub const PAGE_U64: u64 = PAGE as u64;
/// 8-byte words of a page.
pub const WORDS_PER_PAGE: usize = PAGE / 8;
/// Every part of a store begins on such a boundary.
pub const PART_ALIGN: u64 = 2 << 20;

/// First bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"SUSTAIN\0";
/// Format version written by this code.
pub const VERSION: u32 = 1;
/// Incompatible features that this code understands.
pub const INCOMPAT_KNOWN: u64 = INCOMPAT_ARRIVING;
/// Incompatible feature: not every page is here; `docs/formats/arriving.md`.
pub const INCOMPAT_ARRIVING: u64 = 1;
/// Size of a superblock; the second one follows the first.
pub const SUPERBLOCK_SIZE: usize = 4096;
/// Where the control words lie.
pub const CONTROL_OFFSET: u64 = 0x2000;
/// Bytes of control words.
pub const CONTROL_SIZE: u64 = 0x2000;
/// Where the log begins.
pub const LOG_OFFSET: u64 = PART_ALIGN;
/// Entries of the epoch history that a superblock holds.
pub const HISTORY_MAX: usize = 128;

/// Superblock flag: closed in order, everything up to `end_lsn` is in the image.
pub const FLAG_CLEAN: u32 = 1;
/// Superblock flag: a snapshot is being received.
pub const FLAG_INCOMPLETE: u32 = 2;
/// A receiver wrote last: what the commits behind `end_lsn` say of durability is of the primary's medium.
pub const FLAG_RECEIVED: u32 = 4;

/// What a commit that returned survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Durability {
    /// The process's death.
    Memory = 0,
    /// Power loss, by ranged data syncs.
    Disk = 1,
    /// Power loss, by cache-line write-back into a DAX mapping.
    Pmem = 2,
}

impl Durability {
    /// Its name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Pmem => "pmem",
        }
    }

    /// From its name; `None` for anything else.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Memory, Self::Disk, Self::Pmem].into_iter().find(|d| d.name() == name)
    }
}

/// Where an epoch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: u64,
    /// LSN of its first record.
    pub start: u64,
}

/// A superblock in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// [`FLAG_CLEAN`], [`FLAG_INCOMPLETE`], [`FLAG_RECEIVED`].
    pub flags: u32,
    /// Compatible features.
    pub compat: u64,
    /// Incompatible features.
    pub incompat: u64,
    /// Same on every replica.
    pub store_uuid: [u8; 16],
    /// Of this file alone.
    pub replica_uuid: [u8; 16],
    /// The higher one of two valid superblocks counts.
    pub sequence: u64,
    /// Bytes of the ring.
    pub log_size: u64,
    /// Where the sums begin.
    pub sums_offset: u64,
    /// Where the image begins.
    pub image_offset: u64,
    /// Bytes of the image.
    pub image_size: u64,
    /// Newest epoch seen.
    pub epoch: u64,
    /// Recovery begins here.
    pub tail: Point,
    /// How commits are made durable.
    pub durability: Durability,
    /// The log must not end before this when clean.
    pub end_lsn: u64,
    /// Boot id of the host that wrote last.
    pub boot_id: [u8; 16],
    /// Nanoseconds since 1970.
    pub created_ns: u64,
    /// Oldest first.
    pub history: Vec<EpochStart>,
}

/// A place between two groups of the log, with what is needed to go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Point {
    /// Position.
    pub lsn: u64,
    /// Commits before it.
    pub seq: u64,
    /// Checksum field of the commit record that ends here.
    pub chain: u32,
}

fn get_u32(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"))
}

fn get_u64(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}

impl Superblock {
    /// A new store's: nothing in it, epoch `epoch` beginning at 0.
    ///
    /// # Errors
    /// `InvalidArgument` for sizes that are no multiples of 2 MiB, or zero, or too large to address.
    pub fn new(
        store_uuid: [u8; 16],
        image_size: u64,
        log_size: u64,
        d: Durability,
        epoch: u64,
    ) -> Result<Self> {
        for (what, size) in [("size", image_size), ("log_size", log_size)] {
            if size == 0 || size % PART_ALIGN != 0 || size > 1 << 46 {
                return Err(Error::InvalidArgument(format!(
                    "{what} {size} is not a multiple of 2 MiB up to 64 TiB"
                )));
            }
        }
        let sums_offset = LOG_OFFSET + log_size;
        let sums_size = (image_size / 512).next_multiple_of(PART_ALIGN);
        Ok(Self {
            flags: 0,
            compat: 0,
            incompat: 0,
            store_uuid,
            replica_uuid: [0; 16],
            sequence: 1,
            log_size,
            sums_offset,
            image_offset: sums_offset + sums_size,
            image_size,
            epoch,
            tail: Point::default(),
            durability: d,
            end_lsn: 0,
            boot_id: [0; 16],
            created_ns: 0,
            history: vec![EpochStart { epoch, start: 0 }],
        })
    }

    /// A new store's, with identities of its own; sizes are rounded up to 2 MiB.
    ///
    /// # Errors
    /// As [`Superblock::new`].
    pub fn for_new_store(uuid: Option<[u8; 16]>, image_size: u64, log_size: u64, epoch: u64) -> Result<Self> {
        let uuid = uuid.map_or_else(crate::replica::random16, Ok)?;
        let whole = |size: u64| size.checked_next_multiple_of(PART_ALIGN).unwrap_or(u64::MAX);
        let mut sb = Self::new(uuid, whole(image_size), whole(log_size), Durability::Memory, epoch)?;
        sb.replica_uuid = crate::replica::random16()?;
        Ok(sb)
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        self.image_offset + self.image_size
    }

    /// Pages of the image.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.image_size / PAGE_U64
    }

    /// Seed of the record checksums.
    #[must_use]
    pub fn crc_seed(&self) -> u32 {
        get_u32(&self.store_uuid, 0)
    }

    /// Remember that `epoch` begins at `start`; the oldest entry goes when there is no room.
    pub fn push_history(&mut self, epoch: u64, start: u64) {
        if self.history.last().is_some_and(|h| h.epoch == epoch) {
            return;
        }
        if self.history.len() == HISTORY_MAX {
            self.history.remove(0);
        }
        self.history.push(EpochStart { epoch, start });
    }

    /// As it lies in the file.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut b = [0u8; SUPERBLOCK_SIZE];
        b[0..8].copy_from_slice(&MAGIC);
        let mut p32 = |at: usize, v: u32| b[at..at + 4].copy_from_slice(&v.to_le_bytes());
        p32(8, VERSION);
        p32(12, self.flags);
        p32(136, self.tail.chain);
        p32(140, self.durability as u32);
        p32(176, self.history.len() as u32);
        let mut p64 = |at: usize, v: u64| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
        for (at, v) in [
            (16, self.compat),
            (24, self.incompat),
            (64, self.sequence),
            (72, LOG_OFFSET),
            (80, self.log_size),
            (88, self.sums_offset),
            (96, self.image_offset),
            (104, self.image_size),
            (112, self.epoch),
            (120, self.tail.lsn),
            (128, self.tail.seq),
            (144, self.end_lsn),
            (168, self.created_ns),
        ] {
            p64(at, v);
        }
        for (i, h) in self.history.iter().enumerate() {
            p64(512 + i * 16, h.epoch);
            p64(520 + i * 16, h.start);
        }
        b[32..48].copy_from_slice(&self.store_uuid);
        b[48..64].copy_from_slice(&self.replica_uuid);
        b[152..168].copy_from_slice(&self.boot_id);
        let sum = crc(0, &b[..4092]);
        b[4092..].copy_from_slice(&sum.to_le_bytes());
        b
    }

    /// Read one copy. `Ok(None)`: not a valid superblock (another copy may be).
    ///
    /// # Errors
    /// `NewerVersion` for a valid one that this code cannot use.
    pub fn decode(b: &[u8]) -> Result<Option<Self>> {
        if b.len() < SUPERBLOCK_SIZE || b[0..8] != MAGIC || crc(0, &b[..4092]) != get_u32(b, 4092) {
            return Ok(None);
        }
        let version = get_u32(b, 8);
        let incompat = get_u64(b, 24);
        if version > VERSION || incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Error::NewerVersion(format!(
                "the store has format version {version}, features {incompat:#x}; this Sustain reads up to {VERSION}"
            )));
        }
        let durability = match get_u32(b, 140) {
            0 => Durability::Memory,
            1 => Durability::Disk,
            2 => Durability::Pmem,
            _ => return Ok(None),
        };
        let count = get_u32(b, 176) as usize;
        if count > HISTORY_MAX || version == 0 {
            return Ok(None);
        }
        let array16 = |at: usize| <[u8; 16]>::try_from(&b[at..at + 16]).expect("sixteen bytes");
        let mut sb =
            match Self::new(array16(32), get_u64(b, 104), get_u64(b, 80), durability, get_u64(b, 112)) {
                Ok(sb) => sb,
                Err(_) => return Ok(None),
            };
        if sb.sums_offset != get_u64(b, 88)
            || sb.image_offset != get_u64(b, 96)
            || get_u64(b, 72) != LOG_OFFSET
        {
            return Ok(None);
        }
        sb.flags = get_u32(b, 12);
        sb.compat = get_u64(b, 16);
        sb.incompat = incompat;
        sb.replica_uuid = array16(48);
        sb.sequence = get_u64(b, 64);
        sb.tail = Point { lsn: get_u64(b, 120), seq: get_u64(b, 128), chain: get_u32(b, 136) };
        sb.end_lsn = get_u64(b, 144);
        sb.boot_id = array16(152);
        sb.created_ns = get_u64(b, 168);
        sb.history = (0..count)
            .map(|i| EpochStart { epoch: get_u64(b, 512 + i * 16), start: get_u64(b, 520 + i * 16) })
            .collect();
        Ok(Some(sb))
    }
}

/// Record types.
pub mod kind {
    /// Ranges of the image with their bytes.
    pub const DATA: u16 = 1;
    /// Ends a group.
    pub const COMMIT: u16 = 2;
    /// Whole pages that become zero.
    pub const ZERO: u16 = 3;
    /// A new epoch begins.
    pub const EPOCH: u16 = 4;
}

/// Bytes of a record header.
pub const RECORD_HEADER: usize = 32;
/// Bytes of a whole COMMIT record.
pub const COMMIT_RECORD: usize = RECORD_HEADER + 40;
/// Bytes of a whole EPOCH record.
pub const EPOCH_RECORD: usize = RECORD_HEADER + 32;
/// Largest DATA or ZERO record; a group has as many as it needs.
pub const RECORD_MAX: usize = 256 << 10;

/// A record header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Whole record, in bytes.
    pub len: u32,
    /// One of [`kind`].
    pub kind: u16,
    /// Position of the record.
    pub lsn: u64,
    /// Epoch it was written in.
    pub epoch: u64,
    /// Ranges in it.
    pub count: u32,
    /// Checksum.
    pub crc: u32,
}

impl RecordHeader {
    /// Write header and checksum into the first bytes of `record`, whose payload is in place.
    #[inline]
    pub fn seal(record: &mut [u8], kind: u16, lsn: u64, epoch: u64, count: u32, seed: u32) -> u32 {
        let len = record.len() as u32;
        record[0..4].copy_from_slice(&len.to_le_bytes());
        record[4..6].copy_from_slice(&kind.to_le_bytes());
        record[6..8].fill(0);
        record[8..16].copy_from_slice(&lsn.to_le_bytes());
        record[16..24].copy_from_slice(&epoch.to_le_bytes());
        record[24..28].copy_from_slice(&count.to_le_bytes());
        let c = crc(crc(seed, &record[..28]), &record[RECORD_HEADER..]);
        record[28..32].copy_from_slice(&c.to_le_bytes());
        c
    }

    /// Read a header; nothing is verified.
    #[inline]
    #[must_use]
    pub fn read(b: &[u8; RECORD_HEADER]) -> Self {
        Self {
            len: get_u32(b, 0),
            kind: u16::from_le_bytes([b[4], b[5]]),
            lsn: get_u64(b, 8),
            epoch: get_u64(b, 16),
            count: get_u32(b, 24),
            crc: get_u32(b, 28),
        }
    }

    /// Whether length and type can be meant at all, for a record at `lsn`.
    #[inline]
    #[must_use]
    pub fn plausible(&self, lsn: u64) -> bool {
        let len = self.len as usize;
        self.lsn == lsn
            && len % 8 == 0
            && match self.kind {
                kind::DATA | kind::ZERO => (RECORD_HEADER + 16..=RECORD_MAX).contains(&len) && self.count > 0,
                kind::COMMIT => len == COMMIT_RECORD,
                kind::EPOCH => len == EPOCH_RECORD,
                _ => false,
            }
    }
}

/// Payload of a COMMIT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPayload {
    /// First record of the group.
    pub group_start: u64,
    /// Number of this commit, from 1.
    pub seq: u64,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// The log was durable up to here when this was written.
    pub durable_before: u64,
    /// Over the checksum fields of the group's records.
    pub group_crc: u32,
    /// Checksum field of the previous COMMIT record.
    pub chain: u32,
}

impl CommitPayload {
    /// Into the 40 bytes behind the header.
    #[inline]
    pub fn write(&self, b: &mut [u8]) {
        b[0..8].copy_from_slice(&self.group_start.to_le_bytes());
        b[8..16].copy_from_slice(&self.seq.to_le_bytes());
        b[16..24].copy_from_slice(&self.time_ns.to_le_bytes());
        b[24..32].copy_from_slice(&self.durable_before.to_le_bytes());
        b[32..36].copy_from_slice(&self.group_crc.to_le_bytes());
        b[36..40].copy_from_slice(&self.chain.to_le_bytes());
    }

    /// From the 40 bytes behind the header.
    #[inline]
    #[must_use]
    pub fn read(b: &[u8]) -> Self {
        Self {
            group_start: get_u64(b, 0),
            seq: get_u64(b, 8),
            time_ns: get_u64(b, 16),
            durable_before: get_u64(b, 24),
            group_crc: get_u32(b, 32),
            chain: get_u32(b, 36),
        }
    }
}

/// `at` of a range in a DATA record: offset and number of words.
#[inline]
#[must_use]
pub fn pack_range(offset: u64, words: usize) -> u64 {
    debug_assert!(offset < 1 << 48 && offset % 8 == 0 && (1..=WORDS_PER_PAGE).contains(&words));
    offset | (words as u64) << 48
}

/// The inverse of [`pack_range`].
#[inline]
#[must_use]
pub fn unpack_range(at: u64) -> (u64, usize) {
    (at & ((1 << 48) - 1), (at >> 48) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblock_round_trip_and_every_flip_is_seen() {
        let mut sb = Superblock::new([7; 16], 4 << 20, 2 << 20, Durability::Disk, 3).unwrap();
        sb.push_history(9, 4096);
        sb.tail = Point { lsn: 77 * 8, seq: 5, chain: 0xDEAD_BEEF };
        let good = sb.encode();
        assert_eq!(Superblock::decode(&good).unwrap().unwrap(), sb);
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Superblock::decode(&bad).unwrap(), None, "bit {bit}");
        }
    }

    #[test]
    fn newer_formats_are_refused_by_name() {
        let mut b = Superblock::new([1; 16], 2 << 20, 2 << 20, Durability::Memory, 1).unwrap().encode();
        b[24] = 0x80;
        let c = crc(0, &b[..4092]);
        b[4092..].copy_from_slice(&c.to_le_bytes());
        assert!(matches!(Superblock::decode(&b), Err(Error::NewerVersion(_))));
    }
}

//! Writing one group into the ring.
//!
//! A group is built in place, behind `appended`, where nobody looks until the control words say so. That saves a
//! copy of every committed byte; the price is that an abandoned group leaves garbage there, which recovery must be
//! able to tell from a group anyway. On a disk "in place" is a stage in private memory, written when it is flushed:
//! see `docs/decisions/0009-disk-stage.md`.

use crate::checksum::crc;
use crate::format::{
    COMMIT_RECORD, CommitPayload, EPOCH_RECORD, PAGE_U64, Point, RECORD_HEADER, RECORD_MAX, RecordHeader,
    kind, pack_range,
};
use crate::medium::{Mapping, Medium};

/// The ring has no room behind `needed` more bytes than it had when the group began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// Builds one group. See the module.
pub struct GroupBuilder<'a> {
    mapping: &'a Mapping,
    seed: u32,
    epoch: u64,
    start: u64,
    limit: u64,
    /// Where the open record begins; equal to `at` when none is open.
    record: u64,
    at: u64,
    kind: u16,
    count: u32,
    crcs: u32,
}

impl<'a> GroupBuilder<'a> {
    /// A group at `start`; its last byte must lie before `limit`.
    #[inline]
    #[must_use]
    pub fn new(mapping: &'a Mapping, seed: u32, epoch: u64, start: u64, limit: u64) -> Self {
        Self { mapping, seed, epoch, start, limit, record: start, at: start, kind: 0, count: 0, crcs: 0 }
    }

    /// Whether anything was added.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.start
    }

    /// Room for `len` bytes in a record of type `kind`, always leaving room for the commit record.
    #[inline]
    fn room(&mut self, kind: u16, len: usize) -> Result<*mut u8, NoRoom> {
        if self.record != self.at
            && (self.kind != kind || (self.at - self.record) as usize + len > RECORD_MAX)
        {
            self.seal();
        }
        if self.record == self.at {
            if self.at + (RECORD_HEADER + len + COMMIT_RECORD) as u64 > self.limit {
                return Err(NoRoom);
            }
            self.at += RECORD_HEADER as u64;
            self.kind = kind;
            self.count = 0;
        } else if self.at + (len + COMMIT_RECORD) as u64 > self.limit {
            return Err(NoRoom);
        }
        let p = self.mapping.staged_at(self.at);
        self.at += len as u64;
        self.count += 1;
        Ok(p)
    }

    #[inline]
    fn seal(&mut self) {
        if self.record == self.at {
            return;
        }
        let len = (self.at - self.record) as usize;
        // SAFETY: `room` made sure that these bytes are free ring behind `appended`; only the holder of the writer's
        // lock is here, and no other process looks behind `appended`.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.mapping.staged_at(self.record), len) };
        let c = RecordHeader::seal(bytes, self.kind, self.record, self.epoch, self.count, self.seed);
        self.crcs = crc(self.crcs, &c.to_le_bytes());
        self.record = self.at;
    }

    /// Add a range of `words` words at `offset` of the image; `sum` is the page's sum with it. The bytes are copied
    /// from `data`.
    ///
    /// # Safety
    /// `data` is readable for `words * 8` bytes.
    ///
    /// # Errors
    /// [`NoRoom`]; the group is then to be thrown away.
    #[inline]
    pub unsafe fn range(
        &mut self,
        offset: u64,
        words: usize,
        sum: u64,
        data: *const u8,
    ) -> Result<(), NoRoom> {
        let p = self.room(kind::DATA, 16 + words * 8)?;
        // SAFETY: `room` gave 16 + words * 8 bytes of ring, aligned to 8; the caller vouches for `data`.
        unsafe {
            p.cast::<u64>().write(pack_range(offset, words).to_le());
            p.add(8).cast::<u64>().write(sum.to_le());
            std::ptr::copy_nonoverlapping(data, p.add(16), words * 8);
        }
        Ok(())
    }

    /// Add whole zero pages.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<(), NoRoom> {
        debug_assert!(offset % PAGE_U64 == 0 && len % PAGE_U64 == 0);
        let p = self.room(kind::ZERO, 16)?;
        // SAFETY: `room` gave 16 bytes of ring, aligned to 8.
        unsafe {
            p.cast::<u64>().write(offset.to_le());
            p.add(8).cast::<u64>().write(len.to_le());
        }
        Ok(())
    }

    /// Add the record that opens this group's epoch.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn epoch(&mut self, previous: u64, replica: &[u8; 16]) -> Result<(), NoRoom> {
        let p = self.room(kind::EPOCH, EPOCH_RECORD - RECORD_HEADER)?;
        // SAFETY: `room` gave 32 bytes of ring, aligned to 8.
        unsafe {
            p.cast::<u64>().write(self.epoch.to_le());
            p.add(8).cast::<u64>().write(previous.to_le());
            std::ptr::copy_nonoverlapping(replica.as_ptr(), p.add(16), 16);
        }
        self.count = 0; // its payload is fixed
        self.seal();
        Ok(())
    }

    /// End the group; where it ends. `after` is what the group follows.
    #[inline]
    #[must_use]
    pub fn commit(mut self, after: Point, time_ns: u64, durable_before: u64) -> Point {
        self.seal();
        let payload = CommitPayload {
            group_start: self.start,
            seq: after.seq + 1,
            time_ns,
            durable_before,
            group_crc: self.crcs,
            chain: after.chain,
        };
        // SAFETY: `room` always leaves room for a commit record; otherwise as in `seal`.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.mapping.staged_at(self.at), COMMIT_RECORD) };
        payload.write(&mut bytes[RECORD_HEADER..]);
        let chain = RecordHeader::seal(bytes, kind::COMMIT, self.at, self.epoch, 0, self.seed);
        Point { lsn: self.at + COMMIT_RECORD as u64, seq: after.seq + 1, chain }
    }
}

/// The parts of the file (offset, length) that the log bytes from `start` to `end` occupy; two when they wrap.
#[inline]
pub fn file_parts(log_offset: u64, log_size: u64, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let len = end - start;
    let at = start % log_size;
    let first = len.min(log_size - at);
    [(log_offset + at, first), (log_offset, len - first)].into_iter().filter(|p| p.1 > 0)
}

/// Tell the medium that log bytes were stored, then make them durable.
///
/// # Errors
/// As [`Medium::persist`].
#[inline]
pub fn persist<M: Medium>(m: &M, start: u64, end: u64) -> std::io::Result<()> {
    for (offset, len) in file_parts(crate::format::LOG_OFFSET, m.mapping().log_size(), start, end) {
        m.persist(offset, len)?;
    }
    Ok(())
}

/// Tell the medium that log bytes were stored.
#[inline]
pub fn stored<M: Medium>(m: &M, start: u64, end: u64) {
    for (offset, len) in file_parts(crate::format::LOG_OFFSET, m.mapping().log_size(), start, end) {
        m.stored(offset, len);
    }
}

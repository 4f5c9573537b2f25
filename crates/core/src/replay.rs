//! Reading groups back: verification, application to an image.
//!
//! The same reader serves recovery (over the ring), the receiver (over bytes as they arrive) and readers of a live
//! store (over a copy). It believes nothing: lengths, positions, epochs, checksums and chains must all agree, and
//! every range must lie inside the image, before a group is whole. Application then cannot fail.

use crate::checksum::crc;
use crate::format::{
    CommitPayload, PAGE_U64, Point, RECORD_HEADER, RecordHeader, WORDS_PER_PAGE, kind, unpack_range,
};

/// A whole group that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Where it begins.
    pub start: u64,
    /// Where it ends.
    pub end: Point,
    /// Its epoch.
    pub epoch: u64,
    /// Whether it opens its epoch.
    pub opens_epoch: bool,
    /// When it was committed, ns since 1970.
    pub time_ns: u64,
}

/// What the next bytes were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A record inside a group, of so many bytes.
    Record(usize),
    /// The commit record, of so many bytes: the group is whole.
    Group(usize, Group),
    /// Not enough bytes for the next record.
    NeedMore,
    /// Not a record that can follow here.
    Bad(&'static str),
}

/// Verifies records one by one. See the module.
#[derive(Debug, Clone)]
pub struct GroupReader {
    seed: u32,
    image_size: u64,
    after: Point,
    epoch: u64,
    at: u64,
    crcs: u32,
    group_epoch: Option<u64>,
    opens_epoch: bool,
}

#[inline]
fn word(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}

impl GroupReader {
    /// Reads on from `after`, where `epoch` is current.
    #[must_use]
    pub fn new(seed: u32, image_size: u64, after: Point, epoch: u64) -> Self {
        Self { seed, image_size, after, epoch, at: after.lsn, crcs: 0, group_epoch: None, opens_epoch: false }
    }

    /// LSN of the next record.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// End of the last whole group.
    #[must_use]
    pub fn after(&self) -> Point {
        self.after
    }

    /// Current epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Forget the records since the last whole group.
    pub fn discard_partial(&mut self) {
        *self = Self::new(self.seed, self.image_size, self.after, self.epoch);
    }

    /// Verify the record at the beginning of `b`, which holds the bytes from [`GroupReader::at`] on.
    pub fn step(&mut self, b: &[u8]) -> Step {
        let Some(head) = b.first_chunk::<RECORD_HEADER>() else {
            return Step::NeedMore;
        };
        let h = RecordHeader::read(head);
        if !h.plausible(self.at) {
            return Step::Bad("no record at this position");
        }
        let len = h.len as usize;
        if b.len() < len {
            return Step::NeedMore;
        }
        let payload = &b[RECORD_HEADER..len];
        if crc(crc(self.seed, &b[..28]), payload) != h.crc {
            return Step::Bad("record checksum");
        }
        if self.group_epoch.is_some_and(|e| e != h.epoch) || h.epoch < self.epoch {
            return Step::Bad("epoch of the record");
        }
        let first = self.group_epoch.is_none();
        let ok = match h.kind {
            kind::DATA => self.ranges_ok(payload, h.count),
            kind::ZERO => self.zeros_ok(payload, h.count),
            kind::EPOCH => {
                first && word(payload, 0) == h.epoch && word(payload, 8) <= self.epoch && h.epoch > self.epoch
            }
            _ => {
                let step = self.commit(&h, CommitPayload::read(payload));
                if let Step::Group(..) = step {
                    self.at += len as u64;
                }
                return step;
            }
        };
        if !ok {
            return Step::Bad("contents of the record");
        }
        if h.kind == kind::EPOCH {
            self.opens_epoch = true;
        } else if h.epoch != self.epoch && !self.opens_epoch {
            return Step::Bad("epoch begins without saying so");
        }
        self.group_epoch = Some(h.epoch);
        self.crcs = crc(self.crcs, &h.crc.to_le_bytes());
        self.at += len as u64;
        Step::Record(len)
    }

    fn commit(&mut self, h: &RecordHeader, c: CommitPayload) -> Step {
        if self.group_epoch.is_none() || c.group_start != self.after.lsn || c.seq != self.after.seq + 1 {
            return Step::Bad("commit record of another group");
        }
        if c.chain != self.after.chain || c.group_crc != self.crcs {
            return Step::Bad("commit record of another history");
        }
        let end = Point { lsn: self.at + u64::from(h.len), seq: c.seq, chain: h.crc };
        let group = Group {
            start: c.group_start,
            end,
            epoch: h.epoch,
            opens_epoch: self.opens_epoch,
            time_ns: c.time_ns,
        };
        self.after = end;
        self.epoch = h.epoch;
        self.crcs = 0;
        self.group_epoch = None;
        self.opens_epoch = false;
        Step::Group(h.len as usize, group)
    }

    fn ranges_ok(&self, payload: &[u8], count: u32) -> bool {
        let mut at = 0;
        for _ in 0..count {
            if payload.len() - at < 24 {
                return false;
            }
            let (offset, words) = unpack_range(word(payload, at));
            let len = words as u64 * 8;
            let in_page = offset % PAGE_U64 + len <= PAGE_U64;
            if words == 0
                || words > WORDS_PER_PAGE
                || offset % 8 != 0
                || !in_page
                || offset + len > self.image_size
            {
                return false;
            }
            at += 16 + words * 8;
            if at > payload.len() {
                return false;
            }
        }
        at == payload.len()
    }

    fn zeros_ok(&self, payload: &[u8], count: u32) -> bool {
        payload.len() == count as usize * 16
            && payload.chunks_exact(16).all(|r| {
                let (offset, len) = (word(r, 0), word(r, 8));
                offset % PAGE_U64 == 0
                    && len % PAGE_U64 == 0
                    && len > 0
                    && offset.checked_add(len).is_some_and(|end| end <= self.image_size)
            })
    }
}

/// Where groups are applied.
pub trait Target {
    /// `data` (whole words, inside one page) at `offset`; the page's sum is then `sum`.
    fn range(&mut self, offset: u64, data: &[u8], sum: u64);
    /// Whole pages become zero.
    fn zero(&mut self, offset: u64, len: u64);
}

/// Apply the verified records in `b` (one or more whole groups).
#[inline]
pub fn apply<T: Target>(mut b: &[u8], target: &mut T) {
    while let Some(head) = b.first_chunk::<RECORD_HEADER>() {
        let h = RecordHeader::read(head);
        let len = h.len as usize;
        let payload = &b[RECORD_HEADER..len];
        match h.kind {
            kind::DATA => {
                let mut at = 0;
                while at < payload.len() {
                    let (offset, words) = unpack_range(word(payload, at));
                    let sum = word(payload, at + 8);
                    at += 16;
                    target.range(offset, &payload[at..at + words * 8], sum);
                    at += words * 8;
                }
            }
            kind::ZERO => {
                for r in payload.chunks_exact(16) {
                    target.zero(word(r, 0), word(r, 8));
                }
            }
            _ => {}
        }
        b = &b[len..];
    }
}

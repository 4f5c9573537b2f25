//! Maps: linear hashing over blocks of the heap.
//!
//! Used for the maps of applications and for the directory. One bucket is split per insert above the load, so no
//! single operation, and no commit, carries the rehash of a table, and opening costs nothing. Replacing a value by
//! one that fits changes the bytes of the value and nothing else: that is what a commit of a small update logs.
//! Ordered trees were rejected: a hot update would be as cheap, but a lookup touches twice the cache lines.
//!
//! Functions here take the offset of a header that lies in the image; handles and names are the callers' matter.

use twox_hash::XxHash3_64;

use super::heap::{Heap, class_of, class_size, gross};
use super::layout::{OFFSET_BITS, OFFSET_MASK, block, extent, pad8, pages_for, word};
use crate::error::{Error, Result};
use crate::format::PAGE_U64;
use crate::work::Work;

/// Longest key in bytes.
pub const MAX_KEY: usize = 64 << 10;
/// Longest value in bytes.
pub const MAX_VALUE: usize = 1 << 30;

const MAGIC: u64 = u64::from_le_bytes(*b"SUSMAP1\0");
const SEED: u64 = 8;
const BUCKETS: u64 = 16;
const COUNT: u64 = 24;
const HELD: u64 = 40;
const SEGMENTS: u64 = 64;
/// Bytes of a header.
pub(super) const HEADER: u64 = SEGMENTS + 129 * 8;

const BUCKET: u64 = 64;
const SLOTS: usize = 7;
const OVERFLOW: u64 = 56;
const FIRST: u64 = 16;
const MAX_BUCKETS: u64 = 1 << 36;
/// Entries per bucket above which one is split.
const LOAD: u64 = 4;
/// Overflow buckets that one chain may have.
const MAX_CHAIN: usize = 1024;
const ENTRY: u64 = 16;
/// Size class of an entry that has pages of its own.
const WHOLE_PAGES: u64 = 0xFF;

/// What a scan comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// Go on with this cursor.
    More(u64),
    /// Everything was seen.
    Done,
    /// Keys came or went since the scan began: what was seen is not a whole.
    Changed,
}

/// The first words of a header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    at: u64,
    seed: u64,
    buckets: u64,
    pub count: u64,
    mods: u64,
    pub held: u64,
}

/// An entry's place and measures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub at: u64,
    pub hash: u64,
    key_len: u64,
    value_len: u64,
    class: u64,
}

impl Entry {
    #[inline(always)] // its result would go through memory
    pub(super) fn read(work: &Work, slot: u64) -> Result<Self> {
        let at = block(slot & OFFSET_MASK)?;
        let b = work.bytes(at, ENTRY)?;
        let (hash, lens) = (word(b, 0), word(b, 1));
        let e = Self {
            at,
            hash,
            key_len: lens >> 32 & 0xFF_FFFF,
            value_len: lens & 0xFFFF_FFFF,
            class: lens >> 56,
        };
        if hash >> OFFSET_BITS != slot >> OFFSET_BITS {
            return Err(bad_entry(at));
        }
        Ok(e)
    }

    #[inline]
    pub(super) fn key<'w>(&self, work: &'w Work) -> Result<&'w [u8]> {
        work.bytes(self.at + ENTRY, self.key_len)
    }

    #[inline]
    pub(super) fn value<'w>(&self, work: &'w Work) -> Result<&'w [u8]> {
        work.bytes(self.value_at(), self.value_len)
    }

    #[inline]
    fn value_at(&self) -> u64 {
        self.at + ENTRY + pad8(self.key_len)
    }

    /// Bytes of the heap that it takes, checked against what lies in it.
    pub(super) fn gross(&self, work: &Work) -> Result<u64> {
        let size = entry_size(self.key_len, self.value_len);
        if self.class == WHOLE_PAGES {
            extent(work, self.at, pages_for(size))?;
            return Ok(pages_for(size) * PAGE_U64);
        }
        class_size(self.class as usize).ok().filter(|room| size <= *room).ok_or_else(|| bad_entry(self.at))
    }

    /// Its size class, None for whole pages.
    pub(super) fn class(&self) -> Option<usize> {
        (self.class != WHOLE_PAGES).then_some(self.class as usize)
    }

    fn free(&self, work: &mut Work, heap: &mut Heap, gross: u64) -> Result<()> {
        match self.class() {
            Some(class) => heap.free_block(work, self.at, class),
            None => heap.pages.give(work, self.at, gross / PAGE_U64),
        }
    }
}

#[inline]
fn entry_size(key_len: u64, value_len: u64) -> u64 {
    ENTRY + pad8(key_len) + pad8(value_len)
}

fn lens(key_len: u64, value_len: u64, class: u64) -> u64 {
    value_len | key_len << 32 | class << 56
}

#[cold]
fn bad_entry(at: u64) -> Error {
    Error::corrupt(format!("the map entry at {at:#x} is damaged"))
}

#[cold]
fn bad_map(at: u64) -> Error {
    Error::corrupt(format!("the map at {at:#x} is damaged"))
}

/// Segment of a bucket, and its index there.
#[inline]
fn place(bucket: u64) -> (u64, u64) {
    if bucket < FIRST {
        return (0, bucket);
    }
    let k = u64::from(bucket.ilog2());
    (1 + (k - 4) * 4 + (bucket >> (k - 2) & 3), bucket & ((1 << (k - 2)) - 1))
}

/// Bytes of a segment.
pub(super) fn segment_bytes(segment: u64) -> u64 {
    if segment == 0 { FIRST * BUCKET } else { BUCKET << (2 + (segment - 1) / 4) }
}

/// Where a new entry can go.
enum Room {
    /// Into this free slot.
    Slot(u64),
    /// Into an overflow bucket, yet to be made, behind this one.
    After(u64),
}

impl Header {
    #[inline(always)]
    pub(super) fn load(work: &Work, at: u64) -> Result<Self> {
        let b = work.bytes(at, SEGMENTS)?;
        let h = Self {
            at,
            seed: word(b, 1),
            buckets: word(b, 2),
            count: word(b, 3),
            mods: word(b, 4),
            held: word(b, 5),
        };
        let sane = word(b, 0) == MAGIC
            && h.buckets >= FIRST
            && h.buckets <= (work.len() / BUCKET).min(MAX_BUCKETS)
            && h.count <= work.len() / ENTRY;
        if sane { Ok(h) } else { Err(bad_map(at)) }
    }

    /// Write the words that operations change.
    fn save(&self, work: &mut Work, with_buckets: bool) -> Result<()> {
        let mut b = [0; 32];
        for (i, w) in [self.buckets, self.count, self.mods, self.held].iter().enumerate() {
            b[i * 8..i * 8 + 8].copy_from_slice(&w.to_le_bytes());
        }
        let skip = if with_buckets { 0 } else { COUNT - BUCKETS };
        work.write(self.at + BUCKETS + skip, &b[skip as usize..])
    }

    #[inline]
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(self.seed, key)
    }

    #[inline]
    fn index(&self, hash: u64) -> u64 {
        let low = 1 << self.buckets.ilog2();
        let i = hash & (2 * low - 1);
        if i < self.buckets { i } else { i & (low - 1) }
    }

    #[inline]
    fn bucket(&self, work: &Work, bucket: u64) -> Result<u64> {
        let (segment, i) = place(bucket);
        Ok(block(work.u64(self.at + SEGMENTS + segment * 8)?)? + i * BUCKET)
    }

    /// The slot and the entry of a key. This is the hot path of everything, so it is inlined and returns only what
    /// a lookup needs; who wants to insert or to remove walks the chain again in [`Header::room`].
    #[inline(always)]
    fn find(&self, work: &Work, hash: u64, key: &[u8]) -> Result<Option<(u64, Entry)>> {
        let tag = hash >> OFFSET_BITS;
        let mut at = self.bucket(work, self.index(hash))?;
        for _ in 0..=MAX_CHAIN {
            let b = work.bytes(at, BUCKET)?;
            // Without branches, since where a key lies cannot be foretold.
            let mut tagged = 0u32;
            for i in 0..SLOTS {
                tagged |= u32::from(word(b, i) >> OFFSET_BITS == tag) << i;
            }
            while tagged != 0 {
                let i = tagged.trailing_zeros();
                tagged &= tagged - 1;
                let slot = word(b, i as usize);
                if slot == 0 {
                    continue;
                }
                let e = Entry::read(work, slot)?;
                if e.hash == hash && e.key_len == key.len() as u64 && e.key(work)? == key {
                    return Ok(Some((at + u64::from(i) * 8, e)));
                }
            }
            at = match word(b, SLOTS) {
                0 => return Ok(None),
                next => block(next)?,
            };
        }
        Err(bad_map(self.at))
    }

    /// Where a new entry can go.
    fn room(&self, work: &Work, hash: u64) -> Result<Room> {
        let mut last = self.bucket(work, self.index(hash))?;
        for chain in 0..=MAX_CHAIN {
            let b = work.bytes(last, BUCKET)?;
            if let Some(i) = (0..SLOTS).find(|i| word(b, *i) == 0) {
                return Ok(Room::Slot(last + i as u64 * 8));
            }
            match word(b, SLOTS) {
                0 if chain == MAX_CHAIN => break,
                0 => return Ok(Room::After(last)),
                next => last = block(next)?,
            }
        }
        Err(Error::StoreFull("no room for the map's table to grow: a bucket holds thousands of keys".into()))
    }

    /// The bucket that holds this slot and the one before it (0: none), if it is an overflow bucket.
    fn overflow_of(&self, work: &Work, hash: u64, slot_at: u64) -> Result<(u64, u64)> {
        let (mut prev, mut at) = (0, self.bucket(work, self.index(hash))?);
        for _ in 0..=MAX_CHAIN {
            if (at..at + OVERFLOW).contains(&slot_at) {
                return Ok((at, prev));
            }
            (prev, at) = (at, block(work.u64(at + OVERFLOW)?)?);
        }
        Err(bad_map(self.at))
    }

    /// Call `f` with the slots in use of a bucket and its overflow, `overflow` with the latter's offsets.
    pub(super) fn walk(
        &self,
        work: &Work,
        bucket: u64,
        mut overflow: impl FnMut(u64) -> Result<()>,
        mut f: impl FnMut(&Entry) -> Result<()>,
    ) -> Result<()> {
        let mut at = self.bucket(work, bucket)?;
        for _ in 0..=MAX_CHAIN {
            let b = work.bytes(at, BUCKET)?;
            for i in 0..SLOTS {
                let slot = word(b, i);
                if slot != 0 {
                    let e = Entry::read(work, slot)?;
                    if self.index(e.hash) != bucket {
                        return Err(bad_entry(e.at));
                    }
                    f(&e)?;
                }
            }
            match word(b, SLOTS) {
                0 => return Ok(()),
                next => at = block(next)?,
            }
            overflow(at)?;
        }
        Err(bad_map(self.at))
    }

    pub(super) fn buckets(&self) -> u64 {
        self.buckets
    }

    /// Segments of the table: offset and bytes.
    pub(super) fn segments(&self, work: &Work) -> Result<Vec<(u64, u64)>> {
        let last = place(self.buckets - 1).0;
        let words = work.bytes(self.at + SEGMENTS, HEADER - SEGMENTS)?;
        if (last as usize + 1..129).any(|i| word(words, i) != 0) {
            return Err(bad_map(self.at));
        }
        (0..=last).map(|i| Ok((block(word(words, i as usize))?, segment_bytes(i)))).collect()
    }
}

/// Make an empty map whose header is at `at` (1096 bytes that the caller owns).
pub(super) fn create(work: &mut Work, heap: &mut Heap, at: u64, seed: u64) -> Result<()> {
    let first = heap.alloc(work, FIRST * BUCKET)?;
    work.zero(first, FIRST * BUCKET)?;
    work.zero(at, HEADER)?;
    work.put_u64(at, MAGIC)?;
    work.put_u64(at + SEED, seed)?;
    work.put_u64(at + BUCKETS, FIRST)?;
    work.put_u64(at + HELD, gross(FIRST * BUCKET))?;
    work.put_u64(at + SEGMENTS, first)
}

#[inline]
pub(super) fn get<'w>(work: &'w Work, at: u64, key: &[u8]) -> Result<Option<&'w [u8]>> {
    let h = Header::load(work, at)?;
    h.find(work, h.hash(key), key)?.map(|(_, e)| e.value(work)).transpose()
}

/// Set a value; whether the key is new.
#[inline]
pub(super) fn set(work: &mut Work, heap: &mut Heap, at: u64, key: &[u8], value: &[u8]) -> Result<bool> {
    if key.len() > MAX_KEY || value.len() > MAX_VALUE {
        return Err(too_long(key, value));
    }
    let h = Header::load(work, at)?;
    let hash = h.hash(key);
    let Some((slot_at, e)) = h.find(work, hash, key)? else {
        insert(work, heap, h, hash, key, value)?;
        return Ok(true);
    };
    if e.value_len == value.len() as u64 && e.class != WHOLE_PAGES {
        work.write(e.value_at(), value)?;
    } else {
        replace(work, heap, h, slot_at, e, key, value)?;
    }
    Ok(false)
}

#[cold]
fn too_long(key: &[u8], value: &[u8]) -> Error {
    Error::InvalidArgument(format!(
        "keys are up to {MAX_KEY} bytes and values up to {MAX_VALUE}; these are {} and {}",
        key.len(),
        value.len()
    ))
}

#[inline(never)]
fn replace(
    work: &mut Work,
    heap: &mut Heap,
    mut h: Header,
    slot_at: u64,
    e: Entry,
    key: &[u8],
    value: &[u8],
) -> Result<()> {
    let (need, room) = (entry_size(e.key_len, value.len() as u64), e.gross(work)?);
    let keep = match (e.class(), class_of(need)) {
        (Some(_), Some(_)) => need <= room && (room <= 256 || room <= 4 * need),
        (None, None) => need <= room,
        _ => false,
    };
    if keep {
        if e.value_len != value.len() as u64 {
            work.put_u64(e.at + 8, lens(e.key_len, value.len() as u64, e.class))?;
        }
        work.write(e.value_at(), value)?;
        let spare = if e.class().is_none() { room / PAGE_U64 - pages_for(need) } else { 0 };
        if spare == 0 {
            return Ok(());
        }
        heap.pages.give(work, e.at + room - spare * PAGE_U64, spare)?;
        h.held = h.held.saturating_sub(spare * PAGE_U64);
        return h.save(work, false);
    }
    let (at, taken) = new_entry(work, heap, e.hash, key, value)?;
    work.put_u64(slot_at, at | e.hash >> OFFSET_BITS << OFFSET_BITS)?;
    e.free(work, heap, room)?;
    h.held = h.held.wrapping_add(taken).wrapping_sub(room);
    h.save(work, false)
}

/// Write an entry into a new block; where, and how many bytes it takes.
fn new_entry(work: &mut Work, heap: &mut Heap, hash: u64, key: &[u8], value: &[u8]) -> Result<(u64, u64)> {
    let (key_len, value_len) = (key.len() as u64, value.len() as u64);
    let size = entry_size(key_len, value_len);
    let (at, class, taken) = match class_of(size) {
        Some(class) => (heap.alloc_block(work, class)?, class as u64, class_size(class)?),
        None => (heap.take(work, pages_for(size), 1)?.offset, WHOLE_PAGES, pages_for(size) * PAGE_U64),
    };
    let mut head = [0; ENTRY as usize];
    head[..8].copy_from_slice(&hash.to_le_bytes());
    head[8..].copy_from_slice(&lens(key_len, value_len, class).to_le_bytes());
    work.write(at, &head)?;
    work.write(at + ENTRY, key)?;
    work.write(at + ENTRY + pad8(key_len), value)?;
    Ok((at, taken))
}

#[inline(never)]
fn insert(
    work: &mut Work,
    heap: &mut Heap,
    mut h: Header,
    hash: u64,
    key: &[u8],
    value: &[u8],
) -> Result<()> {
    // What can fail for want of room comes first; nothing is linked before both blocks are there.
    let room = h.room(work, hash)?;
    let overflow = if let Room::After(_) = room { Some(heap.alloc(work, BUCKET)?) } else { None };
    let (at, taken) = match new_entry(work, heap, hash, key, value) {
        Ok(placed) => placed,
        Err(e) => {
            if let Some(overflow) = overflow {
                heap.free(work, overflow, BUCKET)?;
            }
            return Err(e);
        }
    };
    let slot = at | hash >> OFFSET_BITS << OFFSET_BITS;
    match (room, overflow) {
        (Room::After(last), Some(overflow)) => {
            let mut b = [0; BUCKET as usize];
            b[..8].copy_from_slice(&slot.to_le_bytes());
            work.write(overflow, &b)?;
            work.put_u64(last + OVERFLOW, overflow)?;
            h.held = h.held.wrapping_add(BUCKET);
        }
        (Room::Slot(at) | Room::After(at), _) => work.put_u64(at, slot)?,
    }
    h.count += 1;
    h.mods = h.mods.wrapping_add(1);
    h.held = h.held.wrapping_add(taken);
    let grown = h.count > h.buckets * LOAD && split(work, heap, &mut h)?;
    h.save(work, grown)
}

/// Split one bucket. False when there is no room for a segment: the map works on with a higher load.
fn split(work: &mut Work, heap: &mut Heap, h: &mut Header) -> Result<bool> {
    let high = h.buckets;
    if high >= MAX_BUCKETS {
        return Ok(false);
    }
    let (segment, i) = place(high);
    if i == 0 {
        let bytes = segment_bytes(segment);
        let at = match heap.alloc(work, bytes) {
            Ok(at) => at,
            Err(Error::StoreFull(_)) => return Ok(false),
            Err(e) => return Err(e),
        };
        work.put_u64(h.at + SEGMENTS + segment * 8, at)?;
        h.held = h.held.wrapping_add(gross(bytes));
    }
    let level = high.ilog2();
    let low = high - (1 << level);
    let (mut stay, mut go) = (Vec::with_capacity(16), Vec::with_capacity(16));
    let mut spare = Vec::new();
    h.walk(
        work,
        low,
        |o| {
            spare.push(o);
            Ok(())
        },
        |e| {
            let slot = e.at | e.hash >> OFFSET_BITS << OFFSET_BITS;
            if e.hash >> level & 1 == 0 {
                stay.push(slot)
            } else {
                go.push(slot)
            }
            Ok(())
        },
    )?;
    let (low_at, high_at) = (h.bucket(work, low)?, h.bucket(work, high)?);
    // Two chains never need more overflow buckets than the one had: ⌈a/7⌉ + ⌈b/7⌉ ≤ ⌈(a+b)/7⌉ + 1.
    write_chain(work, low_at, &stay, &mut spare)?;
    write_chain(work, high_at, &go, &mut spare)?;
    for o in spare {
        heap.free(work, o, BUCKET)?;
        h.held = h.held.wrapping_sub(BUCKET);
    }
    h.buckets += 1;
    Ok(true)
}

fn write_chain(work: &mut Work, mut at: u64, slots: &[u64], spare: &mut Vec<u64>) -> Result<()> {
    let mut rest = slots;
    loop {
        let (now, later) = rest.split_at(rest.len().min(SLOTS));
        let next = if later.is_empty() { 0 } else { spare.pop().ok_or_else(|| bad_map(at))? };
        let mut b = [0; BUCKET as usize];
        for (i, slot) in now.iter().enumerate() {
            b[i * 8..i * 8 + 8].copy_from_slice(&slot.to_le_bytes());
        }
        b[OVERFLOW as usize..].copy_from_slice(&next.to_le_bytes());
        work.write(at, &b)?;
        if next == 0 {
            return Ok(());
        }
        (at, rest) = (next, later);
    }
}

/// Remove a key; whether it was there.
pub(super) fn remove(work: &mut Work, heap: &mut Heap, at: u64, key: &[u8]) -> Result<bool> {
    let mut h = Header::load(work, at)?;
    let Some((slot_at, e)) = h.find(work, h.hash(key), key)? else { return Ok(false) };
    let room = e.gross(work)?;
    let (bucket, prev) = h.overflow_of(work, e.hash, slot_at)?;
    work.put_u64(slot_at, 0)?;
    h.held = h.held.wrapping_sub(room);
    if prev != 0 {
        let b = work.bytes(bucket, BUCKET)?;
        if (0..SLOTS).all(|i| word(b, i) == 0) {
            let next = word(b, SLOTS);
            work.put_u64(prev + OVERFLOW, next)?;
            heap.free(work, bucket, BUCKET)?;
            h.held = h.held.wrapping_sub(BUCKET);
        }
    }
    e.free(work, heap, room)?;
    h.count = h.count.checked_sub(1).ok_or_else(|| bad_map(at))?;
    h.mods = h.mods.wrapping_add(1);
    h.save(work, false)?;
    Ok(true)
}

/// Remove all keys and go back to the first segment.
pub(super) fn clear(work: &mut Work, heap: &mut Heap, at: u64) -> Result<()> {
    let mut h = Header::load(work, at)?;
    let segments = free_entries(work, heap, &h)?;
    for (i, (segment, bytes)) in segments.iter().enumerate().skip(1) {
        heap.free(work, *segment, *bytes)?;
        work.put_u64(at + SEGMENTS + i as u64 * 8, 0)?;
    }
    work.zero(segments[0].0, FIRST * BUCKET)?;
    h.buckets = FIRST;
    h.count = 0;
    h.mods = h.mods.wrapping_add(1);
    h.held = gross(FIRST * BUCKET);
    h.save(work, true)
}

/// Free everything that the map holds, but not the header itself.
pub(super) fn destroy(work: &mut Work, heap: &mut Heap, at: u64) -> Result<()> {
    let h = Header::load(work, at)?;
    for (segment, bytes) in free_entries(work, heap, &h)? {
        heap.free(work, segment, bytes)?;
    }
    work.put_u64(at, 0)
}

/// Free entries and overflow buckets; the segments, which are the caller's to free.
fn free_entries(work: &mut Work, heap: &mut Heap, h: &Header) -> Result<Vec<(u64, u64)>> {
    let segments = h.segments(work)?;
    let (mut blocks, mut extents) = (Vec::new(), Vec::new());
    let mut seen = 0;
    let bucket_class = class_of(BUCKET).map_or(0, |c| c as u64);
    let mut overflows = Vec::new();
    for bucket in 0..h.buckets {
        let overflow = |at| {
            overflows.push(at << 8 | bucket_class);
            if overflows.len() as u64 > h.count { Err(bad_map(h.at)) } else { Ok(()) }
        };
        h.walk(work, bucket, overflow, |e| {
            seen += 1;
            if seen > h.count {
                return Err(bad_map(h.at));
            }
            let room = e.gross(work)?;
            match e.class() {
                Some(class) => blocks.push(e.at << 8 | class as u64),
                None => extents.push((e.at, room / PAGE_U64)),
            }
            Ok(())
        })?;
    }
    blocks.append(&mut overflows);
    heap.free_many(work, &mut blocks)?;
    for (at, pages) in extents {
        heap.pages.give(work, at, pages)?;
    }
    Ok(segments)
}

/// Bits of a cursor that number the bucket; the rest holds the modification counter.
const CURSOR_BUCKET_BITS: u32 = 40;

/// Call `f` with up to about `limit` entries (whole buckets) from `cursor` on; 0 begins.
pub(super) fn scan(
    work: &Work,
    at: u64,
    cursor: u64,
    limit: usize,
    mut f: impl FnMut(&[u8], &[u8]),
) -> Result<Scan> {
    let h = Header::load(work, at)?;
    let mods = h.mods << CURSOR_BUCKET_BITS;
    let mut bucket = cursor & ((1 << CURSOR_BUCKET_BITS) - 1);
    if cursor != 0 && cursor - bucket != mods {
        return Ok(Scan::Changed);
    }
    let mut given = 0;
    while bucket < h.buckets {
        if given >= limit.max(1) {
            return Ok(Scan::More(mods | bucket));
        }
        h.walk(
            work,
            bucket,
            |_| Ok(()),
            |e| {
                given += 1;
                f(e.key(work)?, e.value(work)?);
                Ok(())
            },
        )?;
        bucket += 1;
    }
    Ok(Scan::Done)
}

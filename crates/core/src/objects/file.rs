//! Files: sparse byte arrays, chunks of 64 KiB under a tree of pointer pages.
//!
//! Used by `Objects`. A hole reads as zeros and takes no room. The tree is as high as the largest offset written
//! needs (a file of up to 64 KiB is one chunk without any node), so that small files are cheap and huge ones
//! possible; a flat list of chunks would make the header of a large file large.

use super::heap::Heap;
use super::layout::{extent, word};
use crate::error::{Error, Result};
use crate::format::PAGE_U64;
use crate::work::Work;

const MAGIC: u64 = u64::from_le_bytes(*b"SUSFIL1\0");
/// Bytes of a header.
pub(super) const HEADER: u64 = 64;
const SIZE: u64 = 8;
const HEIGHT: u64 = 16;
const ROOT: u64 = 24;
const HELD: u64 = 32;

/// Bytes of a chunk.
pub(super) const CHUNK: u64 = 64 << 10;
const CHUNK_PAGES: u64 = CHUNK / PAGE_U64;
const FANOUT_BITS: u64 = 9;
const FANOUT: u64 = 1 << FANOUT_BITS;
const MAX_HEIGHT: u64 = 4;
/// Largest size of a file.
pub const MAX_FILE: u64 = CHUNK << (FANOUT_BITS * MAX_HEIGHT);

/// A file's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    at: u64,
    pub size: u64,
    height: u64,
    root: u64,
    pub held: u64,
}

/// Chunks that a tree of this height covers.
fn covers(height: u64) -> u64 {
    1 << (FANOUT_BITS * height)
}

impl Header {
    pub(super) fn load(work: &Work, at: u64) -> Result<Self> {
        let b = work.bytes(at, HEADER)?;
        let h = Self { at, size: word(b, 1), height: word(b, 2), root: word(b, 3), held: word(b, 4) };
        if word(b, 0) != MAGIC || h.size > MAX_FILE || h.height > MAX_HEIGHT || h.held > work.len() {
            return Err(h.bad());
        }
        Ok(h)
    }

    #[cold]
    fn bad(&self) -> Error {
        Error::corrupt(format!("the file at {:#x} is damaged", self.at))
    }

    /// The chunk with this number, 0 = hole.
    fn chunk(&self, work: &Work, number: u64) -> Result<u64> {
        if number >= covers(self.height) || self.root == 0 {
            return Ok(0);
        }
        let mut at = self.root;
        for level in (0..self.height).rev() {
            at = work.u64(extent(work, at, 1)? + (number >> (FANOUT_BITS * level) & (FANOUT - 1)) * 8)?;
            if at == 0 {
                return Ok(0);
            }
        }
        extent(work, at, CHUNK_PAGES)
    }

    /// Visit every node and chunk: offset and pages.
    pub(super) fn visit(&self, work: &Work, f: &mut impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let mut bound = self.held / PAGE_U64;
        self.visit_below(work, self.root, self.height, &mut bound, f)
    }

    fn visit_below(
        &self,
        work: &Work,
        at: u64,
        height: u64,
        bound: &mut u64,
        f: &mut impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        if at == 0 {
            return Ok(());
        }
        let pages = if height == 0 { CHUNK_PAGES } else { 1 };
        extent(work, at, pages)?;
        *bound = bound.checked_sub(pages).ok_or_else(|| self.bad())?;
        f(at, pages)?;
        if height > 0 {
            for i in 0..FANOUT {
                self.visit_below(work, work.u64(at + i * 8)?, height - 1, bound, f)?;
            }
        }
        Ok(())
    }
}

/// Make an empty file; where its header is.
pub(super) fn create(work: &mut Work, heap: &mut Heap) -> Result<u64> {
    let at = heap.alloc(work, HEADER)?;
    work.zero(at, HEADER)?;
    work.put_u64(at, MAGIC)?;
    Ok(at)
}

/// Fill `buf` from `offset` on; how many bytes there were before the end of the file.
pub(super) fn read(work: &Work, at: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let h = Header::load(work, at)?;
    let len = h.size.saturating_sub(offset).min(buf.len() as u64);
    let mut done = 0;
    while done < len {
        let (number, within) = ((offset + done) / CHUNK, (offset + done) % CHUNK);
        let part = (CHUNK - within).min(len - done);
        let to = &mut buf[done as usize..(done + part) as usize];
        match h.chunk(work, number)? {
            0 => to.fill(0),
            chunk => to.copy_from_slice(work.bytes(chunk + within, part)?),
        }
        done += part;
    }
    Ok(len as usize)
}

/// What a write took, so that it can be given back.
struct Added {
    /// Pointer that leads there.
    pointer: u64,
    offset: u64,
    pages: u64,
}

/// Put `data` at `offset`, growing the file as needed. When there is no room nothing is changed.
pub(super) fn write(work: &mut Work, heap: &mut Heap, at: u64, offset: u64, data: &[u8]) -> Result<()> {
    let mut h = Header::load(work, at)?;
    if data.is_empty() {
        return Ok(());
    }
    let end = offset
        .checked_add(data.len() as u64)
        .filter(|end| *end <= MAX_FILE)
        .ok_or_else(|| too_large(offset))?;
    let mut added = Vec::new();
    if let Err(e) = reserve(work, heap, &mut h, offset, end, &mut added) {
        for a in added.iter().rev() {
            work.put_u64(a.pointer, 0)?;
            heap.pages.give(work, a.offset, a.pages)?;
        }
        return Err(e);
    }
    if !added.is_empty() {
        h.held += added.iter().map(|a| a.pages * PAGE_U64).sum::<u64>();
        work.put_u64(at + HELD, h.held)?;
    }
    let mut done = 0;
    while done < data.len() {
        let (number, within) = ((offset + done as u64) / CHUNK, (offset + done as u64) % CHUNK);
        let part = ((CHUNK - within) as usize).min(data.len() - done);
        let chunk = h.chunk(work, number)?;
        if chunk == 0 {
            return Err(h.bad());
        }
        work.write(chunk + within, &data[done..done + part])?;
        done += part;
    }
    if end > h.size {
        work.put_u64(at + SIZE, end)?;
    }
    Ok(())
}

#[cold]
fn too_large(offset: u64) -> Error {
    Error::InvalidArgument(format!("files are up to {MAX_FILE} bytes; this would reach beyond from {offset}"))
}

/// See that every chunk of `start..end` is there. What the write will cover is not cleared first.
fn reserve(
    work: &mut Work,
    heap: &mut Heap,
    h: &mut Header,
    start: u64,
    end: u64,
    added: &mut Vec<Added>,
) -> Result<()> {
    let last = (end - 1) / CHUNK;
    while covers(h.height) <= last {
        // A higher tree is as good as the lower one: this stays even if the write finds no room.
        if h.root != 0 {
            let node = heap.take_zeroed(work, 1)?;
            work.put_u64(node, h.root)?;
            work.put_u64(h.at + ROOT, node)?;
            h.root = node;
            h.held += PAGE_U64;
            work.put_u64(h.at + HELD, h.held)?;
        }
        h.height += 1;
        work.put_u64(h.at + HEIGHT, h.height)?;
    }
    for number in start / CHUNK..=last {
        let mut pointer = h.at + ROOT;
        for level in (0..=h.height).rev() {
            let mut to = work.u64(pointer)?;
            let pages = if level == 0 { CHUNK_PAGES } else { 1 };
            if to == 0 {
                let taken = heap.take(work, pages, 1)?;
                to = taken.offset;
                added.push(Added { pointer, offset: to, pages });
                work.put_u64(pointer, to)?;
                let base = number * CHUNK;
                let covered =
                    if level == 0 { (start.max(base) - base, end.min(base + CHUNK) - base) } else { (0, 0) };
                for (from, until) in [(0, covered.0), (covered.1, pages * PAGE_U64)] {
                    let until = until.min(taken.zero_from - to);
                    if from < until {
                        work.zero(to + from, until - from)?;
                    }
                }
            }
            extent(work, to, pages)?;
            if level > 0 {
                pointer = to + (number >> (FANOUT_BITS * (level - 1)) & (FANOUT - 1)) * 8;
            }
        }
    }
    h.root = work.u64(h.at + ROOT)?;
    Ok(())
}

/// Make the file `size` bytes long: a cut frees chunks, growth makes a hole.
pub(super) fn truncate(work: &mut Work, heap: &mut Heap, at: u64, size: u64) -> Result<()> {
    let h = Header::load(work, at)?;
    if size > MAX_FILE {
        return Err(too_large(size));
    }
    if size < h.size {
        let cut = h.chunk(work, size / CHUNK)?;
        if size % CHUNK != 0 && cut != 0 {
            let until = (h.size - size / CHUNK * CHUNK).min(CHUNK);
            work.zero(cut + size % CHUNK, until - size % CHUNK)?;
        }
        let mut p = Prune { keep: size.div_ceil(CHUNK), bound: h.held / PAGE_U64, freed: Vec::new() };
        let empty = p.below(work, h.root, h.height, 0).map_err(|e| e.unwrap_or_else(|| h.bad()))?;
        if empty && h.root != 0 {
            work.put_u64(at + ROOT, 0)?;
        }
        if empty && h.height != 0 {
            work.put_u64(at + HEIGHT, 0)?;
        }
        let mut held = h.held;
        for (offset, pages) in p.freed {
            heap.pages.give(work, offset, pages)?;
            held = held.saturating_sub(pages * PAGE_U64);
        }
        if held != h.held {
            work.put_u64(at + HELD, held)?;
        }
    }
    if size != h.size {
        work.put_u64(at + SIZE, size)?;
    }
    Ok(())
}

/// Takes chunks from `keep` on, and nodes that become empty, out of a tree.
struct Prune {
    keep: u64,
    /// Pages that may still be met; a tree with loops runs out of them.
    bound: u64,
    freed: Vec<(u64, u64)>,
}

impl Prune {
    /// Whether nothing is left at `at`, which covers chunks from `first` on. Err(None): more pages than the file has.
    fn below(
        &mut self,
        work: &mut Work,
        at: u64,
        height: u64,
        first: u64,
    ) -> std::result::Result<bool, Option<Error>> {
        if at == 0 {
            return Ok(true);
        }
        let pages = if height == 0 { CHUNK_PAGES } else { 1 };
        extent(work, at, pages)?;
        self.bound = self.bound.checked_sub(pages).ok_or(None)?;
        let mut empty = height > 0 || first >= self.keep;
        if height > 0 {
            let each = covers(height - 1);
            let mut cut = Vec::new();
            for i in 0..FANOUT {
                let pointer = at + i * 8;
                let to = work.u64(pointer)?;
                let child = first + i * each;
                if to == 0 {
                    continue;
                }
                if child + each <= self.keep || !self.below(work, to, height - 1, child)? {
                    empty = false;
                } else {
                    cut.push(pointer);
                }
            }
            if !empty {
                for pointer in cut {
                    work.put_u64(pointer, 0)?;
                }
            }
        }
        if empty {
            self.freed.push((at, pages));
        }
        Ok(empty)
    }
}

/// Free everything.
pub(super) fn destroy(work: &mut Work, heap: &mut Heap, at: u64) -> Result<()> {
    let h = Header::load(work, at)?;
    let mut all = Vec::new();
    h.visit(work, &mut |offset, pages| {
        all.push((offset, pages));
        Ok(())
    })?;
    for (offset, pages) in all {
        heap.pages.give(work, offset, pages)?;
    }
    work.put_u64(at, 0)?;
    heap.free(work, at, HEADER)
}

//! The heap: blocks of size classes in slabs, and extents of pages.
//!
//! Used by maps, arrays, files and the directory. A slab is aligned to its own length, so a block finds it by a mask
//! and needs no header of its own; getting or freeing a block changes one word of the slab. Lists of free blocks per
//! class, without slabs, would be as fast, but memory would never leave its class again: after deleting a map, no
//! array could have its room.

use super::layout::{OFFSET_MASK, ROOT_CLASSES, pages_for, word};
use super::pages::{Pages, Taken};
use crate::error::{Error, Result};
use crate::format::PAGE_U64;
use crate::work::Work;

/// Number of size classes.
pub(super) const CLASSES: usize = 54;
/// Largest block of a class; more gets whole pages.
pub(super) const MAX_BLOCK: u64 = 16368;
/// Bytes before the first block of a slab.
const HEADER: u64 = 64;
const SLAB_MAGIC: u64 = u64::from_le_bytes(*b"SUSLAB\0\0");
const FREE_MAGIC: u64 = u64::from_le_bytes(*b"\0\0SUSFRE");
const STATE: u64 = 8;
const NEXT: u64 = 16;
const PREV: u64 = 24;

/// A size class: bytes of a block, pages of a slab.
#[derive(Clone, Copy)]
struct Class {
    size: u64,
    pages: u64,
    blocks: u64,
}

const fn classes() -> [Class; CLASSES] {
    const BIG: [u64; 14] = [28, 24, 20, 18, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4];
    let mut table = [Class { size: 0, pages: 0, blocks: 0 }; CLASSES];
    let mut i = 0;
    while i < CLASSES {
        let size = if i < 8 {
            (i as u64 + 1) * 16
        } else if i < 40 {
            let k = 7 + (i as u64 - 8) / 8;
            (1 << k) + ((i as u64 - 8) % 8 + 1) * (1 << (k - 3))
        } else {
            (16 * PAGE_U64 - HEADER) / BIG[i - 40] / 16 * 16
        };
        let pages = match size {
            0..=64 => 1,
            65..=128 => 2,
            129..=256 => 4,
            257..=512 => 8,
            _ => 16,
        };
        table[i] = Class { size, pages, blocks: (pages * PAGE_U64 - HEADER) / size };
        i += 1;
    }
    table
}

static TABLE: [Class; CLASSES] = classes();

/// The class of a request, None: whole pages.
#[inline]
pub(super) fn class_of(size: u64) -> Option<usize> {
    match size {
        0..=128 => Some((size.max(1).div_ceil(16) - 1) as usize),
        129..=2048 => {
            let k = (size - 1).ilog2();
            Some(8 + (k as usize - 7) * 8 + ((size - (1 << k)).div_ceil(1 << (k - 3)) - 1) as usize)
        }
        _ if size > MAX_BLOCK || size % PAGE_U64 == 0 => None,
        _ => (40..CLASSES).find(|c| TABLE[*c].size >= size),
    }
}

/// Bytes of a block of `class`, which may come from the image.
#[inline]
pub(super) fn class_size(class: usize) -> Result<u64> {
    TABLE
        .get(class)
        .map(|c| c.size)
        .ok_or_else(|| Error::corrupt(format!("the image names a size class {class}")))
}

/// Bytes that a request for `size` really takes.
pub(super) fn gross(size: u64) -> u64 {
    class_of(size).map_or_else(|| pages_for(size) * PAGE_U64, |c| TABLE[c].size)
}

/// Slab and index in it of the block of `class` at `offset`; for the heap and its checker.
pub(super) fn locate(offset: u64, class: usize) -> Result<(u64, u64)> {
    let c = TABLE[class];
    let slab = offset & !(c.pages * PAGE_U64 - 1);
    let at = (offset - slab).wrapping_sub(HEADER);
    if at / c.size >= c.blocks || at % c.size != 0 || slab == 0 {
        return Err(Error::corrupt(format!("no block of {} bytes can be at {offset:#x}", c.size)));
    }
    Ok((slab, at / c.size))
}

/// Numbers of a slab, as its state word has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// Blocks in use.
    pub used: u64,
    /// Blocks ever handed out.
    pub bump: u64,
    /// Index + 1 of the first free block.
    pub free: u64,
}

impl State {
    fn word(self) -> u64 {
        self.used | self.bump << 16 | self.free << 32
    }
}

/// A slab's header, validated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slab {
    pub at: u64,
    pub state: State,
    pub next: u64,
    pub prev: u64,
}

/// Read and check the header of a slab.
#[inline]
pub(super) fn slab(work: &Work, at: u64, class: usize) -> Result<Slab> {
    let c = TABLE[class];
    if at == 0 || at > OFFSET_MASK || at % (c.pages * PAGE_U64) != 0 {
        return Err(bad_slab(at));
    }
    let b = work.bytes(at, HEADER)?;
    let s = word(b, 1);
    let state = State { used: s & 0xFFFF, bump: s >> 16 & 0xFFFF, free: s >> 32 };
    let sane = word(b, 0) == SLAB_MAGIC | (class as u64) << 48
        && state.bump <= c.blocks
        && state.used <= state.bump
        && state.free <= state.bump
        && (state.free == 0) == (state.used == state.bump);
    if sane { Ok(Slab { at, state, next: word(b, 2), prev: word(b, 3) }) } else { Err(bad_slab(at)) }
}

/// Index + 1 of the free block that follows the free block `index` in the list of its slab.
pub(super) fn next_free(work: &Work, slab: u64, class: usize, index: u64) -> Result<u64> {
    let w = work.u64(slab + HEADER + index * TABLE[class].size)?;
    if w & !0xFFFF != FREE_MAGIC {
        return Err(Error::corrupt(format!("the list of free blocks of the slab at {slab:#x} is damaged")));
    }
    Ok(w & 0xFFFF)
}

/// Pages and blocks of a slab of `class`.
pub(super) fn slab_shape(class: usize) -> (u64, u64) {
    (TABLE[class].pages, TABLE[class].blocks)
}

#[cold]
fn bad_slab(at: u64) -> Error {
    Error::corrupt(format!("the slab at {at:#x} is damaged"))
}

fn head_of(class: usize) -> u64 {
    ROOT_CLASSES + class as u64 * 8
}

/// See the module.
#[derive(Debug)]
pub(super) struct Heap {
    pub pages: Pages,
}

impl Heap {
    pub(super) fn new(work: &Work) -> Self {
        Self { pages: Pages::new(work) }
    }

    /// `size` bytes whose contents mean nothing.
    pub(super) fn alloc(&mut self, work: &mut Work, size: u64) -> Result<u64> {
        match class_of(size) {
            Some(class) => self.alloc_block(work, class),
            None => Ok(self.take(work, pages_for(size), 1)?.offset),
        }
    }

    /// Give back what `alloc` gave for `size`.
    pub(super) fn free(&mut self, work: &mut Work, offset: u64, size: u64) -> Result<()> {
        match class_of(size) {
            Some(class) => self.free_block(work, offset, class),
            None => self.pages.give(work, offset, pages_for(size)),
        }
    }

    /// Pages; when they are short, empty slabs are given up for them.
    pub(super) fn take(&mut self, work: &mut Work, count: u64, align: u64) -> Result<Taken> {
        match self.pages.take(work, count, align) {
            Err(Error::StoreFull(_)) if self.reclaim(work)? => self.pages.take(work, count, align),
            other => other,
        }
    }

    /// Pages that read as zero.
    pub(super) fn take_zeroed(&mut self, work: &mut Work, count: u64) -> Result<u64> {
        let taken = self.take(work, count, 1)?;
        work.zero(taken.offset, taken.zero_from - taken.offset)?;
        Ok(taken.offset)
    }

    /// A block of a class.
    #[inline]
    pub(super) fn alloc_block(&mut self, work: &mut Work, class: usize) -> Result<u64> {
        let head = work.u64(head_of(class))?;
        let s = if head == 0 { self.new_slab(work, class)? } else { slab(work, head, class)? };
        let c = TABLE[class];
        let mut state = s.state;
        let index = if state.free != 0 {
            let index = state.free - 1;
            state.free = next_free(work, s.at, class, index)?;
            if state.free > state.bump || (state.free == 0) != (state.used + 1 == state.bump) {
                return Err(bad_slab(s.at));
            }
            index
        } else {
            state.bump += 1;
            state.bump - 1
        };
        state.used += 1;
        if index >= c.blocks {
            return Err(bad_slab(s.at));
        }
        if state.used == c.blocks {
            self.unlink(work, class, s)?;
        }
        work.put_u64(s.at + STATE, state.word())?;
        Ok(s.at + HEADER + index * c.size)
    }

    /// Give back a block of a class.
    pub(super) fn free_block(&mut self, work: &mut Work, offset: u64, class: usize) -> Result<()> {
        let (at, index) = locate(offset, class)?;
        let mut s = slab(work, at, class)?;
        if s.state.used == 0 || index >= s.state.bump {
            return Err(bad_slab(at));
        }
        let was_full = s.state.used == TABLE[class].blocks;
        if s.state.used == 1 {
            let alone = !was_full && s.next == 0 && s.prev == 0;
            if !alone {
                return self.release(work, class, s, was_full);
            }
            // Kept for the next request, as if it were new.
            return work.put_u64(at + STATE, 0);
        }
        work.put_u64(offset, FREE_MAGIC | s.state.free)?;
        s.state.free = index + 1;
        s.state.used -= 1;
        work.put_u64(at + STATE, s.state.word())?;
        if was_full { self.link(work, class, at) } else { Ok(()) }
    }

    /// Give back many blocks at once: a slab of which they are all goes back to the pages as a whole, its blocks
    /// untouched. `blocks` holds offsets shifted left by 8, with the class below; it is left in no useful order.
    pub(super) fn free_many(&mut self, work: &mut Work, blocks: &mut [u64]) -> Result<()> {
        blocks.sort_unstable();
        let mut i = 0;
        while i < blocks.len() {
            let class = (blocks[i] & 0xFF) as usize;
            class_size(class)?;
            let (at, _) = locate(blocks[i] >> 8, class)?;
            let mut end = i + 1;
            while end < blocks.len()
                && blocks[end] & 0xFF == class as u64
                && locate(blocks[end] >> 8, class).is_ok_and(|(slab, _)| slab == at)
            {
                if blocks[end] == blocks[end - 1] {
                    return Err(Error::corrupt(format!(
                        "the block at {:#x} is used twice",
                        blocks[end] >> 8
                    )));
                }
                end += 1;
            }
            let s = slab(work, at, class)?;
            if s.state.used == (end - i) as u64 {
                self.release(work, class, s, s.state.used == TABLE[class].blocks)?;
            } else {
                for b in &blocks[i..end] {
                    self.free_block(work, b >> 8, class)?;
                }
            }
            i = end;
        }
        Ok(())
    }

    #[cold]
    fn new_slab(&mut self, work: &mut Work, class: usize) -> Result<Slab> {
        let c = TABLE[class];
        let at = self.take(work, c.pages, c.pages)?.offset;
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(&(SLAB_MAGIC | (class as u64) << 48).to_le_bytes());
        work.write(at, &header)?;
        work.put_u64(head_of(class), at)?;
        slab(work, at, class)
    }

    /// Put a slab that got its first free block at the front of the list.
    #[cold]
    fn link(&mut self, work: &mut Work, class: usize, at: u64) -> Result<()> {
        let head = work.u64(head_of(class))?;
        if head != 0 {
            let next = slab(work, head, class)?;
            work.put_u64(next.at + PREV, at)?;
        }
        work.put_u64(at + NEXT, head)?;
        work.put_u64(at + PREV, 0)?;
        work.put_u64(head_of(class), at)
    }

    #[cold]
    fn unlink(&mut self, work: &mut Work, class: usize, s: Slab) -> Result<()> {
        if s.next != 0 {
            let next = slab(work, s.next, class)?;
            work.put_u64(next.at + PREV, s.prev)?;
        }
        if s.prev != 0 {
            let prev = slab(work, s.prev, class)?;
            work.put_u64(prev.at + NEXT, s.next)?;
        } else {
            work.put_u64(head_of(class), s.next)?;
        }
        // A full slab is in no list; its links are left as they are, `link` sets both.
        Ok(())
    }

    #[cold]
    fn release(&mut self, work: &mut Work, class: usize, s: Slab, was_full: bool) -> Result<()> {
        if !was_full {
            self.unlink(work, class, s)?;
        }
        self.pages.give(work, s.at, TABLE[class].pages)
    }

    /// Give empty slabs back to the pages; whether there were any.
    #[cold]
    fn reclaim(&mut self, work: &mut Work) -> Result<bool> {
        let mut any = false;
        for class in 0..CLASSES {
            let mut at = work.u64(head_of(class))?;
            let mut bound = work.len() / PAGE_U64;
            while at != 0 {
                let s = slab(work, at, class)?;
                if s.state.used == 0 {
                    self.release(work, class, s, false)?;
                    any = true;
                    // At most one slab of a class is empty.
                    break;
                }
                bound = bound.checked_sub(1).ok_or_else(|| bad_slab(at))?;
                at = s.next;
            }
        }
        Ok(any)
    }
}

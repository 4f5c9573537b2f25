//! The checker: everything in the image reached once, and everything counted right.
//!
//! Used by `sustain verify` and by the tests after every change. It goes through all objects from the directory,
//! claims every block and page that they hold, and then compares with the slabs, their lists and the bitmap. It shares
//! the readers of the format with the objects, but none of their code that changes something.

use std::collections::{BTreeMap, HashSet};

use super::array::{self, ArrayInfo};
use super::directory::{self, Kind};
use super::heap::{self, CLASSES};
use super::layout::{BITMAP, ROOT_CLASSES, ROOT_DIRECTORY, ROOT_FRESH, ROOT_USED, data_start, word};
use super::{file, map};
use crate::error::{Error, Result};
use crate::format::PAGE_U64;
use crate::work::Work;

/// What a check has seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CheckReport {
    /// Maps, arrays and files.
    pub objects: u64,
    /// Entries of all maps.
    pub entries: u64,
    /// Slabs.
    pub slabs: u64,
    /// Blocks in use.
    pub blocks: u64,
    /// Pages in use.
    pub used_pages: u64,
    /// Pages in the image.
    pub pages: u64,
}

struct SlabSeen {
    class: usize,
    blocks: HashSet<u64>,
}

struct Checker<'w> {
    work: &'w Work,
    claimed: Vec<u64>,
    slabs: BTreeMap<u64, SlabSeen>,
    report: CheckReport,
}

/// Check the whole image. `StoreCorrupt` says the first thing that is wrong.
pub(super) fn check(work: &Work) -> Result<CheckReport> {
    let pages = work.len() / PAGE_U64;
    let mut c = Checker {
        work,
        claimed: vec![0; pages.div_ceil(64) as usize],
        slabs: BTreeMap::new(),
        report: CheckReport { pages, ..CheckReport::default() },
    };
    c.claim_pages(0, data_start(pages))?;
    c.map(ROOT_DIRECTORY)?;
    c.report.entries = 0;
    directory::each(work, |_, kind, at| c.object(kind, at))?;
    c.lists()?;
    c.slabs()?;
    c.bitmap()?;
    Ok(c.report)
}

fn wrong<T>(what: String) -> Result<T> {
    Err(Error::corrupt(what))
}

impl Checker<'_> {
    fn claim_pages(&mut self, offset: u64, count: u64) -> Result<()> {
        if offset % PAGE_U64 != 0
            || count > self.report.pages
            || offset / PAGE_U64 > self.report.pages - count
        {
            return wrong(format!("an extent of {count} pages cannot be at {offset:#x}"));
        }
        for page in offset / PAGE_U64..offset / PAGE_U64 + count {
            let (w, bit) = ((page / 64) as usize, 1 << (page % 64));
            if self.claimed[w] & bit != 0 {
                return wrong(format!("page {page} is used twice"));
            }
            self.claimed[w] |= bit;
        }
        self.report.used_pages += count;
        Ok(())
    }

    fn claim_slab(&mut self, at: u64, class: usize) -> Result<&mut SlabSeen> {
        if !self.slabs.contains_key(&at) {
            heap::slab(self.work, at, class)?;
            self.claim_pages(at, heap::slab_shape(class).0)?;
            self.report.slabs += 1;
            self.slabs.insert(at, SlabSeen { class, blocks: HashSet::new() });
        }
        match self.slabs.get_mut(&at) {
            Some(seen) if seen.class == class => Ok(seen),
            _ => wrong(format!("the slab at {at:#x} is used for blocks of two classes")),
        }
    }

    fn claim(&mut self, offset: u64, class: Option<usize>, gross: u64) -> Result<()> {
        let Some(class) = class else { return self.claim_pages(offset, gross / PAGE_U64) };
        heap::class_size(class)?;
        let (slab, index) = heap::locate(offset, class)?;
        if !self.claim_slab(slab, class)?.blocks.insert(index) {
            return wrong(format!("the block at {offset:#x} is used twice"));
        }
        self.report.blocks += 1;
        Ok(())
    }

    fn claim_size(&mut self, offset: u64, size: u64) -> Result<u64> {
        let gross = heap::gross(size);
        self.claim(offset, heap::class_of(size), gross)?;
        Ok(gross)
    }

    fn object(&mut self, kind: Kind, at: u64) -> Result<()> {
        self.report.objects += 1;
        match kind {
            Kind::Map => {
                self.claim_size(at, map::HEADER)?;
                self.map(at)
            }
            Kind::Array => {
                self.claim_size(at, array::HEADER)?;
                let a = ArrayInfo::load(self.work, at)?;
                self.claim_pages(a.offset, a.capacity / PAGE_U64)
            }
            Kind::File => {
                self.claim_size(at, file::HEADER)?;
                let h = file::Header::load(self.work, at)?;
                let mut held = 0;
                h.visit(self.work, &mut |offset, pages| {
                    held += pages * PAGE_U64;
                    self.claim_pages(offset, pages)
                })?;
                if held == h.held {
                    Ok(())
                } else {
                    wrong(format!("the file at {at:#x} holds {held} bytes, not {}", h.held))
                }
            }
        }
    }

    fn map(&mut self, at: u64) -> Result<()> {
        let work = self.work;
        let h = map::Header::load(work, at)?;
        let (mut count, mut held, mut tail) = (0, 0, Vec::new());
        for (offset, bytes) in h.segments(work)? {
            held += self.claim_size(offset, bytes)?;
        }
        for bucket in 0..h.buckets() {
            let (mut keys, mut entries) = (HashSet::new(), Vec::new());
            tail.clear();
            h.walk(
                work,
                bucket,
                |o| {
                    tail.push(o);
                    Ok(())
                },
                |e| {
                    entries.push(*e);
                    Ok(())
                },
            )?;
            for o in &tail {
                held += self.claim_size(*o, 64)?;
            }
            for e in entries {
                let gross = e.gross(work)?;
                self.claim(e.at, e.class(), gross)?;
                e.value(work)?;
                let key = e.key(work)?;
                if h.hash(key) != e.hash {
                    return wrong(format!("the key of the map entry at {:#x} does not have its hash", e.at));
                }
                if !keys.insert(key) {
                    return wrong(format!("the key of the map entry at {:#x} is there twice", e.at));
                }
                count += 1;
                held += gross;
            }
        }
        if (count, held) != (h.count, h.held) {
            return wrong(format!(
                "the map at {at:#x} has {count} entries in {held} bytes, but counts {} in {}",
                h.count, h.held
            ));
        }
        self.report.entries += count;
        Ok(())
    }

    /// Walk the list of slabs with a free block of every class.
    fn lists(&mut self) -> Result<()> {
        for class in 0..CLASSES {
            let (mut at, mut prev) = (self.work.u64(ROOT_CLASSES + class as u64 * 8)?, 0);
            let mut listed = HashSet::new();
            while at != 0 {
                let s = heap::slab(self.work, at, class)?;
                self.claim_slab(at, class)?;
                if s.prev != prev || s.state.used == heap::slab_shape(class).1 || !listed.insert(at) {
                    return wrong(format!("the list of slabs of class {class} is damaged at {at:#x}"));
                }
                (prev, at) = (at, s.next);
            }
            for (at, seen) in &self.slabs {
                let full = seen.blocks.len() as u64 == heap::slab_shape(class).1;
                if seen.class == class && !full && !listed.contains(at) {
                    return wrong(format!("the slab at {at:#x} has free blocks, but is not listed"));
                }
            }
        }
        Ok(())
    }

    fn slabs(&self) -> Result<()> {
        for (at, seen) in &self.slabs {
            let state = heap::slab(self.work, *at, seen.class)?.state;
            let mut free = HashSet::new();
            let mut next = state.free;
            while next != 0 {
                if next > state.bump || seen.blocks.contains(&(next - 1)) || !free.insert(next) {
                    return wrong(format!("the free blocks of the slab at {at:#x} are not free"));
                }
                next = heap::next_free(self.work, *at, seen.class, next - 1)?;
            }
            let used = seen.blocks.len() as u64;
            let beyond = seen.blocks.iter().any(|i| *i >= state.bump);
            if beyond || used != state.used || used + free.len() as u64 != state.bump {
                return wrong(format!(
                    "the slab at {at:#x} counts {} of {} blocks in use; {used} are reachable, {} free",
                    state.used,
                    state.bump,
                    free.len()
                ));
            }
        }
        Ok(())
    }

    fn bitmap(&self) -> Result<()> {
        for (i, claimed) in self.claimed.iter().enumerate() {
            let bits = self.work.u64(BITMAP + i as u64 * 8)?;
            if bits != *claimed {
                let page = i as u64 * 64 + u64::from((bits ^ claimed).trailing_zeros());
                let lost = bits >> (page % 64) & 1 == 1;
                return wrong(format!(
                    "page {page} is {}",
                    if lost { "used by nothing" } else { "used, but counts as free" }
                ));
            }
        }
        let root = self.work.bytes(0, PAGE_U64)?;
        let (used, fresh) = (word(root, ROOT_USED as usize / 8), word(root, ROOT_FRESH as usize / 8));
        let above = (fresh..self.report.pages).any(|p| self.claimed[(p / 64) as usize] >> (p % 64) & 1 == 1);
        if used != self.report.used_pages || above {
            return wrong(format!(
                "{} pages are used up to page {fresh}; the root counts {used}",
                self.report.used_pages
            ));
        }
        Ok(())
    }
}

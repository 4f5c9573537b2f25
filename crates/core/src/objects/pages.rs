//! Page allocation: extents of whole pages, by a bitmap in the image.
//!
//! Used by the heap alone. The bitmap is the only persistent truth; where to begin to search, which groups are full
//! and which pages applications still look at are remembered in memory. Free pages hold no metadata, so whatever
//! writes into a page that it has lost (a NumPy view that outlives a rollback) damages nothing; and such pages are
//! not handed out again while the view lives (`export`). A free list inside the pages, the usual choice, would need
//! both a write per free page and trust in what free pages hold.

use std::collections::BTreeMap;

use super::layout::{BITMAP, GROUP, ROOT_FRESH, ROOT_USED, data_start, word};
use crate::error::{Error, Result};
use crate::format::PAGE_U64;
use crate::work::Work;

/// Requests up to this many pages are placed first-fit.
const SMALL_PAGES: u64 = 16;
/// Search hints: one for each power of two up to `SMALL_PAGES`, one for what is larger.
const HINTS: usize = 6;

/// Pages that were handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// Offset of the first.
    pub offset: u64,
    /// From this offset on they are zero.
    pub zero_from: u64,
}

#[derive(Debug)]
struct Export {
    end: u64,
    count: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pages {
    pages: u64,
    data_start: u64,
    hints: [u64; HINTS],
    /// A bit per page of the bitmap: no page of that group is free.
    full: Vec<u64>,
    /// Highest `fresh` ever seen in this process: a rollback lowers the persistent one, but what was written to the
    /// pages by then is not known.
    fresh_seen: u64,
    /// Extents that applications look at, by offset.
    exports: BTreeMap<u64, Export>,
}

fn hint_of(count: u64) -> usize {
    if count > SMALL_PAGES { HINTS - 1 } else { count.next_power_of_two().trailing_zeros() as usize }
}

impl Pages {
    pub(super) fn new(work: &Work) -> Self {
        let pages = work.len() / PAGE_U64;
        let start = data_start(pages);
        let groups = pages.div_ceil(GROUP).div_ceil(64) as usize;
        Self {
            pages,
            data_start: start,
            hints: [start; HINTS],
            full: vec![0; groups],
            fresh_seen: 0,
            exports: BTreeMap::new(),
        }
    }

    /// Forget what may have changed behind our back. Exports and `fresh_seen` stay: they are about this process.
    pub(super) fn forget(&mut self) {
        self.hints = [self.data_start; HINTS];
        self.full.fill(0);
    }

    pub(super) fn used(&self, work: &Work) -> Result<u64> {
        let used = work.u64(ROOT_USED)?;
        if used < self.data_start || used > self.pages {
            return Err(Error::corrupt(format!("the image counts {used} used pages of {}", self.pages)));
        }
        Ok(used)
    }

    /// `count` pages in a row, the first a multiple of `align` (a power of two). Their contents mean nothing.
    pub(super) fn take(&mut self, work: &mut Work, count: u64, align: u64) -> Result<Taken> {
        let used = self.used(work)?;
        let hint = hint_of(count);
        let from = self.hints[hint].clamp(self.data_start, self.pages);
        let mut found = None;
        if count <= self.pages - used {
            found = self.find(work, count, align, from, self.pages)?;
            if found.is_none() && from > self.data_start {
                let again = from.saturating_add(count).saturating_add(align).min(self.pages);
                found = self.find(work, count, align, self.data_start, again)?;
            }
        }
        let Some(first) = found else {
            return Err(Error::StoreFull(format!(
                "no room for {} bytes in one piece: {} of the store's {} bytes are free",
                count.saturating_mul(PAGE_U64),
                (self.pages - used) * PAGE_U64,
                self.pages * PAGE_U64
            )));
        };
        self.hints[hint] = first + count;
        self.claim(work, first, count, used)
    }

    /// The `count` pages that follow `end`, if they are free and no view but that of the extent at `owner` is there.
    pub(super) fn extend(
        &mut self,
        work: &mut Work,
        owner: u64,
        end: u64,
        count: u64,
    ) -> Result<Option<Taken>> {
        let (first, used) = (end / PAGE_U64, self.used(work)?);
        let Some(stop) = first.checked_add(count).filter(|s| *s <= self.pages) else { return Ok(None) };
        if first < self.data_start
            || count > self.pages - used
            || self.first(work, first, stop, false)? < stop
        {
            return Ok(None);
        }
        if self.exported_in(first, count, owner).is_some() {
            return Ok(None);
        }
        self.claim(work, first, count, used).map(Some)
    }

    fn claim(&mut self, work: &mut Work, first: u64, count: u64, used: u64) -> Result<Taken> {
        let fresh = work.u64(ROOT_FRESH)?;
        let zero_from = fresh.max(self.fresh_seen);
        self.mark(work, first, count, true)?;
        work.put_u64(ROOT_USED, used + count)?;
        let end = first + count;
        if end > fresh {
            work.put_u64(ROOT_FRESH, end)?;
        }
        self.fresh_seen = zero_from.max(end);
        let offset = first * PAGE_U64;
        work.trust(offset, count * PAGE_U64);
        Ok(Taken { offset, zero_from: zero_from.clamp(first, end) * PAGE_U64 })
    }

    /// Give back `count` pages at `offset`.
    pub(super) fn give(&mut self, work: &mut Work, offset: u64, count: u64) -> Result<()> {
        let first = offset / PAGE_U64;
        let used = self.used(work)?;
        let inside = first.checked_add(count).is_some_and(|end| end <= self.pages);
        if offset % PAGE_U64 != 0 || first < self.data_start || !inside || used - self.data_start < count {
            return Err(Error::corrupt(format!(
                "the image holds an extent that cannot be: {count} pages at {offset:#x}"
            )));
        }
        self.mark(work, first, count, false)?;
        work.put_u64(ROOT_USED, used - count)?;
        for (order, hint) in self.hints[..HINTS - 1].iter_mut().enumerate() {
            *hint = (*hint).min(first.saturating_sub((1 << order) - 1));
        }
        for group in first / GROUP..=(first + count.max(1) - 1) / GROUP {
            self.full[(group / 64) as usize] &= !(1 << (group % 64));
        }
        Ok(())
    }

    /// An application looks at `len` bytes at `offset`.
    pub(super) fn export(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len.max(1)).next_multiple_of(PAGE_U64);
        let export = self.exports.entry(offset).or_insert(Export { end, count: 0 });
        export.count += 1;
        export.end = export.end.max(end);
    }

    /// It does no more.
    pub(super) fn unexport(&mut self, offset: u64) {
        if let Some(export) = self.exports.get_mut(&offset) {
            export.count -= 1;
            if export.count == 0 {
                self.exports.remove(&offset);
                // Quarantined pages may be free now.
                self.forget();
            }
        }
    }

    pub(super) fn exported(&self, offset: u64) -> bool {
        self.exports.contains_key(&offset)
    }

    /// Page after the last exported extent that overlaps these pages, but for the one at `owner`.
    fn exported_in(&self, first: u64, count: u64, owner: u64) -> Option<u64> {
        let (start, end) = (first * PAGE_U64, (first + count) * PAGE_U64);
        // Few arrays are open at a time; extents of different generations may overlap, so that all are looked at.
        let overlapping = self.exports.range(..end).filter(|(at, e)| **at != owner && e.end > start);
        overlapping.map(|(_, e)| e.end.div_ceil(PAGE_U64)).max()
    }

    fn find(&mut self, work: &Work, count: u64, align: u64, from: u64, to: u64) -> Result<Option<u64>> {
        let mut at = from;
        loop {
            at = self.first(work, at, to, true)?.next_multiple_of(align);
            let Some(stop) = at.checked_add(count).filter(|stop| *stop <= to) else { return Ok(None) };
            let used = self.first(work, at, stop, false)?;
            if used < stop {
                at = used + 1;
                continue;
            }
            match self.exported_in(at, count, u64::MAX) {
                Some(after) => at = after,
                None => return Ok(Some(at)),
            }
        }
    }

    /// First page in `from..to` that is free (or used); `to` when there is none.
    fn first(&mut self, work: &Work, from: u64, to: u64, free: bool) -> Result<u64> {
        let mut at = from;
        while at < to {
            let group = at / GROUP;
            let stop = to.min((group + 1) * GROUP);
            let (flag, bit) = ((group / 64) as usize, 1 << (group % 64));
            if free && self.full[flag] & bit != 0 {
                at = stop;
                continue;
            }
            let whole = at % GROUP == 0 && (stop % GROUP == 0 || stop == self.pages);
            let bits = work.bytes(BITMAP + group * PAGE_U64, PAGE_U64)?;
            while at < stop {
                let w = word(bits, (at % GROUP / 64) as usize);
                let w = if free { !w } else { w } >> (at % 64);
                if w != 0 {
                    return Ok((at + u64::from(w.trailing_zeros())).min(to));
                }
                at = (at / 64 + 1) * 64;
            }
            if free && whole {
                self.full[flag] |= bit;
            }
        }
        Ok(to)
    }

    fn mark(&mut self, work: &mut Work, first: u64, count: u64, set: bool) -> Result<()> {
        let (mut at, end) = (first, first + count);
        while at < end {
            let stop = end.min((at / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
            let offset = BITMAP + at / 64 * 8;
            let old = work.u64(offset)?;
            if old & mask != if set { 0 } else { mask } {
                return Err(Error::corrupt(format!(
                    "pages {at} to {} are {} in the image's bitmap, against what it holds elsewhere",
                    stop - 1,
                    if set { "used" } else { "free" }
                )));
            }
            work.put_u64(offset, old ^ mask)?;
            at = stop;
        }
        Ok(())
    }
}

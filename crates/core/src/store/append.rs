//! The commit path under the mutex: harvest what changed, append it as one group, apply it.

use std::io;
use std::sync::Arc;

use super::{Inner, Shadow};
use crate::base::Base;
use crate::checksum::{apply_delta, word_delta};
use crate::control::{realtime_coarse_ns, word};
use crate::error::{Error, Result};
use crate::format::{PAGE, PAGE_U64, Point, WORDS_PER_PAGE};
use crate::log::{GroupBuilder, NoRoom, stored};
use crate::medium::{Medium, page_is_zero};
use crate::replay::{Target, apply};
use crate::work::{Span, prefetch};

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// There were no changes; the position of the last commit.
    Nothing(u64),
    /// Appended, durable, applied.
    Durable(u64),
    /// Appended; durable once the log is flushed up to here.
    InFlight(u64),
    /// The log has no room now; nothing was changed.
    NoRoom,
    /// It would end behind this limit of what may be unshipped; nothing was changed.
    OverBudget(u64),
}

/// Differences closer than this many words share a range: its header costs two words.
const GAP_WORDS: usize = 2;
/// From so many changed spans or bytes on, a commit is worth giving the interpreter's lock back.
const LARGE_SPANS: usize = 64;
const LARGE_BYTES: u64 = 64 << 10;

/// Takes differences against the image (or the shadows) and puts them into a group.
struct Harvest<'a, M: Medium> {
    base: &'a Base<Arc<M>>,
    shadow: &'a std::collections::HashMap<u64, Shadow>,
    group: GroupBuilder<'a>,
    /// The page being worked on: number, where its committed contents lie, its sum so far.
    page: u64,
    old: *const u8,
    sum: u64,
    /// Run of zero pages not yet in the group.
    zero: Span,
}

impl<M: Medium> Harvest<'_, M> {
    #[inline]
    fn enter(&mut self, page: u64) {
        if page == self.page {
            return;
        }
        self.page = page;
        match if self.shadow.is_empty() { None } else { self.shadow.get(&page) } {
            Some(s) => (self.old, self.sum) = (s.data.as_ptr(), s.sum),
            None => (self.old, self.sum) = (self.base.image_page(page), self.base.sum(page)),
        }
    }

    /// Words `first..last` of `page`, whose new contents begin at `new`.
    ///
    /// # Safety
    /// `new` is an aligned page that does not change meanwhile.
    #[inline]
    unsafe fn words(
        &mut self,
        page: u64,
        first: usize,
        last: usize,
        new: *const u8,
    ) -> std::result::Result<(), NoRoom> {
        self.enter(page);
        let (old, new) = (self.old.cast::<u64>(), new.cast::<u64>());
        // SAFETY: indices are below 512 words of two aligned pages: the caller's, and one of image or shadow that
        // only the holder of the store's mutex changes.
        let at = |p: *const u64, i: usize| unsafe { p.add(i).read() };
        let mut i = first;
        while i < last {
            if at(old, i) == at(new, i) {
                i += 1;
                continue;
            }
            let start = i;
            let mut end = i + 1;
            let mut delta = word_delta(i, at(old, i), at(new, i));
            i += 1;
            while i < last && i - end <= GAP_WORDS {
                let (o, n) = (at(old, i), at(new, i));
                if o != n {
                    delta = delta.wrapping_add(word_delta(i, o, n));
                    end = i + 1;
                }
                i += 1;
            }
            self.sum = apply_delta(page, self.sum, delta);
            // SAFETY: the words are inside the page.
            unsafe {
                let offset = page * PAGE_U64 + start as u64 * 8;
                self.group.range(offset, end - start, self.sum, new.add(start).cast())?;
            }
        }
        Ok(())
    }

    /// A whole page.
    ///
    /// # Safety
    /// As `words`.
    unsafe fn whole(&mut self, page: u64, new: *const u8) -> std::result::Result<(), NoRoom> {
        self.enter(page);
        // SAFETY: the caller's page, and one of image or shadow.
        unsafe {
            if self.sum != 0 && page_is_zero(new) {
                if self.zero.offset + self.zero.len != page * PAGE_U64 || self.zero.len == 0 {
                    self.flush_zero()?;
                    self.zero.offset = page * PAGE_U64;
                }
                self.zero.len += PAGE_U64;
                return Ok(());
            }
            self.words(page, 0, WORDS_PER_PAGE, new)
        }
    }

    fn flush_zero(&mut self) -> std::result::Result<(), NoRoom> {
        if self.zero.len > 0 {
            self.group.zero(self.zero.offset, self.zero.len)?;
            self.zero = Span { offset: 0, len: 0 };
        }
        Ok(())
    }

    /// Everything in `spans` (sorted, disjoint) but the pages in `skip` (sorted), as the view has it.
    ///
    /// # Safety
    /// `view` is the working view; object memory does not change meanwhile.
    #[inline]
    unsafe fn spans(
        &mut self,
        spans: &[Span],
        skip: &[u64],
        view: *const u8,
    ) -> std::result::Result<(), NoRoom> {
        for s in spans {
            let (mut at, end) = (s.offset, s.offset + s.len);
            while at < end {
                let page = at / PAGE_U64;
                let stop = end.min((page + 1) * PAGE_U64);
                if !skip.is_empty() && skip.binary_search(&page).is_ok() {
                    at = stop;
                    continue;
                }
                // SAFETY: inside the view, as the span is.
                unsafe {
                    let new = view.add(page as usize * PAGE);
                    if stop - at == PAGE_U64 {
                        self.whole(page, new)?;
                    } else {
                        self.words(
                            page,
                            (at % PAGE_U64) as usize / 8,
                            ((stop - 1) % PAGE_U64) as usize / 8 + 1,
                            new,
                        )?;
                    }
                }
                at = stop;
            }
        }
        self.flush_zero()
    }
}

/// Keeps shadows up to date with a group in flight.
struct ShadowTarget<'a, M: Medium> {
    base: &'a Base<Arc<M>>,
    shadow: &'a mut std::collections::HashMap<u64, Shadow>,
    last: u64,
}

impl<M: Medium> ShadowTarget<'_, M> {
    fn entry(&mut self, page: u64) -> &mut Shadow {
        let base = self.base;
        let s = self.shadow.entry(page).or_insert_with(|| {
            let mut data = Box::new([0u8; PAGE]);
            // SAFETY: a page of the image, which only the holder of the mutex changes.
            unsafe { std::ptr::copy_nonoverlapping(base.image_page(page), data.as_mut_ptr(), PAGE) };
            Shadow { data, sum: base.sum(page), last: 0 }
        });
        s.last = self.last;
        s
    }
}

impl<M: Medium> Target for ShadowTarget<'_, M> {
    fn range(&mut self, offset: u64, data: &[u8], sum: u64) {
        let at = (offset % PAGE_U64) as usize;
        let s = self.entry(offset / PAGE_U64);
        s.data[at..at + data.len()].copy_from_slice(data);
        s.sum = sum;
    }

    fn zero(&mut self, offset: u64, len: u64) {
        for page in offset / PAGE_U64..(offset + len) / PAGE_U64 {
            let s = self.entry(page);
            s.data.fill(0);
            s.sum = 0;
        }
    }
}

impl<M: Medium> Inner<M> {
    /// Whether the next commit may take long.
    #[inline]
    pub(super) fn is_large(&self) -> bool {
        let spans = self.work.spans();
        spans.len() > LARGE_SPANS
            || spans.iter().map(|s| s.len).sum::<u64>() > LARGE_BYTES
            || self.objects.has_arrays()
    }

    /// Ask the kernel which array pages were written; adds to `candidates`, which stay until a commit took them.
    fn find_candidates(&mut self) -> Result<()> {
        let Some(capture) = &mut self.capture else { return Ok(()) };
        let candidates = &mut self.candidates;
        let known = candidates.len();
        for (offset, len) in self.objects.array_extents(&self.work)? {
            let r = capture.candidates(*offset, *len, |page| candidates.push(page));
            if let Err(e) = r {
                let e = Error::io(format!("ask which pages of {} were written", self.name), e);
                self.poison(&e);
                return Err(e);
            }
        }
        // Pages of arrays that the engine itself changed (made zero, moved): they are the application's as well, so
        // they too are only looked at as copies.
        let extents = self.objects.array_extents(&self.work)?;
        for s in self.work.spans() {
            for (offset, len) in extents {
                let (first, end) = (s.offset.max(*offset), (s.offset + s.len).min(offset + len));
                if first < end {
                    candidates.extend(first / PAGE_U64..end.div_ceil(PAGE_U64));
                }
            }
        }
        if candidates.len() > known {
            candidates.sort_unstable();
            candidates.dedup();
        }
        Ok(())
    }

    /// One commit, as far as it goes without waiting.
    #[inline]
    pub(super) fn append(&mut self) -> Result<Appended> {
        self.not_poisoned()?;
        self.not_half_done()?;
        self.not_past_deadline()?;
        if self.objects.has_arrays() {
            self.find_candidates()?;
        }
        let view = self.work.base();
        if self.work.spans().is_empty() && self.candidates.is_empty() {
            return Ok(self.nothing());
        }
        let Some(base) = &self.writer else { return Err(self.fenced("not a writer")) };
        let start = self.appended;
        let ring_end = base.sb.tail.lsn + base.sb.log_size;
        let budget_end = match base.control.get(word::LIMIT_LSN) {
            // What makes a new store a store: before it there is nothing that a shipper could have shipped.
            _ if start.lsn == 0 => ring_end,
            0 => ring_end,
            lsn => lsn,
        };
        let limit = ring_end.min(budget_end);
        let group = GroupBuilder::new(base.m.mapping(), base.sb.crc_seed(), base.sb.epoch, start.lsn, limit);
        let mut h = Harvest {
            base,
            shadow: &self.shadow,
            group,
            page: u64::MAX,
            old: std::ptr::null(),
            sum: 0,
            zero: Span { offset: 0, len: 0 },
        };
        // SAFETY: the view is mapped; object memory changes only under the mutex that is held. Array pages may be
        // written by other threads at any time: each is copied first, and only the copy is looked at.
        let taken = unsafe {
            h.spans(self.work.sorted_spans(), &self.candidates, view).and_then(|()| {
                for page in &self.candidates {
                    std::ptr::copy_nonoverlapping(
                        view.add(*page as usize * PAGE),
                        self.scratch.as_mut_ptr(),
                        PAGE,
                    );
                    h.whole(*page, self.scratch.as_ptr())?;
                }
                h.flush_zero()
            })
        };
        if taken.is_err() {
            return Ok(if limit < ring_end { Appended::OverBudget(limit) } else { Appended::NoRoom });
        }
        if h.group.is_empty() {
            self.work.clear_spans();
            self.candidates.clear();
            return Ok(self.nothing());
        }
        let slow = base.m.slow_persist();
        let time_ns = realtime_coarse_ns();
        let durable_before = if slow { self.durable } else { start.lsn };
        let end = h.group.commit(start, time_ns, durable_before);
        stored(&base.m, start.lsn, end.lsn);
        base.control.set(word::APPENDED, end.lsn);
        base.control.set(word::COMMIT_TIME_NS, time_ns);
        self.appended = end;
        self.work.clear_spans();
        self.candidates.clear();
        self.objects.settle();
        if slow {
            // SAFETY: a whole group, just built by us.
            let bytes = unsafe {
                std::slice::from_raw_parts(
                    base.m.mapping().staged_at(start.lsn),
                    (end.lsn - start.lsn) as usize,
                )
            };
            apply(bytes, &mut ShadowTarget { base, shadow: &mut self.shadow, last: end.lsn });
            return Ok(Appended::InFlight(end.lsn));
        }
        if let Err(e) = crate::log::persist(&base.m, start.lsn, end.lsn) {
            let e = Error::io(format!("flush the log of {}", self.name), e);
            self.poison(&e);
            return Err(e);
        }
        self.flushed(end);
        self.expect_the_next();
        self.not_past_deadline()?;
        Ok(Appended::Durable(end.lsn))
    }

    /// Ask for the lines of the log that the next small commit will fill.
    #[inline]
    fn expect_the_next(&self) {
        let Some(base) = &self.writer else { return };
        let next = base.m.mapping().staged_at(self.appended.lsn);
        for line in 0..4 {
            prefetch(next.wrapping_add(line * 64));
        }
    }

    fn nothing(&self) -> Appended {
        if self.durable == self.appended.lsn {
            Appended::Nothing(self.appended.lsn)
        } else {
            // Another thread's commit took our changes: it counts once that one is durable.
            Appended::InFlight(self.appended.lsn)
        }
    }

    /// The log is durable up to `target`: tell the world, and apply.
    #[inline]
    pub(super) fn flushed(&mut self, target: Point) {
        self.durable = target.lsn;
        let Some(base) = &mut self.writer else { return };
        base.publish(target);
        base.mark(target);
        let c = base.control;
        if !self.shadow.is_empty() {
            self.shadow.retain(|_, s| s.last > target.lsn);
        }
        c.wake_commit();
    }

    /// Where persisting is fast, trim in passing when three quarters of the log are used.
    #[inline]
    pub(super) fn trim_early(&mut self) -> Result<()> {
        let base = self.base()?;
        if self.appended.lsn - base.sb.tail.lsn > base.sb.log_size / 4 * 3
            && base.trim_target(0, base.floor()).is_some()
        {
            self.trim_now(0)?;
        }
        Ok(())
    }

    /// Make the image durable and move the tail: to free half the log, or up to `at_least` if others allow. False
    /// when it cannot move. Nothing is in flight.
    pub(super) fn trim_now(&mut self, at_least: u64) -> Result<bool> {
        self.not_poisoned()?;
        let base = self.base()?;
        if base.trim_target(at_least, base.floor()).is_none() {
            return Ok(false);
        }
        let applied = base.applied;
        let done = base.m.persist_all();
        self.checkpointed_to(applied, at_least, done)
    }

    /// A checkpoint that ran without the mutex is done: the image is durable up to `applied`.
    pub(super) fn checkpointed(&mut self, applied: Point, done: io::Result<()>) -> Result<u64> {
        self.checkpointed_to(applied, 0, done)?;
        Ok(self.base()?.sb.tail.lsn)
    }

    fn checkpointed_to(&mut self, applied: Point, at_least: u64, done: io::Result<()>) -> Result<bool> {
        let r = match done {
            Err(e) => Err(Error::io(format!("flush the image of {}", self.name), e)),
            Ok(()) => {
                let base = self.base_mut()?;
                match base.trim_target(at_least, base.floor()).filter(|p| p.lsn <= applied.lsn) {
                    Some(p) => base.trim(p).map(|()| true),
                    None => Ok(false),
                }
            }
        };
        if let Err(e) = &r {
            self.poison(e);
        }
        r
    }

    /// Put the view back to the last commit.
    pub(super) fn undo(&mut self) -> Result<()> {
        if self.objects.has_arrays() {
            self.find_candidates()?;
        }
        let view = self.work.base();
        let Some(base) = &self.writer else { return Ok(()) };
        let restore = |page: u64, first: usize, len: usize| {
            let old = self.shadow.get(&page).map_or_else(|| base.image_page(page), |s| s.data.as_ptr());
            // SAFETY: inside one page of the view and of the image or a shadow; writes only what differs, so that
            // unchanged pages stay unwritten.
            unsafe {
                let to = view.add(page as usize * PAGE + first);
                let from = old.add(first);
                if libc::memcmp(to.cast(), from.cast(), len) != 0 {
                    std::ptr::copy_nonoverlapping(from, to, len);
                }
            }
        };
        for s in self.work.spans() {
            let (mut at, end) = (s.offset, s.offset + s.len);
            while at < end {
                let stop = end.min((at / PAGE_U64 + 1) * PAGE_U64);
                restore(at / PAGE_U64, (at % PAGE_U64) as usize, (stop - at) as usize);
                at = stop;
            }
        }
        for page in &self.candidates {
            restore(*page, 0, PAGE);
        }
        // Arrays that were deleted or moved come back too, without what the application had changed in them.
        for (offset, len) in self.objects.retired() {
            for page in offset / PAGE_U64..(offset + len) / PAGE_U64 {
                // What is not here was never touched.
                if base.m.arrival().is_none_or(|a| a.is_here(page)) {
                    restore(page, 0, PAGE);
                }
            }
        }
        self.work.clear_spans();
        self.candidates.clear();
        self.half_done = None;
        self.objects.reset();
        Ok(())
    }
}

//! The working view: what the application and the objects see, and what changed in it since the last commit.
//!
//! Used by everything in `objects` and by `commit`. The view is memory that is private to this process: a
//! copy-on-write mapping of the image for a writer, a copy of the image for a reader. Object code reads it with
//! [`Work::bytes`] and changes it only through [`Work::write`] and its relatives, which remember the byte ranges.
//! Arrays are changed by the application behind our back and are never touched through this type.
//!
//! Offsets come from the image itself, which may be damaged: every access is checked against the length, and a
//! page is compared with its sum when it is first used.

use std::cell::UnsafeCell;
use std::sync::Arc;

use crate::arrival::Arrival;
use crate::checksum::page_sum;
use crate::error::{Error, Result};
use crate::format::{PAGE, PAGE_U64};
use crate::medium::page_is_zero;

/// A changed range of the image: offset and length in bytes, both multiples of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Offset in the image.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// See the module.
pub struct Work {
    base: *mut u8,
    len: u64,
    /// One sum per page, in shared memory; null: pages are not checked.
    sums: *const u64,
    /// A bit per page: it has been compared with its sum. Only touched by the one thread that holds the store's lock.
    checked: UnsafeCell<Vec<u64>>,
    spans: Vec<Span>,
    writable: bool,
    /// The committed image, which a commit compares with; null: nobody will.
    image: *const u8,
    /// Pages come when they are first used, compared with their sums already.
    arrival: Option<Arc<Arrival>>,
}

/// Ask for a cache line that will be needed soon. Any address will do: a wrong one has no effect.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it neither faults nor changes anything.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Bytes of a cache line, and the most lines that one write asks for.
const LINE: usize = 64;
const AHEAD: usize = 4;

// SAFETY: the pointers are to mappings that live as long as the store that owns this value, and the store lets one
// thread at a time use it (its mutex).
unsafe impl Send for Work {}

impl Work {
    /// A view over `len` bytes at `base`; `sums` may be null.
    ///
    /// # Safety
    /// `base` (page-aligned) is valid for reads and writes of `len` bytes, and `sums` for `len / 4096` words, as
    /// long as the value lives; nobody holds Rust references into them.
    pub unsafe fn new(base: *mut u8, len: u64, sums: *const u64, writable: bool) -> Self {
        assert!(base as usize % 8 == 0 && len % PAGE_U64 == 0, "views are whole pages");
        let bits = if sums.is_null() { 0 } else { len.div_ceil(PAGE_U64).div_ceil(64) as usize };
        let checked = UnsafeCell::new(vec![0; bits]);
        Self { base, len, sums, checked, spans: Vec::new(), writable, image: std::ptr::null(), arrival: None }
    }

    /// Say where the committed image lies: what the next commit compares is asked for when it is changed here, so that
    /// it arrives while the application goes on.
    pub fn compared_with(&mut self, image: *const u8) {
        self.image = image;
    }

    /// Say that pages come on demand: each is waited for before it is touched, so that one that does not come is an error.
    pub fn comes_on_demand(&mut self, arrival: Arc<Arrival>) {
        self.arrival = Some(arrival);
    }

    /// Whether pages come on demand.
    #[must_use]
    pub fn on_demand(&self) -> bool {
        self.arrival.is_some()
    }

    #[inline]
    fn will_be_compared(&self, offset: u64, len: usize) {
        if self.image.is_null() {
            return;
        }
        let first = self.image.wrapping_add(offset as usize);
        for at in (0..len.min(AHEAD * LINE)).step_by(LINE) {
            prefetch(first.wrapping_add(at));
        }
        prefetch(first.wrapping_add(len - 1));
        prefetch(self.sums.wrapping_add((offset / PAGE_U64) as usize).cast());
    }

    /// Length of the image in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true for a real store.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the view begins; for the store only.
    #[inline]
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Whether changes are allowed.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.writable
    }

    #[inline]
    fn check(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= self.len)
            .ok_or_else(|| self.outside(offset, len))?;
        if !self.sums.is_null() && len > 0 {
            let (first, last) = (offset / PAGE_U64, (end - 1) / PAGE_U64);
            for page in first..=last {
                // SAFETY: only the holder of the store's lock is here, and no reference escapes this line.
                let seen = unsafe { (&*self.checked.get())[(page / 64) as usize] } >> (page % 64) & 1;
                if seen == 0 {
                    self.first_use(page)?;
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn outside(&self, offset: u64, len: u64) -> Error {
        Error::corrupt(format!(
            "the image points to {len} bytes at {offset:#x}, outside of its {:#x} bytes",
            self.len
        ))
    }

    #[cold]
    fn first_use(&self, page: u64) -> Result<()> {
        if let Some(a) = &self.arrival {
            // Whoever puts it into the view compares it with its sum.
            a.need(page)?;
            // SAFETY: as in `check`.
            unsafe { (&mut *self.checked.get())[(page / 64) as usize] |= 1 << (page % 64) };
            return Ok(());
        }
        // SAFETY: the page lies inside the view (checked by the caller); the sums have a word for it.
        let (sum, want) = unsafe {
            (
                page_sum(page, self.base.add(page as usize * PAGE)),
                self.sums.add(page as usize).read_volatile(),
            )
        };
        if sum != want {
            return Err(Error::corrupt(format!("image page {page} does not match its sum")));
        }
        // SAFETY: as in `check`.
        unsafe { (&mut *self.checked.get())[(page / 64) as usize] |= 1 << (page % 64) };
        Ok(())
    }

    /// Forget which pages were compared with their sums (a reader has moved, a view was reset).
    pub fn forget_checked(&mut self) {
        self.checked.get_mut().fill(0);
    }

    /// `len` bytes at `offset`.
    ///
    /// # Errors
    /// `StoreCorrupt` when they are outside the image or their page does not match its sum.
    #[inline]
    pub fn bytes(&self, offset: u64, len: u64) -> Result<&[u8]> {
        self.check(offset, len)?;
        // SAFETY: inside the view; object memory changes only through `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(self.base.add(offset as usize), len as usize) })
    }

    /// The word at `offset` (which must be a multiple of 8, else `StoreCorrupt`).
    #[inline]
    pub fn u64(&self, offset: u64) -> Result<u64> {
        if offset % 8 != 0 {
            return Err(Error::corrupt(format!("the image points to an unaligned word at {offset:#x}")));
        }
        self.check(offset, 8)?;
        // SAFETY: inside the view and aligned.
        Ok(u64::from_le(unsafe { self.base.add(offset as usize).cast::<u64>().read() }))
    }

    #[inline]
    fn remember(&mut self, offset: u64, len: u64) {
        let start = offset & !7;
        let end = (offset + len + 7) & !7;
        if let Some(last) = self.spans.last_mut() {
            let last_end = last.offset + last.len;
            if start >= last.offset && start <= last_end {
                last.len = end.max(last_end) - last.offset;
                return;
            }
        }
        self.spans.push(Span { offset: start, len: end - start });
    }

    #[inline]
    fn check_write(&mut self, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(Error::StoreReadOnly("the store is open read-only".into()));
        }
        self.check(offset, len)
    }

    /// Put `data` at `offset` and remember the range.
    ///
    /// # Errors
    /// As [`Work::bytes`]; `StoreReadOnly` for a reader.
    #[inline]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_write(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.will_be_compared(offset, data.len());
        // SAFETY: inside the view; `data` is not in the view, since views are only lent out by shared borrow.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.base.add(offset as usize), data.len()) };
        self.remember(offset, data.len() as u64);
        Ok(())
    }

    /// Put a word at `offset`, a multiple of 8.
    #[inline]
    pub fn put_u64(&mut self, offset: u64, value: u64) -> Result<()> {
        if offset % 8 != 0 {
            return Err(Error::corrupt(format!("the image points to an unaligned word at {offset:#x}")));
        }
        self.write(offset, &value.to_le_bytes())
    }

    /// Make `len` bytes at `offset` zero. Whole pages that are zero already are only read, so that they cost no
    /// private page; the range is remembered all the same. (The heap asks only for pages that were used before.)
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let stop = end.min((at / PAGE_U64 + 1) * PAGE_U64);
            // SAFETY: inside the view, as just checked; whole pages are aligned.
            unsafe {
                let p = self.base.add(at as usize);
                if stop - at < PAGE_U64 || !page_is_zero(p) {
                    std::ptr::write_bytes(p, 0, (stop - at) as usize);
                }
            }
            // Also when it was zero here: it need not be in the image (a former array that the application cleared).
            self.remember(at, stop - at);
            at = stop;
        }
        Ok(())
    }

    /// Do not compare the pages of this range with their sums: what they hold has no meaning yet (they were free),
    /// or the application changes them behind our back (arrays), so that they may rightly differ from their sums.
    pub fn trust(&mut self, offset: u64, len: u64) {
        if self.sums.is_null() || len == 0 {
            return;
        }
        let checked = self.checked.get_mut();
        let last = (offset.saturating_add(len).min(self.len) - 1) / PAGE_U64;
        for page in offset / PAGE_U64..=last {
            checked[(page / 64) as usize] |= 1 << (page % 64);
        }
    }

    /// Copy `len` bytes inside the image; the ranges may overlap.
    pub fn copy(&mut self, from: u64, to: u64, len: u64) -> Result<()> {
        self.check(from, len)?;
        self.check_write(to, len)?;
        if len > 0 {
            // SAFETY: both inside the view; `copy` allows overlap.
            unsafe {
                std::ptr::copy(self.base.add(from as usize), self.base.add(to as usize), len as usize);
            }
            self.remember(to, len);
        }
        Ok(())
    }

    /// The ranges changed since the last commit, in the order of change, some overlapping.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The same, sorted and disjoint.
    pub fn sorted_spans(&mut self) -> &[Span] {
        if self.spans.len() > 1 {
            self.spans.sort_unstable_by_key(|s| s.offset);
            let mut kept = 0;
            for i in 1..self.spans.len() {
                let (s, last) = (self.spans[i], self.spans[kept]);
                if s.offset <= last.offset + last.len {
                    self.spans[kept].len = (s.offset + s.len).max(last.offset + last.len) - last.offset;
                } else {
                    kept += 1;
                    self.spans[kept] = s;
                }
            }
            self.spans.truncate(kept + 1);
        }
        &self.spans
    }

    /// Forget the ranges: they were committed or rolled back.
    pub fn clear_spans(&mut self) {
        self.spans.clear();
        if self.spans.capacity() > 1 << 16 {
            self.spans.shrink_to(1 << 10);
        }
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work")
            .field("len", &self.len)
            .field("spans", &self.spans.len())
            .finish_non_exhaustive()
    }
}

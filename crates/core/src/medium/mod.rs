//! What a store lies on: a mapped file or device, and how bytes in it become durable.
//!
//! The engine changes the shared mapping only through [`Medium::store`], so that the simulated medium of the crash
//! tests (`medium::sim`) sees every store and every flush. Words in the control page are not stored through a
//! medium: they are volatile by definition.

mod file;
mod mapping;
pub mod pmem;
pub mod sim;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::arrival::Arrival;
use crate::format::PAGE;

pub(crate) use file::pick_superblock;
pub use file::{FileMedium, device_size, durability_at, probe_durability};
pub use mapping::{Anonymous, Mapping, PrivateView, memory_file, page_is_zero};

/// Have all pages of this memory there at once, to be written or only read, which is faster than one fault for each; where
/// the system cannot, nothing happens.
pub(crate) fn touch(start: *mut u8, len: usize, write: bool) {
    let first = start.addr() / PAGE * PAGE;
    let whole = (start.addr() + len).next_multiple_of(PAGE) - first;
    let advice = if write { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    // SAFETY: this changes no byte, and fails where nothing is mapped.
    unsafe { libc::madvise(start.with_addr(first).cast(), whole, advice) };
}

/// A mapped store and its way to durability.
pub trait Medium: Send + Sync {
    /// The mapping.
    fn mapping(&self) -> &Mapping;

    /// `len` bytes at `offset` were just changed in the mapping.
    fn stored(&self, offset: u64, len: u64);

    /// Return when `len` bytes at `offset`, stored before, are durable. A failure means that it is not known what
    /// is durable; the caller must not try again as if nothing had happened.
    ///
    /// # Errors
    /// What the system said.
    fn persist(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Return when everything stored before is durable.
    ///
    /// # Errors
    /// As [`Medium::persist`].
    fn persist_all(&self) -> io::Result<()>;

    /// As [`Medium::persist`] and [`Medium::persist_all`], also where the durability asks for nothing: what a closed
    /// store promises, and that it is closed no more, must survive a power loss even for durability `memory`.
    ///
    /// # Errors
    /// As [`Medium::persist`].
    fn settle(&self, offset: u64, len: u64) -> io::Result<()> {
        self.persist(offset, len)
    }

    /// See [`Medium::settle`].
    ///
    /// # Errors
    /// As [`Medium::persist`].
    fn settle_all(&self) -> io::Result<()> {
        self.persist_all()
    }

    /// Which pages are here, of a store that is arriving.
    fn arrival(&self) -> Option<&Arc<Arrival>> {
        None
    }

    /// Whether a persist takes long enough that commits should share it.
    fn slow_persist(&self) -> bool;

    /// Log bytes from now on come from [`Mapping::staged_at`], if that is the better way here. What the log holds
    /// already has been persisted.
    ///
    /// # Errors
    /// No memory.
    fn stage(&self) -> io::Result<()> {
        Ok(())
    }

    /// As [`Medium::store`], for much that is new: by a call where that is faster than first touching each page.
    /// Durable after the next [`Medium::persist_all`].
    ///
    /// # Errors
    /// What the system said; a full file system is an error here.
    fn store_new(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.store(offset, data);
        Ok(())
    }

    /// Copy from `offset` of the mapping, by a call where that is faster than first touching each page.
    ///
    /// # Errors
    /// What the system said.
    fn load(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let from = self.mapping().at(offset, to.len() as u64);
        // SAFETY: `at` checked the bounds; what others change meanwhile is a mixture that the caller's check finds.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// The first part of `range` that may hold anything but zeros; `None`: all of it is zeros.
    ///
    /// # Errors
    /// What the system said.
    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok((!range.is_empty()).then_some(range))
    }

    /// As [`Medium::store`], for a whole page that nobody reads soon. Before anything is stored that says so, or that it
    /// must not come before, [`settle`](crate::copy::settle) is called.
    #[inline]
    fn store_page(&self, offset: u64, data: &[u8]) {
        debug_assert!(offset % PAGE as u64 == 0 && data.len() == PAGE);
        let at = self.mapping().at(offset, data.len() as u64);
        // SAFETY: as in `store`; pages are aligned.
        unsafe { crate::copy::copy_past_caches(data.as_ptr(), at, data.len()) };
        self.stored(offset, data.len() as u64);
    }

    /// Copy `data` to `offset` of the mapping.
    #[inline]
    fn store(&self, offset: u64, data: &[u8]) {
        let at = self.mapping().at(offset, data.len() as u64);
        // SAFETY: `at` checked the bounds; writers of the mapping are ordered by the store's lock, readers in other
        // processes verify what they copied; `data` is not inside a shared mapping.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len()) };
        self.stored(offset, data.len() as u64);
    }
}

impl<M: Medium> Medium for Arc<M> {
    fn mapping(&self) -> &Mapping {
        (**self).mapping()
    }
    #[inline]
    fn stored(&self, offset: u64, len: u64) {
        (**self).stored(offset, len);
    }
    #[inline]
    fn persist(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).persist(offset, len)
    }
    fn persist_all(&self) -> io::Result<()> {
        (**self).persist_all()
    }
    fn settle(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).settle(offset, len)
    }
    fn settle_all(&self) -> io::Result<()> {
        (**self).settle_all()
    }
    fn store_new(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).store_new(offset, data)
    }
    fn load(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        (**self).load(offset, to)
    }
    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        (**self).next_data(range)
    }
    fn arrival(&self) -> Option<&Arc<Arrival>> {
        (**self).arrival()
    }
    #[inline]
    fn store_page(&self, offset: u64, data: &[u8]) {
        (**self).store_page(offset, data);
    }
    fn slow_persist(&self) -> bool {
        (**self).slow_persist()
    }
    fn stage(&self) -> io::Result<()> {
        (**self).stage()
    }
}

//! Memory mappings of a store: the whole file, the log twice in a row, and private views of the image.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::format::{LOG_OFFSET, PAGE};

/// Anonymous memory, zero at first, page-aligned.
pub struct Anonymous {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory; who shares it orders the accesses.
unsafe impl Send for Anonymous {}
// SAFETY: as above.
unsafe impl Sync for Anonymous {}

impl Anonymous {
    /// `len` bytes, not reserved until used.
    ///
    /// # Errors
    /// No address space.
    pub fn new(len: usize) -> Result<Self> {
        // SAFETY: a fresh anonymous mapping touches nothing that exists.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(Error::last_os(format!("map {len} bytes of memory")));
        }
        Ok(Self { base: NonNull::new(p.cast()).expect("mmap gives no null"), len })
    }

    /// Where it begins.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Give all pages back; they read as zero again.
    pub fn reset(&self) {
        // SAFETY: our own private anonymous mapping; nobody holds references into it.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_DONTNEED) };
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The copy-on-write mapping of an image: reads see the file, changes stay here.
pub struct PrivateView {
    base: NonNull<u8>,
    len: usize,
    /// False where the device knows no private mappings (`/dev/dax`): the view is then a copy.
    pub file_backed: bool,
}

// SAFETY: as `Anonymous`.
unsafe impl Send for PrivateView {}
// SAFETY: as `Anonymous`.
unsafe impl Sync for PrivateView {}

impl PrivateView {
    /// Where it begins.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for PrivateView {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Private memory of the log's size, mapped twice in a row as the log is.
struct Stage {
    ring: NonNull<u8>,
    len: usize,
}

// SAFETY: as `Anonymous`.
unsafe impl Send for Stage {}
// SAFETY: as `Anonymous`.
unsafe impl Sync for Stage {}

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.ring.as_ptr().cast(), self.len) };
    }
}

/// A file in memory, `len` bytes of zeros.
///
/// # Errors
/// What the system said.
pub fn memory_file(name: &std::ffi::CStr, len: u64) -> io::Result<File> {
    // SAFETY: makes a new descriptor, owned by nobody else.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// The shared mapping of a whole store.
pub struct Mapping {
    file: File,
    base: NonNull<u8>,
    len: u64,
    ring: NonNull<u8>,
    log_size: u64,
    writable: bool,
    stage: OnceLock<Stage>,
}

// SAFETY: as `Anonymous`; the words that processes share are accessed as atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Map `len` bytes of `file` at `offset`, at `addr` if given.
fn map_shared(
    file: &File,
    addr: Option<*mut u8>,
    offset: u64,
    len: u64,
    writable: bool,
    sync: bool,
) -> io::Result<*mut u8> {
    let prot = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
    let mut flags = if sync { libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC } else { libc::MAP_SHARED };
    if addr.is_some() {
        flags |= libc::MAP_FIXED;
    }
    // SAFETY: with an address it replaces a reservation that `map_ring` made; without, it touches nothing.
    let p = unsafe {
        libc::mmap(
            addr.map_or(std::ptr::null_mut(), <*mut u8>::cast),
            len as usize,
            prot,
            flags,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if p == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(p.cast()) }
}

/// The log twice in a row, so that a record which crosses the ring's end is contiguous memory.
fn map_ring(file: &File, offset: u64, log_size: u64, writable: bool, sync: bool) -> io::Result<*mut u8> {
    // SAFETY: reserves address space only.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            2 * log_size as usize + crate::format::PART_ALIGN as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let align = crate::format::PART_ALIGN as usize;
    let lead = (p as usize).next_multiple_of(align) - p as usize;
    let tail = align - lead;
    // SAFETY: trims the reservation to a 2 MiB boundary (devices map in such steps); both ends are inside it.
    let start = unsafe {
        if lead > 0 {
            libc::munmap(p, lead);
        }
        let start = p.cast::<u8>().add(lead);
        if tail > 0 {
            libc::munmap(start.add(2 * log_size as usize).cast(), tail);
        }
        start
    };
    for half in 0..2 {
        // SAFETY: inside the reservation of twice the size.
        let at = unsafe { start.add(half * log_size as usize) };
        if let Err(e) = map_shared(file, Some(at), offset, log_size, writable, sync) {
            // SAFETY: gives the reservation back.
            unsafe { libc::munmap(start.cast(), 2 * log_size as usize) };
            return Err(e);
        }
    }
    Ok(start)
}

impl Mapping {
    /// Map `file`, `len` bytes long, whose log has `log_size` bytes.
    ///
    /// # Errors
    /// What `mmap` said; with `sync`, `EOPNOTSUPP` where there is no DAX.
    pub fn new(file: File, len: u64, log_size: u64, writable: bool, sync: bool) -> io::Result<Self> {
        let base = map_shared(&file, None, 0, len, writable, sync)?;
        let ring = match map_ring(&file, LOG_OFFSET, log_size, writable, sync) {
            Ok(r) => r,
            Err(e) => {
                // SAFETY: the mapping made above.
                unsafe { libc::munmap(base.cast(), len as usize) };
                return Err(e);
            }
        };
        // A forked child must not be able to change the store.
        // SAFETY: advice about our own mappings.
        unsafe {
            libc::madvise(base.cast(), len as usize, libc::MADV_DONTFORK);
            libc::madvise(ring.cast(), 2 * log_size as usize, libc::MADV_DONTFORK);
        }
        Ok(Self {
            file,
            base: NonNull::new(base).expect("mmap gives no null"),
            len,
            ring: NonNull::new(ring).expect("mmap gives no null"),
            log_size,
            writable,
            stage: OnceLock::new(),
        })
    }

    /// The file behind it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it may be changed.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Pointer to `len` bytes at `offset` of the file. Panics when they are outside: offsets given here come from a
    /// verified superblock, never from the image.
    #[inline]
    #[must_use]
    pub fn at(&self, offset: u64, len: u64) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "outside the mapping");
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    /// Pointer to the log byte of `lsn`; a whole ring's length of contiguous bytes follows.
    #[inline]
    #[must_use]
    pub fn ring_at(&self, lsn: u64) -> *mut u8 {
        // SAFETY: the remainder is inside the first half of the doubled ring.
        unsafe { self.ring.as_ptr().add((lsn % self.log_size) as usize) }
    }

    /// From now on, log bytes to come are built in private memory, and are written to the file from there. For media
    /// where a store through the mapping costs a page fault after every flush.
    ///
    /// # Errors
    /// No memory.
    pub fn stage(&self) -> io::Result<()> {
        let file = memory_file(c"sustain-log", self.log_size)?;
        let ring = map_ring(&file, 0, self.log_size, true, false)?;
        let len = 2 * self.log_size as usize;
        // SAFETY: advice about our own mapping: a forked child has no use for it.
        unsafe { libc::madvise(ring.cast(), len, libc::MADV_DONTFORK) };
        let stage = Stage { ring: NonNull::new(ring).expect("mmap gives no null"), len };
        // Staged already: then this one goes.
        drop(self.stage.set(stage));
        Ok(())
    }

    /// Pointer to the place where the log byte of `lsn`, not yet written, is built; a whole ring's length follows.
    /// Only bytes built since `stage` are there; without it, it is the ring itself.
    #[inline]
    #[must_use]
    pub fn staged_at(&self, lsn: u64) -> *mut u8 {
        match self.stage.get() {
            // SAFETY: the remainder is inside the first half of the doubled ring.
            Some(s) => unsafe { s.ring.as_ptr().add((lsn % self.log_size) as usize) },
            None => self.ring_at(lsn),
        }
    }

    /// Where bytes `offset..offset + len` of the file are written from, if they are staged log bytes.
    #[must_use]
    pub fn staged_part(&self, offset: u64, len: u64) -> Option<*const u8> {
        let stage = self.stage.get()?;
        let at = offset.checked_sub(LOG_OFFSET).filter(|at| at + len <= self.log_size)?;
        // SAFETY: inside the stage, as just checked.
        Some(unsafe { stage.ring.as_ptr().add(at as usize) })
    }

    /// Bytes of the ring.
    #[must_use]
    pub fn log_size(&self) -> u64 {
        self.log_size
    }

    /// A copy-on-write view of `len` bytes at `offset`.
    ///
    /// # Errors
    /// No address space.
    pub fn private_view(&self, offset: u64, len: u64) -> Result<PrivateView> {
        // SAFETY: a fresh mapping touches nothing that exists.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
                self.file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if p != libc::MAP_FAILED {
            return Ok(PrivateView {
                base: NonNull::new(p.cast()).expect("mmap gives no null"),
                len: len as usize,
                file_backed: true,
            });
        }
        // Device DAX refuses private mappings: the view is a copy there, filled by the caller.
        PrivateView::of_memory(len)
    }
}

impl PrivateView {
    /// A view that is memory only, filled by the caller.
    ///
    /// # Errors
    /// No address space.
    pub fn of_memory(len: u64) -> Result<Self> {
        let memory = Anonymous::new(len as usize)?;
        let view = PrivateView { base: memory.base, len: len as usize, file_backed: false };
        std::mem::forget(memory);
        Ok(view)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mappings, unmapped once.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.len as usize);
            libc::munmap(self.ring.as_ptr().cast(), 2 * self.log_size as usize);
        }
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .field("log_size", &self.log_size)
            .finish_non_exhaustive()
    }
}

/// Whether a whole page at `p` is zero.
///
/// # Safety
/// `p` is aligned to 8 and readable for 4096 bytes.
#[inline]
pub unsafe fn page_is_zero(p: *const u8) -> bool {
    let words = p.cast::<u64>();
    let mut i = 0;
    while i < PAGE / 8 {
        let mut any = 0;
        for lane in 0..16 {
            // SAFETY: inside the page.
            any |= unsafe { words.add(i + lane).read() };
        }
        if any != 0 {
            return false;
        }
        i += 16;
    }
    true
}

//! Which pages of an array did the application change? Arrays are plain memory; the kernel knows.
//!
//! Three ways, all over a private mapping:
//! - *scan*: the view is registered with userfaultfd for asynchronous write protection; `PAGEMAP_SCAN` names the
//!   pages written since and protects them again, in one call (Linux 6.7).
//! - *pagemap*: `/proc/self/pagemap` tells private pages from pages of the file. A page once written stays private,
//!   so all private pages are candidates; none is dropped, since a thread may be writing to it.
//! - *compare*: every page is a candidate. For media without private mappings, and for tests.
//!
//! Candidates are then compared with the image, word by word, so a false candidate costs time and nothing else.
//! Soft-dirty bits were rejected: they are cleared for the whole process at once, behind the back of others.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::format::{PAGE, PAGE_U64};
use crate::medium::{Anonymous, PrivateView};
use crate::uffd::{self, Faults};

/// How changed pages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `PAGEMAP_SCAN` with asynchronous write protection.
    Scan,
    /// Private-page bits of `/proc/self/pagemap`.
    Pagemap,
    /// Compare everything.
    Compare,
}

impl Mode {
    /// Its name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Pagemap => "pagemap",
            Self::Compare => "compare",
        }
    }
}

// linux/fs.h, which libc does not have.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

struct Scanner {
    uffd: Arc<OwnedFd>,
    pagemap: File,
    regions: Vec<PageRegion>,
    /// The view is served on demand ([`crate::pager`]): it is registered as a whole, and pages that are not there must
    /// not be taken for written ones.
    on_demand: bool,
}

impl Scanner {
    fn new() -> io::Result<Self> {
        // Faults in the kernel need no handler in asynchronous mode.
        let uffd = uffd::open(uffd::USER_MODE_ONLY)?;
        uffd::api(&uffd, uffd::FEATURE_WP_ASYNC | uffd::FEATURE_WP_UNPOPULATED)?;
        Self::on(Arc::new(uffd), false)
    }

    fn on(uffd: Arc<OwnedFd>, on_demand: bool) -> io::Result<Self> {
        let pagemap = File::open("/proc/self/pagemap")?;
        Ok(Self { uffd, pagemap, regions: vec![PageRegion::default(); 1024], on_demand })
    }

    fn watch(&self, start: u64, len: u64) -> io::Result<()> {
        if self.on_demand {
            return Ok(());
        }
        uffd::register(&self.uffd, start, len, uffd::REGISTER_MODE_WP)?;
        uffd::protect(&self.uffd, start, len)
    }

    /// Try it on a page of memory: kernels before 6.7 take the features and lack the scan.
    fn probe(&self) -> io::Result<()> {
        let memory = Anonymous::new(PAGE).map_err(io::Error::other)?;
        let at = memory.base() as u64;
        self.watch(at, PAGE_U64)?;
        let mut arg = PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            flags: PM_SCAN_CHECK_WPASYNC,
            start: at,
            end: at + PAGE_U64,
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..PmScanArg::default()
        };
        uffd::ioctl(&self.pagemap, uffd::iowr(b'f', 16, size_of::<PmScanArg>()), &mut arg).map(|_| ())
    }

    /// Calls `found(address, bytes)` for every run of written pages, which are protected again.
    fn scan(&mut self, mut start: u64, end: u64, found: &mut impl FnMut(u64, u64)) -> io::Result<()> {
        let anyof = if self.on_demand { PAGE_IS_PRESENT | PAGE_IS_SWAPPED } else { 0 };
        while start < end {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                start,
                end,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: anyof,
                return_mask: PAGE_IS_WRITTEN,
                ..PmScanArg::default()
            };
            let n = uffd::ioctl(&self.pagemap, uffd::iowr(b'f', 16, size_of::<PmScanArg>()), &mut arg)?;
            for r in &self.regions[..n as usize] {
                found(r.start, r.end - r.start);
            }
            if arg.walk_end <= start {
                return Err(io::Error::other("PAGEMAP_SCAN does not get on"));
            }
            start = arg.walk_end;
        }
        Ok(())
    }
}

/// Finds candidates in a view.
pub struct Capture {
    mode: Mode,
    base: u64,
    scanner: Option<Scanner>,
    pagemap: Option<File>,
}

impl Capture {
    /// The best way for `view`, or the one that is asked for.
    ///
    /// # Errors
    /// The way that was asked for is not there.
    pub fn new(view: &PrivateView, wanted: Option<Mode>) -> io::Result<Self> {
        let base = view.base() as u64;
        let plain = |mode| Self { mode, base, scanner: None, pagemap: None };
        if !view.file_backed && wanted != Some(Mode::Scan) {
            return Ok(plain(Mode::Compare));
        }
        let scan = || {
            Scanner::new().and_then(|s| s.probe().map(|()| s)).map(|s| Self {
                mode: Mode::Scan,
                base,
                scanner: Some(s),
                pagemap: None,
            })
        };
        let pagemap = || {
            File::open("/proc/self/pagemap").map(|f| Self {
                mode: Mode::Pagemap,
                base,
                scanner: None,
                pagemap: Some(f),
            })
        };
        match wanted {
            Some(Mode::Scan) => scan(),
            Some(Mode::Pagemap) => pagemap(),
            Some(Mode::Compare) => Ok(plain(Mode::Compare)),
            None => scan().or_else(|_| pagemap()).or_else(|_| Ok(plain(Mode::Compare))),
        }
    }

    /// The same for a view whose pages come on demand. Comparing everything would touch every page, so it is never
    /// chosen; who asks for it gets it.
    ///
    /// # Errors
    /// The way that was asked for is not there.
    pub fn on_demand(view: &PrivateView, faults: &Faults, wanted: Option<Mode>) -> io::Result<Self> {
        let base = view.base() as u64;
        let made = |mode, scanner, pagemap| Ok(Self { mode, base, scanner, pagemap });
        match wanted {
            Some(Mode::Scan) if !faults.write_protects() => {
                Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
            Some(Mode::Compare) => made(Mode::Compare, None, None),
            None | Some(Mode::Scan) if faults.write_protects() => {
                made(Mode::Scan, Some(Scanner::on(faults.descriptor(), true)?), None)
            }
            _ => made(Mode::Pagemap, None, Some(File::open("/proc/self/pagemap")?)),
        }
    }

    /// How it works.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Calls `candidate(page)` for every page of the image, between `offset` and `offset + len`, that may have been
    /// written since it was last asked about.
    ///
    /// # Errors
    /// What the kernel said. The pages named so far are then lost to the next call: the caller must give up.
    pub fn candidates(&mut self, offset: u64, len: u64, mut candidate: impl FnMut(u64)) -> io::Result<()> {
        let base = self.base;
        match self.mode {
            Mode::Scan => {
                let scanner = self.scanner.as_mut().expect("made with the mode");
                scanner.scan(base + offset, base + offset + len, &mut |at, bytes| {
                    let first = (at - base) / PAGE_U64;
                    (first..first + bytes / PAGE_U64).for_each(&mut candidate);
                })
            }
            Mode::Pagemap => {
                let file = self.pagemap.as_ref().expect("made with the mode");
                let mut entries = vec![0u8; 8 * 4096];
                let (first, last) = (offset / PAGE_U64, (offset + len).div_ceil(PAGE_U64));
                let mut page = first;
                while page < last {
                    let n = ((last - page) as usize).min(entries.len() / 8);
                    file.read_exact_at(&mut entries[..n * 8], (base / PAGE_U64 + page) * 8)?;
                    for (i, e) in entries[..n * 8].chunks_exact(8).enumerate() {
                        if is_private(u64::from_le_bytes(e.try_into().expect("eight bytes"))) {
                            candidate(page + i as u64);
                        }
                    }
                    page += n as u64;
                }
                Ok(())
            }
            Mode::Compare => {
                (offset / PAGE_U64..(offset + len).div_ceil(PAGE_U64)).for_each(candidate);
                Ok(())
            }
        }
    }

    /// Begin to watch a part of the view.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn watch(&self, offset: u64, len: u64) -> io::Result<()> {
        match &self.scanner {
            Some(s) => s.watch(self.base + offset, len),
            None => Ok(()),
        }
    }
}

/// A pagemap entry of a page that is ours alone: present or swapped, and not of a file.
fn is_private(entry: u64) -> bool {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE_OR_SHARED: u64 = 1 << 61;
    entry & (PRESENT | SWAPPED) != 0 && entry & FILE_OR_SHARED == 0
}

/// The ways that this kernel offers, best first.
#[must_use]
pub fn available() -> Vec<Mode> {
    let mut modes = Vec::new();
    if Scanner::new().is_ok_and(|s| s.probe().is_ok()) {
        modes.push(Mode::Scan);
    }
    if File::open("/proc/self/pagemap").is_ok() {
        modes.push(Mode::Pagemap);
    }
    modes.push(Mode::Compare);
    modes
}

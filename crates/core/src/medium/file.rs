//! A store on a real file or device.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::arrival::{Arrival, State};
use crate::error::{Error, Result};
use crate::format::{Durability, INCOMPAT_ARRIVING, LOG_OFFSET, PART_ALIGN, Superblock};
use crate::medium::{Mapping, Medium, pmem};

/// See the module.
#[derive(Debug)]
pub struct FileMedium {
    mapping: Mapping,
    durability: Durability,
    path: PathBuf,
    /// Of a store that is arriving.
    arrival: Option<Arc<Arrival>>,
}

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Bytes of a regular file, a block device or a DAX device.
///
/// # Errors
/// What the system said.
pub fn device_size(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if meta.file_type().is_char_device() {
        let dev = meta.rdev();
        let sys = format!("/sys/dev/char/{}:{}/size", libc::major(dev), libc::minor(dev));
        let text = std::fs::read_to_string(sys)?;
        return text.trim().parse().map_err(|_| io::Error::other("size of the DAX device is not a number"));
    }
    if meta.file_type().is_block_device() {
        // SAFETY: seeks on our own descriptor.
        let end = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
        return if end < 0 { Err(io::Error::last_os_error()) } else { Ok(end as u64) };
    }
    Ok(meta.len())
}

/// The best durability that the medium of `file` offers: DAX with `MAP_SYNC`, memory file systems, or disk.
///
/// # Errors
/// What the system said.
pub fn probe_durability(file: &File) -> io::Result<Durability> {
    // SAFETY: a probe mapping of one 2 MiB part, given back at once.
    unsafe {
        let p = libc::mmap(
            std::ptr::null_mut(),
            PART_ALIGN as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC,
            file.as_raw_fd(),
            0,
        );
        if p != libc::MAP_FAILED {
            libc::munmap(p, PART_ALIGN as usize);
            return Ok(Durability::Pmem);
        }
        let mut st: libc::statfs = std::mem::zeroed();
        if libc::fstatfs(file.as_raw_fd(), &raw mut st) != 0 {
            return Err(io::Error::last_os_error());
        }
        #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // its type differs between platforms
        let magic = st.f_type as i64;
        Ok(if magic == TMPFS_MAGIC || magic == RAMFS_MAGIC { Durability::Memory } else { Durability::Disk })
    }
}

/// What a store at `path` would get: asked of the file or device there, else of a probe file in its folder.
///
/// # Errors
/// What the system said.
pub fn durability_at(path: &Path) -> Result<Durability> {
    let shown = path.display();
    let io = |e| Error::io(format!("look at {shown}"), e);
    if path.is_dir() || !path.exists() {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        // Unnamed: goes with its descriptor.
        let probe = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(folder)
            .map_err(io)?;
        probe.set_len(PART_ALIGN).map_err(io)?;
        return probe_durability(&probe).map_err(io);
    }
    probe_durability(&open_file(path, true)?).map_err(io)
}

fn reserve(file: &File, size: u64) -> io::Result<()> {
    // SAFETY: our own descriptor.
    let r = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, size as libc::off_t) };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The same without taking time for every page: where reserving means clearing memory (tmpfs), only what does not arrive
/// is reserved now; the pages are written by a call that can fail, and the rest is reserved when all have come.
fn reserve_for_arriving(file: &File, sb: &Superblock) -> io::Result<()> {
    let size = sb.file_size();
    file.set_len(size)?;
    if probe_durability(file)? != Durability::Memory {
        return reserve(file, size);
    }
    // SAFETY: a plain struct, and our own descriptor.
    let free = unsafe {
        let mut st: libc::statvfs = std::mem::zeroed();
        if libc::fstatvfs(file.as_raw_fd(), &raw mut st) != 0 {
            return Err(io::Error::last_os_error());
        }
        st.f_bavail as u64 * st.f_frsize as u64
    };
    // A tmpfs without a limit says that it has no blocks at all.
    if free != 0 && free < size {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    reserve(file, sb.sums_offset)
}

fn open_file(path: &Path, write: bool) -> Result<File> {
    let r = OpenOptions::new().read(true).write(write).custom_flags(libc::O_CLOEXEC).open(path);
    r.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT) => Error::NotAStore(format!("{}: no such file", path.display())),
        Some(libc::EISDIR) => Error::NotAStore(format!("{}: is a directory", path.display())),
        _ => Error::io(format!("open {}", path.display()), e),
    })
}

/// Whether the path is a device (nothing to create, nothing to remove).
fn is_device(file: &File) -> bool {
    file.metadata().is_ok_and(|m| m.file_type().is_block_device() || m.file_type().is_char_device())
}

/// Read both superblocks of `file`; the newer valid one.
fn read_superblock(file: &File, path: &Path) -> Result<Superblock> {
    let shown = path.display();
    let size = device_size(file).map_err(|e| Error::io(format!("size of {shown}"), e))?;
    if size < PART_ALIGN {
        return Err(Error::NotAStore(format!("{shown}: {size} bytes, shorter than any store")));
    }
    // Through a mapping, since DAX devices know no read().
    let len = PART_ALIGN as usize;
    // SAFETY: a fresh read-only mapping inside the file's size.
    let p = unsafe {
        libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if p == libc::MAP_FAILED {
        return Err(Error::last_os(format!("map {shown}")));
    }
    let mut copy = vec![0u8; 8192];
    // SAFETY: 8192 bytes of the mapping just made.
    unsafe {
        std::ptr::copy_nonoverlapping(p.cast::<u8>(), copy.as_mut_ptr(), copy.len());
        libc::munmap(p, len);
    }
    let sb = pick_superblock(&copy).map_err(|e| match e {
        Error::NotAStore(what) => Error::NotAStore(format!("{shown}: {what}")),
        Error::NewerVersion(what) => Error::NewerVersion(format!("{shown}: {what}")),
        Error::StoreCorrupt(what) => Error::StoreCorrupt(format!("{shown}: {what}")),
        e => e,
    })?;
    if size < sb.file_size() {
        return Err(Error::StoreCorrupt(format!(
            "{shown}: {size} bytes long, the superblock says {}; the file was cut",
            sb.file_size()
        )));
    }
    Ok(sb)
}

/// The valid superblock with the higher sequence among two copies in `b`.
///
/// # Errors
/// `NotAStore`, `NewerVersion`; `StoreCorrupt` when it was a store but no copy is valid.
pub(crate) fn pick_superblock(b: &[u8]) -> Result<Superblock> {
    let first = Superblock::decode(&b[..4096])?;
    let second = Superblock::decode(&b[4096..8192])?;
    match (first, second) {
        (Some(a), Some(b)) => Ok(if a.sequence >= b.sequence { a } else { b }),
        (Some(a), None) | (None, Some(a)) => Ok(a),
        (None, None) => {
            let magic = crate::format::MAGIC;
            if b[0..8] == magic || b[4096..4104] == magic {
                Err(Error::corrupt("both superblocks are damaged"))
            } else {
                Err(Error::NotAStore("does not begin as a store does".into()))
            }
        }
    }
}

impl FileMedium {
    /// Lay out a new store at `path` and map it. The superblock is not written yet. `durability` may be left to
    /// the medium (`None`).
    ///
    /// # Errors
    /// The file exists; no space; sizes that cannot be; a durability that the medium lacks.
    pub fn create(path: &Path, sb: &mut Superblock, durability: Option<Durability>) -> Result<Self> {
        let shown = path.display();
        let existing = std::fs::metadata(path).ok();
        let device = existing
            .as_ref()
            .is_some_and(|m| m.file_type().is_block_device() || m.file_type().is_char_device());
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC).mode(0o600);
        if !device {
            options.create_new(true);
        }
        let file = options.open(path).map_err(|e| Error::io(format!("create {shown}"), e))?;
        let made = Self::create_on(file, path, sb, durability).and_then(|m| {
            if !device {
                // The name, too, must survive a power loss.
                let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let synced = File::open(folder).and_then(|f| f.sync_all());
                synced.map_err(|e| Error::io(format!("flush the folder {}", folder.display()), e))?;
            }
            Ok(m)
        });
        if made.is_err() && !device {
            let _ = std::fs::remove_file(path); // ours, just made, and unusable; the first error is what matters
        }
        made
    }

    fn create_on(
        file: File,
        path: &Path,
        sb: &mut Superblock,
        durability: Option<Durability>,
    ) -> Result<Self> {
        let shown = path.display();
        let size = sb.file_size();
        if is_device(&file) {
            let have = device_size(&file).map_err(|e| Error::io(format!("size of {shown}"), e))?;
            if have < size {
                return Err(Error::InvalidArgument(format!(
                    "{shown} has {have} bytes, the store needs {size}"
                )));
            }
            if read_superblock(&file, path).is_ok() {
                return Err(Error::io(
                    format!("create {shown}: a store is there already"),
                    io::Error::from_raw_os_error(libc::EEXIST),
                ));
            }
        } else {
            // Room is reserved now: a full disk must be an error here, not a SIGBUS later.
            let io = |e| Error::io(format!("reserve {size} bytes for {shown}"), e);
            if sb.incompat & INCOMPAT_ARRIVING != 0 {
                reserve_for_arriving(&file, sb).map_err(io)?;
            } else {
                reserve(&file, size).map_err(io)?;
            }
        }
        let best = probe_durability(&file).map_err(|e| Error::io(format!("look at {shown}"), e))?;
        let chosen = durability.unwrap_or(best);
        if chosen == Durability::Pmem && best != Durability::Pmem {
            return Err(Error::InvalidArgument(format!(
                "{shown}: durability \"pmem\" needs a DAX file system or device with MAP_SYNC; this one has none"
            )));
        }
        sb.durability = chosen;
        let medium = Self::map(file, path, sb, true)?;
        if is_device(medium.mapping.file()) {
            // A used device may hold anything: the parts that must read as zero are made so.
            let p = medium.mapping.at(0, size);
            // SAFETY: the whole mapping, which nobody else uses yet.
            unsafe { std::ptr::write_bytes(p, 0, size as usize) };
            medium.stored(0, size);
        } else if chosen == Durability::Disk {
            // Written zeros, not reserved extents: otherwise each first commit into a block changes metadata too.
            let zeros = vec![0u8; 1 << 20];
            let mut at = 0;
            while at < sb.log_size {
                let n = (sb.log_size - at).min(zeros.len() as u64);
                medium
                    .pwrite(&zeros[..n as usize], LOG_OFFSET + at, 0)
                    .map_err(|e| Error::io(format!("write {shown}"), e))?;
                at += n;
            }
        }
        medium.persist_all().map_err(|e| Error::io(format!("flush {shown}"), e))?;
        Ok(medium)
    }

    /// Open and map an existing store.
    ///
    /// # Errors
    /// `NotAStore`, `NewerVersion`, `StoreCorrupt`, or what the system said.
    pub fn open(path: &Path, write: bool) -> Result<(Self, Superblock)> {
        let file = open_file(path, write)?;
        let mut sb = read_superblock(&file, path)?;
        let mut arrival = None;
        if write && sb.incompat & INCOMPAT_ARRIVING != 0 {
            match Arrival::open(path, &sb) {
                Ok(a) => arrival = Some(Arc::new(a)),
                Err(e) => {
                    // It may have arrived at this very moment.
                    sb = read_superblock(&file, path)?;
                    if sb.incompat & INCOMPAT_ARRIVING != 0 {
                        return Err(e);
                    }
                }
            }
        }
        let mut m = Self::map(file, path, &sb, write)?;
        m.arrival = arrival;
        Ok((m, sb))
    }

    fn map(file: File, path: &Path, sb: &Superblock, write: bool) -> Result<Self> {
        let sync = sb.durability == Durability::Pmem && write;
        let mapping = Mapping::new(file, sb.file_size(), sb.log_size, write, sync).map_err(|e| {
            if sync && e.raw_os_error() == Some(libc::EOPNOTSUPP) {
                Error::StoreUntrusted(format!(
                    "{}: a \"pmem\" store was moved to a medium without MAP_SYNC; its promise cannot be kept there",
                    path.display()
                ))
            } else {
                Error::io(format!("map {}", path.display()), e)
            }
        })?;
        Ok(Self { mapping, durability: sb.durability, path: path.to_owned(), arrival: None })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Write pages of an arriving store, so that the mappings of all processes show them. Durable after the next flush.
    /// Also on `pmem`: through a MAP_SYNC mapping, each new page would cost a commit of the file system's journal.
    ///
    /// # Errors
    /// What the system said; a full file system is an error here, not a SIGBUS.
    pub(crate) fn place(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pwrite(data, offset, 0)
    }

    /// What the file holds; unlike a look at the mapping, it makes no page where there is none.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn look(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.mapping.file().read_exact_at(to, offset)
    }

    /// Reserve every byte of the file that has none yet.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn reserve_all(&self) -> io::Result<()> {
        if is_device(self.mapping.file()) { Ok(()) } else { reserve(self.mapping.file(), self.mapping.len()) }
    }

    /// Reserve what the file system has not set aside for this file. A copy that was made sparse has holes, and a store
    /// into one of them on a full file system would be a SIGBUS.
    ///
    /// # Errors
    /// No room.
    pub fn reserve_holes(&self) -> Result<()> {
        let (file, len) = (self.mapping.file(), self.mapping.len());
        let io = |e| Error::io(format!("reserve {len} bytes for {}", self.path.display()), e);
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() || meta.blocks() * 512 >= len {
            return Ok(());
        }
        match reserve(file, len) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()), // nothing can be reserved there
            other => other.map_err(io),
        }
    }

    /// Flush with `flush`; pages of an arriving store that were here before are then durable, and noted so before
    /// anything relies on it (the log's tail does).
    fn settling(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.arrival {
            Some(a) if a.state() != State::Complete => {
                let here = a.snapshot();
                flush()?;
                a.settle(&here)
            }
            _ => flush(),
        }
    }

    /// Whether bytes are to come and go through the mapping: `pmem` counts its stores, DAX devices know no calls.
    fn mapped_only(&self) -> bool {
        self.durability == Durability::Pmem || is_device(self.mapping.file())
    }

    fn pwrite(&self, data: &[u8], mut offset: u64, flags: libc::c_int) -> io::Result<()> {
        // SAFETY: the slice is valid.
        unsafe { self.pwrite_raw(data.as_ptr(), data.len(), &mut offset, flags) }
    }

    /// # Safety
    /// `data` is readable for `len` bytes.
    unsafe fn pwrite_raw(
        &self,
        mut data: *const u8,
        mut len: usize,
        offset: &mut u64,
        flags: libc::c_int,
    ) -> io::Result<()> {
        while len > 0 {
            let iov = libc::iovec { iov_base: data.cast_mut().cast(), iov_len: len };
            // SAFETY: one vector over memory that the caller vouches for.
            let n = unsafe {
                libc::pwritev2(
                    self.mapping.file().as_raw_fd(),
                    &raw const iov,
                    1,
                    *offset as libc::off_t,
                    flags,
                )
            };
            if n < 0 {
                let e = io::Error::last_os_error();
                if e.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(e);
            }
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero));
            }
            // SAFETY: n <= len.
            data = unsafe { data.add(n as usize) };
            len -= n as usize;
            *offset += n as u64;
        }
        Ok(())
    }

    /// Make a range durable by writing it: staged log bytes for the first time, all else as the mapping has it.
    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut at = offset;
        let from = self.mapping.staged_part(offset, len);
        let from = from.unwrap_or_else(|| self.mapping.at(offset, len).cast_const());
        // SAFETY: both check the range.
        unsafe { self.pwrite_raw(from, len as usize, &mut at, libc::RWF_DSYNC) }
    }

    /// `fdatasync` of the whole file, whatever the durability.
    fn sync_file(&self) -> io::Result<()> {
        // SAFETY: our own descriptor.
        if unsafe { libc::fdatasync(self.mapping.file().as_raw_fd()) } != 0 {
            let e = io::Error::last_os_error();
            // Character devices have nothing to sync.
            if e.raw_os_error() == Some(libc::EINVAL) && is_device(self.mapping.file()) {
                return Ok(());
            }
            return Err(e);
        }
        Ok(())
    }
}

impl Medium for FileMedium {
    fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    #[inline]
    fn stored(&self, offset: u64, len: u64) {
        if self.durability == Durability::Pmem {
            // SAFETY: the range was just stored, so it is mapped.
            unsafe { pmem::write_back(self.mapping.at(offset, len), len as usize) };
        }
    }

    #[inline]
    fn store_page(&self, offset: u64, data: &[u8]) {
        if self.durability == Durability::Pmem {
            return self.store(offset, data); // whose lines are written back one by one
        }
        let at = self.mapping.at(offset, data.len() as u64);
        // SAFETY: as in `Medium::store`; pages are aligned.
        unsafe { crate::copy::copy_past_caches(data.as_ptr(), at, data.len()) };
    }

    fn store_new(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.mapped_only() {
            self.store(offset, data);
            return Ok(());
        }
        self.pwrite(data, offset, 0)
    }

    fn load(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        if !self.mapped_only() {
            return self.look(offset, to);
        }
        let from = self.mapping.at(offset, to.len() as u64);
        // SAFETY: `at` checked the bounds; what others change meanwhile is a mixture that the caller's check finds.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        if self.mapped_only() || range.is_empty() {
            return Ok((!range.is_empty()).then_some(range));
        }
        let fd = self.mapping.file().as_raw_fd();
        // SAFETY: our own descriptor; nobody relies on its offset.
        let seek = |at: u64, whence| unsafe { libc::lseek(fd, at as libc::off_t, whence) };
        let start = seek(range.start, libc::SEEK_DATA);
        if start < 0 {
            let e = io::Error::last_os_error();
            return match e.raw_os_error() {
                Some(libc::ENXIO) => Ok(None),
                Some(libc::EINVAL | libc::EOPNOTSUPP) => Ok(Some(range)), // a file system that does not tell
                _ => Err(e),
            };
        }
        let start = start as u64;
        if start >= range.end {
            return Ok(None);
        }
        let end = seek(start, libc::SEEK_HOLE);
        let end = if end < 0 { range.end } else { range.end.min(end as u64) };
        Ok(Some(start..end))
    }

    #[inline]
    fn persist(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.durability {
            Durability::Memory => Ok(()),
            Durability::Pmem => {
                pmem::fence();
                Ok(())
            }
            // The only call that makes a *range* durable without its metadata: msync takes the times along,
            // fdatasync the dirty image.
            Durability::Disk => self.sync_range(offset, len),
        }
    }

    fn persist_all(&self) -> io::Result<()> {
        match self.durability {
            Durability::Memory => Ok(()),
            Durability::Pmem => self.settling(|| {
                pmem::fence();
                // Pages that arrived were written by calls: of those, the file system's part is not durable yet.
                let arriving = self.arrival.as_ref().is_some_and(|a| a.state() != State::Complete);
                if arriving { self.sync_file() } else { Ok(()) }
            }),
            Durability::Disk => self.settling(|| self.sync_file()),
        }
    }

    fn settle(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.durability == Durability::Memory && !is_device(self.mapping.file()) {
            return self.sync_range(offset, len);
        }
        self.persist(offset, len)
    }

    fn settle_all(&self) -> io::Result<()> {
        if self.durability == Durability::Memory {
            self.settling(|| self.sync_file())
        } else {
            self.persist_all()
        }
    }

    fn arrival(&self) -> Option<&Arc<Arrival>> {
        self.arrival.as_ref()
    }

    fn slow_persist(&self) -> bool {
        self.durability == Durability::Disk
    }

    fn stage(&self) -> io::Result<()> {
        if self.durability == Durability::Disk { self.mapping.stage() } else { Ok(()) }
    }
}

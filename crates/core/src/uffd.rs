//! userfaultfd: the calls that `capture` (which pages were written) and `pager` (pages on demand) need.
//!
//! A range of memory belongs to one descriptor only, so a view that is served on demand and watched for writes uses the
//! same one for both.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::format::{PAGE, PAGE_U64};
use crate::medium::{Anonymous, PrivateView};

// linux/userfaultfd.h, which libc does not have.
const API: u64 = 0xAA;
pub(crate) const USER_MODE_ONLY: libc::c_int = 1;
const FEATURE_POISON: u64 = 1 << 14;
pub(crate) const FEATURE_WP_ASYNC: u64 = 1 << 15;
pub(crate) const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const REGISTER_MODE_MISSING: u64 = 1;
pub(crate) const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
const COPY_MODE_WP: u64 = 1 << 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const MESSAGE: usize = 32;

pub(crate) const fn iowr(kind: u8, nr: u8, size: usize) -> libc::c_ulong {
    (3 << 30 | (size as u64) << 16 | (kind as u64) << 8 | nr as u64) as libc::c_ulong
}

#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// Of `UFFDIO_WRITEPROTECT`.
#[repr(C)]
struct Protect {
    range: Range,
    mode: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Poison {
    range: Range,
    mode: u64,
    updated: i64,
}

pub(crate) fn ioctl<T>(fd: &impl AsRawFd, request: libc::c_ulong, arg: &mut T) -> io::Result<i64> {
    // SAFETY: the request and the struct belong together at every call in this crate.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(arg)) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(i64::from(r)) }
}

/// A new descriptor.
pub(crate) fn open(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: makes a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The same through the device, whose mode decides who may (Linux 6.1).
fn open_device(flags: libc::c_int) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    let request = (u64::from(b'\xAA') << 8) as libc::c_ulong; // USERFAULTFD_IOC_NEW
    // SAFETY: makes a new descriptor; the argument is a number.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), request as _, libc::O_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as in `open`.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Agree on features. A descriptor that was refused can be used no more.
pub(crate) fn api(fd: &OwnedFd, features: u64) -> io::Result<()> {
    let mut arg = ApiArg { api: API, features, ioctls: 0 };
    ioctl(fd, iowr(0xAA, 0x3F, size_of::<ApiArg>()), &mut arg).map(|_| ())
}

pub(crate) fn register(fd: &OwnedFd, start: u64, len: u64, mode: u64) -> io::Result<()> {
    let mut arg = Register { range: Range { start, len }, mode, ioctls: 0 };
    ioctl(fd, iowr(0xAA, 0x00, size_of::<Register>()), &mut arg).map(|_| ())
}

pub(crate) fn protect(fd: &OwnedFd, start: u64, len: u64) -> io::Result<()> {
    let mut arg = Protect { range: Range { start, len }, mode: WRITEPROTECT_MODE_WP };
    ioctl(fd, iowr(0xAA, 0x06, size_of::<Protect>()), &mut arg).map(|_| ())
}

/// Faults on missing pages of a range of anonymous memory.
pub struct Faults {
    fd: Arc<OwnedFd>,
    write_protects: bool,
}

impl Faults {
    /// Of the whole view, from now on. A forked child does not get the view: there, missing pages would read as zero.
    ///
    /// # Errors
    /// This process may not, or the kernel cannot.
    pub fn over(view: &PrivateView) -> io::Result<Self> {
        Self::in_range(view.base() as u64, view.len() as u64)
    }

    fn in_range(start: u64, len: u64) -> io::Result<Self> {
        // Best first: a descriptor that was refused once must be made anew.
        let mut failed = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        for (features, write_protects) in [
            (FEATURE_POISON | FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED, true),
            (FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED, true),
            (0, false),
        ] {
            // Faults inside system calls must be served as well: not for user mode only.
            let fd = open(libc::O_NONBLOCK).or_else(|_| open_device(libc::O_NONBLOCK))?;
            match api(&fd, features) {
                Ok(()) => {
                    let wp = if write_protects { REGISTER_MODE_WP } else { 0 };
                    register(&fd, start, len, REGISTER_MODE_MISSING | wp)?;
                    // SAFETY: advice about the caller's own mapping.
                    unsafe { libc::madvise(start as *mut libc::c_void, len as usize, libc::MADV_DONTFORK) };
                    return Ok(Self { fd: Arc::new(fd), write_protects });
                }
                Err(e) => failed = e,
            }
        }
        Err(failed)
    }

    /// Whether the range is also watched for writes, asynchronously.
    #[must_use]
    pub fn write_protects(&self) -> bool {
        self.write_protects
    }

    /// The descriptor, for who watches the same range.
    pub(crate) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    pub(crate) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// The address of the next fault; `None` when there is none now.
    pub(crate) fn next(&self) -> Option<u64> {
        let mut message = [0u64; MESSAGE / 8];
        // SAFETY: our own descriptor; the buffer has the length of a message.
        let n = unsafe { libc::read(self.fd(), message.as_mut_ptr().cast(), MESSAGE) };
        // Bytes 8..16 are flags, 16..24 the address.
        (n == MESSAGE as isize && message[0] as u8 == EVENT_PAGEFAULT).then_some(message[2])
    }

    /// Put a copy of the page at `from` to `to`, protected if the range is watched, and let go on who waits for it.
    pub(crate) fn copy(&self, to: u64, from: u64) -> io::Result<()> {
        let mode = if self.write_protects { COPY_MODE_WP } else { 0 };
        loop {
            let mut arg = Copy { to, from, len: PAGE_U64, mode, copied: 0 };
            match ioctl(&self.fd, iowr(0xAA, 0x03, size_of::<Copy>()), &mut arg) {
                Ok(_) => return Ok(()),
                Err(e) => match e.raw_os_error() {
                    // The address space is being changed: in a moment.
                    Some(libc::EAGAIN) => std::thread::yield_now(),
                    Some(libc::EEXIST) => {
                        self.wake(to);
                        return Ok(());
                    }
                    // The process ends.
                    Some(libc::ESRCH) => return Ok(()),
                    _ => return Err(e),
                },
            }
        }
    }

    /// Let go on who waits for the page at `at`, which is there.
    pub(crate) fn wake(&self, at: u64) {
        let mut arg = Range { start: at, len: PAGE_U64 };
        // UFFDIO_WAKE reads its argument only, which its number says.
        let request = (2 << 30 | (size_of::<Range>() as u64) << 16 | 0xAA << 8 | 0x02) as libc::c_ulong;
        let _ = ioctl(&self.fd, request, &mut arg);
    }

    /// Let every access to the page at `at` end with SIGBUS (Linux 6.6).
    pub(crate) fn poison(&self, at: u64) -> io::Result<()> {
        let mut arg = Poison { range: Range { start: at, len: PAGE_U64 }, mode: 0, updated: 0 };
        ioctl(&self.fd, iowr(0xAA, 0x08, size_of::<Poison>()), &mut arg).map(|_| ())
    }
}

/// Whether this process may serve missing pages in its own memory, also inside system calls.
pub(crate) fn probe_missing() -> bool {
    Anonymous::new(PAGE).is_ok_and(|memory| Faults::in_range(memory.base() as u64, PAGE_U64).is_ok())
}

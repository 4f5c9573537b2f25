//! What can go wrong, each with the hint that a user gets to see.

use std::io;

/// Result of the engine.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of the engine. The binding maps each variant to the Python class of the same name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a call.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, to which file.
        context: String,
        /// What the system said.
        source: io::Error,
    },
    /// Not a store at all.
    #[error("{0}")]
    NotAStore(String),
    /// Written by a newer Sustain.
    #[error("{0}")]
    NewerVersion(String),
    /// Another process holds it.
    #[error("{0}")]
    StoreBusy(String),
    /// A checksum or an invariant does not hold.
    #[error("{0}")]
    StoreCorrupt(String),
    /// Pages that are needed have not arrived.
    #[error("{0}")]
    StoreArriving(String),
    /// A memory store after an unclean reboot.
    #[error("{0}")]
    StoreUntrusted(String),
    /// The lease has passed, or a newer epoch exists.
    #[error("{0}")]
    StoreFenced(String),
    /// No room in the image.
    #[error("{0}")]
    StoreFull(String),
    /// One commit is larger than the whole log.
    #[error("{0}")]
    LogTooSmall(String),
    /// The log stayed full until the time-out.
    #[error("{0}")]
    LogFull(String),
    /// More would be unshipped than the battery allows, until the time-out.
    #[error("{0}")]
    BudgetExceeded(String),
    /// A write or a flush failed before.
    #[error("{0}")]
    StorePoisoned(String),
    /// A change to a read-only store.
    #[error("{0}")]
    StoreReadOnly(String),
    /// Closed, or used in a forked child.
    #[error("{0}")]
    StoreClosed(String),
    /// Views of an array are alive.
    #[error("{0}")]
    ObjectInUse(String),
    /// No object of that name and kind.
    #[error("{0}")]
    NoSuchObject(String),
    /// An argument that cannot be meant.
    #[error("{0}")]
    InvalidArgument(String),
}

impl Error {
    /// An I/O error with what was being done.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::Io { context: context.into(), source }
    }

    /// The last OS error with what was being done.
    pub fn last_os(context: impl Into<String>) -> Self {
        Self::io(context, io::Error::last_os_error())
    }

    /// Damage found, in words.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::StoreCorrupt(what.into())
    }

    /// What a user can do about it; "" when there is nothing useful to say.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC) => "free space on this file system, or create the store elsewhere",
                Some(libc::EACCES | libc::EPERM) => "check the owner and mode of the file and its folder",
                Some(libc::ENOENT) => "check the path; `sustain create` makes a new store",
                Some(libc::EEXIST) => "choose another path, or remove the file first if nobody needs it",
                Some(libc::EIO) => {
                    "the medium failed (see dmesg); open the store again when it is sound, or let a replica take over"
                }
                Some(libc::EROFS) => {
                    "the file system is read-only: mount it for writing, or open with readonly=True"
                }
                _ => "the system refused the call; see dmesg, then open the store again",
            },
            Self::NotAStore(_) => "check the path; `sustain create` makes a new store",
            Self::NewerVersion(_) => "upgrade Sustain on this host",
            Self::StoreBusy(_) => "one process writes a store; stop the other, or open with readonly=True",
            Self::StoreCorrupt(_) => {
                "keep the file for inspection and restore from a replica; `sustain verify` tells more"
            }
            Self::StoreArriving(_) => {
                "`sustain restore tcp://SOURCE PATH` goes on where it stopped; wait until it has ended"
            }
            Self::StoreUntrusted(_) => {
                "let a replica take over, or create the store with durability=\"disk\" on media that keep data"
            }
            Self::StoreFenced(_) => "another host may own this workload now; stop this process",
            Self::StoreFull(_) => "delete objects, or create a larger store and copy",
            Self::LogTooSmall(_) => "commit more often, or create the store with a larger log_size",
            Self::LogFull(_) => {
                "see `sustain status` for the destination that holds the log, or make it not required"
            }
            Self::BudgetExceeded(_) => {
                "see `sustain status` for the battery and the bandwidth; commit in smaller steps; the changes are kept"
            }
            Self::StorePoisoned(_) => {
                "close and open the store again: it recovers to the last durable commit"
            }
            Self::StoreReadOnly(_) => "open the store without readonly=True to change it",
            Self::StoreClosed(_) => "open the store in this process",
            Self::ObjectInUse(_) => "drop every NumPy view of the array first (del, gc.collect())",
            Self::NoSuchObject(_) => "store.objects() lists what there is",
            Self::InvalidArgument(_) => {
                "the message says what is allowed; `store.objects()` shows what is stored"
            }
        }
    }
}

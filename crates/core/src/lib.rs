//! The engine of Sustain: crash-consistent stores in mapped memory.
//!
//! A [`store::Store`] is one file or device with a ring log and an image ([`format`]); the application works on a
//! private copy-on-write view of the image ([`work`]), whose changes a commit appends to the log, makes durable and
//! then applies to the image ([`store`], [`log`], [`replay`]). A [`replica::Replica`] is the receiving side of the
//! same file, a [`tail::LogTail`] the shipping side. The crate knows no Python and no policy.

pub mod arrival;
pub mod base;
pub mod capture;
pub mod checksum;
pub mod control;
pub mod copy;
pub mod error;
pub mod fetcher;
pub mod format;
pub mod log;
pub mod medium;
pub mod objects;
pub mod pager;
pub mod region;
pub mod replay;
pub mod replica;
pub mod store;
pub mod tail;
mod uffd;
pub mod work;

pub use error::{Error, Result};

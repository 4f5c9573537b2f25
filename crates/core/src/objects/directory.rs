//! The directory: a map from names to kinds and headers, its own header in the root page.
//!
//! Used by `Objects`. Being a map like any other it has no limit of entries and no format of its own.

use super::heap::Heap;
use super::layout::{ROOT_DIRECTORY, block, word};
use super::map;
use crate::error::{Error, Result};
use crate::work::Work;

/// Longest name in bytes of UTF-8.
pub const MAX_NAME: usize = 255;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Byte strings to byte strings.
    Map,
    /// Items of one type in one piece of memory.
    Array,
    /// Bytes at offsets.
    File,
}

impl Kind {
    /// "map", "array" or "file".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Array => "array",
            Self::File => "file",
        }
    }

    fn code(self) -> u64 {
        match self {
            Self::Map => 1,
            Self::Array => 2,
            Self::File => 3,
        }
    }
}

/// The name's bytes, if it can be one.
pub(super) fn check_name(name: &str) -> Result<&[u8]> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Error::InvalidArgument(format!(
            "names are 1 to {MAX_NAME} bytes of UTF-8; this one has {}",
            name.len()
        )));
    }
    Ok(name.as_bytes())
}

/// Kind and header in a directory value.
pub(super) fn decode(value: &[u8]) -> Result<(Kind, u64)> {
    if value.len() == 16 {
        let kind = [Kind::Map, Kind::Array, Kind::File].into_iter().find(|k| k.code() == word(value, 0));
        if let Some(kind) = kind {
            return Ok((kind, block(word(value, 1))?));
        }
    }
    Err(Error::corrupt("an entry of the directory is damaged"))
}

pub(super) fn find(work: &Work, name: &str) -> Result<Option<(Kind, u64)>> {
    map::get(work, ROOT_DIRECTORY, check_name(name)?)?.map(decode).transpose()
}

/// The header of `name`, which must be of this kind; None when there is no such name.
pub(super) fn find_kind(work: &Work, name: &str, kind: Kind) -> Result<Option<u64>> {
    match find(work, name)? {
        Some((found, at)) if found == kind => Ok(Some(at)),
        Some((found, _)) => {
            Err(Error::NoSuchObject(format!("{name:?} is of kind {}, not {}", found.name(), kind.name())))
        }
        None => Ok(None),
    }
}

pub(super) fn insert(work: &mut Work, heap: &mut Heap, name: &str, kind: Kind, at: u64) -> Result<()> {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&kind.code().to_le_bytes());
    value[8..].copy_from_slice(&at.to_le_bytes());
    map::set(work, heap, ROOT_DIRECTORY, check_name(name)?, &value).map(|_| ())
}

pub(super) fn remove(work: &mut Work, heap: &mut Heap, name: &str) -> Result<()> {
    map::remove(work, heap, ROOT_DIRECTORY, check_name(name)?).map(|_| ())
}

/// Call `f` with every name.
pub(super) fn each(work: &Work, mut f: impl FnMut(&str, Kind, u64) -> Result<()>) -> Result<()> {
    let h = map::Header::load(work, ROOT_DIRECTORY)?;
    for bucket in 0..h.buckets() {
        h.walk(
            work,
            bucket,
            |_| Ok(()),
            |e| {
                let name =
                    std::str::from_utf8(e.key(work)?).map_err(|_| Error::corrupt("a name is not UTF-8"))?;
                let (kind, at) = decode(e.value(work)?)?;
                f(name, kind, at)
            },
        )?;
    }
    Ok(())
}

//! Where things lie in the image, as in `docs/formats/objects.md`. Constants and pure functions only.

use crate::error::{Error, Result};
use crate::format::PAGE_U64;
use crate::work::Work;

/// First word of the image.
pub(super) const ROOT_MAGIC: u64 = u64::from_le_bytes(*b"SUSIMAGE");
/// Version of this layer.
pub(super) const VERSION: u64 = 1;

pub(super) const ROOT_VERSION: u64 = 8;
pub(super) const ROOT_PAGES: u64 = 16;
pub(super) const ROOT_SEED: u64 = 24;
pub(super) const ROOT_SEEDS_DRAWN: u64 = 32;
pub(super) const ROOT_DATA_START: u64 = 40;
pub(super) const ROOT_USED: u64 = 48;
pub(super) const ROOT_FRESH: u64 = 56;
pub(super) const ROOT_CLASSES: u64 = 512;
pub(super) const ROOT_DIRECTORY: u64 = 1024;

/// The bitmap follows the root.
pub(super) const BITMAP: u64 = PAGE_U64;
/// Pages that one page of the bitmap describes.
pub(super) const GROUP: u64 = PAGE_U64 * 8;

/// Offsets are 48 bits wide.
pub(super) const OFFSET_BITS: u32 = 48;
pub(super) const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;

/// First page behind root and bitmap.
pub(super) const fn data_start(pages: u64) -> u64 {
    1 + pages.div_ceil(GROUP)
}

/// Pages that hold `bytes`.
pub(super) const fn pages_for(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_U64)
}

/// `n` rounded up to a multiple of 8.
pub(super) const fn pad8(n: u64) -> u64 {
    (n + 7) & !7
}

/// Word `i` of `bytes`, which is long enough.
#[inline]
pub(super) fn word(bytes: &[u8], i: usize) -> u64 {
    let mut w = [0; 8];
    w.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
    u64::from_le_bytes(w)
}

/// A pointer to a block of the heap, checked for alignment and for not leading into the root.
#[inline]
pub(super) fn block(offset: u64) -> Result<u64> {
    if offset < PAGE_U64 || offset % 16 != 0 || offset > OFFSET_MASK {
        Err(bad_pointer(offset))
    } else {
        Ok(offset)
    }
}

/// A pointer to `count` whole pages, checked for alignment and range.
pub(super) fn extent(work: &Work, offset: u64, count: u64) -> Result<u64> {
    let fits =
        count.checked_mul(PAGE_U64).and_then(|n| n.checked_add(offset)).is_some_and(|end| end <= work.len());
    if offset < PAGE_U64 || offset % PAGE_U64 != 0 || !fits { Err(bad_pointer(offset)) } else { Ok(offset) }
}

#[cold]
fn bad_pointer(offset: u64) -> Error {
    Error::corrupt(format!("the image holds a pointer that cannot be: {offset:#x}"))
}

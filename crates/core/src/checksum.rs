//! The two checks of the format: CRC-32C over records, multilinear sums over image pages.
//!
//! The sum is linear, so that a commit that changes 64 bytes of a page updates the page's sum from the old and
//! the new bytes alone. A CRC would need a carry-less multiplication to do the same; a hash could not.

use crate::format::{PAGE, WORDS_PER_PAGE};

const fn splitmix64(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

const fn keys() -> [u64; WORDS_PER_PAGE] {
    let mut k = [0; WORDS_PER_PAGE];
    let mut i = 0;
    while i < WORDS_PER_PAGE {
        k[i] = splitmix64(i as u64 + 1) | 1;
        i += 1;
    }
    k
}

static KEYS: [u64; WORDS_PER_PAGE] = keys();

/// The factor of a page, so that a page that lies where another belongs is noticed.
#[inline]
fn page_factor(page: u64) -> u64 {
    page.wrapping_mul(2).wrapping_add(1)
}

/// Sum of a whole page.
///
/// # Safety
/// `data` points to 4096 readable bytes. They may be changed by others meanwhile; the sum is then of some mixture.
#[inline]
pub unsafe fn page_sum(page: u64, data: *const u8) -> u64 {
    let words = data.cast::<u64>();
    let mut lanes = [0u64; 8];
    let mut i = 0;
    while i < WORDS_PER_PAGE {
        for (lane, acc) in lanes.iter_mut().enumerate() {
            // SAFETY: i + lane < 512 words, which the caller vouches for.
            let w = unsafe { words.add(i + lane).read_unaligned() };
            *acc = acc.wrapping_add(w.wrapping_mul(KEYS[i + lane]));
        }
        i += 8;
    }
    lanes.iter().fold(0u64, |a, b| a.wrapping_add(*b)).wrapping_mul(page_factor(page))
}

/// Sums of whole pages that follow one another, `first` and those behind it, as they lie in a store.
#[must_use]
pub fn page_sums(first: u64, data: &[u8]) -> Vec<u8> {
    let mut sums = Vec::with_capacity(data.len() / PAGE * 8);
    for (page, bytes) in (first..).zip(data.chunks_exact(PAGE)) {
        // SAFETY: a whole page.
        sums.extend_from_slice(&unsafe { page_sum(page, bytes.as_ptr()) }.to_le_bytes());
    }
    sums
}

/// How much the sum of `page` changes when the word with index `word` goes from `old` to `new`
/// (to be multiplied by nothing else; add it up over the words).
#[inline]
#[must_use]
pub fn word_delta(word: usize, old: u64, new: u64) -> u64 {
    new.wrapping_sub(old).wrapping_mul(KEYS[word & (WORDS_PER_PAGE - 1)])
}

/// The sum of a page after words changed by `delta` (the total of [`word_delta`]).
#[inline]
#[must_use]
pub fn apply_delta(page: u64, sum: u64, delta: u64) -> u64 {
    sum.wrapping_add(delta.wrapping_mul(page_factor(page)))
}

/// CRC-32C of `bytes`, continued from `crc`.
#[inline]
#[must_use]
pub fn crc(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// 128-bit digest of a page, to find the pages in which two replicas differ.
#[must_use]
pub fn page_digest(bytes: &[u8]) -> [u8; 16] {
    debug_assert_eq!(bytes.len(), PAGE);
    twox_hash::XxHash3_128::oneshot(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(8))]
    struct Page([u8; PAGE]);

    #[test]
    fn sum_follows_single_words() {
        let mut p = Page([0; PAGE]);
        // SAFETY: a whole aligned page.
        let sum = |p: &Page| unsafe { page_sum(7, p.0.as_ptr()) };
        assert_eq!(sum(&p), 0);
        let mut s = 0;
        for i in 0..2000u64 {
            let word = (i.wrapping_mul(0x9E37_79B9) % 512) as usize;
            let old = u64::from_le_bytes(p.0[word * 8..word * 8 + 8].try_into().unwrap());
            let new = splitmix64(i);
            p.0[word * 8..word * 8 + 8].copy_from_slice(&new.to_le_bytes());
            s = apply_delta(7, s, word_delta(word, old, new));
        }
        assert_eq!(s, sum(&p));
    }

    #[test]
    fn every_flipped_bit_is_seen_and_so_is_a_misplaced_page() {
        let mut p = Page([0; PAGE]);
        for (i, b) in p.0.iter_mut().enumerate() {
            *b = splitmix64(i as u64) as u8;
        }
        // SAFETY: a whole aligned page.
        let sum = |n: u64, p: &Page| unsafe { page_sum(n, p.0.as_ptr()) };
        let good = sum(3, &p);
        for bit in 0..PAGE * 8 {
            p.0[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(good, sum(3, &p), "bit {bit}");
            p.0[bit / 8] ^= 1 << (bit % 8);
        }
        assert_ne!(good, sum(4, &p));
    }
}

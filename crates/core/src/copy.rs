//! Copies of whole pages and more, by instructions that no processor is slow at.
//!
//! The C library copies what is longer than some kilobytes by `rep movsb`. There are processors (AMD's Zen 3 and Zen 4)
//! that do so at a tenth of the speed when the target lies a few bytes further in its page than the source in its own,
//! which records in a log and in TLS do all the time.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128, _mm_stream_si128};

/// Copy `len` bytes.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`]; others may change the source meanwhile, and the target is then some mixture.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let rounds = if cfg!(target_arch = "x86_64") { len / LINE } else { 0 };
    // SAFETY: the caller vouches for all of it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        lines(from, to, rounds, |to, word| _mm_storeu_si128(to, word));
        let at = rounds * LINE;
        std::ptr::copy_nonoverlapping(from.add(at), to.add(at), len - at);
    }
}

const LINE: usize = 64;

/// Copy lines from place to place, each quarter by `put`.
///
/// # Safety
/// As [`copy`], and what `put` asks of its target.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn lines(from: *const u8, to: *mut u8, lines: usize, put: impl Fn(*mut __m128i, __m128i)) {
    for line in 0..lines {
        // SAFETY: the caller vouches for as many lines at both places; what is loaded need not be aligned.
        unsafe {
            let from = from.add(line * LINE).cast::<__m128i>();
            let to = to.add(line * LINE).cast::<__m128i>();
            let words = [0, 1, 2, 3].map(|at| _mm_loadu_si128(from.add(at)));
            for (at, word) in words.into_iter().enumerate() {
                put(to.add(at), word);
            }
        }
    }
}

/// Copy whole lines of 64 bytes that are not read again soon, past the caches: nothing is read of the target first, and
/// nothing else has to leave them for it. Nothing orders these stores but [`settle`].
///
/// # Safety
/// As [`copy`]; `to` is aligned to 16 bytes, and `len` is whole lines.
#[inline]
pub unsafe fn copy_past_caches(from: *const u8, to: *mut u8, len: usize) {
    debug_assert!(to.addr() % 16 == 0 && len % LINE == 0);
    // SAFETY: the caller vouches for all of it.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        lines(from, to, len / LINE, |to, word| _mm_stream_si128(to, word));
        #[cfg(not(target_arch = "x86_64"))]
        std::ptr::copy_nonoverlapping(from, to, len);
    }
}

/// What was stored before is seen by others before what is stored after, also if one of them went past the caches.
#[inline]
pub fn settle() {
    // SAFETY: changes nothing; every processor of this architecture has it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_place() {
        let from: Vec<u8> = (0..600u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for len in [0, 1, 15, 63, 64, 65, 127, 128, 200, 511, 512] {
            for (source, target) in [(0, 0), (1, 0), (0, 1), (5, 16), (33, 7)] {
                let mut to = vec![0xEE; 600];
                // SAFETY: both have 600 bytes, and the places are before 40.
                unsafe { copy(from.as_ptr().add(source), to.as_mut_ptr().add(target), len) };
                assert_eq!(to[target..target + len], from[source..source + len]);
                assert!(to[..target].iter().chain(&to[target + len..]).all(|b| *b == 0xEE), "{len}");
            }
        }
    }

    #[repr(align(64))]
    struct Lines([u8; 512]);

    #[test]
    fn past_caches_too() {
        let from: Vec<u8> = (0..600u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for lines in 0..=7 {
            let mut to = Lines([0xEE; 512]);
            // SAFETY: both have so many bytes from there, and the target is aligned.
            unsafe { copy_past_caches(from.as_ptr().add(3), to.0.as_mut_ptr().add(16), lines * LINE) };
            settle();
            let (before, rest) = to.0.split_at(16);
            let (copied, after) = rest.split_at(lines * LINE);
            assert_eq!(copied, &from[3..3 + lines * LINE]);
            assert!(before.iter().chain(after).all(|b| *b == 0xEE));
        }
    }
}

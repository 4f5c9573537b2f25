//! Tests of the objects over a simulated store: a view, an image, sums, commit and rollback as the engine does them.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::checksum::page_sum;
use crate::format::PAGE;

/// Page-aligned memory.
struct Buffer {
    base: *mut u8,
    len: usize,
}

impl Buffer {
    fn layout(len: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(len, PAGE).expect("a sane layout")
    }

    fn new(len: usize) -> Self {
        // SAFETY: the length is not zero.
        let base = unsafe { std::alloc::alloc_zeroed(Self::layout(len)) };
        assert!(!base.is_null());
        Self { base, len }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: our own memory; the test is single-threaded and keeps no reference over a change.
        unsafe { std::slice::from_raw_parts(self.base, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { std::alloc::dealloc(self.base, Self::layout(self.len)) };
    }
}

struct Host {
    view: Buffer,
    image: Buffer,
    sums: Box<[u64]>,
    work: Work,
    objects: Objects,
}

impl Host {
    fn new(pages: usize) -> Self {
        Self::with_sums(pages, true)
    }

    fn with_sums(pages: usize, checked: bool) -> Self {
        let (view, image) = (Buffer::new(pages * PAGE), Buffer::new(pages * PAGE));
        let sums = vec![0u64; pages].into_boxed_slice();
        let sums_at = if checked { sums.as_ptr() } else { std::ptr::null() };
        // SAFETY: `view` and `sums` live in the same value and do not move on the heap.
        let mut work = unsafe { Work::new(view.base, view.len as u64, sums_at, true) };
        Objects::format(&mut work, 42).expect("format");
        let objects = Objects::open(&work).expect("open");
        let mut host = Self { view, image, sums, work, objects };
        host.commit();
        host
    }

    fn commit(&mut self) {
        let mut ranges: Vec<(u64, u64)> =
            self.work.sorted_spans().iter().map(|s| (s.offset, s.len)).collect();
        ranges.extend_from_slice(self.objects.array_extents(&self.work).expect("extents"));
        for (offset, len) in ranges {
            let range = offset as usize..(offset + len) as usize;
            self.image.bytes_mut()[range.clone()].copy_from_slice(&self.view.bytes()[range]);
            for page in offset / PAGE_U64..(offset + len).div_ceil(PAGE_U64) {
                // SAFETY: a whole aligned page.
                self.sums[page as usize] =
                    unsafe { page_sum(page, self.image.base.add(page as usize * PAGE)) };
            }
        }
        self.work.clear_spans();
        self.objects.settle();
    }

    /// What the engine does: restore what the core and the application may have changed, and no more.
    fn rollback(&mut self) {
        let mut ranges: Vec<(u64, u64)> = self.work.spans().iter().map(|s| (s.offset, s.len)).collect();
        ranges.extend_from_slice(self.objects.array_extents(&self.work).expect("extents"));
        ranges.extend_from_slice(self.objects.retired());
        for (offset, len) in ranges {
            let range = offset as usize..(offset + len) as usize;
            self.view.bytes_mut()[range.clone()].copy_from_slice(&self.image.bytes()[range]);
        }
        self.work.clear_spans();
        self.objects.reset();
    }

    /// A new process: nothing is left but the image.
    fn reopen(&mut self) {
        self.view.bytes_mut().copy_from_slice(self.image.bytes());
        self.work.clear_spans();
        self.work.forget_checked();
        self.objects = Objects::open(&self.work).expect("open");
    }

    fn check(&self) -> CheckReport {
        self.objects.check(&self.work).expect("everything in order")
    }

    fn memory(&mut self, offset: u64, len: u64) -> &mut [u8] {
        &mut self.view.bytes_mut()[offset as usize..(offset + len) as usize]
    }

    fn map(&mut self, name: &str) -> MapRef {
        self.objects.map(&mut self.work, name, true).expect("map")
    }

    fn set(&mut self, m: MapRef, key: &[u8], value: &[u8]) -> Result<bool> {
        self.objects.map_set(&mut self.work, m, key, value)
    }

    fn get(&self, m: MapRef, key: &[u8]) -> Option<Vec<u8>> {
        self.objects.map_get(&self.work, m, key).expect("get").map(<[u8]>::to_vec)
    }

    fn scan(&self, m: MapRef, limit: usize) -> HashMap<Vec<u8>, Vec<u8>> {
        let (mut all, mut cursor) = (HashMap::new(), 0);
        loop {
            let more = self
                .objects
                .map_scan(&self.work, m, cursor, limit, |k, v| {
                    assert!(all.insert(k.to_vec(), v.to_vec()).is_none(), "seen twice");
                })
                .expect("scan");
            match more {
                Scan::More(next) => cursor = next,
                Scan::Done => return all,
                Scan::Changed => panic!("nothing changed"),
            }
        }
    }

    fn span_bytes(&mut self) -> u64 {
        self.work.sorted_spans().iter().map(|s| s.len).sum()
    }
}

#[test]
fn replacing_a_value_is_one_span() {
    let mut h = Host::new(512);
    let m = h.map("m");
    h.set(m, b"key", &[1; 64]).expect("set");
    h.commit();
    h.set(m, b"key", &[2; 64]).expect("set");
    assert_eq!(h.work.spans().len(), 1);
    assert_eq!(h.work.spans()[0].len, 64);
    h.commit();
    h.set(m, b"key", &[3; 60]).expect("set");
    assert_eq!(h.span_bytes(), 8 + 64, "the lengths, the value");
    h.commit();
    h.set(m, b"key", &[4; 64]).expect("set");
    assert_eq!(h.span_bytes(), 8 + 64, "the block kept its class");
    assert_eq!(h.get(m, b"key").as_deref(), Some(&[4; 64][..]));
    h.check();
}

#[test]
fn no_operation_carries_a_rehash() {
    let mut h = Host::with_sums(32768, false);
    let m = h.map("m");
    h.commit();
    let mut most = 0;
    for i in 0..300_000u64 {
        assert!(h.set(m, &i.to_le_bytes(), &i.to_le_bytes()).expect("set"));
        most = most.max(h.span_bytes());
        h.work.clear_spans();
    }
    assert!(most < 2500, "an insert changed {most} bytes");
    assert_eq!(h.objects.map_len(&h.work, m).expect("len"), 300_000);
    let seen = h.check();
    assert_eq!(seen.entries, 300_000);
    for i in (0..300_000u64).step_by(7) {
        assert_eq!(h.get(m, &i.to_le_bytes()).as_deref(), Some(&i.to_le_bytes()[..]));
    }
    assert_eq!(h.scan(m, 1000).len(), 300_000);
    h.work.clear_spans();
    h.objects.map_clear(&mut h.work, m).expect("clear");
    let cleared = h.span_bytes();
    assert!(cleared < 64 << 10, "clearing a map of its own slabs changed {cleared} bytes");
    assert_eq!(h.check().entries, 0);
}

#[test]
fn deleting_gives_everything_back() {
    let mut h = Host::new(4096);
    h.map("stays");
    let before = h.objects.usage(&h.work).expect("usage").used_bytes;
    let m = h.map("m");
    for i in 0..3000u32 {
        let value = vec![7; (i as usize * 37) % 2000];
        h.set(m, &i.to_be_bytes(), &value).expect("set");
    }
    h.set(m, b"large", &vec![1; 1 << 20]).expect("set");
    let a = h.objects.array(&mut h.work, "a", Some(("<f8", &[1000, 3], 8))).expect("array");
    assert_eq!(a.len, 24000);
    let f = h.objects.file(&mut h.work, "f", true).expect("file");
    h.objects.file_write(&mut h.work, f, 100 << 20, &[5; 100_000]).expect("write");
    h.check();
    let kinds: Vec<_> =
        h.objects.list(&h.work).expect("list").into_iter().map(|(n, k, _)| (n, k.name())).collect();
    let want =
        [("a", "array"), ("f", "file"), ("m", "map"), ("stays", "map")].map(|(n, k)| (n.to_owned(), k));
    assert_eq!(kinds, want);
    for name in ["m", "a", "f"] {
        h.objects.delete(&mut h.work, name).expect("delete");
        h.check();
    }
    let after = h.objects.usage(&h.work).expect("usage").used_bytes;
    // One empty slab per class may be kept for later.
    assert!(after <= before + (54 << 16), "{before} → {after}");
    let all = h.objects.usage(&h.work).expect("usage").free_bytes / PAGE_U64 * PAGE_U64;
    let err =
        h.objects.array(&mut h.work, "all", Some(("u1", &[all + PAGE_U64 * 900], 1))).expect_err("too much");
    assert!(matches!(err, Error::StoreFull(_)), "{err}");
    h.check();
    assert!(
        matches!(h.objects.map_get(&h.work, m, b"x"), Err(Error::NoSuchObject(_))),
        "a handle to a deleted map"
    );
    assert!(matches!(h.objects.delete(&mut h.work, "m"), Err(Error::NoSuchObject(_))));
}

#[test]
fn a_scan_survives_new_values_but_not_new_keys() {
    let mut h = Host::new(1024);
    let m = h.map("m");
    for i in 0..500u32 {
        h.set(m, &i.to_be_bytes(), b"x").expect("set");
    }
    let next = h.objects.map_scan(&h.work, m, 0, 10, |_, _| ()).expect("scan");
    let Scan::More(cursor) = next else { panic!("{next:?}") };
    h.set(m, &7u32.to_be_bytes(), b"a longer value that moves the entry elsewhere, for sure").expect("set");
    assert!(matches!(h.objects.map_scan(&h.work, m, cursor, 10, |_, _| ()).expect("scan"), Scan::More(_)));
    h.set(m, b"new", b"").expect("set");
    assert_eq!(h.objects.map_scan(&h.work, m, cursor, 10, |_, _| ()).expect("scan"), Scan::Changed);
    assert_eq!(h.objects.map_scan(&h.work, m, 0, usize::MAX, |_, _| ()).expect("scan"), Scan::Done);
}

#[test]
fn arrays_grow_in_place_or_move_or_refuse() {
    let mut h = Host::new(1024);
    // Slabs for headers and names are there already, so that nothing comes to lie behind the array.
    h.objects.array(&mut h.work, "b", Some(("u1", &[1], 1))).expect("array");
    let open = |h: &mut Host, n: u64| h.objects.array(&mut h.work, "a", Some(("i8", &[n], 8)));
    let a = open(&mut h, 512).expect("one page");
    h.memory(a.offset, a.len).fill(9);
    h.objects.export(a.offset, a.len);
    let b = open(&mut h, 1024).expect("the next page is free");
    assert_eq!(b.offset, a.offset);
    assert_eq!(h.memory(b.offset, b.len)[4095..4097], [9, 0]);
    assert!(matches!(h.objects.delete(&mut h.work, "a"), Err(Error::ObjectInUse(_))));
    h.objects.array(&mut h.work, "wall", Some(("u1", &[1], 1))).expect("array");
    assert!(matches!(open(&mut h, 2048), Err(Error::ObjectInUse(_))));
    h.objects.unexport(a.offset);
    let c = open(&mut h, 2048).expect("moves");
    assert_ne!(c.offset, a.offset);
    assert_eq!(h.memory(c.offset, c.len)[4095..4097], [9, 0]);
    assert!(h.objects.array_extents(&h.work).expect("extents").contains(&(c.offset, 16384)));
    h.check();
    for bad in [("i4", &[2048][..], 4), ("i8", &[2047], 8), ("i8", &[2048, 1], 8), ("i8", &[], 8)] {
        let err = h.objects.array(&mut h.work, "a", Some(bad)).expect_err("another array");
        assert!(matches!(err, Error::InvalidArgument(_)), "{err}");
    }
    assert!(matches!(h.objects.array(&mut h.work, "none", None), Err(Error::NoSuchObject(_))));
    assert!(matches!(h.objects.map(&mut h.work, "a", true), Err(Error::NoSuchObject(_))));
    let scalar = h.objects.array(&mut h.work, "s", Some(("f4", &[], 4))).expect("no dimensions");
    assert_eq!((scalar.len, scalar.shape.len()), (4, 0));
    let empty = h.objects.array(&mut h.work, "e", Some(("f4", &[0, 5], 4))).expect("no items");
    assert_eq!(empty.len, 0);
    assert_eq!(h.objects.array(&mut h.work, "e", Some(("f4", &[2, 5], 4))).expect("some items").len, 40);
    assert_eq!(h.objects.array(&mut h.work, "a", None).expect("as it is").shape, [2048]);
    h.check();
}

#[test]
fn pages_of_a_view_that_outlives_a_rollback_are_not_used() {
    let mut h = Host::new(256);
    let a = h.objects.array(&mut h.work, "a", Some(("u1", &[100 * PAGE_U64], 1))).expect("array");
    h.objects.export(a.offset, a.len);
    h.rollback();
    assert!(h.objects.array_extents(&h.work).expect("extents").is_empty());
    h.memory(a.offset, a.len).fill(0xAA);
    let b = h.objects.array(&mut h.work, "a", Some(("u1", &[100 * PAGE_U64], 1))).expect("array");
    assert!(b.offset >= a.offset + a.len || b.offset + b.len <= a.offset);
    assert!(h.memory(b.offset, b.len).iter().all(|x| *x == 0));
    let m = h.map("m");
    while h.set(m, &h.objects.map_len(&h.work, m).expect("len").to_le_bytes(), &[1; 3000]).is_ok() {}
    assert!(h.memory(a.offset, a.len).iter().all(|x| *x == 0xAA), "nobody else was there");
    h.commit();
    h.check();
    h.objects.unexport(a.offset);
    let c = h
        .objects
        .array(&mut h.work, "c", Some(("u1", &[100 * PAGE_U64], 1)))
        .expect("the room is free again");
    assert!(h.memory(c.offset, c.len).iter().all(|x| *x == 0));
    h.commit();
    h.check();
}

#[test]
fn reused_pages_of_arrays_need_not_match_their_sums() {
    let mut h = Host::new(256);
    let a = h.objects.array(&mut h.work, "a", Some(("u1", &[150 * PAGE_U64], 1))).expect("array");
    h.commit();
    h.reopen();
    let a = {
        let again = h.objects.array(&mut h.work, "a", None).expect("array");
        assert_eq!(a, again);
        again
    };
    h.memory(a.offset, a.len).fill(3);
    h.objects.delete(&mut h.work, "a").expect("delete");
    let b = h.objects.array(&mut h.work, "b", Some(("u1", &[160 * PAGE_U64], 1))).expect("array");
    assert!(h.memory(b.offset, b.len).iter().all(|x| *x == 0));
    h.commit();
    h.check();
    assert_eq!(h.view.bytes()[b.offset as usize..], h.image.bytes()[b.offset as usize..]);
}

#[test]
fn arrays_made_after_a_rollback_begin_with_zeros() {
    let mut h = Host::new(256);
    let a = h.objects.array(&mut h.work, "a", Some(("u1", &[100 * PAGE_U64], 1))).expect("array");
    h.objects.export(a.offset, a.len);
    h.rollback();
    h.memory(a.offset, a.len).fill(0xAA);
    h.objects.unexport(a.offset);
    // The image says that these pages were never used, but a view of them was alive.
    let b = h.objects.array(&mut h.work, "b", Some(("u1", &[100 * PAGE_U64], 1))).expect("array");
    assert_eq!(a.offset, b.offset);
    assert!(h.memory(b.offset, b.len).iter().all(|x| *x == 0));
    h.commit();
    h.check();
}

#[test]
fn deleted_and_moved_arrays_come_back_as_committed() {
    let mut h = Host::new(256);
    let open = |h: &mut Host, n: u64| {
        h.objects.array(&mut h.work, "a", Some(("u1", &[n], 1))).expect("array").offset
    };
    let at = open(&mut h, 5000);
    h.memory(at, 5000).fill(1);
    h.objects.array(&mut h.work, "wall", Some(("u1", &[1], 1))).expect("array");
    h.commit();
    h.memory(at, 5000).fill(2);
    h.objects.delete(&mut h.work, "a").expect("delete");
    h.rollback();
    assert_eq!(open(&mut h, 5000), at);
    assert!(h.memory(at, 5000).iter().all(|x| *x == 1), "after a delete");
    h.memory(at, 5000).fill(3);
    assert_ne!(open(&mut h, 50_000), at);
    h.rollback();
    assert_eq!(open(&mut h, 5000), at);
    assert!(h.memory(at, 5000).iter().all(|x| *x == 1), "after a move");
}

#[test]
fn a_full_store_loses_nothing_and_goes_on() {
    let mut h = Host::new(64);
    let m = h.map("m");
    // Once small values have filled it, chains are long and end in full buckets: large values are then refused when
    // their overflow bucket is there already, and it has to be given back.
    let (mut n, mut refused) = (0u64, 0);
    for len in [0usize, 8000, 900, 40] {
        while refused < 100 {
            match h.set(m, &n.to_le_bytes(), &vec![7; len]) {
                Ok(new) => assert!(new),
                Err(Error::StoreFull(_)) => refused += 1,
                Err(e) => panic!("{e}"),
            }
            n += 1;
            assert_eq!(h.check().entries, h.objects.map_len(&h.work, m).expect("len"));
        }
        refused = 0;
    }
    let all = h.scan(m, 100);
    h.commit();
    h.reopen();
    let m = h.map("m");
    assert_eq!(h.scan(m, 100), all);
    for key in all.keys() {
        assert!(h.objects.map_remove(&mut h.work, m, key).expect("remove"));
        h.check();
    }
    h.objects.delete(&mut h.work, "m").expect("a delete needs no room");
    h.check();
}

#[test]
fn a_chain_that_leads_into_itself_is_damage() {
    let mut h = populated();
    let m = h.map("m0");
    for (segment, bytes) in
        map::Header::load(&h.work, m.at).expect("map").segments(&h.work).expect("segments")
    {
        for bucket in (segment..segment + bytes).step_by(64) {
            h.work.put_u64(bucket + 56, bucket).expect("loop");
        }
    }
    let corrupt = |r: Result<()>| assert!(matches!(r, Err(Error::StoreCorrupt(_))), "{r:?}");
    corrupt(h.objects.map_get(&h.work, m, b"absent").map(|_| ()));
    corrupt(h.set(m, b"absent", b"x").map(|_| ()));
    corrupt(h.objects.map_remove(&mut h.work, m, b"absent").map(|_| ()));
    corrupt(h.objects.map_scan(&h.work, m, 0, 1000, |_, _| ()).map(|_| ()));
    corrupt(h.objects.map_clear(&mut h.work, m));
    corrupt(h.objects.check(&h.work).map(|_| ()));
}

#[test]
fn files_have_holes_and_forget_what_is_cut() {
    let mut h = Host::new(2048);
    let f = h.objects.file(&mut h.work, "f", true).expect("file");
    let far = (1 << 40) + 12345;
    h.objects.file_write(&mut h.work, f, far, b"far").expect("write");
    h.objects.file_write(&mut h.work, f, 65530, b"over the edge").expect("write");
    assert_eq!(h.objects.file_size(&h.work, f).expect("size"), far + 3);
    let mut buf = [1; 32];
    assert_eq!(h.objects.file_read(&h.work, f, far - 10, &mut buf).expect("read"), 13);
    assert_eq!(&buf[..13], b"\0\0\0\0\0\0\0\0\0\0far");
    assert_eq!(h.objects.file_read(&h.work, f, 65530, &mut buf[..13]).expect("read"), 13);
    assert_eq!(&buf[..13], b"over the edge");
    assert_eq!(h.objects.file_read(&h.work, f, far + 3, &mut buf).expect("read"), 0);
    h.check();
    h.objects.file_truncate(&mut h.work, f, 65534).expect("cut");
    h.check();
    h.objects.file_truncate(&mut h.work, f, 65540).expect("grow");
    assert_eq!(h.objects.file_read(&h.work, f, 65530, &mut buf).expect("read"), 10);
    assert_eq!(&buf[..10], b"over\0\0\0\0\0\0");
    h.objects.file_truncate(&mut h.work, f, 0).expect("cut");
    let held = h.objects.list(&h.work).expect("list")[0].2;
    assert_eq!(held, 64, "the header alone");
    h.check();
    assert!(matches!(h.objects.file_truncate(&mut h.work, f, u64::MAX), Err(Error::InvalidArgument(_))));
    assert!(matches!(h.objects.file_write(&mut h.work, f, u64::MAX, b"x"), Err(Error::InvalidArgument(_))));
}

#[test]
fn bad_arguments_are_refused() {
    let mut h = Host::new(256);
    assert!(matches!(h.objects.map(&mut h.work, "", true), Err(Error::InvalidArgument(_))));
    assert!(matches!(h.objects.map(&mut h.work, &"n".repeat(256), true), Err(Error::InvalidArgument(_))));
    h.objects.map(&mut h.work, &"n".repeat(255), true).expect("the longest name");
    assert!(matches!(h.objects.map(&mut h.work, "absent", false), Err(Error::NoSuchObject(_))));
    let m = h.map("m");
    assert!(matches!(h.set(m, &[0; MAX_KEY + 1], b""), Err(Error::InvalidArgument(_))));
    h.set(m, &[0; MAX_KEY], b"").expect("the longest key");
    h.set(m, b"", b"").expect("the shortest key");
    assert_eq!(h.get(m, b"").as_deref(), Some(&b""[..]));
    let nine: &[u64] = &[1; 9];
    for bad in [("", &[1][..], 1), ("x", nine, 1), ("x", &[1], 0), ("é", &[1], 1)] {
        assert!(matches!(h.objects.array(&mut h.work, "x", Some(bad)), Err(Error::InvalidArgument(_))));
    }
    let huge = h.objects.array(&mut h.work, "x", Some(("x", &[u64::MAX, u64::MAX], 8)));
    assert!(matches!(huge, Err(Error::StoreFull(_))));
    h.check();
}

/// The state that an image should have.
#[derive(Debug, Clone, Default)]
struct Model {
    maps: BTreeMap<String, HashMap<Vec<u8>, Vec<u8>>>,
    arrays: BTreeMap<String, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone)]
enum Op {
    Set(u8, u16, u32, u8),
    Remove(u8, u16),
    Clear(u8),
    Array(u8, u32),
    Fill(u8, u8),
    Write(u8, u32, u32, u8),
    Truncate(u8, u32),
    Delete(u8, u8),
    Commit,
    Rollback,
    Reopen,
    Verify,
}

fn value_len() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0u32..100, 3 => 100u32..3000, 1 => 3000u32..40_000]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => (0u8..2, 0u16..400, value_len(), any::<u8>()).prop_map(|(m, k, n, b)| Op::Set(m, k, n, b)),
        12 => (0u8..2, 0u16..400).prop_map(|(m, k)| Op::Remove(m, k)),
        1 => (0u8..2).prop_map(Op::Clear),
        6 => (0u8..2, 0u32..60_000).prop_map(|(a, n)| Op::Array(a, n)),
        8 => (0u8..2, any::<u8>()).prop_map(|(a, b)| Op::Fill(a, b)),
        5 => (0u8..2, prop_oneof![0u32..300_000, 0u32..50_000_000], 1u32..90_000, any::<u8>())
            .prop_map(|(f, at, n, b)| Op::Write(f, at, n, b)),
        3 => (0u8..2, 0u32..300_000).prop_map(|(f, n)| Op::Truncate(f, n)),
        2 => (0u8..3, 0u8..2).prop_map(|(kind, i)| Op::Delete(kind, i)),
        4 => Just(Op::Commit),
        2 => Just(Op::Rollback),
        1 => Just(Op::Reopen),
        2 => Just(Op::Verify),
    ]
}

/// Whether the operation was done; any error but "full" is a failure of the test.
fn done<T>(r: Result<T>) -> Option<T> {
    match r {
        Ok(v) => Some(v),
        Err(Error::StoreFull(_)) => None,
        Err(e) => panic!("{e}"),
    }
}

fn key(k: u16) -> Vec<u8> {
    let mut key = k.to_be_bytes().to_vec();
    key.resize(2 + k as usize % 40, k as u8);
    key
}

fn compare(h: &mut Host, model: &Model) {
    h.check();
    let names: Vec<String> = h.objects.list(&h.work).expect("list").into_iter().map(|(n, _, _)| n).collect();
    let mut want: Vec<String> =
        model.maps.keys().chain(model.arrays.keys()).chain(model.files.keys()).cloned().collect();
    want.sort();
    assert_eq!(names, want);
    for (name, want) in &model.maps {
        let m = h.objects.map(&mut h.work, name, false).expect("map");
        assert_eq!(&h.scan(m, 5), want);
        for (k, v) in want {
            assert_eq!(h.get(m, k).as_ref(), Some(v));
        }
    }
    for (name, want) in &model.arrays {
        let a = h.objects.array(&mut h.work, name, None).expect("array");
        assert!(h.memory(a.offset, a.len) == want.as_slice(), "array {name}");
    }
    for (name, want) in &model.files {
        let f = h.objects.file(&mut h.work, name, false).expect("file");
        let mut buf = vec![1; want.len() + 10];
        let n = h.objects.file_read(&h.work, f, 0, &mut buf).expect("read");
        assert!(buf[..n] == want[..], "file {name}");
    }
}

fn apply(h: &mut Host, model: &mut Model, committed: &mut Model, op: &Op) {
    match *op {
        Op::Set(m, k, n, b) => {
            let name = format!("map{m}");
            let Some(map) = done(h.objects.map(&mut h.work, &name, true)) else { return };
            let (key, value) = (key(k), vec![b; n as usize]);
            let mine = model.maps.entry(name).or_default();
            if let Some(new) = done(h.set(map, &key, &value)) {
                assert_eq!(new, mine.insert(key, value).is_none());
            }
        }
        Op::Remove(m, k) => {
            if let Some(mine) = model.maps.get_mut(&format!("map{m}")) {
                let map = h.map(&format!("map{m}"));
                let was = h.objects.map_remove(&mut h.work, map, &key(k)).expect("remove");
                assert_eq!(was, mine.remove(&key(k)).is_some());
            }
        }
        Op::Clear(m) => {
            if let Some(mine) = model.maps.get_mut(&format!("map{m}")) {
                let map = h.map(&format!("map{m}"));
                h.objects.map_clear(&mut h.work, map).expect("clear");
                mine.clear();
            }
        }
        Op::Array(a, n) => {
            let name = format!("array{a}");
            let n = u64::from(n).max(model.arrays.get(&name).map_or(0, |v| v.len() as u64));
            if done(h.objects.array(&mut h.work, &name, Some(("u1", &[n], 1)))).is_some() {
                model.arrays.entry(name).or_default().resize(n as usize, 0);
            }
        }
        Op::Fill(a, b) => {
            let name = format!("array{a}");
            if let Some(mine) = model.arrays.get_mut(&name) {
                let a = h.objects.array(&mut h.work, &name, None).expect("array");
                h.memory(a.offset, a.len).fill(b);
                mine.fill(b);
            }
        }
        Op::Write(f, at, n, b) => {
            let name = format!("file{f}");
            let Some(file) = done(h.objects.file(&mut h.work, &name, true)) else { return };
            let mine = model.files.entry(name).or_default();
            let data = vec![b; n as usize];
            if done(h.objects.file_write(&mut h.work, file, u64::from(at), &data)).is_some() {
                let end = (at + n) as usize;
                mine.resize(mine.len().max(end), 0);
                mine[at as usize..end].fill(b);
            }
        }
        Op::Truncate(f, n) => {
            let name = format!("file{f}");
            if let Some(mine) = model.files.get_mut(&name) {
                let file = h.objects.file(&mut h.work, &name, false).expect("file");
                h.objects.file_truncate(&mut h.work, file, u64::from(n)).expect("truncate");
                mine.resize(n as usize, 0);
            }
        }
        Op::Delete(kind, i) => {
            let name = format!("{}{i}", ["map", "array", "file"][kind as usize]);
            let there = model.maps.remove(&name).is_some()
                | model.arrays.remove(&name).is_some()
                | model.files.remove(&name).is_some();
            assert_eq!(h.objects.delete(&mut h.work, &name).is_ok(), there);
        }
        Op::Commit => {
            h.commit();
            committed.clone_from(model);
        }
        Op::Rollback => {
            h.rollback();
            model.clone_from(committed);
        }
        Op::Reopen => {
            h.reopen();
            model.clone_from(committed);
        }
        Op::Verify => compare(h, model),
    }
}

/// A few dozen cases in the suite, more with `PROPTEST_CASES`.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { 64 };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn objects_behave_like_their_models(
        pages in prop_oneof![Just(64usize), Just(192), Just(1024)],
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let mut h = Host::new(pages);
        let (mut model, mut committed) = (Model::default(), Model::default());
        for op in &ops {
            apply(&mut h, &mut model, &mut committed, op);
            h.check();
        }
        compare(&mut h, &model);
        h.commit();
        h.reopen();
        compare(&mut h, &model);
    }

    #[test]
    fn damage_is_an_error_and_nothing_worse(seed in any::<u64>(), flips in 1usize..12) {
        let mut h = populated();
        let mut rng = seed;
        let mut draw = |n: u64| {
            rng = splitmix64(rng);
            rng % n
        };
        for _ in 0..flips {
            damage(&mut h, &mut draw);
        }
        let mut everything = |h: &mut Host| {
            // Any of these may succeed or fail; what counts is that each returns.
            let Ok(objects) = Objects::open(&h.work) else { return };
            h.objects = objects;
            let _ = h.objects.check(&h.work);
            let _ = h.objects.list(&h.work);
            let _ = h.objects.usage(&h.work);
            for i in 0..60 {
                misuse(h, draw(12), draw(400), i);
            }
            let _ = h.objects.check(&h.work);
        };
        everything(&mut h);
    }
}

fn populated() -> Host {
    let mut h = Host::with_sums(512, false);
    for name in ["m0", "m1"] {
        let m = h.map(name);
        for k in 0..300u16 {
            h.set(m, &key(k), &vec![k as u8; k as usize % 300]).expect("set");
        }
        h.set(m, b"pages", &[0; 20_000]).expect("set");
        for k in (0..300u16).step_by(3) {
            h.objects.map_remove(&mut h.work, m, &key(k)).expect("remove");
        }
    }
    let a = h.objects.array(&mut h.work, "a0", Some(("u1", &[10_000], 1))).expect("array");
    h.memory(a.offset, a.len).fill(1);
    let f = h.objects.file(&mut h.work, "f0", true).expect("file");
    h.objects.file_write(&mut h.work, f, 0, &[1; 100_000]).expect("write");
    h.objects.file_write(&mut h.work, f, 40 << 20, &[1; 10]).expect("write");
    h.check();
    h
}

/// Change one word, mostly one that means something, mostly to something that could be mistaken for sane.
fn damage(h: &mut Host, draw: &mut impl FnMut(u64) -> u64) {
    let words = h.view.len as u64 / 8;
    let pick = |draw: &mut dyn FnMut(u64) -> u64, h: &Host| {
        let mut at = 0;
        for _ in 0..200 {
            at = if draw(4) == 0 { draw(512) } else { draw(words) };
            if layout::word(h.view.bytes(), at as usize) != 0 {
                break;
            }
        }
        at as usize
    };
    let at = pick(draw, h);
    let old = layout::word(h.view.bytes(), at);
    let new = match draw(7) {
        0 => old ^ 1 << draw(64),
        1 => draw(u64::MAX),
        2 => 0,
        3 => u64::MAX >> draw(64),
        4 => old.wrapping_add(draw(33)).wrapping_sub(16),
        5 => draw(512) * PAGE_U64,
        _ => {
            let other = pick(draw, h);
            layout::word(h.view.bytes(), other)
        }
    };
    h.view.bytes_mut()[at * 8..at * 8 + 8].copy_from_slice(&new.to_le_bytes());
}

fn misuse(h: &mut Host, what: u64, n: u64, i: u64) {
    let (objects, work) = (&mut h.objects, &mut h.work);
    let name = if n % 2 == 0 { "m0" } else { "m1" };
    match what {
        0..=5 => {
            let Ok(m) = objects.map(work, name, true) else { return };
            let _ = match what {
                0 => objects.map_set(work, m, &key(n as u16), &vec![3; (n * i) as usize]).map(|_| ()),
                1 => objects.map_set(work, m, &(n * i).to_le_bytes(), b"new").map(|_| ()),
                2 => objects.map_remove(work, m, &key(n as u16)).map(|_| ()),
                3 => objects.map_get(work, m, &key(n as u16)).map(|_| ()),
                4 => {
                    let mut cursor = 0;
                    while let Ok(Scan::More(next)) = objects.map_scan(work, m, cursor, 50, |_, _| ()) {
                        assert!(next > cursor);
                        cursor = next;
                    }
                    Ok(())
                }
                _ if i > 40 => objects.map_clear(work, m),
                _ => objects.map_len(work, m).map(|_| ()),
            };
        }
        6 => {
            let _ = objects.array(work, "a0", Some(("u1", &[10_000 + n * 100], 1)));
            let _ = objects.array_extents(work);
        }
        7..=9 => {
            let Ok(f) = objects.file(work, "f0", true) else { return };
            let _ = match what {
                7 => objects.file_write(work, f, n * i * 10_000, &[1; 70_000]),
                8 => objects.file_truncate(work, f, n * 500),
                _ => objects.file_read(work, f, n * 1000, &mut [0; 5000]).map(|_| ()),
            };
        }
        10 if i > 30 => {
            let _ = objects.delete(work, ["m0", "m1", "a0", "f0"][(n % 4) as usize]);
        }
        _ => {
            let _ = objects.map(work, &format!("extra{n}"), true);
        }
    }
}

/// The checker must be able to fail: break each thing that it looks at and see it caught.
#[test]
fn the_checker_catches_what_is_broken_on_purpose() {
    let h = populated();
    let caught = |name: &str, break_it: &dyn Fn(&mut Host)| {
        let mut broken = populated();
        break_it(&mut broken);
        assert!(broken.objects.check(&broken.work).is_err(), "{name} was not caught");
    };
    drop(h);
    let add = |h: &mut Host, at: u64, n: u64| {
        let w = h.work.u64(at).expect("word");
        h.work.put_u64(at, w.wrapping_add(n)).expect("word");
    };
    caught("used pages", &|h| add(h, ROOT_USED, 1));
    caught("fresh", &|h| h.work.put_u64(ROOT_FRESH, 4).expect("word"));
    caught("a lost page", &|h| add(h, BITMAP + 56, 1 << 63));
    caught("a page in use that counts as free", &|h| add(h, BITMAP, 0u64.wrapping_sub(1 << 5)));
    caught("the directory's count", &|h| add(h, ROOT_DIRECTORY + 24, 1));
    caught("the directory's bytes", &|h| add(h, ROOT_DIRECTORY + 40, 8));
    caught("a class without its list", &|h| {
        let class = heap::class_of(64).expect("class") as u64;
        h.work.put_u64(layout::ROOT_CLASSES + class * 8, 0).expect("word");
    });
    caught("a key that is not what it was", &|h| {
        let at = h.view.bytes().windows(14).position(|w| w == [12; 14]).expect("a key") as u64;
        let b = h.work.bytes(at, 1).expect("byte")[0] ^ 1;
        h.work.write(at, &[b]).expect("byte");
    });
    caught("an entry used twice", &|h| {
        let m = h.map("m0");
        let hdr = map::Header::load(&h.work, m.at).expect("map");
        let first = hdr.segments(&h.work).expect("segments")[0].0;
        let slots: Vec<u64> = (0..8 * 16)
            .filter(|i| i % 8 != 7)
            .map(|i| first + i * 8)
            .filter(|at| h.work.u64(*at).expect("slot") != 0)
            .collect();
        let w = h.work.u64(slots[0]).expect("slot");
        h.work.put_u64(slots[1], w).expect("slot");
    });
}

//! The log reader against logs that somebody has changed: by accident (checksums left as they were) or on purpose
//! (checksums made right again, so that the checks behind them are reached).
//!
//! The logs come from `corpus/log/`, written by real stores (`write_corpus`, below, makes them anew). A case that fails
//! is shrunk by proptest and kept in `log_reader.proptest-regressions` beside this file; it runs first from then on.
//! `SUSTAIN_FUZZ_CASES` sets how many cases each property draws (2,000 unless told).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sustain_core::checksum::crc;
use sustain_core::control::{Control, word};
use sustain_core::format::{
    COMMIT_RECORD, CONTROL_OFFSET, CommitPayload, Durability, LOG_OFFSET, PAGE_U64, Point, RECORD_HEADER,
    RecordHeader, Superblock, WORDS_PER_PAGE, kind,
};
use sustain_core::medium::{FileMedium, Medium};
use sustain_core::replay::{Group, GroupReader, Step, Target, apply};
use sustain_core::replica::Replica;
use sustain_core::store::{Options, Store, create};
use sustain_core::{Error, Result};

const MIB2: u64 = 2 << 20;

fn cases() -> ProptestConfig {
    let cases = std::env::var("SUSTAIN_FUZZ_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(2000);
    ProptestConfig { cases, ..ProptestConfig::default() }
}

/// A piece of a log, and where it begins.
#[derive(Clone, Debug)]
struct Log {
    seed: u32,
    image_size: u64,
    start: Point,
    epoch: u64,
    bytes: Vec<u8>,
}

impl Log {
    const HEAD: usize = 48;

    fn reader(&self) -> GroupReader {
        GroupReader::new(self.seed, self.image_size, self.start, self.epoch)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = b"SUSLOGC1".to_vec();
        out.extend(self.seed.to_le_bytes());
        out.extend(self.start.chain.to_le_bytes());
        for word in [self.image_size, self.start.lsn, self.start.seq, self.epoch] {
            out.extend(word.to_le_bytes());
        }
        out.extend(&self.bytes);
        out
    }

    fn decode(b: &[u8]) -> Self {
        assert_eq!(&b[..8], b"SUSLOGC1");
        let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
        Self {
            seed: u32_at(8),
            image_size: u64_at(16),
            start: Point { lsn: u64_at(24), seq: u64_at(32), chain: u32_at(12) },
            epoch: u64_at(40),
            bytes: b[Self::HEAD..].to_vec(),
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/log")
}

fn corpus() -> Vec<(String, Log)> {
    let mut found: Vec<_> = std::fs::read_dir(folder())
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .map(|(name, bytes)| (name, Log::decode(&bytes)))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 4, "the corpus is not there");
    found
}

/// What a reader makes of bytes: whole groups, where it stands, and why it stopped, if not for want of bytes.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    groups: Vec<Group>,
    at: u64,
    bad: Option<&'static str>,
}

/// Read as bytes arrive: `cuts` are lengths of pieces, used in turn.
fn read(log: &Log, cuts: &[usize]) -> Found {
    let mut reader = log.reader();
    let (mut have, mut cut) = (0, cuts.iter().copied().cycle());
    let mut groups = Vec::new();
    loop {
        let at = (reader.at() - log.start.lsn) as usize;
        match reader.step(&log.bytes[at..have]) {
            Step::Record(n) => assert!(n > 0 && at + n <= have),
            Step::Group(n, g) => {
                assert!(n > 0 && at + n <= have && g.end.lsn == reader.at() && reader.after() == g.end);
                groups.push(g);
            }
            Step::NeedMore if have == log.bytes.len() => {
                return Found { groups, at: reader.at(), bad: None };
            }
            Step::NeedMore => have = log.bytes.len().min(have + cut.next().expect("it cycles").max(1)),
            Step::Bad(why) => return Found { groups, at: reader.at(), bad: Some(why) },
        }
    }
}

/// Takes nothing that is not inside an image of this size.
struct Fussy {
    image_size: u64,
    bytes: u64,
}

impl Target for Fussy {
    fn range(&mut self, offset: u64, data: &[u8], _sum: u64) {
        let len = data.len() as u64;
        assert!(len > 0 && len % 8 == 0 && len as usize <= WORDS_PER_PAGE * 8 && offset % 8 == 0);
        assert!(offset + len <= self.image_size && offset / PAGE_U64 == (offset + len - 1) / PAGE_U64);
        self.bytes += len;
    }
    fn zero(&mut self, offset: u64, len: u64) {
        assert!(len > 0 && offset % PAGE_U64 == 0 && len % PAGE_U64 == 0);
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.image_size));
        self.bytes += len;
    }
}

/// Offsets of the records, as far as their headers say.
fn records(log: &Log) -> Vec<(usize, usize)> {
    let (mut at, mut found) = (0, Vec::new());
    while let Some(head) = log.bytes[at..].first_chunk::<RECORD_HEADER>() {
        let len = RecordHeader::read(head).len as usize;
        if len < RECORD_HEADER || at + len > log.bytes.len() {
            break;
        }
        found.push((at, len));
        at += len;
    }
    found
}

#[derive(Clone, Debug)]
enum Change {
    Flip(usize),
    Word(usize, u64),
    Truncate(usize),
    Repeat(usize),
    Remove(usize),
    Swap(usize, usize),
    Header(usize, u8, u64),
    /// The first range of a record begins elsewhere in the image.
    Move(usize, u64),
    /// A word of a commit record's payload.
    Commit(usize, u8, u64),
}

fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1 << 63),
        (0u64..64).prop_map(|n| n * 8),
        (0u64..1024).prop_map(|n| n * PAGE_U64),
        (0u64..4).prop_map(|n| MIB2 - PAGE_U64 + n * (PAGE_U64 - 8)),
        (0u64..=0xFFFF, 0u64..MIB2).prop_map(|(words, at)| words << 48 | at),
        (508u64..=514, 0u64..512).prop_map(|(words, page)| (words << 48) | (page * PAGE_U64)),
        any::<u64>(),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => any::<usize>().prop_map(Change::Flip),
        4 => (any::<usize>(), interesting()).prop_map(|(at, v)| Change::Word(at, v)),
        1 => any::<usize>().prop_map(Change::Truncate),
        1 => any::<usize>().prop_map(Change::Repeat),
        1 => any::<usize>().prop_map(Change::Remove),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Change::Swap(a, b)),
        3 => (any::<usize>(), 0u8..5, interesting()).prop_map(|(at, field, v)| Change::Header(at, field, v)),
        2 => (any::<usize>(), 0u64..MIB2 + 8).prop_map(|(i, to)| Change::Move(i, to / 8 * 8)),
        2 => (any::<usize>(), 0u8..5, interesting()).prop_map(|(i, field, v)| Change::Commit(i, field, v)),
    ]
}

fn make(log: &mut Log, change: &Change) {
    let all = records(log);
    let bytes = &mut log.bytes;
    if bytes.is_empty() || all.is_empty() {
        return;
    }
    let nth = |i: usize| all[i % all.len()];
    match *change {
        Change::Flip(bit) => {
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        Change::Word(at, value) => {
            let at = at % (bytes.len() / 8) * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        Change::Truncate(at) => bytes.truncate(at % bytes.len()),
        Change::Repeat(i) => {
            let (at, len) = nth(i);
            let copy = bytes[at..at + len].to_vec();
            bytes.splice(at..at, copy);
        }
        Change::Remove(i) => {
            let (at, len) = nth(i);
            bytes.drain(at..at + len);
        }
        Change::Swap(i, j) => {
            let (a, b) = (nth(i.min(j)), nth(i.max(j)));
            if a.0 < b.0 {
                let (first, second) = (bytes[a.0..a.0 + a.1].to_vec(), bytes[b.0..b.0 + b.1].to_vec());
                bytes.splice(b.0..b.0 + b.1, first);
                bytes.splice(a.0..a.0 + a.1, second);
            }
        }
        Change::Move(i, to) => {
            let (at, len) = nth(i);
            let h = RecordHeader::read(bytes[at..].first_chunk().expect("a header"));
            if h.kind == kind::DATA && len >= RECORD_HEADER + 24 {
                // The upper two bytes are the range's length.
                bytes[at + RECORD_HEADER..at + RECORD_HEADER + 6].copy_from_slice(&to.to_le_bytes()[..6]);
            }
        }
        Change::Commit(i, field, value) => {
            let commits: Vec<_> = all.iter().filter(|r| r.1 == COMMIT_RECORD).collect();
            if !commits.is_empty() {
                let at = commits[i % commits.len()].0 + RECORD_HEADER + usize::from(field) * 8;
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        Change::Header(i, field, value) => {
            let at = nth(i).0;
            let (offset, len) = [(0, 4), (4, 2), (8, 8), (16, 8), (24, 4)][field as usize];
            bytes[at + offset..at + offset + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
    }
}

/// Make checksums right again, and whatever else `how` has a bit for: positions, epochs, and what commits say of
/// their groups.
fn reseal(log: &mut Log, how: u8) {
    let (seed, mut after) = (log.seed, log.start);
    let (mut crcs, mut group_epoch) = (0, None);
    for (at, len) in records(log) {
        let lsn = log.start.lsn + at as u64;
        let record = &mut log.bytes[at..at + len];
        let h = RecordHeader::read(record.first_chunk().expect("a header"));
        let position = if how & 1 != 0 { lsn } else { h.lsn };
        let epoch = if how & 2 != 0 { group_epoch.unwrap_or(h.epoch) } else { h.epoch };
        if h.kind == kind::COMMIT && len == COMMIT_RECORD {
            if how & 4 != 0 {
                let mut c = CommitPayload::read(&record[RECORD_HEADER..]);
                (c.group_start, c.seq) = (after.lsn, after.seq + 1);
                (c.group_crc, c.chain) = (crcs, after.chain);
                c.write(&mut record[RECORD_HEADER..]);
            }
            let chain = RecordHeader::seal(record, h.kind, position, epoch, h.count, seed);
            after = Point { lsn: lsn + len as u64, seq: after.seq + 1, chain };
            (crcs, group_epoch) = (0, None);
        } else {
            let c = RecordHeader::seal(record, h.kind, position, epoch, h.count, seed);
            crcs = crc(crcs, &c.to_le_bytes());
            group_epoch = Some(epoch);
        }
    }
}

/// The first byte in which two logs differ.
fn first_change(a: &Log, b: &Log) -> usize {
    let same = a.bytes.iter().zip(&b.bytes).take_while(|(x, y)| x == y).count();
    if same == a.bytes.len() && same == b.bytes.len() { usize::MAX } else { same }
}

fn whole_before(found: &Found, end: u64) -> Vec<Group> {
    found.groups.iter().copied().filter(|g| g.end.lsn <= end).collect()
}

#[test]
fn the_corpus_reads_whole() {
    for (name, log) in corpus() {
        let found = read(&log, &[usize::MAX / 2]);
        assert_eq!((found.bad, found.at), (None, log.start.lsn + log.bytes.len() as u64), "{name}");
        let end = found.groups.last().expect("a group").end.lsn;
        assert_eq!(end, found.at, "{name}: whole groups only");
        let mut fussy = Fussy { image_size: log.image_size, bytes: 0 };
        apply(&log.bytes, &mut fussy);
        assert!(fussy.bytes > 0, "{name}");
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_was_changed_is_never_believed(
        which in any::<usize>(),
        changes in prop::collection::vec(change(), 1..4),
        cuts in prop::collection::vec(1usize..5000, 1..6),
    ) {
        let corpus = corpus();
        let original = &corpus[which % corpus.len()].1;
        let mut log = original.clone();
        changes.iter().for_each(|c| make(&mut log, c));
        let found = read(&log, &cuts);
        prop_assert_eq!(&found, &read(&log, &[usize::MAX / 2]), "the result depends on how the bytes arrive");
        let first = first_change(original, &log);
        let limit = original.start.lsn.saturating_add(first as u64);
        prop_assert_eq!(found.groups, whole_before(&read(original, &[1 << 20]), limit));
    }

    #[test]
    fn what_is_believed_can_be_applied(
        which in any::<usize>(),
        changes in prop::collection::vec(change(), 1..6),
        how in 0u8..8,
        cuts in prop::collection::vec(1usize..5000, 1..6),
    ) {
        let corpus = corpus();
        let original = &corpus[which % corpus.len()].1;
        let mut log = original.clone();
        changes.iter().for_each(|c| make(&mut log, c));
        reseal(&mut log, how);
        let found = read(&log, &cuts);
        prop_assert_eq!(&found, &read(&log, &[usize::MAX / 2]), "the result depends on how the bytes arrive");
        let mut after = log.start;
        let mut epoch = log.epoch;
        for g in &found.groups {
            prop_assert!(g.start == after.lsn && g.end.lsn > g.start && g.end.seq == after.seq + 1);
            let follows = if g.opens_epoch { g.epoch > epoch } else { g.epoch == epoch };
            prop_assert!(follows);
            let commit = (g.end.lsn - log.start.lsn) as usize - COMMIT_RECORD;
            let says = CommitPayload::read(&log.bytes[commit + RECORD_HEADER..]);
            prop_assert_eq!((says.chain, says.group_start), (after.chain, after.lsn));
            (after, epoch) = (g.end, g.epoch);
        }
        let whole = (after.lsn - log.start.lsn) as usize;
        apply(&log.bytes[..whole], &mut Fussy { image_size: log.image_size, bytes: 0 });
        let limit = original.start.lsn.saturating_add(first_change(original, &log) as u64);
        let untouched = whole_before(&read(original, &[1 << 20]), limit);
        prop_assert_eq!(&found.groups[..untouched.len()], &untouched[..]);
    }
}

// A whole store with a changed log.

fn store_file(path: &Path, durability: Durability) -> Store<FileMedium> {
    let sb = Superblock::new([7; 16], MIB2, MIB2, durability, 1).expect("sizes");
    create(path, sb, Some(durability)).expect("create");
    Store::open(path, Options::default()).expect("open")
}

fn put(store: &Store<FileMedium>, key: &str, value: &[u8]) {
    let map = store.change(|w, o| o.map(w, "m", true)).expect("the map");
    store.change(|w, o| o.map_set(w, map, key.as_bytes(), value)).expect("set");
}

/// The map's entries, added up: enough to tell states apart.
fn contents(store: &Store<FileMedium>) -> Result<u64> {
    let Ok(map) = store.change(|w, o| o.map(w, "m", false)) else { return Ok(0) };
    let mut total = 0u64;
    store.look(|w, o| {
        o.check(w)?;
        o.map_scan(w, map, 0, usize::MAX, |k, v| {
            total = total.wrapping_add(u64::from(crc(crc(0, k), v)));
        })
    })?;
    Ok(total)
}

/// A file as its writer leaves it when it is killed (the page cache survives), the same after a power loss (of the
/// image nothing was written back since the log's tail), and the contents at each position.
struct Left {
    killed: Vec<u8>,
    cut: Vec<u8>,
    sb: Superblock,
    states: BTreeMap<u64, u64>,
    end: u64,
}

fn left(dir: &Path) -> Left {
    let path = dir.join("s.sus");
    let store = store_file(&path, Durability::Disk);
    store.checkpoint().expect("checkpoint");
    let before = std::fs::read(&path).expect("read");
    let mut states = BTreeMap::new();
    states.insert(store.position().expect("open"), contents(&store).expect("read"));
    for i in 0..20u8 {
        put(&store, &format!("k{}", i % 7), &vec![i; 40 * usize::from(i)]);
        let lsn = store.commit().expect("commit");
        states.insert(lsn, contents(&store).expect("read"));
    }
    let end = store.position().expect("open");
    let killed = std::fs::read(&path).expect("read");
    let sb = store.superblock().expect("open");
    store.close().expect("close");
    let mut cut = killed.clone();
    let image = sb.sums_offset.min(sb.image_offset) as usize;
    cut[image..].copy_from_slice(&before[image..]);
    // The control words are of another boot, and say nothing.
    let at = CONTROL_OFFSET as usize + word::BOOT;
    cut[at..at + 16].fill(0xEE);
    Left { killed, cut, sb, states, end }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases().cases.div_ceil(20), ..ProptestConfig::default() })]

    #[test]
    fn a_store_with_a_changed_log_opens_at_a_commit_or_not_at_all(
        power_loss in any::<bool>(),
        resealed in any::<bool>(),
        changes in prop::collection::vec(change(), 1..4),
        how in 0u8..8,
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let Left { killed, cut, sb, states, end } = left(dir.path());
        let mut changed = if power_loss { cut } else { killed };
        let offset = LOG_OFFSET as usize + (sb.tail.lsn % sb.log_size) as usize;
        let length = (end - sb.tail.lsn) as usize;
        let mut log = Log {
            seed: sb.crc_seed(),
            image_size: sb.image_size,
            start: sb.tail,
            epoch: 1,
            bytes: changed[offset..offset + length].to_vec(),
        };
        changes.iter().for_each(|c| make(&mut log, c));
        if resealed {
            reseal(&mut log, how);
        }
        log.bytes.resize(length, 0);
        changed[offset..offset + length].copy_from_slice(&log.bytes);
        for readonly in [true, false] {
            let path = dir.path().join(if readonly { "reader.sus" } else { "writer.sus" });
            std::fs::write(&path, &changed).expect("write");
            let opened = if readonly {
                Store::open_readonly(&path, Options::default())
            } else {
                Store::open(&path, Options::default())
            };
            match opened {
                Err(Error::StoreCorrupt(_)) => {}
                Err(e) => prop_assert!(false, "{e}"),
                Ok(store) => {
                    let (lsn, found) = (store.position().expect("open"), contents(&store));
                    if !resealed {
                        prop_assert_eq!(states.get(&lsn).copied(), found.ok());
                    } else if let Err(e) = found {
                        prop_assert!(matches!(e, Error::StoreCorrupt(_)), "{}", e);
                    }
                    store.close().expect("close");
                }
            }
        }
    }
}

// Where the corpus comes from.

fn log_of(path: &Path) -> Log {
    let (m, sb) = FileMedium::open(path, false).expect("open");
    let end = Control::of(m.mapping()).get(word::COMMITTED);
    let epoch = sustain_core::base::epoch_before(&sb.history, sb.tail.lsn, sb.epoch);
    let length = (end - sb.tail.lsn) as usize;
    // SAFETY: at most a ring's length; nobody writes the closed store.
    let bytes = unsafe { std::slice::from_raw_parts(m.mapping().ring_at(sb.tail.lsn), length) }.to_vec();
    Log { seed: sb.crc_seed(), image_size: sb.image_size, start: sb.tail, epoch, bytes }
}

/// `cargo test -p sustain-core --test log_reader -- --ignored`: for a new version of the format, or a new sort of record.
#[test]
#[ignore = "writes into the source tree"]
fn write_corpus() {
    let dir = tempfile::tempdir().expect("a folder");
    let save = |name: &str, path: &Path| {
        let log = log_of(path);
        std::fs::write(folder().join(name).with_extension("log"), log.encode()).expect("write");
    };
    std::fs::create_dir_all(folder()).expect("the folder");

    let path = dir.path().join("map.sus");
    let store = store_file(&path, Durability::Memory);
    store.checkpoint().expect("checkpoint");
    for i in 0..12u8 {
        put(&store, &format!("key {}", i % 5), &[i; 64]);
        store.commit().expect("commit");
    }
    store.close().expect("close");
    save("map", &path);

    let path = dir.path().join("zero.sus");
    let store = store_file(&path, Durability::Memory);
    store.checkpoint().expect("checkpoint");
    let file = |data: &[u8]| {
        let f = store.change(|w, o| o.file(w, "f", true)).expect("the file");
        store.change(|w, o| o.file_write(w, f, 0, data)).expect("write");
        store.commit().expect("commit");
    };
    file(&[7; 9000]);
    file(&[0; 9000]);
    store.change(|w, o| o.delete(w, "f")).expect("delete");
    store.commit().expect("commit");
    let (_, cells) = store
        .array(|w, o| o.array(w, "a", Some(("<i8", &[2000], 8))).map(|a| ((), a.offset, a.len)))
        .expect("the array");
    store.commit().expect("commit");
    for i in (0..2000).step_by(333) {
        // SAFETY: inside the array, which has 2000 aligned cells.
        unsafe { cells.cast::<u64>().add(i).write(i as u64 + 1) };
    }
    store.commit().expect("commit");
    store.close().expect("close");
    save("zero", &path);

    let path = dir.path().join("epochs.sus");
    store_file(&path, Durability::Memory).close().expect("close");
    for epoch in 2..5 {
        let mut replica = Replica::open(&path).expect("replica");
        if epoch == 2 {
            replica.checkpoint().expect("checkpoint");
        }
        replica.promote(epoch * 3).expect("promote");
        replica.close().expect("close");
        drop(replica);
        let store = Store::open(&path, Options::default()).expect("open");
        put(&store, "epoch", &epoch.to_le_bytes());
        store.commit().expect("commit");
        store.close().expect("close");
    }
    save("epochs", &path);

    let path = dir.path().join("wrapped.sus");
    let store = store_file(&path, Durability::Memory);
    let size = store.superblock().expect("open").log_size;
    // So far that the ring's end lies in what is kept.
    while store.position().expect("open") < size - 3000 {
        put(&store, "big", &vec![store.position().expect("open") as u8; 2000]);
        store.commit().expect("commit");
    }
    store.checkpoint().expect("checkpoint");
    for i in 0..4u8 {
        put(&store, "big", &vec![i ^ 0x55; 2000]);
        store.commit().expect("commit");
    }
    store.close().expect("close");
    save("wrapped", &path);
}

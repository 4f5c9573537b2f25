//! A reader of a store whose writer was killed while a commit was on its way into the image: whatever the reader
//! finds, it shows a committed state. The file is copied, with its control words, after every single store to the
//! image, and each copy is opened read-only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sustain_core::Result;
use sustain_core::format::{Durability, Superblock};
use sustain_core::medium::{FileMedium, Mapping, Medium};
use sustain_core::replica::Replica;
use sustain_core::store::{Options, Store, create};
use sustain_core::tail::LogTail;

type Contents = BTreeMap<Vec<u8>, Vec<u8>>;
type States = Arc<Mutex<BTreeMap<u64, Contents>>>;

/// Looks at the store as a reader would after each store to its image.
struct Looking {
    m: FileMedium,
    image: std::ops::Range<u64>,
    copy: PathBuf,
    seen: Arc<Mutex<Vec<(u64, Contents)>>>,
}

impl Looking {
    fn at(path: &Path) -> (Self, Superblock) {
        let (m, sb) = FileMedium::open(path, true).expect("open");
        let image = sb.sums_offset.min(sb.image_offset)..sb.file_size();
        (Self { m, image, copy: path.with_extension("copy"), seen: Arc::default() }, sb)
    }
}

impl Medium for Looking {
    fn mapping(&self) -> &Mapping {
        self.m.mapping()
    }
    fn stored(&self, offset: u64, len: u64) {
        self.m.stored(offset, len);
        if !self.image.contains(&offset) {
            return;
        }
        let all = self.mapping();
        // SAFETY: the whole mapping; only this thread changes it.
        let bytes = unsafe { std::slice::from_raw_parts(all.at(0, all.len()), all.len() as usize) };
        std::fs::write(&self.copy, bytes).expect("write the copy");
        let options = Options { verify_all: true, ..Options::default() };
        let store = Store::open_readonly(&self.copy, options).expect("a reader opens it");
        let seen = (store.position().expect("a position"), contents(&store).expect("it reads"));
        self.seen.lock().unwrap().push(seen);
    }
    fn persist(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.m.persist(offset, len)
    }
    fn persist_all(&self) -> std::io::Result<()> {
        self.m.persist_all()
    }
    fn slow_persist(&self) -> bool {
        self.m.slow_persist()
    }
}

fn contents<M: Medium>(store: &Store<M>) -> Result<Contents> {
    let mut found = Contents::new();
    let Ok(map) = store.change(|w, o| o.map(w, "m", false)) else { return Ok(found) };
    store.look(|w, o| {
        o.check(w)?;
        o.map_scan(w, map, 0, usize::MAX, |k, v| {
            found.insert(k.to_vec(), v.to_vec());
        })
    })?;
    Ok(found)
}

fn new_store(path: &Path, durability: Durability) {
    let sb = Superblock::new([7; 16], 2 << 20, 2 << 20, durability, 1).expect("sizes");
    create(path, sb, Some(durability)).expect("create");
}

/// Commits that change several pages each, noting every state by its position.
fn work<M: Medium>(store: &Store<M>, states: &States) {
    let mut now = contents(store).expect("read");
    states.lock().unwrap().insert(store.position().expect("a position"), now.clone());
    for round in 0..12u8 {
        let map = store.change(|w, o| o.map(w, "m", true)).expect("the map");
        for i in 0..4u8 {
            let (key, value) = (vec![b'k', i * 5 + round % 5], vec![round; 700 * (1 + i as usize)]);
            store.change(|w, o| o.map_set(w, map, &key, &value)).expect("set");
            now.insert(key, value);
        }
        let lsn = store.commit().expect("commit");
        states.lock().unwrap().insert(lsn, now.clone());
    }
}

fn compare(seen: &Mutex<Vec<(u64, Contents)>>, states: &States, least: usize) {
    let (seen, states) = (seen.lock().unwrap(), states.lock().unwrap());
    assert!(seen.len() >= least, "only {} looks", seen.len());
    for (lsn, found) in &*seen {
        assert_eq!(states.get(lsn), Some(found), "what a reader saw at {lsn}");
    }
}

#[test]
fn a_writer() {
    for durability in [Durability::Memory, Durability::Disk] {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("s.sus");
        new_store(&path, durability);
        let (m, sb) = Looking::at(&path);
        let (seen, states) = (Arc::clone(&m.seen), States::default());
        let store = Store::open_on(m, sb, "s".into(), Options::default()).expect("open");
        work(&store, &states);
        store.close().expect("close");
        compare(&seen, &states, 50);
    }
}

#[test]
fn a_receiver() {
    let dir = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (dir.path().join("a.sus"), dir.path().join("b.sus"));
    new_store(&ours, Durability::Memory);
    std::fs::copy(&ours, &theirs).expect("copy");
    let (m, sb) = Looking::at(&theirs);
    let (seen, states) = (Arc::clone(&m.seen), States::default());
    let mut replica = Replica::open_on(m, sb, "b".into()).expect("open");
    let store = Store::open(&ours, Options::default()).expect("open");
    let start = store.position().expect("a position");
    work(&store, &states);
    let end = store.position().expect("a position");
    let tail = LogTail::open(&ours).expect("tail");
    let (mut at, mut step) = (start, 1);
    while at < end {
        // Pieces of many lengths: parts of groups, one group, several at once.
        step = (step * 7 + 40) % 30_011;
        let (p, len) = tail.log(at, step.min(end - at)).expect("log");
        let (to, room) = replica.buffer(len).expect("room");
        assert_eq!(room, len);
        // SAFETY: `len` bytes of the log, which stands still, into as many of the replica's.
        unsafe { std::ptr::copy_nonoverlapping(p, to, len) };
        replica.advance(len).expect("advance");
        at += len as u64;
    }
    replica.close().expect("close");
    compare(&seen, &states, 50);
}

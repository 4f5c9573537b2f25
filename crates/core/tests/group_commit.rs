//! Commits of many threads share flushes, none of them returns before its own is done, and none is forgotten: neither
//! while flushes work, nor when one of them fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use sustain_core::format::{Durability, LOG_OFFSET, Superblock};
use sustain_core::medium::{FileMedium, Mapping, Medium};
use sustain_core::store::{Attempt, Options, Store, create};
use sustain_core::{Error, Result};

const THREADS: u64 = 12;

/// A disk whose flushes take a while; counts them, and fails from one on.
struct Slow {
    m: FileMedium,
    log_size: u64,
    count: Arc<Count>,
}

#[derive(Default)]
struct Count {
    flushes: AtomicU64,
    /// Log bytes made durable, in all.
    durable: AtomicU64,
    fail_from: AtomicU64,
}

impl Medium for Slow {
    fn mapping(&self) -> &Mapping {
        self.m.mapping()
    }
    fn stored(&self, offset: u64, len: u64) {
        self.m.stored(offset, len);
    }
    fn persist(&self, offset: u64, len: u64) -> std::io::Result<()> {
        let n = self.count.flushes.fetch_add(1, Ordering::SeqCst) + 1;
        let fail_from = self.count.fail_from.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_micros(n * 37 % 300));
        if fail_from != 0 && n >= fail_from {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        self.m.persist(offset, len)?;
        if (LOG_OFFSET..LOG_OFFSET + self.log_size).contains(&offset) {
            self.count.durable.fetch_add(len, Ordering::SeqCst);
        }
        Ok(())
    }
    fn persist_all(&self) -> std::io::Result<()> {
        self.m.persist_all()
    }
    fn slow_persist(&self) -> bool {
        true
    }
    fn stage(&self) -> std::io::Result<()> {
        self.m.stage()
    }
}

/// Each thread commits `rounds` times: how many commits returned, and whether all errors were `StorePoisoned` or EIO.
/// `abreast`: all begin each round together, so that no later commit flushes for one that was forgotten.
fn run(rounds: u64, fail_from: u64, abreast: bool) -> (u64, u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s.sus");
    let sb = Superblock::new([7; 16], 2 << 20, 2 << 20, Durability::Disk, 1).expect("sizes");
    create(&path, sb, Some(Durability::Disk)).expect("create");
    let (m, sb) = FileMedium::open(&path, true).expect("open");
    let count = Arc::new(Count::default());
    let m = Slow { m, log_size: sb.log_size, count: Arc::clone(&count) };
    let store = Store::open_on(m, sb, "s".into(), Options::default()).expect("open");
    let map = store.change(|w, o| o.map(w, "m", true)).expect("the map");
    let begin = store.commit().expect("commit");
    count.flushes.store(0, Ordering::SeqCst);
    count.durable.store(begin, Ordering::SeqCst);
    count.fail_from.store(fail_from, Ordering::SeqCst);

    let one = |thread: u64, round: u64| -> Result<u64> {
        let (key, value) = (thread.to_le_bytes(), round.to_le_bytes());
        store.change(|w, o| o.map_set(w, map, &key, &value))?;
        let lsn = match if round % 2 == 0 { store.try_commit() } else { Attempt::Busy } {
            Attempt::Done(done) => done?,
            Attempt::InFlight(ticket) => store.finish_commit(ticket)?,
            Attempt::HeldBack(_) => unreachable!("there is no budget"),
            Attempt::Busy => store.commit()?,
        };
        assert!(count.durable.load(Ordering::SeqCst) >= lsn, "it returned before it was durable");
        Ok(lsn)
    };
    let barrier = Barrier::new(THREADS as usize);
    let done: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (one, barrier) = (&one, &barrier);
                scope.spawn(move || {
                    for round in 1..=rounds {
                        if abreast {
                            barrier.wait();
                        }
                        match one(thread, round) {
                            Ok(_) => {}
                            Err(Error::StorePoisoned(_) | Error::Io { .. }) => return round - 1,
                            Err(e) => panic!("{e}"),
                        }
                    }
                    rounds
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    let flushes = count.flushes.load(Ordering::SeqCst);
    let failed = fail_from != 0 && flushes >= fail_from;
    assert_eq!(failed, done.iter().any(|n| *n < rounds));
    let closed = store.close();
    assert!(closed.is_ok() || fail_from != 0, "{closed:?}");
    drop(store);

    let store = Store::open(&path, Options::default()).expect("open again");
    for (thread, acknowledged) in done.iter().enumerate() {
        let map = store.change(|w, o| o.map(w, "m", false)).expect("the map");
        let value =
            store.look(|w, o| Ok(o.map_get(w, map, &(thread as u64).to_le_bytes())?.map(<[u8]>::to_vec)));
        let held = value.expect("read").map_or(0, |v| u64::from_le_bytes(v.try_into().expect("eight bytes")));
        assert!(
            (*acknowledged..=acknowledged + 1).contains(&held),
            "thread {thread}: {acknowledged}, {held}"
        );
    }
    (done.iter().sum(), flushes)
}

#[test]
fn threads_share_flushes() {
    let (commits, flushes) = run(300, 0, false);
    assert_eq!(commits, 300 * THREADS);
    assert!(flushes * 2 < commits, "{flushes} flushes for {commits} commits");
}

#[test]
fn none_is_forgotten_when_no_later_one_comes() {
    assert_eq!(run(2000, 0, true).0, 2000 * THREADS);
}

#[test]
fn a_failed_flush_lets_nobody_wait() {
    for fail_from in 1..60 {
        run(20, fail_from, false);
    }
}

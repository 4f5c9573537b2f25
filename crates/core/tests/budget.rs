//! Unshipped bytes stay within the battery's budget: commits are held back more and more, then wait, and whatever
//! happens to one that waits, its changes are kept. The shipper is played by the test: it alone says what arrived, so
//! what it sees of the committed position is exact.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sustain_core::Error;
use sustain_core::base::Base;
use sustain_core::control::{Control, Limits, boottime_ns, set_fence, set_power, word};
use sustain_core::format::{Durability, Superblock};
use sustain_core::medium::{FileMedium, Medium};
use sustain_core::objects::{MapRef, Objects};
use sustain_core::store::{Attempt, Options, Store, create};

const SECOND_NS: u64 = 1_000_000_000;
const BUDGET: u64 = 4 << 10;

struct Opened {
    store: Store<FileMedium>,
    map: MapRef,
    /// Where the log ends at the beginning.
    begin: u64,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn open(durability: Durability, log_timeout: Duration) -> Opened {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s.sus");
    let sb = Superblock::new([7; 16], 2 << 20, 2 << 20, durability, 1).expect("sizes");
    create(&path, sb, Some(durability)).expect("create");
    let store = Store::open(&path, Options { log_timeout, ..Options::default() }).expect("open");
    let map = store.change(|w, o| o.map(w, "m", true)).expect("the map");
    let begin = store.commit().expect("commit");
    Opened { store, map, begin, path, _dir: dir }
}

impl Opened {
    fn put(&self, key: u64, value: u64) {
        let (key, value) = (key.to_le_bytes(), value.to_le_bytes());
        self.store.change(|w, o| o.map_set(w, self.map, &key, &value)).expect("a change");
    }

    fn control(&self) -> Control {
        self.store.control()
    }

    fn limit(&self, delay_lsn: u64, limit_lsn: u64, delay_limit: Duration) {
        let delay_limit_ns = delay_limit.as_nanos() as u64;
        self.control().set_limits(Limits { budget_bytes: 1, delay_lsn, limit_lsn, delay_limit_ns });
    }

    /// Until a commit waits for the budget.
    fn until_it_waits(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.control().get(word::WAITING_SINCE_NS) == 0 {
            assert!(Instant::now() < end, "no commit waits");
            std::thread::yield_now();
        }
    }
}

fn held(path: &Path, key: u64) -> Option<u64> {
    let store = Store::open(path, Options::default()).expect("open again");
    let map = store.change(|w, o| o.map(w, "m", false)).expect("the map");
    let value = store.look(|w, o| Ok(o.map_get(w, map, &key.to_le_bytes())?.map(<[u8]>::to_vec)));
    value.expect("read").map(|v| u64::from_le_bytes(v.try_into().expect("eight bytes")))
}

#[test]
fn delays_grow_with_the_square_of_the_way_to_the_limit() {
    let o = open(Durability::Memory, Duration::from_secs(60));
    let c = o.control();
    o.limit(1000, 2000, Duration::from_millis(100));
    assert_eq!([1, 1000].map(|end| c.delay_ns(end)), [0, 0]);
    let half = c.delay_ns(1500);
    assert!(half.abs_diff(25_000_000) < 1000, "{half}");
    assert_eq!([2000, 5000].map(|end| c.delay_ns(end)), [100_000_000; 2]);
    let all: Vec<u64> = (1000..=2000).map(|end| c.delay_ns(end)).collect();
    assert!(all.windows(2).all(|w| w[0] <= w[1]));
    o.limit(1000, 0, Duration::from_millis(100));
    assert_eq!(c.delay_ns(1500), 0, "without a limit nothing is delayed");
    o.limit(0, 2000, Duration::from_millis(100));
    assert_eq!(c.delay_ns(1500), 0);
}

#[test]
fn a_delayed_commit_takes_its_time_and_keeps_nobody() {
    let o = open(Durability::Memory, Duration::from_secs(60));
    o.limit(1, o.begin + 400, Duration::from_millis(400));
    o.put(1, 1);
    let began = Instant::now();
    let Attempt::HeldBack(lsn) = o.store.try_commit() else { panic!("it is not held back") };
    assert!(o.control().get(word::COMMITTED) >= lsn, "the delay comes after the commit");
    let delay = Duration::from_nanos(o.control().delay_ns(lsn));
    assert!(delay > Duration::from_millis(50), "{delay:?}");
    std::thread::scope(|scope| {
        let one = scope.spawn(|| o.store.hold_back(lsn).map(|_| Instant::now()));
        o.put(2, 2); // takes the mutex
        let meanwhile = Instant::now();
        let ended = one.join().expect("no panic").expect("commit");
        assert!(meanwhile < ended, "the store was locked");
        assert!(ended - began >= delay);
    });
    o.limit(1, lsn + 400, Duration::from_millis(400));
    let began = Instant::now();
    o.put(1, 3);
    let lsn = o.store.commit().expect("commit");
    assert!(began.elapsed() >= Duration::from_nanos(o.control().delay_ns(lsn)));
}

#[test]
fn a_commit_does_not_count_when_the_lease_passes_while_it_is_held_back() {
    let o = open(Durability::Memory, Duration::from_secs(60));
    o.control().set(word::LEASE_DEADLINE_NS, boottime_ns() + SECOND_NS / 10);
    o.limit(1, 2, Duration::from_millis(200));
    assert!(matches!(o.store.hold_back(o.begin), Err(Error::StoreFenced(_))));
}

#[test]
fn a_transaction_is_held_back_after_it_let_the_others_go() {
    let o = open(Durability::Memory, Duration::from_secs(60));
    o.store.begin().expect("begin");
    o.put(1, 1);
    o.limit(1, o.begin + 400, Duration::from_millis(400));
    let began = Instant::now();
    let lsn = o.store.commit().expect("commit");
    let delay = Duration::from_nanos(o.control().delay_ns(lsn));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            o.store.begin().expect("begin");
            let turn = Instant::now();
            o.store.end().expect("end");
            turn
        });
        o.store.end().expect("end");
        let ended = Instant::now();
        assert!(ended - began >= delay);
        assert!(other.join().expect("no panic") < ended, "the other transaction waited for the delay");
    });
}

#[test]
fn a_commit_at_the_limit_waits_for_it_to_move() {
    for durability in [Durability::Memory, Durability::Disk] {
        let o = open(durability, Duration::from_secs(60));
        o.limit(0, o.begin + 8, Duration::ZERO);
        o.put(1, 1);
        assert!(matches!(o.store.try_commit(), Attempt::Busy));
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| o.store.commit());
            o.until_it_waits();
            assert_eq!(o.control().get(word::COMMITTED), o.begin);
            o.limit(0, o.begin + 16, Duration::ZERO); // not enough
            o.put(2, 2); // the store is not locked meanwhile
            o.until_it_waits();
            assert_eq!(o.control().get(word::COMMITTED), o.begin);
            o.limit(0, o.begin + 4096, Duration::ZERO);
            let lsn = commit.join().expect("no panic").expect("commit");
            assert!(lsn > o.begin + 16);
            assert_eq!(o.control().get(word::COMMITTED), lsn);
        });
        assert_eq!(o.control().get(word::WAITING_SINCE_NS), 0);
        // No changes: no group, nothing to wait for.
        o.limit(0, 1, Duration::ZERO);
        o.store.commit().expect("nothing to commit");
    }
}

#[test]
fn a_group_may_end_exactly_at_the_limit() {
    let o = open(Durability::Memory, Duration::ZERO);
    o.put(1, 1);
    let first = o.store.commit().expect("commit");
    o.put(1, 2);
    let second = o.store.commit().expect("commit");
    let size = second - first; // the next is as large
    o.put(1, 3);
    o.limit(0, second + size - 1, Duration::ZERO);
    assert!(matches!(o.store.commit(), Err(Error::BudgetExceeded(_))));
    o.limit(0, second + size, Duration::ZERO);
    assert_eq!(o.store.commit().expect("commit"), second + size);
}

#[test]
fn after_the_time_out_nothing_is_lost() {
    let o = open(Durability::Disk, Duration::from_millis(50));
    o.put(1, 1);
    o.limit(0, 1, Duration::ZERO);
    let began = Instant::now();
    let e = o.store.commit().expect_err("nothing is acknowledged");
    assert!(matches!(e, Error::BudgetExceeded(_)), "{e}");
    assert!(e.to_string().contains("s.sus") && !e.hint().is_empty(), "{e}");
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert_eq!(o.control().get(word::WAITING_SINCE_NS), 0);
    o.put(2, 2);
    assert!(matches!(o.store.commit(), Err(Error::BudgetExceeded(_))));
    o.limit(0, 0, Duration::ZERO);
    o.store.commit().expect("commit");
    o.store.close().expect("close");
    assert_eq!([1, 2].map(|key| held(&o.path, key)), [Some(1), Some(2)]);
}

#[test]
fn a_waiting_commit_comes_back_for_other_reasons() {
    type End = fn(&Opened);
    type Expected = fn(&Result<u64, Error>) -> bool;
    let ends: [(&str, End, Expected); 4] = [
        (
            "a newer epoch",
            |o| {
                let (m, _) = FileMedium::open(&o.path, true).expect("look");
                set_fence(m.mapping(), 9).expect("fence");
            },
            |r| matches!(r, Err(Error::StoreFenced(_))),
        ),
        (
            "a lease that passes",
            |o| o.control().set(word::LEASE_DEADLINE_NS, boottime_ns() + SECOND_NS / 20),
            |r| matches!(r, Err(Error::StoreFenced(_))),
        ),
        ("closing", |o| o.store.close().expect("close"), |r| matches!(r, Err(Error::StoreClosed(_)))),
        ("nothing left to commit", |o| o.store.rollback().expect("rollback"), Result::is_ok),
    ];
    for (what, end, expected) in ends {
        let o = open(Durability::Memory, Duration::from_secs(600));
        o.put(1, 1);
        o.limit(0, 1, Duration::ZERO);
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| o.store.commit());
            o.until_it_waits();
            end(&o);
            let got = commit.join().expect("no panic");
            assert!(expected(&got), "{what}: {got:?}");
        });
        if what == "closing" {
            assert_eq!(held(&o.path, 1), None, "it was never acknowledged");
        }
    }
}

#[test]
fn in_slices_it_says_that_it_still_waits() {
    let o = open(Durability::Memory, Duration::from_secs(60));
    o.put(1, 1);
    o.limit(0, 1, Duration::ZERO);
    let started = Instant::now();
    assert!(o.store.commit_for(started, Duration::from_millis(20)).expect("no error").is_none());
    assert!(started.elapsed() >= Duration::from_millis(20));
    o.limit(0, 0, Duration::ZERO);
    assert!(o.store.commit_for(started, Duration::from_millis(20)).expect("no error").is_some());
}

/// Sixteen threads commit as fast as they can, while a destination acknowledges at random. Never may more be committed
/// than acknowledged plus budget. Now and then nothing is acknowledged until a commit waits (without a limit: until more
/// than the budget is committed). Returns the furthest that was seen.
fn flat_out(durability: Durability, seed: u64, limited: bool) -> u64 {
    const THREADS: u64 = 16;
    const COMMITS: u64 = 500;
    let o = open(durability, Duration::from_secs(60));
    let (c, over, made) = (o.control(), AtomicBool::new(false), AtomicU64::new(0));
    let set = |acked: u64| {
        let limit_lsn = if limited { acked + BUDGET } else { u64::MAX / 2 };
        let delay_lsn = acked + BUDGET / 2;
        c.set_limits(Limits { budget_bytes: BUDGET, delay_lsn, limit_lsn, delay_limit_ns: 100_000 });
    };
    let mut acked = o.begin;
    set(acked);
    let (mut most, mut random) = (0, seed);
    let counts: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (o, over, made) = (&o, &over, &made);
                scope.spawn(move || {
                    let mut round = 0;
                    while !over.load(Ordering::Relaxed) {
                        round += 1;
                        o.put(thread, round);
                        if thread % 4 == 0 {
                            o.store.begin().expect("begin");
                        }
                        match o.store.try_commit() {
                            Attempt::Done(r) => r.expect("commit"),
                            Attempt::InFlight(ticket) => o.store.finish_commit(ticket).expect("commit"),
                            Attempt::HeldBack(lsn) => o.store.hold_back(lsn).expect("commit"),
                            Attempt::Busy => o.store.commit().expect("commit"),
                        };
                        if thread % 4 == 0 {
                            o.store.end().expect("end");
                        }
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                    round
                })
            })
            .collect();
        let (least, end) = (Duration::from_millis(1500), Duration::from_secs(60));
        let (started, mut next) = (Instant::now(), Instant::now());
        let (mut step, mut waits) = (0, 0);
        while started.elapsed() < least || waits == 0 || made.load(Ordering::Relaxed) < COMMITS {
            let committed = c.get(word::COMMITTED);
            most = most.max(committed - acked);
            let waited = if limited { c.get(word::WAITING_SINCE_NS) != 0 } else { most > BUDGET };
            if Instant::now() < next || (step % 16 == 0 && !waited) {
                if started.elapsed() > end {
                    over.store(true, Ordering::Relaxed);
                    set(u64::MAX / 4);
                    panic!("seed {seed}: {waits} waits, {made:?} commits, {most} bytes");
                }
                std::thread::yield_now();
                continue;
            }
            step += 1;
            waits += u32::from(waited);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            next = Instant::now() + Duration::from_micros((random >> 33) % 3000);
            acked += (random >> 40) % (committed - acked + 1);
            set(acked);
        }
        over.store(true, Ordering::Relaxed);
        set(u64::MAX / 4); // whoever waits comes back
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    o.store.close().expect("close");
    for (thread, count) in counts.iter().enumerate() {
        assert_eq!(held(&o.path, thread as u64), Some(*count), "seed {seed}: thread {thread}");
    }
    most
}

#[test]
fn never_past_the_limit() {
    for durability in [Durability::Memory, Durability::Disk] {
        let seed = u64::from(std::process::id()) ^ boottime_ns();
        let most = flat_out(durability, seed, true);
        assert!(most <= BUDGET, "seed {seed}: {most} bytes unshipped");
    }
}

/// The test above would see a writer that takes no notice.
#[test]
fn the_checker_sees_a_writer_without_a_limit() {
    let most = flat_out(Durability::Memory, 1, false);
    assert!(most > BUDGET, "{most}");
}

/// A battery may be watched, and nothing allowed to be unshipped, from the moment that the file is there: a shipper
/// comes only when the store has been made.
#[test]
fn a_store_is_made_whatever_the_battery_allows() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s.sus");
    for durability in [Durability::Memory, Durability::Disk] {
        let mut sb = Superblock::new([7; 16], 2 << 20, 2 << 20, durability, 1).expect("sizes");
        let m = FileMedium::create(&path, &mut sb, Some(durability)).expect("the file");
        Base::format(&m, &mut sb).expect("the superblocks");
        let (watcher, _) = FileMedium::open(&path, true).expect("another mapping");
        let options = Options { log_timeout: Duration::from_millis(50), ..Options::default() };
        let store = Store::open_on(m, sb, "s.sus".into(), options).expect("open");
        set_power(watcher.mapping(), 1, Some(SECOND_NS)).expect("a battery");
        store.change(|w, _| Objects::format(w, 1)).expect("a change");
        let begin = store.commit().expect("the first commit");
        assert!(begin > 0);
        let map = store.change(|w, o| o.map(w, "m", true)).expect("the map");
        assert!(matches!(store.commit(), Err(Error::BudgetExceeded(_))), "the second waits");
        store.change(|w, o| o.map_set(w, map, b"k", b"v")).expect("a change");
        drop(store);
        std::fs::remove_file(&path).expect("done");
    }
}

//! Commits from where they are asked for to where they count: a turn, room in the log and in the budget, and the flush,
//! which threads share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::append::Appended;
use super::gate::{Duty, Place};
use super::{Guard, Inner, Store};
use crate::control::{boottime_ns, word};
use crate::error::{Error, Result};
use crate::medium::Medium;

/// How long a commit that waits for the budget sleeps without a look at its store, which may have been closed or fenced.
const LOOK_EVERY_NS: u64 = 2_000_000;

/// What became of a commit that could not wait.
#[derive(Debug)]
pub enum Attempt {
    /// It is done, or failed.
    Done(Result<u64>),
    /// It counts once [`Store::finish_commit`] has waited for its flush.
    InFlight(Ticket),
    /// It is durable up to here, and counts once [`Store::hold_back`] has waited.
    HeldBack(u64),
    /// Nothing was done: [`Store::commit`] has to wait first.
    Busy,
}

/// A commit that waits for its flush.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    lsn: u64,
    epoch: u64,
    place: Option<Place>,
}

impl<M: Medium + 'static> Store<M> {
    /// Commit all changes since the last commit; the position behind them. Waits for durability, for a turn, and
    /// for room in the log and in the budget.
    ///
    /// # Errors
    /// `StoreFenced`, `StorePoisoned`, `LogTooSmall`, `LogFull`, `BudgetExceeded`, `StoreReadOnly`, `StoreClosed`, or
    /// the system's.
    pub fn commit(&self) -> Result<u64> {
        let started = Instant::now();
        loop {
            if let Some(lsn) = self.commit_for(started, Duration::MAX)? {
                return Ok(lsn);
            }
        }
    }

    /// The same, for a caller that looks after something else from time to time: `None` when there still is no room
    /// after about `slice`; nothing is committed then, and it is called again. `started` is when the commit began.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_for(&self, started: Instant, slice: Duration) -> Result<Option<u64>> {
        let mut g = self.lock()?;
        let began = Instant::now();
        loop {
            // Also after a wait: in the meantime a transaction may have begun.
            g = self.wait_turn(g)?;
            let inside = g.transaction.is_some();
            let lsn = match g.append()? {
                Appended::Nothing(lsn) => return Ok(Some(lsn)),
                Appended::Durable(lsn) => {
                    g.trim_early()?;
                    drop(g);
                    lsn
                }
                Appended::InFlight(lsn) => self.durable_commit(g, lsn)?,
                Appended::NoRoom | Appended::OverBudget(_) if began.elapsed() >= slice => return Ok(None),
                Appended::NoRoom => {
                    g = self.make_room(g, started)?;
                    continue;
                }
                Appended::OverBudget(limit) => {
                    g = self.wait_for_budget(g, limit, started, slice)?;
                    continue;
                }
            };
            if inside {
                self.relock().owed = lsn; // not while others wait for the transaction's end
            } else {
                self.hold_back(lsn)?;
            }
            return Ok(Some(lsn));
        }
    }

    /// The same as far as it goes without waiting. For callers that hold a lock of their own (the interpreter's) and
    /// have to give it up before they wait.
    #[inline]
    pub fn try_commit(&self) -> Attempt {
        let s = &*self.shared;
        if !s.alive.is_parent() {
            return Attempt::Busy;
        }
        let Ok(mut g) = s.inner.try_lock() else { return Attempt::Busy };
        if g.closed || g.transaction.is_some() || g.is_large() {
            return Attempt::Busy;
        }
        match g.append() {
            Ok(Appended::Nothing(lsn)) => Attempt::Done(Ok(lsn)),
            Ok(Appended::Durable(lsn)) => match g.trim_early() {
                Ok(()) if self.control().delay_ns(lsn) == 0 => Attempt::Done(Ok(lsn)),
                Ok(()) => Attempt::HeldBack(lsn),
                Err(e) => Attempt::Done(Err(e)),
            },
            Ok(Appended::InFlight(lsn)) => Attempt::InFlight(g.ticket(lsn)),
            Ok(Appended::NoRoom | Appended::OverBudget(_)) => Attempt::Busy,
            Err(e) => Attempt::Done(Err(e)),
        }
    }

    /// Wait until a commit that `try_commit` left in flight is durable, and its delay is over; its position.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn finish_commit(&self, ticket: Ticket) -> Result<u64> {
        if let Some(place) = ticket.place {
            self.shared.gate.sleep(place);
            if self.served(&ticket) {
                return self.hold_back(ticket.lsn);
            }
        }
        self.durable_commit(self.relock(), ticket.lsn)?;
        self.hold_back(ticket.lsn)
    }

    /// The budget's delay of a commit that ends at `lsn`, without any lock; `lsn`. It counts if the lease holds until
    /// then.
    ///
    /// # Errors
    /// `StoreFenced`.
    pub fn hold_back(&self, lsn: u64) -> Result<u64> {
        let delay_ns = self.control().delay_ns(lsn);
        if delay_ns == 0 {
            return Ok(lsn);
        }
        std::thread::sleep(Duration::from_nanos(delay_ns));
        self.relock().not_past_deadline().map(|()| lsn)
    }

    /// Whether a commit is durable and counts, as far as can be seen without the mutex.
    fn served(&self, ticket: &Ticket) -> bool {
        self.shared.gate.durable() >= ticket.lsn && self.control().refusal(ticket.epoch).is_none()
    }

    /// A commit that is appended: wait until it is durable. It counts if the lease holds until then.
    fn durable_commit<'a>(&'a self, mut g: Guard<'a, M>, lsn: u64) -> Result<u64> {
        let mut duty = None;
        while g.durable < lsn {
            g.not_poisoned()?;
            let ticket = g.ticket(lsn);
            if let Some(place) = ticket.place {
                drop(g);
                self.shared.gate.sleep(place);
                // Most likely: then the mutex is not needed.
                if self.served(&ticket) {
                    return Ok(lsn);
                }
                g = self.relock();
            } else {
                let flushed;
                (g, duty, flushed) = self.flush(g);
                flushed?;
            }
        }
        self.checkpoint_early(&mut g);
        let may = g.not_past_deadline();
        drop(g);
        drop(duty); // those who are woken find the mutex free
        may.map(|()| lsn)
    }

    /// Wait until `lsn` is durable; one of the waiting threads flushes for all.
    pub(super) fn flush_until<'a>(&'a self, mut g: Guard<'a, M>, lsn: u64) -> Result<Guard<'a, M>> {
        loop {
            g.not_poisoned()?;
            if g.durable >= lsn {
                return Ok(g);
            }
            if let Some(place) = g.ticket(lsn).place {
                drop(g);
                self.shared.gate.sleep(place);
                g = self.relock();
            } else {
                let (flushed, _duty);
                (g, _duty, flushed) = self.flush(g);
                flushed?;
            }
        }
    }

    /// Flush everything that is appended. Who waited is woken when the duty is dropped.
    fn flush<'a>(&'a self, mut g: Guard<'a, M>) -> (Guard<'a, M>, Option<Duty<'a>>, Result<()>) {
        g.flushing = true;
        g.flush += 1;
        let (from, target) = (g.durable, g.appended);
        g.flush_end = target.lsn;
        drop(g);
        let done = crate::log::persist(&self.shared.m, from, target.lsn);
        g = self.relock();
        g.flushing = false;
        let done = match done {
            Ok(()) => {
                g.flushed(target);
                Ok(())
            }
            Err(e) => {
                let e = Error::io(format!("flush the log of {}", g.name), e);
                g.poison(&e);
                self.shared.changed.notify_all();
                Err(e)
            }
        };
        let duty = self.shared.gate.served(g.flush, g.durable);
        (g, Some(duty), done)
    }

    /// The mutex, also of a store that was closed.
    pub(super) fn relock(&self) -> Guard<'_, M> {
        self.shared.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The log is full: trim it, or wait until others let go of it.
    fn make_room<'a>(&'a self, mut g: Guard<'a, M>, started: Instant) -> Result<Guard<'a, M>> {
        let appended = g.appended.lsn;
        g = self.flush_until(g, appended)?;
        while g.checkpointing {
            g = self.wait(g, Duration::from_secs(3600))?;
        }
        g.not_poisoned()?;
        let (tail, applied) = {
            let base = g.base()?;
            (base.sb.tail.lsn, base.applied.lsn)
        };
        if g.trim_now(appended)? {
            return Ok(g);
        }
        if tail == applied {
            let base = g.base()?;
            return Err(Error::LogTooSmall(format!(
                "{}: this commit is larger than the log, which has {} bytes",
                base.name, base.sb.log_size
            )));
        }
        if started.elapsed() >= g.options.log_timeout {
            let base = g.base()?;
            return Err(Error::LogFull(format!(
                "{}: a destination still needs the log from {} on, and nothing moved for {:?}",
                base.name,
                base.floor(),
                g.options.log_timeout
            )));
        }
        self.wait(g, Duration::from_millis(1))
    }

    /// As much is unshipped as the battery allows: wait until there is another limit than `limit`, or another reason to
    /// look, or for about `slice`.
    fn wait_for_budget<'a>(
        &'a self,
        mut g: Guard<'a, M>,
        limit: u64,
        started: Instant,
        slice: Duration,
    ) -> Result<Guard<'a, M>> {
        let (appended, log_timeout) = (g.appended.lsn, g.options.log_timeout);
        if started.elapsed() >= log_timeout {
            return Err(Error::BudgetExceeded(format!(
                "{}: this commit would end behind position {limit}, and what lies before it did not reach a \
                 destination for {log_timeout:?}: more would be unshipped than the battery allows",
                g.name
            )));
        }
        let (control, began) = (self.control(), Instant::now());
        g.waiting += 1;
        if g.waiting == 1 {
            control.set(word::WAITING_SINCE_NS, boottime_ns());
        }
        control.urge();
        loop {
            drop(g);
            control.wait_limit(limit, LOOK_EVERY_NS);
            g = self.relock();
            let over = began.elapsed() >= slice || started.elapsed() >= log_timeout;
            let moved = control.get(word::LIMIT_LSN) != limit || g.appended.lsn != appended;
            let idle = g.work.spans().is_empty() && g.candidates.is_empty();
            if over || moved || idle || g.closed || g.poisoned.is_some() || g.not_past_deadline().is_err() {
                break;
            }
        }
        g.waiting -= 1;
        if g.waiting == 0 {
            control.set(word::WAITING_SINCE_NS, 0);
        }
        if g.closed {
            return Err(Error::StoreClosed(format!("{} was closed", g.name)));
        }
        Ok(g)
    }

    /// Where persisting is slow, trim in the background when half the log is used.
    fn checkpoint_early(&self, g: &mut Guard<'_, M>) {
        let Some(base) = &g.writer else { return };
        if g.checkpointing || g.appended.lsn - base.sb.tail.lsn <= base.sb.log_size / 2 {
            return;
        }
        g.checkpointing = true;
        let store = Self { shared: Arc::clone(&self.shared) };
        std::thread::spawn(move || {
            // An error has poisoned the store, which the next commit reports.
            let _ = store.checkpoint_running();
        });
    }

    fn checkpoint_running(&self) -> Result<u64> {
        let mut g = self.relock();
        let r = (|| {
            if g.closed {
                return Ok(0);
            }
            let target = g.base()?.applied;
            drop(g);
            let done = self.shared.m.persist_all();
            g = self.relock();
            if g.closed {
                return Ok(0);
            }
            g.checkpointed(target, done)
        })();
        let mut g = self.relock();
        g.checkpointing = false;
        self.shared.changed.notify_all();
        r
    }

    /// Make the image durable and trim the log as far as others allow; the new tail.
    ///
    /// # Errors
    /// What the medium said; the store is then poisoned.
    pub fn checkpoint(&self) -> Result<u64> {
        let mut g = self.lock()?;
        let appended = g.appended.lsn;
        g = self.flush_until(g, appended)?;
        while g.checkpointing {
            g = self.wait(g, Duration::from_secs(3600))?;
        }
        g.trim_now(appended)?;
        Ok(g.base()?.sb.tail.lsn)
    }
}

impl<M: Medium> Inner<M> {
    /// Where a commit that ends at `lsn`, and is not durable yet, waits: for the flush under way or the next. No place
    /// when none is: then it is to flush.
    fn ticket(&self, lsn: u64) -> Ticket {
        let flush = if lsn <= self.flush_end { self.flush } else { self.flush + 1 };
        let place = self.flushing.then(|| self.gate.place(flush));
        Ticket { lsn, epoch: self.writer.as_ref().map_or(0, |b| b.sb.epoch), place }
    }
}

//! A store seen from other processes: its control words, and its log for the shipper.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use sustain_core::control::{self, Control as Words, Lock, SLOT_STATES, SLOTS, UNKNOWN, slot, word};
use sustain_core::format::{FLAG_CLEAN, FLAG_INCOMPLETE, FLAG_RECEIVED, INCOMPAT_ARRIVING, Superblock};
use sustain_core::medium::{FileMedium, Medium};
use sustain_core::tail;

use crate::errors::{bad_word, raise};

pub(crate) fn superblock_dict<'py>(py: Python<'py>, sb: &Superblock) -> PyResult<Bound<'py, PyDict>> {
    let d = PyDict::new(py);
    d.set_item("version", sustain_core::format::VERSION)?;
    d.set_item("store_uuid", pyo3::types::PyBytes::new(py, &sb.store_uuid))?;
    d.set_item("replica_uuid", pyo3::types::PyBytes::new(py, &sb.replica_uuid))?;
    d.set_item("log_size", sb.log_size)?;
    d.set_item("image_size", sb.image_size)?;
    d.set_item("epoch", sb.epoch)?;
    d.set_item("history", sb.history.iter().map(|h| (h.epoch, h.start)).collect::<Vec<_>>())?;
    d.set_item("tail", sb.tail.lsn)?;
    d.set_item("clean", sb.flags & FLAG_CLEAN != 0)?;
    d.set_item("incomplete", sb.flags & FLAG_INCOMPLETE != 0)?;
    d.set_item("received", sb.flags & FLAG_RECEIVED != 0)?;
    d.set_item("arriving", sb.incompat & INCOMPAT_ARRIVING != 0)?;
    d.set_item("end", sb.end_lsn)?;
    d.set_item("durability", sb.durability.name())?;
    d.set_item("same_boot", sb.boot_id == control::boot_id())?;
    d.set_item("created_ns", sb.created_ns)?;
    Ok(d)
}

/// Battery time for a drain; `None`: unknown, or nobody ever said.
fn usable_ns(c: Words) -> Option<u64> {
    let usable = c.get(word::USABLE_NS);
    (usable != UNKNOWN && c.get(word::POWER_AT_NS) != 0).then_some(usable)
}

pub(crate) fn words_dict(py: Python<'_>, c: Words) -> PyResult<Bound<'_, PyDict>> {
    let d = PyDict::new(py);
    for (name, at) in [
        ("appended", word::APPENDED),
        ("committed", word::COMMITTED),
        ("applied", word::APPLIED),
        ("tail", word::TAIL),
        ("commit_seq", word::COMMIT_SEQ),
        ("commit_time_ns", word::COMMIT_TIME_NS),
        ("recoveries", word::RECOVERY),
        ("lease_deadline_ns", word::LEASE_DEADLINE_NS),
        ("lease_epoch", word::LEASE_EPOCH),
        ("fence_epoch", word::FENCE_EPOCH),
        ("writer_pid", word::WRITER_PID),
        ("writer_start_ticks", word::WRITER_START),
        ("shipper_pid", word::SHIPPER_PID),
        ("shipper_start_ticks", word::SHIPPER_START),
        ("floor", word::FLOOR),
        ("required_floor", word::REQUIRED_FLOOR),
        ("budget_bytes", word::BUDGET_BYTES),
        ("delay_lsn", word::DELAY_LSN),
        ("limit_lsn", word::LIMIT_LSN),
        ("delay_limit_ns", word::DELAY_LIMIT_NS),
        ("power_at_ns", word::POWER_AT_NS),
        ("power_state", word::POWER_STATE),
        ("waiting_since_ns", word::WAITING_SINCE_NS),
        ("primary_committed", word::PRIMARY_COMMITTED),
        ("primary_heard_ns", word::PRIMARY_HEARD_NS),
        ("primary_commit_time_ns", word::PRIMARY_TIME_NS),
    ] {
        d.set_item(name, c.get(at))?;
    }
    d.set_item("usable_ns", usable_ns(c))?;
    d.set_item("poisoned", c.get(word::POISONED) != 0)?;
    let holder =
        ["none", "application", "receiver"].get(c.get(word::HOLDER) as usize).copied().unwrap_or("none");
    d.set_item("holder", holder)?;
    Ok(d)
}

pub(crate) fn destinations_list(py: Python<'_>, c: Words) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let mut list = Vec::new();
    for s in (0..SLOTS).filter(|s| c.slot(*s, slot::STATE) != 0) {
        let d = PyDict::new(py);
        let acked = c.slot(s, slot::ACKED);
        d.set_item("slot", s)?;
        d.set_item("url", c.url(s))?;
        d.set_item("state", SLOT_STATES.get(c.slot(s, slot::STATE) as usize).copied().unwrap_or("stopped"))?;
        d.set_item("required", c.slot(s, slot::REQUIRED) != 0)?;
        d.set_item("acked", (acked != UNKNOWN).then_some(acked))?;
        let (bandwidth, budget) = (c.slot(s, slot::BANDWIDTH), c.slot(s, slot::BUDGET));
        let measured = bandwidth != UNKNOWN && bandwidth != 0;
        d.set_item("bandwidth_bytes_per_s", measured.then_some(bandwidth))?;
        d.set_item("budget_bytes", (measured && budget != UNKNOWN).then_some(budget))?;
        let alone = c.left_alone(s);
        d.set_item("left_alone_until_ns", alone.as_ref().map(|(until, _)| *until))?;
        d.set_item("left_alone_why", alone.map(|(_, why)| why).filter(|why| !why.is_empty()))?;
        for (name, at) in [
            ("sent", slot::SENT),
            ("acked_boottime_ns", slot::ACKED_BOOT_NS),
            ("acked_commit_time_ns", slot::ACKED_TIME_NS),
            ("snapshot_done_bytes", slot::SNAPSHOT_DONE),
            ("snapshot_total_bytes", slot::SNAPSHOT_TOTAL),
            ("bytes_sent", slot::BYTES_SENT),
            ("connections", slot::CONNECTIONS),
        ] {
            d.set_item(name, c.slot(s, at))?;
        }
        list.push(d);
    }
    Ok(list)
}

/// Documented in `_native.pyi`.
#[pyclass(frozen, module = "sustain._native")]
pub struct Control {
    m: FileMedium,
}

impl Control {
    fn c(&self) -> Words {
        Words::of(self.m.mapping())
    }

    fn locked(&self, py: Python<'_>, lock: Lock) -> PyResult<bool> {
        let r = lock.is_taken(self.m.mapping().file());
        raise(py, r.map_err(|e| sustain_core::Error::io("ask for a lock", e)))
    }
}

#[pymethods]
impl Control {
    #[new]
    #[pyo3(signature = (path, writable = false))]
    fn new(py: Python<'_>, path: PathBuf, writable: bool) -> PyResult<Self> {
        let (m, _) = raise(py, FileMedium::open(&path, writable))?;
        if writable {
            Words::of(m.mapping()).claim(&control::boot_id());
        }
        Ok(Self { m })
    }

    fn superblock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        superblock_dict(py, &raise(py, tail::read_superblock(self.m.mapping()))?)
    }

    fn words<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let c = self.c();
        if c.current(&control::boot_id()) { words_dict(py, c).map(Some) } else { Ok(None) }
    }

    fn destinations<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let c = self.c();
        if c.current(&control::boot_id()) { destinations_list(py, c) } else { Ok(Vec::new()) }
    }

    fn set_lease(&self, py: Python<'_>, epoch: u64, deadline_boottime_ns: u64) -> PyResult<()> {
        raise(py, sustain_core::control::set_lease(self.m.mapping(), epoch, deadline_boottime_ns))
    }

    fn set_fence(&self, py: Python<'_>, epoch: u64) -> PyResult<()> {
        raise(py, sustain_core::control::set_fence(self.m.mapping(), epoch))
    }

    fn set_power(&self, py: Python<'_>, state: u64, usable_ns: Option<u64>) -> PyResult<()> {
        raise(py, sustain_core::control::set_power(self.m.mapping(), state, usable_ns))
    }

    fn clear_power(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, sustain_core::control::clear_power(self.m.mapping()))
    }

    fn writer_locked(&self, py: Python<'_>) -> PyResult<bool> {
        self.locked(py, Lock::Writer)
    }

    fn shipper_locked(&self, py: Python<'_>) -> PyResult<bool> {
        self.locked(py, Lock::Shipper)
    }

    fn supervisor_locked(&self, py: Python<'_>) -> PyResult<bool> {
        self.locked(py, Lock::Supervisor)
    }

    fn lock_supervisor(&self, py: Python<'_>) -> PyResult<bool> {
        let r = Lock::Supervisor.take(self.m.mapping().file());
        raise(py, r.map_err(|e| sustain_core::Error::io("take the supervisor's lock", e)))
    }

    fn close(&self) {
        Lock::Supervisor.release(self.m.mapping().file());
    }
}

/// Documented in `_native.pyi`.
#[pyclass(frozen, module = "sustain._native")]
pub struct LogTail {
    tail: tail::LogTail,
}

#[pymethods]
impl LogTail {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self { tail: raise(py, tail::LogTail::open(&path))? })
    }

    fn superblock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        superblock_dict(py, &raise(py, self.tail.superblock())?)
    }

    fn words<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        words_dict(py, self.tail.control())
    }

    fn committed(&self) -> u64 {
        self.tail.control().get(word::COMMITTED)
    }

    fn tail(&self) -> u64 {
        self.tail.control().get(word::TAIL)
    }

    fn wait_commit(&self, py: Python<'_>, beyond: u64, timeout_s: f64) -> u64 {
        let timeout = Duration::try_from_secs_f64(timeout_s.clamp(0.0, 1e6)).unwrap_or_default();
        py.detach(|| self.tail.control().wait_commit(beyond, timeout.as_nanos() as u64))
    }

    fn nap(&self, py: Python<'_>, beyond: u64, timeout_s: f64) {
        let timeout = Duration::try_from_secs_f64(timeout_s.clamp(0.0, 1e6)).unwrap_or_default();
        py.detach(|| self.tail.control().nap(beyond, timeout.as_nanos() as u64));
    }

    fn log_view(&self, py: Python<'_>, lsn: u64, length: u64) -> PyResult<Py<PyAny>> {
        let (p, len) = raise(py, self.tail.log(lsn, length))?;
        crate::memory(py, p.cast_mut(), len, false)
    }

    fn snapshot_point(&self, py: Python<'_>) -> PyResult<(u64, u64, u32)> {
        let p = raise(py, self.tail.superblock())?.tail;
        Ok((p.lsn, p.seq, p.chain))
    }

    fn group_boundary(&self, py: Python<'_>, lsn: u64) -> PyResult<bool> {
        Ok(raise(py, self.tail.boundary(lsn))?.is_some())
    }

    fn image_size(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(raise(py, self.tail.superblock())?.image_size)
    }

    fn image_view(&self, py: Python<'_>, first_page: u64, pages: u64) -> PyResult<Py<PyAny>> {
        let (p, len) = raise(py, self.tail.image(first_page, pages))?;
        crate::memory(py, p.cast_mut(), len, false)
    }

    fn next_used_page(&self, py: Python<'_>, page: u64) -> PyResult<u64> {
        raise(py, py.detach(|| self.tail.next_used_page(page)))
    }

    fn next_used_run(&self, py: Python<'_>, page: u64, most: u64) -> PyResult<(u64, u64)> {
        raise(py, py.detach(|| self.tail.next_used_run(page, most)))
    }

    fn page_digests<'py>(
        &self,
        py: Python<'py>,
        first_page: u64,
        pages: u64,
    ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
        let d = raise(py, py.detach(|| self.tail.digests(first_page, pages)))?;
        Ok(pyo3::types::PyBytes::new(py, &d))
    }

    fn claim_slot(&self, py: Python<'_>, url: &str, required: bool) -> PyResult<usize> {
        let claimed = self.tail.control().claim_slot(url, required);
        raise(
            py,
            claimed.ok_or_else(|| {
                sustain_core::Error::InvalidArgument(format!(
                    "no room for destination {url}: at most 16, URLs up to 96 bytes"
                ))
            }),
        )
    }

    #[pyo3(signature = (slot, *, state = None, sent = None, acked = None, acked_commit_time_ns = None,
                        snapshot_done_bytes = None, snapshot_total_bytes = None, bytes_sent = None, connections = None,
                        bandwidth_bytes_per_s = None, budget_bytes = None))]
    #[allow(clippy::too_many_arguments)] // one per word of the slot
    fn update_slot(
        &self,
        slot: usize,
        state: Option<&str>,
        sent: Option<u64>,
        acked: Option<u64>,
        acked_commit_time_ns: Option<u64>,
        snapshot_done_bytes: Option<u64>,
        snapshot_total_bytes: Option<u64>,
        bytes_sent: Option<u64>,
        connections: Option<u64>,
        bandwidth_bytes_per_s: Option<u64>,
        budget_bytes: Option<u64>,
    ) -> PyResult<()> {
        use sustain_core::control::slot as at;
        if slot >= SLOTS {
            return Err(pyo3::exceptions::PyIndexError::new_err("there are 16 slots"));
        }
        let c = self.tail.control();
        for (offset, value) in [
            (at::SENT, sent),
            (at::ACKED_TIME_NS, acked_commit_time_ns),
            (at::SNAPSHOT_DONE, snapshot_done_bytes),
            (at::SNAPSHOT_TOTAL, snapshot_total_bytes),
            (at::BYTES_SENT, bytes_sent),
            (at::CONNECTIONS, connections),
            (at::BANDWIDTH, bandwidth_bytes_per_s),
            (at::BUDGET, budget_bytes),
        ] {
            if let Some(v) = value {
                c.set_slot(slot, offset, v);
            }
        }
        if let Some(name) = state {
            let Some(n) = SLOT_STATES.iter().position(|s| *s == name) else {
                return Err(bad_word("state", name, &SLOT_STATES.join(", ")));
            };
            c.set_slot(slot, at::STATE, n as u64);
        }
        if let Some(acked) = acked {
            c.acknowledge(slot, acked);
        }
        Ok(())
    }

    fn release_others(&self, urls: Vec<String>) {
        self.tail.control().release_others(&urls);
    }

    fn leave_alone(&self, slot: usize, for_s: f64, why: &str) -> PyResult<()> {
        if slot >= SLOTS {
            return Err(pyo3::exceptions::PyIndexError::new_err("there are 16 slots"));
        }
        self.tail.control().leave_alone(slot, Some((for_s.clamp(0.0, 1e9) * 1e9) as u64), why);
        Ok(())
    }

    fn power(&self) -> (Option<u64>, u64, u64) {
        let c = self.tail.control();
        (usable_ns(c), c.get(word::POWER_AT_NS), c.get(word::POWER_STATE))
    }

    fn set_limits(&self, budget_bytes: u64, delay_lsn: u64, limit_lsn: u64, delay_limit_ns: u64) {
        let to = control::Limits { budget_bytes, delay_lsn, limit_lsn, delay_limit_ns };
        self.tail.control().set_limits(to);
    }

    #[pyo3(signature = (lsn, required = None))]
    fn set_floor(&self, lsn: u64, required: Option<u64>) {
        let c = self.tail.control();
        c.set(word::REQUIRED_FLOOR, required.unwrap_or(lsn));
        c.set(word::FLOOR, lsn);
    }

    fn set_fence(&self, epoch: u64) {
        self.tail.control().raise(word::FENCE_EPOCH, epoch);
    }

    fn close(&self) {
        self.tail.release();
    }
}

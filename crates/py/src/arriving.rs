//! Stores whose pages are still coming: the two ends of fetching them.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use sustain_core::arrival::{Arrival, State};
use sustain_core::fetcher::{self, Fetcher as Core};
use sustain_core::format::{EpochStart, Point};
use sustain_core::medium::{FileMedium, Medium};
use sustain_core::replica::{Replica, SnapshotStart};

use crate::engine::{durability, uuid};
use crate::errors::raise;
use crate::outside::superblock_dict;

fn seconds(name: &str, s: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(s).map_err(|e| PyValueError::new_err(format!("{name}: {e}")))
}

fn status_dict<'py>(py: Python<'py>, a: &Arrival) -> PyResult<Bound<'py, PyDict>> {
    let d = PyDict::new(py);
    let (pages, here, asked) = a.counts();
    d.set_item("pages", pages)?;
    d.set_item("here", here)?;
    d.set_item("asked", asked)?;
    let state = match a.state() {
        State::Arriving => "arriving",
        State::Complete => "complete",
        State::Failed => "failed",
    };
    d.set_item("state", state)?;
    d.set_item("failure", a.failure())?;
    d.set_item("limit_s", a.limit().as_secs_f64())?;
    d.set_item("base", a.point().lsn)?;
    Ok(d)
}

/// Make a store whose pages are to be fetched.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // one per field of its beginning
pub fn create_arriving(
    py: Python<'_>,
    path: PathBuf,
    size: u64,
    log_size: u64,
    durability: &str,
    store_uuid: &[u8],
    epoch: u64,
    history: Vec<(u64, u64)>,
    start: u64,
    start_seq: u64,
    start_chain: u32,
    limit_s: f64,
) -> PyResult<()> {
    let wanted = self::durability(durability)?;
    let limit = seconds("limit_s", limit_s)?;
    let begin = SnapshotStart {
        image_size: size,
        log_size,
        store_uuid: uuid(store_uuid)?,
        epoch,
        history: history.into_iter().map(|(epoch, start)| EpochStart { epoch, start }).collect(),
        start: Point { lsn: start, seq: start_seq, chain: start_chain },
    };
    raise(py, py.detach(|| Replica::create_arriving(&path, &begin, wanted, limit)))
}

/// How far a store has arrived; None: it is whole.
#[pyfunction]
pub fn arrival_of(py: Python<'_>, path: PathBuf) -> PyResult<Option<Bound<'_, PyDict>>> {
    let (m, _) = raise(py, FileMedium::open(&path, true))?;
    m.arrival().map(|a| status_dict(py, a)).transpose()
}

/// Documented in `_native.pyi`.
#[pyclass(frozen, module = "sustain._native")]
pub struct Fetcher {
    core: Core,
}

#[pymethods]
impl Fetcher {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self { core: raise(py, py.detach(|| Core::open(&path)))? })
    }

    fn superblock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        superblock_dict(py, &raise(py, self.core.superblock())?)
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        status_dict(py, self.core.arrival())
    }

    fn set_limit(&self, limit_s: f64) -> PyResult<()> {
        self.core.arrival().set_limit(seconds("limit_s", limit_s)?);
        Ok(())
    }

    fn point(&self) -> (u64, u64, u32) {
        let p = self.core.arrival().point();
        (p.lsn, p.seq, p.chain)
    }

    fn boundary(&self, py: Python<'_>, lsn: u64) -> PyResult<Option<(u64, u32)>> {
        Ok(raise(py, self.core.boundary(lsn))?.map(|p| (p.seq, p.chain)))
    }

    fn wanted(&self, py: Python<'_>, timeout_s: f64) -> Vec<u64> {
        let timeout = Duration::try_from_secs_f64(timeout_s.clamp(0.0, 1e6)).unwrap_or_default();
        py.detach(|| self.core.wanted(timeout.as_nanos() as u64))
    }

    fn next_missing(&self, first_page: u64, most: u64) -> Option<(u64, u64)> {
        self.core.arrival().next_missing(first_page, most)
    }

    fn put(&self, py: Python<'_>, first_page: u64, pages: u64, data: &Bound<'_, PyBytes>) -> PyResult<u64> {
        let bytes = data.as_bytes();
        raise(py, py.detach(|| self.core.put(first_page, pages, bytes)))
    }

    fn settle(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, py.detach(|| self.core.settle()))
    }

    fn complete(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, py.detach(|| self.core.complete()))
    }

    fn try_finish(&self, py: Python<'_>) -> PyResult<bool> {
        raise(py, py.detach(|| self.core.try_finish()))
    }

    fn fail(&self, why: &str) {
        self.core.fail(why);
    }

    fn close(&self) {
        self.core.release();
    }
}

/// Documented in `_native.pyi`.
#[pyclass(frozen, module = "sustain._native")]
pub struct PageSource {
    core: fetcher::Source,
}

#[pymethods]
impl PageSource {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self { core: raise(py, fetcher::Source::open(&path))? })
    }

    fn read<'py>(&self, py: Python<'py>, first_page: u64, pages: u64) -> PyResult<Bound<'py, PyBytes>> {
        let data = raise(py, py.detach(|| self.core.read(first_page, pages)))?;
        Ok(PyBytes::new(py, &data))
    }
}

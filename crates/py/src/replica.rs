//! The receiving side of a store.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use sustain_core::format::{EpochStart, Point};
use sustain_core::medium::FileMedium;
use sustain_core::replica::{Replica as Core, SnapshotStart};

use crate::engine::{durability, uuid};
use crate::errors::raise;
use crate::outside::{superblock_dict, words_dict};
use crate::region::Held;

/// Documented in `_native.pyi`.
#[pyclass(frozen, module = "sustain._native")]
pub struct Replica {
    core: Mutex<Core<FileMedium>>,
}

impl Replica {
    fn lock(&self) -> MutexGuard<'_, Core<FileMedium>> {
        self.core.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl Replica {
    #[new]
    #[pyo3(signature = (path, arriving = false))]
    fn new(py: Python<'_>, path: PathBuf, arriving: bool) -> PyResult<Self> {
        let opened = py.detach(|| if arriving { Core::open_arriving(&path) } else { Core::open(&path) });
        let core = raise(py, opened)?;
        Ok(Self { core: Mutex::new(core) })
    }

    #[staticmethod]
    #[allow(clippy::too_many_arguments)] // one per field of a snapshot's beginning
    fn create_for_snapshot(
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
    ) -> PyResult<Self> {
        let wanted = self::durability(durability)?;
        let begin = SnapshotStart {
            image_size: size,
            log_size,
            store_uuid: uuid(store_uuid)?,
            epoch,
            history: history.into_iter().map(|(epoch, start)| EpochStart { epoch, start }).collect(),
            start: Point { lsn: start, seq: start_seq, chain: start_chain },
        };
        let core = raise(py, py.detach(|| Core::create(&path, &begin, wanted)))?;
        Ok(Self { core: Mutex::new(core) })
    }

    fn superblock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        superblock_dict(py, self.lock().superblock())
    }

    fn words<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        words_dict(py, self.lock().control())
    }

    #[getter]
    fn end(&self) -> u64 {
        self.lock().end().lsn
    }

    #[getter]
    fn end_seq(&self) -> u64 {
        self.lock().end().seq
    }

    #[getter]
    fn end_chain(&self) -> u32 {
        self.lock().end().chain
    }

    #[getter]
    fn epoch(&self) -> u64 {
        self.lock().epoch()
    }

    #[getter]
    fn commit_time_ns(&self) -> u64 {
        self.lock().time_ns()
    }

    fn set_epoch(&self, py: Python<'_>, epoch: u64) -> PyResult<()> {
        raise(py, py.detach(|| self.lock().set_epoch(epoch)))
    }

    fn buffer(&self, py: Python<'_>, length: usize) -> PyResult<Py<PyAny>> {
        let (p, len) = raise(py, py.detach(|| self.lock().buffer(length).map(|(p, len)| (p as usize, len))))?;
        crate::memory(py, p as *mut u8, len, true)
    }

    fn advance(&self, py: Python<'_>, length: usize) -> PyResult<u64> {
        Ok(raise(py, py.detach(|| self.lock().advance(length)))?.lsn)
    }

    fn discard_partial(&self) {
        self.lock().discard_partial();
    }

    fn note_primary(&self, committed: u64, commit_time_ns: u64) {
        self.lock().note_primary(committed, commit_time_ns);
    }

    #[pyo3(signature = (first_page, data, sums = None))]
    fn write_pages(
        &self,
        py: Python<'_>,
        first_page: u64,
        data: &Bound<'_, PyAny>,
        sums: Option<&[u8]>,
    ) -> PyResult<()> {
        let data = Held::get(data, false)?;
        // SAFETY: the caller of the binding promises that nobody writes to the buffer meanwhile.
        raise(py, py.detach(|| self.lock().write_pages(first_page, unsafe { data.bytes() }, sums)))
    }

    fn receive(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<u64> {
        let data = Held::get(data, false)?;
        // SAFETY: as above.
        Ok(raise(py, py.detach(|| self.lock().receive(unsafe { data.bytes() })))?.lsn)
    }

    fn page_digests<'py>(
        &self,
        py: Python<'py>,
        first_page: u64,
        pages: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let d = raise(py, py.detach(|| self.lock().digests(first_page, pages)))?;
        Ok(PyBytes::new(py, &d))
    }

    fn finish_snapshot(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, py.detach(|| self.lock().finish_snapshot()))
    }

    fn read_log<'py>(&self, py: Python<'py>, lsn: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = raise(py, py.detach(|| self.lock().read_log(lsn, length)))?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn promote(&self, py: Python<'_>, epoch: u64) -> PyResult<u64> {
        raise(py, py.detach(|| self.lock().promote(epoch)))
    }

    fn checkpoint(&self, py: Python<'_>) -> PyResult<u64> {
        raise(py, py.detach(|| self.lock().checkpoint()))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, py.detach(|| self.lock().close()))
    }
}

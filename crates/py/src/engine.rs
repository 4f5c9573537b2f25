//! An open store.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use sustain_core::capture::Mode;
use sustain_core::format::{Durability, Superblock};
use sustain_core::medium::FileMedium;
use sustain_core::store::{Attempt, Options, Store};

use crate::errors::{bad_word, raise};
use crate::objects::ArrayBuffer;
use crate::outside::{destinations_list, superblock_dict, words_dict};

/// Calls that may wait for long come back this often, so that Ctrl-C gets through.
const SLICE: Duration = Duration::from_millis(200);

/// Documented in `_native.pyi`.
#[pyclass(subclass, frozen, module = "sustain._native")]
pub struct Engine {
    pub(crate) store: Store<FileMedium>,
    path: PathBuf,
    closed: AtomicBool,
}

/// "auto" or a name.
pub(crate) fn durability(name: &str) -> PyResult<Option<Durability>> {
    if name == "auto" {
        return Ok(None);
    }
    let found = Durability::from_name(name);
    found.map(Some).ok_or_else(|| bad_word("durability", name, "auto, pmem, disk, memory"))
}

/// Sixteen bytes from Python.
pub(crate) fn uuid(bytes: &[u8]) -> PyResult<[u8; 16]> {
    bytes.try_into().map_err(|_| PyValueError::new_err("a UUID has 16 bytes"))
}

impl Engine {
    fn commit_slowly(&self, py: Python<'_>) -> PyResult<u64> {
        let started = Instant::now();
        loop {
            if let Some(lsn) = raise(py, py.detach(|| self.store.commit_for(started, SLICE)))? {
                return Ok(lsn);
            }
            py.check_signals()?;
        }
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (path, readonly = false, capture = "auto", verify = "lazy", log_timeout_s = 60.0))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        readonly: bool,
        capture: &str,
        verify: &str,
        log_timeout_s: f64,
    ) -> PyResult<Self> {
        let capture = match capture {
            "auto" => None,
            "scan" => Some(Mode::Scan),
            "pagemap" => Some(Mode::Pagemap),
            "compare" => Some(Mode::Compare),
            other => return Err(bad_word("capture", other, "auto, scan, pagemap, compare")),
        };
        let verify_all = match verify {
            "lazy" => false,
            "full" => true,
            other => return Err(bad_word("verify", other, "lazy, full")),
        };
        let log_timeout = Duration::try_from_secs_f64(log_timeout_s)
            .map_err(|e| PyValueError::new_err(format!("log_timeout_s: {e}")))?;
        let options = Options { capture, verify_all, log_timeout };
        let opened = py.detach(|| {
            if readonly { Store::open_readonly(&path, options) } else { Store::open(&path, options) }
        });
        Ok(Self { store: raise(py, opened)?, path, closed: AtomicBool::new(false) })
    }

    #[staticmethod]
    #[pyo3(signature = (path, size, log_size, durability, store_uuid = None, epoch = 1))]
    fn format(
        py: Python<'_>,
        path: PathBuf,
        size: u64,
        log_size: u64,
        durability: &str,
        store_uuid: Option<&[u8]>,
        epoch: u64,
    ) -> PyResult<()> {
        let wanted = self::durability(durability)?;
        let given = store_uuid.map(uuid).transpose()?;
        raise(
            py,
            py.detach(|| {
                let sb = Superblock::for_new_store(given, size, log_size, epoch)?;
                sustain_core::store::create(&path, sb, wanted)
            }),
        )
    }

    fn commit(&self, py: Python<'_>) -> PyResult<u64> {
        match self.store.try_commit() {
            Attempt::Done(done) => raise(py, done),
            Attempt::InFlight(ticket) => raise(py, py.detach(|| self.store.finish_commit(ticket))),
            Attempt::HeldBack(lsn) => raise(py, py.detach(|| self.store.hold_back(lsn))),
            Attempt::Busy => self.commit_slowly(py),
        }
    }

    fn rollback(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, py.detach(|| self.store.rollback()))
    }

    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, py.detach(|| self.store.begin()))
    }

    fn end(&self, py: Python<'_>) -> PyResult<()> {
        raise(py, py.detach(|| self.store.end()))
    }

    fn refresh(&self, py: Python<'_>) -> PyResult<u64> {
        raise(py, py.detach(|| self.store.refresh()))
    }

    fn checkpoint(&self, py: Python<'_>) -> PyResult<u64> {
        raise(py, py.detach(|| self.store.checkpoint()))
    }

    fn wait_copies(&self, py: Python<'_>, pos: u64, copies: usize, timeout_s: f64) -> PyResult<bool> {
        let timeout = Duration::try_from_secs_f64(timeout_s.clamp(0.0, 1e9))
            .map_err(|e| PyValueError::new_err(format!("timeout_s: {e}")))?;
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let slice = left.min(SLICE);
            if raise(py, py.detach(|| self.store.wait_copies(pos, copies, slice)))? {
                return Ok(true);
            }
            if left <= slice {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }

    fn objects(&self, py: Python<'_>) -> PyResult<Vec<(String, &'static str, u64)>> {
        let list = raise(py, self.store.look(|w, o| o.list(w)))?;
        Ok(list.into_iter().map(|(name, kind, bytes)| (name, kind.name(), bytes)).collect())
    }

    fn delete(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        raise(py, py.detach(|| self.store.change(|w, o| o.delete(w, name))))
    }

    #[pyo3(signature = (name, dtype, shape, itemsize = 0))]
    fn array_buffer(
        slf: &Bound<'_, Self>,
        name: &str,
        dtype: Option<&str>,
        shape: Option<Vec<u64>>,
        itemsize: u64,
    ) -> PyResult<(ArrayBuffer, String, Vec<u64>)> {
        let py = slf.py();
        let store = &slf.get().store;
        let opened = py.detach(|| {
            store
                .array(|w, o| {
                    let info = match (dtype, &shape) {
                        (Some(dtype), Some(shape)) => o.array(w, name, Some((dtype, shape, itemsize)))?,
                        (None, None) => o.array(w, name, None)?,
                        (dtype, shape) => {
                            let stored = o.array(w, name, None)?;
                            let dtype = dtype.unwrap_or(&stored.dtype);
                            let itemsize = if itemsize == 0 { stored.itemsize } else { itemsize };
                            o.array(
                                w,
                                name,
                                Some((dtype, shape.as_ref().unwrap_or(&stored.shape), itemsize)),
                            )?
                        }
                    };
                    let (offset, len) = (info.offset, info.len);
                    Ok((info, offset, len))
                })
                .map(|(info, base)| (info, base as usize))
        });
        let (info, base) = raise(py, opened)?;
        let writable = !store.readonly();
        let buffer = ArrayBuffer::new(slf.clone().unbind(), base, info.offset, info.len, writable);
        Ok((buffer, info.dtype, info.shape))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.closed.store(true, Ordering::Relaxed);
        raise(py, py.detach(|| self.store.close()))
    }

    fn words<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        raise(py, self.store.position())?;
        words_dict(py, self.store.control())
    }

    fn destinations<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        raise(py, self.store.position())?;
        destinations_list(py, self.store.control())
    }

    fn shipper_locked(&self, py: Python<'_>) -> PyResult<bool> {
        raise(py, self.store.shipper_locked())
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sb = raise(py, self.store.superblock())?;
        superblock_dict(py, &sb)
    }

    fn verify(&self, py: Python<'_>) -> PyResult<u64> {
        raise(
            py,
            py.detach(|| {
                let pages = self.store.verify()?;
                self.store.look(|w, o| o.check(w).map(|_| ()))?;
                Ok(pages)
            }),
        )
    }

    fn usage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let u = raise(py, self.store.look(|w, o| o.usage(w)))?;
        let d = PyDict::new(py);
        d.set_item("image_bytes", u.image_bytes)?;
        d.set_item("used_bytes", u.used_bytes)?;
        d.set_item("free_bytes", u.free_bytes)?;
        Ok(d)
    }

    #[getter]
    fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    #[getter]
    fn readonly(&self) -> bool {
        self.store.readonly()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) || self.store.closed()
    }

    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<u64> {
        raise(py, self.store.position())
    }

    #[getter]
    fn capture(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(raise(py, self.store.capture_mode())?.map_or("none", Mode::name))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nobody is left to hear of an error; the next open recovers.
        let _ = self.store.close();
    }
}

//! Ends of TLS connections.

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use sustain_tls::{End, Fault, Identity, LoadFault};

const PIECE: usize = 64 << 10; // copied before it is sealed: what is shared with other processes is never borrowed

/// A `TlsFault`, found by name.
#[cold]
fn fault(py: Python<'_>, fault: &Fault) -> PyErr {
    raised(py, fault.code, &fault.words)
}

#[cold]
fn raised(py: Python<'_>, code: &str, words: &str) -> PyErr {
    let made = (|| {
        let class = py.import("sustain.replication.tls_errors")?.getattr("TlsFault")?;
        class.call1((code, words))
    })();
    made.map_or_else(|e| e, PyErr::from_value)
}

fn load_fault(py: Python<'_>, found: &LoadFault) -> PyErr {
    match found {
        LoadFault::Ca(words) => raised(py, "ca", words),
        LoadFault::Pair(words) => raised(py, "pair", words),
        LoadFault::Useless(found) => fault(py, found),
    }
}

fn os_error(error: &std::io::Error) -> PyErr {
    PyOSError::new_err((error.raw_os_error(), error.to_string()))
}

/// Documented in `_native.pyi`.
#[pyclass(frozen, module = "sustain._native")]
pub struct TlsIdentity(Identity);

#[pymethods]
impl TlsIdentity {
    #[new]
    fn new(py: Python<'_>, certificate: &[u8], key: &[u8], ca: &[u8]) -> PyResult<Self> {
        Identity::load(certificate, key, ca).map(Self).map_err(|e| load_fault(py, &e))
    }

    fn prove(&self, py: Python<'_>) -> PyResult<u64> {
        self.0.prove().map_err(|e| load_fault(py, &e))
    }

    fn server(&self, py: Python<'_>) -> PyResult<TlsEnd> {
        self.0.server().map(TlsEnd::new).map_err(|e| fault(py, &e))
    }

    fn client(&self, py: Python<'_>, host: &str) -> PyResult<TlsEnd> {
        self.0.client(host).map(TlsEnd::new).map_err(|e| fault(py, &e))
    }
}

struct Inner {
    end: End,
    piece: Vec<u8>,
}

/// Documented in `_native.pyi`.
#[pyclass(frozen, module = "sustain._native")]
pub struct TlsEnd(Mutex<Inner>);

/// The memory of a buffer that is held.
struct Memory {
    start: *mut u8,
    length: usize,
}

// SAFETY: bytes are only copied in and out, by one thread at a time.
unsafe impl Send for Memory {}

impl Memory {
    /// `held` outlives the answer.
    fn of(held: &PyBuffer<u8>, writable: bool) -> PyResult<Self> {
        if !held.is_c_contiguous() || (writable && held.readonly()) {
            return Err(PyValueError::new_err(
                "a contiguous buffer of bytes is needed, a writable one to read into",
            ));
        }
        Ok(Self { start: held.buf_ptr().cast(), length: held.len_bytes() })
    }

    /// Store `data` at `at`.
    fn put(&self, at: usize, data: &[u8]) {
        assert!(data.len() <= self.length - at);
        // SAFETY: it lies within the buffer, which is held; no reference to it is made.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.start.add(at), data.len()) }
    }

    /// Have `piece` hold up to PIECE bytes from `at` on.
    fn copy(&self, at: usize, piece: &mut Vec<u8>) {
        let length = (self.length - at).min(PIECE);
        piece.clear();
        piece.reserve(length);
        // SAFETY: it lies within the buffer, which is held, and `piece` has room for it; no reference to it is made.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.add(at), piece.as_mut_ptr(), length);
            piece.set_len(length);
        }
    }
}

impl TlsEnd {
    fn new(end: End) -> Self {
        Self(Mutex::new(Inner { end, piece: Vec::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl TlsEnd {
    fn shake(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.lock().end.shake()).map_err(|e| fault(py, &e))
    }

    fn feed(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let data = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        py.detach(|| self.lock().end.feed(&data)).map_err(|e| fault(py, &e))
    }

    fn outgoing<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let taken = py.detach(|| self.lock().end.take_outgoing());
        PyBytes::new(py, &taken)
    }

    fn receive(&self, py: Python<'_>, socket: RawFd) -> PyResult<usize> {
        py.detach(|| self.lock().end.receive(socket)).map_err(|e| os_error(&e))
    }

    fn read_into(&self, py: Python<'_>, view: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
        let held = PyBuffer::<u8>::get(view)?;
        let memory = Memory::of(&held, true)?;
        let result = py.detach(move || {
            let memory = memory;
            let mut at = 0;
            let mut give = |data: &[u8]| {
                memory.put(at, data);
                at += data.len();
            };
            self.lock().end.read(memory.length, &mut give)
        });
        result.map_err(|e| fault(py, &e))
    }

    fn seal(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let held = PyBuffer::<u8>::get(data)?;
        let memory = Memory::of(&held, false)?;
        let result = py.detach(move || {
            let memory = memory;
            let inner = &mut *self.lock();
            let mut at = 0;
            while at < memory.length {
                memory.copy(at, &mut inner.piece);
                let taken = inner.end.seal(&inner.piece)?;
                at += taken;
                if taken < inner.piece.len() {
                    break;
                }
            }
            Ok(at)
        });
        result.map_err(|e| fault(py, &e))
    }

    fn send(&self, py: Python<'_>, socket: RawFd) -> PyResult<bool> {
        py.detach(|| self.lock().end.send(socket)).map_err(|e| os_error(&e))
    }

    fn pending(&self, py: Python<'_>) -> bool {
        py.detach(|| self.lock().end.pending())
    }
}

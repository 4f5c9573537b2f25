//! Ends of TLS connections.

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use sustain_core::copy::copy;
use sustain_tls::{End, Fault, Identity, LoadFault};

const ROUNDS: usize = 16; // of a call, so that one that feeds us nothings does not keep it for ever

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

/// Documented in `_native.pyi`.
#[pyclass(frozen, module = "sustain._native")]
pub struct TlsEnd(Mutex<End>);

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
        unsafe { copy(data.as_ptr(), self.start.add(at), data.len()) }
    }

    /// Fill `room` with what lies from `at` on. What is shared with other processes is never borrowed.
    fn fill(&self, at: usize, room: &mut [u8]) {
        assert!(room.len() <= self.length - at);
        // SAFETY: it lies within the buffer, which is held; no reference to it is made.
        unsafe { copy(self.start.add(at), room.as_mut_ptr(), room.len()) }
    }

    /// Have what lies from `at` on sealed, as much as may wait: the bytes taken.
    fn seal(&self, at: usize, end: &mut End) -> Result<usize, Fault> {
        end.seal(self.length - at, &mut |from, room| self.fill(at + from, room))
    }
}

impl TlsEnd {
    fn new(end: End) -> Self {
        Self(Mutex::new(end))
    }

    fn lock(&self) -> MutexGuard<'_, End> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What can go wrong once there is a session.
enum Trouble {
    Socket(std::io::Error),
    Session(Fault),
}

impl Trouble {
    fn raised(&self, py: Python<'_>) -> PyErr {
        match self {
            Self::Socket(error) => os_error(error),
            Self::Session(found) => fault(py, found),
        }
    }
}

/// Fill `memory` from `end` and its socket as far as can be without waiting: bytes, None when more must come; and the bytes
/// that the socket had.
fn receive(end: &mut End, socket: RawFd, memory: &Memory) -> Result<(Option<usize>, usize), Trouble> {
    let (mut at, mut came) = (0, 0);
    for _ in 0..ROUNDS {
        let begun = at;
        let found = end.read(memory.length - begun, &mut |data| {
            memory.put(at, data);
            at += data.len();
        });
        match found {
            Ok(Some(given)) if given == 0 || at == memory.length => return Ok((Some(at), came)),
            Ok(_) => {}
            Err(_) if at > 0 => return Ok((Some(at), came)), // it says so again
            Err(found) => return Err(Trouble::Session(found)),
        }
        match end.receive(socket) {
            Ok(0) if at > 0 => return Ok((Some(at), came)), // likewise
            Ok(0) => return Ok((Some(0), came)),
            Ok(got) => came += got,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(_) if at > 0 => return Ok((Some(at), came)), // likewise
            Err(error) => return Err(Trouble::Socket(error)),
        }
    }
    Ok(((at > 0).then_some(at), came))
}

/// Seal what `memory` holds and send it, as far as can be without waiting: the bytes taken, and whether all that was sealed
/// has gone.
fn send(end: &mut End, socket: RawFd, memory: &Memory) -> Result<(usize, bool), Trouble> {
    let mut at = 0;
    loop {
        at += memory.seal(at, end).map_err(Trouble::Session)?;
        let gone = end.send(socket).map_err(Trouble::Socket)?;
        if at == memory.length || !gone {
            return Ok((at, gone));
        }
    }
}

#[pymethods]
impl TlsEnd {
    fn shake(&self, py: Python<'_>) -> PyResult<bool> {
        py.detach(|| self.lock().shake()).map_err(|e| fault(py, &e))
    }

    fn feed(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let data = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        py.detach(|| self.lock().feed(&data)).map_err(|e| fault(py, &e))
    }

    fn outgoing<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let taken = py.detach(|| self.lock().take_outgoing());
        PyBytes::new(py, &taken)
    }

    fn receive_into(
        &self,
        py: Python<'_>,
        socket: RawFd,
        view: &Bound<'_, PyAny>,
    ) -> PyResult<(Option<usize>, usize)> {
        let held = PyBuffer::<u8>::get(view)?;
        let memory = Memory::of(&held, true)?;
        let result = py.detach(move || {
            let memory = memory;
            receive(&mut self.lock(), socket, &memory)
        });
        result.map_err(|e| e.raised(py))
    }

    fn seal(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let held = PyBuffer::<u8>::get(data)?;
        let memory = Memory::of(&held, false)?;
        let result = py.detach(move || {
            let memory = memory;
            memory.seal(0, &mut self.lock())
        });
        result.map_err(|e| fault(py, &e))
    }

    fn send(&self, py: Python<'_>, socket: RawFd) -> PyResult<bool> {
        py.detach(|| self.lock().send(socket)).map_err(|e| os_error(&e))
    }

    fn send_from(&self, py: Python<'_>, socket: RawFd, data: &Bound<'_, PyAny>) -> PyResult<(usize, bool)> {
        let held = PyBuffer::<u8>::get(data)?;
        let memory = Memory::of(&held, false)?;
        let result = py.detach(move || {
            let memory = memory;
            send(&mut self.lock(), socket, &memory)
        });
        result.map_err(|e| e.raised(py))
    }

    fn pending(&self, py: Python<'_>) -> bool {
        py.detach(|| self.lock().pending())
    }
}
